"""Images of several pixel sizes and boxes: on the grid of the map they show what they showed, as strongly."""

import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import write_map
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import image_to_fourier, resample_image, shell_means
from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, ReconstructOptions, TrainOptions
from dynamight_core.particles.grid import resample_to_grid
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import describe, read_particles
from dynamight_core.particles.preprocess import Preprocessing, read_prepared
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import SimulateOptions, simulate
from dynamight_core.training.stage import train


def blobs(box, pixel_size, centres, width=9.0):
    """Return (n, box, box) Gaussians at (n, 2) places (A) from the centre."""
    axis = (np.arange(box) - box // 2) * pixel_size
    x, y = axis[None, None] - centres[:, :1, None], axis[None, :, None] - centres[:, 1:, None]
    return torch.from_numpy(np.exp(-(x**2 + y**2) / (2 * width**2))).float()


@pytest.mark.parametrize(("box", "pixel_size"), [(72, 4.2), (63, 4.9), (80, 3.3), (70, 4.0)])
def test_places_in_a_stay_and_so_do_grey_values(box, pixel_size):
    centres = np.array([[0.0, 0.0], [31.0, -17.0], [-40.0, 22.5]])
    found = resample_to_grid(blobs(box, pixel_size, centres), pixel_size, 64, 4.0)
    assert torch.allclose(found, blobs(64, 4.0, centres), atol=2e-4)


def test_pixels_of_one_box_are_fourier_cropped():
    image = torch.randn(2, 48, 48, generator=torch.Generator().manual_seed(0))
    cropped, resampled = resample_image(image, 32), resample_to_grid(image, 2.0, 32, 3.0)
    spectra = image_to_fourier(cropped), image_to_fourier(resampled)
    inside = slice(0, 15)
    for one, other in zip(*spectra, strict=True):
        assert torch.allclose(one[inside, inside], other[inside, inside], atol=1e-3)


def mixed_files(files, pixel_sizes, boxes, n=6):
    """Write two optics groups of white noise, with the same spectral density; return the STAR file."""
    generator = np.random.default_rng(3)
    names = []
    for group, (box, pixel_size) in enumerate(zip(boxes, pixel_sizes, strict=True)):
        images = generator.normal(size=(n, box, box)) / pixel_size
        files.stack(f"group{group}.mrcs", images.astype(np.float32))
        names += [f"{i + 1}@group{group}.mrcs" for i in range(n)]
    rows = files.rows(rlnImageName=names, rlnOpticsGroup=["1"] * n + ["2"] * n)
    optics = files.optics(2, rlnImagePixelSize=list(map(str, pixel_sizes)), rlnImageSize=list(map(str, boxes)))
    return files.star(rows, optics)


def test_the_grid_is_that_of_the_map_or_of_most_images(particle_files):
    star = mixed_files(particle_files, (4.0, 4.2), (64, 72))
    particles = read_particles(star)
    assert (particles.box, particles.pixel_size) == (64, 4.0)
    assert "resampled to this: 6 images of 72 pixels of 4.2 A" in "\n".join(describe(particles))
    with ImageReader(particles) as reader:
        assert reader.read(np.array([11, 0])).shape == (2, 64, 64)
    generator = np.random.default_rng(0)
    maps = {}
    for box, pixel_size in ((64, 4.0), (72, 4.2), (64, 3.0)):
        maps[box, pixel_size] = str(particle_files.folder / f"map{box}_{pixel_size}.mrc")
        write_map(maps[box, pixel_size], generator.normal(size=(box,) * 3), pixel_size)
    assert read_particles(star, volume=maps[64, 4.0]).pixel_size == 4.0
    with pytest.raises(InputError, match=r"64 pixels of 4 A \(256.0 A\), too small for a box of 302.4 A"):
        read_particles(star, volume=maps[72, 4.2])
    with pytest.raises(
        InputError, match=r"has 64 voxels of 3 A, but the images .* have 64 pixels of 4 A, 72 pixels of"
    ):
        read_particles(star, volume=maps[64, 3.0])


def test_noise_is_as_strong_in_images_of_all_sizes(particle_files):
    # Coarse pixels lack the highest frequencies of the grid, fine ones have more.
    particles = read_particles(mixed_files(particle_files, (4.0, 4.6), (64, 60)))
    with ImageReader(particles) as reader:
        images = read_prepared(reader, slice(None), Preprocessing(64, 180.0))
    power = shell_means(image_to_fourier(images).abs().square(), 64).reshape(2, 6, -1)[:, :, 4:26].mean((1, 2))
    assert power[1] / power[0] == pytest.approx(1, abs=0.1)


def test_the_transfer_function_ends_where_an_image_does():
    ctf = CtfParameters.create([1e4, 1e4], band=[torch.inf, 0.05])
    transfer = evaluate_ctf(ctf, 64, 4.0)
    frequency = torch.fft.fftfreq(64, 4.0).abs()[:, None].maximum(torch.fft.rfftfreq(64, 4.0)[None])
    assert not transfer[1][frequency > 0.0501].any()
    assert torch.equal(transfer[1][frequency < 0.0499], transfer[0][frequency < 0.0499])


def merge(folder, *sets):
    """Write one STAR file with an optics group for each simulated set."""
    blocks = [starfile.read(files.particles) for files in sets]
    rows, optics = [], []
    for group, (block, files) in enumerate(zip(blocks, sets, strict=True), 1):
        table = block["particles"].assign(rlnOpticsGroup=group)
        table["rlnImageName"] = table["rlnImageName"].str.replace("particles.mrcs", str(files.stack))
        rows.append(table)
        optics.append(block["optics"].assign(rlnOpticsGroup=group))
    path = folder / "merged.star"
    starfile.write({"optics": pd.concat(optics), "particles": pd.concat(rows)}, path)
    return path


def test_motion_and_map_of_mixed_sets_are_as_good_as_of_one(hinge_set, trained, tmp_path):
    sets = [
        simulate(SimulateOptions(particles=n, box=box, pixel_size=size, snr=8.0, seed=1), tmp_path / str(box))
        for n, box, size in ((301, 32, 6.0), (299, 36, 6.3))
    ]
    star = merge(tmp_path, *sets)
    inputs = InputOptions(star=str(star), map=str(sets[0].consensus))
    options = TrainOptions(n_gaussians=300, n_latents=2, epochs=12, refits=1)
    run = summarise(train(inputs, options, tmp_path / "run", reporter=QUIET), QUIET)
    angles = np.concatenate([np.load(files.truth)["angles"][:, 0] for files in sets])
    found = run.motions.coordinates[:, 0].numpy()
    one = abs(np.corrcoef(trained[1].motions.coordinates[:, 0], np.load(hinge_set.truth)["angles"][:, 0])[0, 1])
    assert abs(np.corrcoef(found, angles)[0, 1]) > one - 0.05
    # Both groups are on one scale.
    assert abs(found[:301].std() / found[301:].std() - 1) < 0.15
    reconstruct_run(Run(run.path), ReconstructOptions(choose_density=False, rigid=False), reporter=QUIET)
    assert (run.path / "reconstruction" / "map.mrc").exists()

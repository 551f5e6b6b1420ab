"""Simulated data sets: particle images with known motion, consensus maps, and the truth."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch

from dynamight_core.files import atomic_files, write_map
from dynamight_core.imaging.fourier import expand_shells, fourier_to_image, image_to_fourier
from dynamight_core.imaging.geometry import pixel_axis
from dynamight_core.options import SimulateOptions
from dynamight_core.parallel import single_threads
from dynamight_core.simulate.draw import draw_truth
from dynamight_core.simulate.fourier_reconstruction import FourierReconstruction
from dynamight_core.simulate.star import group_numbers, optics_table, write_star
from dynamight_core.simulate.tilts import SERIES_FILES, series_columns, tilted, write_stacks
from dynamight_core.simulate.truth import PARTICLE, Truth

# Images that a thread computes at once, and batches whose noise is drawn before they are computed.
BATCH, AHEAD = 100, 8


@dataclass(frozen=True)
class SimulatedFiles:
    """Paths of a simulated data set; the stack is None if each particle has one."""

    particles: Path
    stack: Path | None
    consensus: Path
    half_maps: tuple[Path, Path]
    truth: Path


def simulate(
    options: SimulateOptions, out: str | Path, progress: Callable[[int, int], None] | None = None
) -> SimulatedFiles:
    """Simulate particle images and write them with their metadata, consensus maps and truth.

    Particles are white; noise has a mean of 0 and a variance of 1.

    Parameters
    ----------
    options
        of the simulation.
    out
        folder of particles.star, particles.mrcs, consensus.mrc, consensus_half1.mrc, consensus_half2.mrc and truth.npz;
        created if missing. With `options.tilt_stacks`, RELION 5's files of tilt series take the place of the first two.
    progress
        called with the number of particles done and of all particles.

    Raises
    ------
    InputError
        if an option cannot be used or the folder cannot be written.
    """
    out = Path(out)
    whole = out / "particles.mrcs"
    files = SimulatedFiles(
        particles=out / "particles.star",
        stack=None if options.tilt_stacks else whole,
        consensus=out / "consensus.mrc",
        half_maps=(out / "consensus_half1.mrc", out / "consensus_half2.mrc"),
        truth=out / "truth.npz",
    )
    generator = torch.Generator().manual_seed(options.seed)
    truth, groups = draw_truth(options, generator)
    scheme = None
    if options.tilts is not None:
        truth, groups, scheme = tilted(truth, groups, options, generator)
    maps = (*files.half_maps, files.consensus)
    images = [whole] if files.stack else [out / name for name in SERIES_FILES]
    with atomic_files(*images, *maps, files.truth, files.particles) as folder, single_threads() as pool:
        truth.scale = signal_scale(truth, options.snr_definition, pool)
        with _new_stack(folder / whole.name, options, len(truth)) as stack:
            _write_images(stack.data, truth, generator, pool, progress)
            stack.update_header_stats()
            first, second = pool.map(lambda half: consensus(truth, stack.data, half), (1, 2))
        for half, path in zip((first, second, first + second), maps, strict=True):
            write_map(folder / path.name, half.volume().numpy(), options.pixel_size)
        if scheme is not None and options.tilt_stacks:
            write_stacks(folder, truth, scheme, optics_table(truth, groups), group_numbers(groups))
        else:
            more = None if scheme is None else series_columns(truth, scheme)
            write_star(folder / files.particles.name, truth, groups, whole.name, more)
        truth.save(folder / files.truth.name)
    return files


def signal_scale(truth: Truth, definition: str, pool: Executor) -> float:
    """Return the grey value per unit weight for the SNR of the data set at a noise variance of 1.

    Parameters
    ----------
    truth
        of the data set.
    definition
        of the signal's variance, as in `SimulateOptions`. "cryobench" is that of CryoBench (Jeon et al. 2024,
        arXiv 2408.05526; cryosim/add_noise.py): of all pixels of all images after the CTF, without noise.
    pool
        of threads.
    """
    coordinates = pixel_axis(truth.box) * truth.pixel_size
    disc = torch.hypot(coordinates[:, None], coordinates[None]) <= truth.particle_diameter / 2

    def moments(batch: slice) -> torch.Tensor:
        """Return the mean and the mean square of each image of the molecule, about its own mean in the disc."""
        shown = torch.arange(len(truth))[batch][truth.content[batch] == PARTICLE]
        if definition == "disc":
            variances = fourier_to_image(truth.project(shown), truth.box)[:, disc].var(1)
            return torch.stack([torch.zeros_like(variances), variances])
        images = fourier_to_image(truth.clean_transforms(shown), truth.box)
        return torch.stack([images.mean((1, 2)), images.square().mean((1, 2))])

    mean, square = torch.cat(list(pool.map(moments, batches(len(truth)))), 1).mean(1)
    return float((truth.snr / (square - mean.square())).sqrt()) * truth.scale


def batches(n: int) -> list[slice]:
    """Return slices of at most `BATCH` of n particles."""
    return [slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]


def white_noise(truth: Truth, indices: slice, generator: torch.Generator) -> torch.Tensor:
    """Draw (b, box, box) images of white noise with a variance of 1."""
    return torch.randn(indices.stop - indices.start, truth.box, truth.box, generator=generator)


def noisy_images(truth: Truth, indices: slice, white: torch.Tensor) -> torch.Tensor:
    """Return (b, box, box) images: clean images plus (b, box, box) white noise given the spectrum of the truth."""
    noise = image_to_fourier(white) * expand_shells(truth.noise_power, truth.box).sqrt()
    return fourier_to_image(truth.clean_transforms(indices) + noise, truth.box)


def _write_images(
    stack: np.ndarray,
    truth: Truth,
    generator: torch.Generator,
    pool: Executor,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write all images into a (particles, box, box) array."""

    def write(batch: slice, white: torch.Tensor) -> None:
        stack[batch] = noisy_images(truth, batch, white).numpy()

    parts = batches(len(truth))
    # Noise is drawn in the order of the particles, whatever the number of threads, some batches ahead.
    for start in range(0, len(parts), AHEAD):
        several = parts[start : start + AHEAD]
        list(pool.map(write, several, [white_noise(truth, batch, generator) for batch in several]))
        if progress:
            progress(several[-1].stop, len(truth))


def consensus(truth: Truth, images: np.ndarray, half: int) -> FourierReconstruction:
    """Return the reconstruction of one half-set from (particles, box, box) images and the poses in the STAR file."""
    reconstruction = FourierReconstruction(truth.box, truth.pixel_size)
    matrices = truth.star_matrices()
    for rows in (truth.half == half).nonzero()[:, 0].split(BATCH):
        mine = torch.from_numpy(images[rows.numpy()].astype(np.float32))
        reconstruction.insert(mine, truth.ctf[rows], matrices[rows], truth.star_origins[rows])
    return reconstruction


def _new_stack(path: Path, options: SimulateOptions, images: int) -> mrcfile.mrcmemmap.MrcMemmap:
    """Open a new memory-mapped stack of a number of images."""
    shape = (images, options.box, options.box)
    stack = mrcfile.new_mmap(path, shape=shape, mrc_mode=12 if options.float16 else 2)
    stack.set_image_stack()
    stack.voxel_size = options.pixel_size
    # Without mrcfile's label, which has the time, the same seed gives the same bytes.
    stack.header.label[0] = "simulated particle images"
    return stack

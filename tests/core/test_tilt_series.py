"""Particles of tilt series: read from either form, and one latent is inferred from all images of a particle."""

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.image_series import ImageSeries
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf, remaining_signal
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, shell_means
from dynamight_core.imaging.poses import euler_angles, random_rotations, rotation_matrices
from dynamight_core.judging.summary import summarise
from dynamight_core.options import InputOptions, ReconstructOptions, SimulateOptions, TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles, write_particles
from dynamight_core.particles.preprocess import Preprocessing, prepare_images, restored_noise
from dynamight_core.particles.relatives import find_relatives
from dynamight_core.particles.symmetry import expand, symmetry_operators
from dynamight_core.particles.tilt_series import TiltOptions
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.truth import load_truth
from dynamight_core.training.data import changed_poses
from dynamight_core.training.inference import data_terms, encode, infer_latents
from dynamight_core.training.losses import data_loss
from dynamight_core.training.read import read_inputs
from dynamight_core.training.stage import train
from tests.support.known_motion import known_motion, untrained

TILTS, PARTICLES = 5, 60


@pytest.fixture(scope="module")
def tilt_files(tmp_path_factory):
    """One data set in both forms: rows of images, and stacks of particles."""
    folder = tmp_path_factory.mktemp("tilts")
    options = {"particles": PARTICLES, "tilts": TILTS, "tilt_dose": 12.0, "box": 16, "pixel_size": 10.0, "seed": 2}
    for name, stacks in {"rows": False, "stacks": True}.items():
        simulate(SimulateOptions(**options, tilt_stacks=stacks), folder / name)
    return folder


def same_images(one, other):
    """Whether two sets of particles have the same images, poses, CTFs and half-sets."""
    poses = [rotation_matrices(each.angles) for each in (one, other)]
    ctfs = [evaluate_ctf(each.ctf, 16, each.pixel_size) for each in (one, other)]
    return (
        torch.equal(one.series.owner, other.series.owner)
        and torch.equal(one.halves, other.halves)
        and torch.allclose(*poses, atol=1e-5)
        and torch.allclose(one.shifts, other.shifts, atol=1e-4)
        and torch.allclose(*ctfs, atol=1e-4)
        and torch.equal(*(ImageReader(each).read(slice(None)) for each in (one, other)))
    )


@pytest.mark.parametrize("name", ["particles.star", "optimisation_set.star"])
def test_stacks_of_particles_are_read_as_rows_of_images_are(tilt_files, name):
    rows, stacks = read_particles(tilt_files / "rows" / "particles.star"), read_particles(tilt_files / "stacks" / name)
    assert len(rows) == len(stacks) == PARTICLES
    assert rows.n_images == stacks.n_images == PARTICLES * TILTS
    assert len(rows.table) == PARTICLES * TILTS
    assert len(stacks.table) == PARTICLES
    assert same_images(rows, stacks)


def test_poses_and_exposures_are_those_of_the_truth(tilt_files):
    particles, truth = (
        read_particles(tilt_files / "stacks" / "particles.star"),
        load_truth(tilt_files / "stacks" / "truth.npz"),
    )
    assert torch.equal(particles.series.owner, truth.particle)
    assert torch.allclose(rotation_matrices(particles.angles), rotation_matrices(truth.euler), atol=1e-5)
    assert torch.allclose(particles.shifts, truth.origins, atol=1e-4)
    assert torch.allclose(particles.ctf.exposure, truth.ctf.exposure)
    # From 0 degrees outwards.
    assert truth.ctf.exposure[:TILTS].tolist() == [48.0, 24.0, 0.0, 12.0, 36.0]


def test_projections_of_relion_4_in_pixels_are_read_as_well(tilt_files, tmp_path):
    given = starfile.read(tilt_files / "stacks" / "particles.star", always_dict=True)
    tomograms = starfile.read(tilt_files / "stacks" / "tomograms.star")
    tables = {}
    for name in tomograms["rlnTomoName"]:
        tilts = starfile.read(tilt_files / "stacks" / "tilt_series" / f"{name}.star")
        y, z = (np.deg2rad(tilts[f"rlnTomo{column}"].to_numpy()) for column in ("YTilt", "ZRot"))
        zero, one = np.zeros(len(y)), np.ones(len(y))
        rows = {
            "X": (np.cos(z) * np.cos(y), -np.sin(z), np.cos(z) * np.sin(y), zero),
            "Y": (np.sin(z) * np.cos(y), np.cos(z), np.sin(z) * np.sin(y), zero),
            "Z": (-np.sin(y), zero, np.cos(y), zero),
            "W": (zero, zero, zero, one),
        }
        for axis, values in rows.items():
            tilts[f"rlnTomoProj{axis}"] = [f"[{','.join(f'{v:.7f}' for v in row)}]" for row in np.stack(values, 1)]
        tables[name] = tilts.drop(columns=["rlnTomoYTilt", "rlnTomoZRot"])
    particles = given["particles"]
    for axis in "XYZ":
        centre = float(tomograms[f"rlnTomoSize{axis}"].iloc[0]) / 2
        particles[f"rlnCoordinate{axis}"] = particles.pop(f"rlnCenteredCoordinate{axis}Angst") / 10.0 + centre
    for column in ("rlnImageName",):
        particles[column] = [str(tilt_files / "stacks" / name) for name in particles[column]]
    starfile.write(given, tmp_path / "p.star")
    starfile.write({"global": tomograms.drop(columns=["rlnTomoTiltSeriesStarFile"])} | tables, tmp_path / "t.star")
    found = read_particles(tmp_path / "p.star", tilts=TiltOptions(str(tmp_path / "t.star")))
    assert same_images(found, read_particles(tilt_files / "stacks" / "particles.star"))


def test_hidden_tilts_are_not_used_whether_their_stack_has_them_or_not(tilt_files, tmp_path):
    given = starfile.read(tilt_files / "stacks" / "particles.star", always_dict=True)
    names = given["particles"]["rlnImageName"]
    given["particles"]["rlnTomoVisibleFrames"] = "[1,1,0,1,0]"
    given["particles"]["rlnImageName"] = [str(tilt_files / "stacks" / name) for name in names]
    starfile.write(given, tmp_path / "all.star")
    tilts = TiltOptions(str(tilt_files / "stacks" / "tomograms.star"))
    all_written = read_particles(tmp_path / "all.star", tilts=tilts)
    for number, name in enumerate(names):
        images = mrcfile.read(tilt_files / "stacks" / name)[[0, 1, 3]]
        mrcfile.write(tmp_path / f"{number}.mrcs", images)
    given["particles"]["rlnImageName"] = [f"{number}.mrcs" for number in range(len(names))]
    starfile.write(given, tmp_path / "visible.star")
    visible = read_particles(tmp_path / "visible.star", tilts=tilts)
    assert visible.n_images == 3 * PARTICLES
    assert same_images(all_written, visible)
    assert visible.ctf.exposure[:3].tolist() == [48.0, 24.0, 12.0]
    # Two images fit neither.
    mrcfile.write(tmp_path / "7.mrcs", images[:2], overwrite=True)
    with pytest.raises(InputError, match=r"7\.mrcs has 2 images, but row 8 .* 3 visible"):
        read_particles(tmp_path / "visible.star", tilts=tilts)


def test_limits_keep_the_images_of_least_exposure(tilt_files):
    for name in ("rows", "stacks"):
        path = tilt_files / name / "particles.star"
        few = read_particles(path, tilts=TiltOptions(max_tilts=2))
        assert few.n_images == 2 * PARTICLES
        assert few.ctf.exposure.max() == 12
        early = read_particles(path, tilts=TiltOptions(max_exposure=30.0))
        assert early.ctf.exposure.unique().tolist() == [0.0, 12.0, 24.0]
        # Results are written for all rows.
        write_particles(tilt_files / f"few-{name}.star", few, {"dynThing": np.arange(PARTICLES)})
        written = starfile.read(tilt_files / f"few-{name}.star")["particles"]
        assert len(written) == PARTICLES * (TILTS if name == "rows" else 1)
        assert written["dynThing"].tolist() == np.arange(PARTICLES).repeat(len(written) // PARTICLES).tolist()


def test_without_dose_weighting_signal_does_not_fade(tilt_files):
    path = tilt_files / "rows" / "particles.star"
    assert not read_particles(path, tilts=TiltOptions(dose_weighting=False)).ctf.exposure.any()
    ctf = CtfParameters.create([10000.0, 10000.0], exposure=[0.0, 40.0])
    whole, faded = evaluate_ctf(ctf, 64, 2.0)
    # At 8 A, Grant & Grigorieff's critical exposure is 0.245 * 8^1.665 + 2.81.
    at = 16
    assert float(faded[0, at] / whole[0, at]) == pytest.approx(np.exp(-20 / (0.245 * 8**1.665 + 2.81)), rel=1e-4)
    assert remaining_signal(torch.tensor([100.0]), torch.zeros(1)) == pytest.approx(1.0, abs=1e-4)


def test_rows_of_warp_share_a_group_and_exposures_in_the_b_factor(particle_files):
    particle_files.stack()
    columns = {"rlnGroupName": [f"tomo_{i // 3}" for i in range(12)], "rlnRandomSubset": None}
    given = columns | {"rlnCtfBfactor": [f"{-8 * (i % 3)}" for i in range(12)]}
    particles = read_particles(particle_files.star(particle_files.rows(**given)))
    assert len(particles) == 4
    assert particles.ctf.exposure.tolist() == [0.0, 2.0, 4.0] * 4
    assert not particles.ctf.b_factor.any()
    # Groups of micrographs are not particles.
    for given in (columns, columns | {"rlnCtfBfactor": ["-4"] * 12}):
        assert len(read_particles(particle_files.star(particle_files.rows(**given)))) == 12


def test_images_of_a_particle_must_be_in_one_half_set(particle_files):
    particle_files.stack()
    with pytest.raises(InputError, match="one particle in both half-sets, the first in row 2"):
        read_particles(particle_files.star(particle_files.rows(rlnTomoParticleName=[f"p{i // 3}" for i in range(12)])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rlnTomoVisibleFrames": "[1,1]"}, "2 values in row 1 of column rlnTomoVisibleFrames .* 5 images"),
        ({"rlnTomoName": "TS_9"}, "no tomogram TS_9"),
        ({"rlnTomoVisibleFrames": "[0,0,0,0,0]"}, "no visible image"),
    ],
)
def test_stacks_that_do_not_fit_their_tomogram_are_refused(tilt_files, tmp_path, change, message):
    given = starfile.read(tilt_files / "stacks" / "particles.star", always_dict=True)
    given["particles"] = given["particles"].assign(**change)
    given["particles"]["rlnImageName"] = [str(tilt_files / "stacks" / n) for n in given["particles"]["rlnImageName"]]
    starfile.write(given, tmp_path / "p.star")
    with pytest.raises(InputError, match=message):
        read_particles(tmp_path / "p.star", tilts=TiltOptions(str(tilt_files / "stacks" / "tomograms.star")))
    with pytest.raises(InputError, match=r"tomograms file of .* is not found"):
        read_particles(tmp_path / "p.star")


@pytest.mark.parametrize("name", ["rows", "stacks"])
def test_a_chosen_particle_has_its_images_and_rows(tilt_files, name):
    particles = read_particles(tilt_files / name / "particles.star", tilts=TiltOptions(max_tilts=3))
    chosen = particles.subset(np.array([7, 2, 7]))
    assert len(chosen) == 3
    images = torch.cat([torch.where(particles.series.owner == row)[0] for row in (7, 2, 7)])
    assert torch.equal(chosen.angles, particles.angles[images])
    assert chosen.series.owner.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    names = chosen.table["rlnTomoParticleName"].iloc[chosen.image_rows].tolist()
    assert names == ["TS_001/8"] * 3 + ["TS_001/3"] * 3 + ["TS_001/8"] * 3


@pytest.mark.parametrize("name", ["rows", "stacks"])
def test_symmetry_makes_copies_of_particles_with_all_their_images(tilt_files, name, tmp_path):
    particles = read_particles(tilt_files / name / "particles.star")
    copies = expand(particles, "C3")
    assert len(copies) == 3 * PARTICLES
    turned = rotation_matrices(particles.angles.double()) @ torch.from_numpy(symmetry_operators("C3")[1])
    second = copies.subset(np.arange(1, 3 * PARTICLES, 3))
    assert torch.allclose(rotation_matrices(second.angles.double()), turned, atol=1e-5)
    # Copies of a particle are relatives.
    assert find_relatives(copies, 0.0).tolist() == np.arange(PARTICLES).repeat(3).tolist()


def test_near_picks_in_a_tomogram_are_relatives(tilt_files):
    particles = read_particles(tilt_files / "stacks" / "particles.star")
    particles.table["rlnCenteredCoordinateXAngst"] = [str(500.0 * i) for i in range(PARTICLES)]
    particles.table.loc[5, "rlnCenteredCoordinateXAngst"] = "2010.0"
    for axis in "YZ":
        particles.table[f"rlnCenteredCoordinate{axis}Angst"] = "0.0"
    groups = find_relatives(particles, 20.0)
    assert groups[4] == groups[5]
    assert len(groups.unique()) == PARTICLES - 1


def paired(noise=0.05, n=40):
    """Return a model, data in which pairs of images show one particle, the same as single images, and its latents."""
    model, single, latents = known_motion(n, noise=noise)
    model, repeated, _ = known_motion(n, noise=noise)
    owner = torch.arange(n) // 2
    _, data, _ = known_motion(n, noise=noise)
    with torch.no_grad():
        own = latents[::2]
        positions = model.gaussians.positions + model.displacements(own[owner])
        batch = single.batch(torch.arange(n))
        images = torch.fft.irfft2(model.project(batch.matrices, batch.transfer, positions), s=(32, 32))
        clean = torch.fft.fftshift(images, dim=(-2, -1))
    sigma = float(model.noise_power[0]) ** 0.5 / 32
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for each in (data, repeated):
        each._images._images = noisy
    data.series = ImageSeries(owner)
    return model, data, repeated, own


def test_one_latent_is_inferred_from_all_images_of_a_particle():
    model, data, single, latents = paired(noise=2.0)
    rows, images = torch.arange(len(latents)), torch.arange(2 * len(latents))
    found = infer_latents(model, data, rows, [torch.zeros_like(latents)], steps=12)
    alone = infer_latents(model, single, images, [torch.zeros(len(images), 2)], steps=12)
    error = (found.latents - latents).square().mean()
    assert error < 0.8 * (alone.latents - latents.repeat_interleave(2, 0)).square().mean()
    # What two images say adds up: precisions without the prior, near the mode of both.
    precision = torch.linalg.inv(found.covariances) - torch.eye(2)
    of_images = torch.linalg.inv(alone.covariances) - torch.eye(2)
    summed = of_images[::2] + of_images[1::2]
    assert torch.allclose(
        precision.diagonal(dim1=1, dim2=2).median(0)[0], summed.diagonal(dim1=1, dim2=2).median(0)[0], rtol=0.2
    )


def test_likelihoods_and_losses_are_sums_over_images():
    model, data, single, latents = paired()
    rows, images = torch.arange(len(latents)), torch.arange(2 * len(latents))
    pixels = torch.rand(len(latents), 32, 17, generator=torch.Generator().manual_seed(0)) < 0.5
    found = data_terms(model, data, rows, latents, pixels)
    alone = data_terms(model, single, images, latents.repeat_interleave(2, 0), pixels.repeat_interleave(2, 0))
    assert torch.allclose(found, alone[::2] + alone[1::2], rtol=1e-4)
    trainers = untrained(model, data, rows), untrained(model, single, images)
    weights = model.seen_weights()
    losses = []
    for trainer, z in zip(trainers, (latents, latents.repeat_interleave(2, 0)), strict=True):
        batch = trainer.data.batch(trainer.rows).within(weights)
        losses.append(
            float(
                data_loss(trainer, batch, trainer.model.gaussians.positions + trainer.model.displacements(z), weights)
            )
        )
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-5)
    mean, _ = encode(model, data, rows)
    each, _ = encode(model, single, images)
    assert torch.allclose(mean, (each[::2] + each[1::2]) / 2, atol=1e-5)


def test_particles_with_different_numbers_of_images_do_not_change_each_other():
    model, data, _, _ = paired()
    # The first particle has three images, the last one.
    owner = torch.tensor([0, 0, 0, *data.series.owner[3:-1].tolist(), data.series.owner[-1].item() + 1])
    data.series = ImageSeries.of_names(owner)
    rows = torch.arange(len(data))
    starts = [torch.zeros(len(rows), 2)]
    together = infer_latents(model, data, rows, starts, steps=6, every=True)
    for row in (0, 5, len(rows) - 1):
        alone = infer_latents(model, data, rows[row : row + 1], [starts[0][:1]], steps=6, every=True)
        assert torch.allclose(together.latents[row], alone.latents[0], atol=1e-4)
        assert torch.allclose(together.covariances[row], alone.covariances[0], rtol=1e-3, atol=1e-6)


def test_a_pose_change_turns_and_shifts_a_particle_in_all_of_its_images():
    generator = torch.Generator().manual_seed(3)
    pose, tilts = rotation_matrices(random_rotations(1, generator)), rotation_matrices(random_rotations(4, generator))
    tilts[0] = torch.eye(3)
    matrices, change = tilts @ pose, torch.tensor([[0.1, -0.2, 0.05, 3.0, -2.0]]).expand(4, -1)
    ones = torch.ones(4, 16, 9)
    turned, transfer = changed_poses(change, matrices, ones, 64.0, matrices[:1].expand(4, -1, -1))
    alone, shifted = changed_poses(change[:1], matrices[:1], ones[:1], 64.0)
    assert torch.allclose(turned[0], alone[0], atol=1e-5)
    assert torch.allclose(transfer[0], shifted[0], atol=1e-5)
    # The other images are tilts of the turned particle, and see the projection of the shift.
    assert torch.allclose(turned, tilts @ turned[0], atol=1e-5)
    moved = tilts[2] @ torch.tensor([3.0, -2.0, 0.0])
    direct = changed_poses(torch.tensor([[0.0, 0, 0, *moved[:2]]]), matrices[2:3], ones[:1], 64.0)[1]
    assert torch.allclose(transfer[2], direct[0], atol=1e-5)
    assert torch.isfinite(euler_angles(turned)).all()


def test_refining_poses_of_tilts_is_refused(tilt_files):
    folder = tilt_files / "rows"
    inputs = InputOptions(star=str(folder / "particles.star"), map=str(folder / "consensus.mrc"))
    with pytest.raises(InputError, match="--refine-poses is for particles of one image"):
        read_inputs(inputs, TrainOptions(refine_poses=True))


def test_a_run_has_a_latent_for_each_particle_and_writes_its_rows(tmp_path):
    options = SimulateOptions(particles=220, tilts=4, tilt_dose=10.0, box=32, pixel_size=6.0, snr=2.0, seed=4)
    files = simulate(options, tmp_path / "data")
    inputs = InputOptions(star=str(files.particles), map=str(files.consensus))
    brief = TrainOptions(n_gaussians=100, epochs=2, n_latents=2, refits=0, validation_fraction=0.2)
    run = summarise(train(inputs, brief, tmp_path / "run", reporter=QUIET), reporter=QUIET)
    assert run.latents.shape == (2, 220, 2)
    assert len(run.table) == len(run.halves) == 220
    rows = starfile.read(run.path / "particles.star")["particles"]
    assert len(rows) == 880
    assert (rows.groupby("rlnTomoParticleName")["dynLatent1"].nunique() == 1).all()
    made = reconstruct_run(run, ReconstructOptions(shrink=False, conformation="reference"), QUIET)
    assert mrcfile.read(made.deformed.final).shape == (32, 32, 32)
    # Rows in another order are the same run.
    given = starfile.read(files.particles, always_dict=True)
    given["particles"] = given["particles"].sample(frac=1.0, random_state=1)
    starfile.write(given, files.particles)
    again = Run(run.path)
    names = again.particles.particle_table["rlnTomoParticleName"].tolist()
    assert names == rows.drop_duplicates("dynParticle")["rlnTomoParticleName"].tolist()


def test_images_that_relion_multiplied_by_ctf_and_dose_are_restored():
    # Noise alone has the same spectral density in all tilts again, where there is any left.
    ctf = CtfParameters.create(torch.full((41,), 15000.0), exposure=torch.linspace(0, 120, 41))
    white = torch.randn(41, 64, 64, generator=torch.Generator().manual_seed(0))
    transfer = evaluate_ctf(ctf, 64, 3.0)
    premultiplied = fourier_to_image(image_to_fourier(white) * transfer, 64)
    plain = torch.zeros(41, 2), torch.ones(41), 3.0, Preprocessing(64)
    restored, given = prepare_images(premultiplied, *plain, ctf), prepare_images(white, *plain)
    low = shell_means(image_to_fourier(restored).abs().square(), 64)[:, 4:9].mean(1)
    wanted = shell_means(image_to_fourier(given).abs().square(), 64)[:, 4:9].mean(1)
    assert torch.allclose(low, wanted, rtol=0.35)
    left = shell_means(restored_noise(ctf, 64, 3.0), 64)
    # All but what lies near the zeros of the CTF.
    assert left[0, 10:].mean() > 0.8
    assert left[-1, 10:].mean() < 0.1

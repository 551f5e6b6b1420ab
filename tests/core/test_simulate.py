"""Simulated data sets are what they say they are."""

import gzip
import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.ctf import CtfParameters, electron_wavelength
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, shell_means, volume_to_fourier
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.options import SimulateOptions
from dynamight_core.simulate.dataset import noisy_images, simulate, white_noise
from dynamight_core.simulate.draw import draw_angles, draw_truth
from dynamight_core.simulate.measures import hinge_angle, knn_r2, oracle_angles
from dynamight_core.simulate.molecules import DATA, atomic_molecule, hinge_molecule, igg_molecule, two_hinge_molecule
from dynamight_core.simulate.parts import Part
from dynamight_core.simulate.truth import load_truth
from tests.support.fourier_maps import reconstruct_fourier

SMALL = SimulateOptions(particles=240, box=32, pixel_size=6.0, seed=7)
FAB_AXIS = ("H/213/CA", "H/244/CA")


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    files = simulate(SMALL, tmp_path_factory.mktemp("simulated"))
    return files, load_truth(files.truth)


@pytest.fixture(scope="module")
def images(data):
    return torch.tensor(mrcfile.read(data[0].stack))


def slow_images(truth, indices):
    """Sum blurred atoms pixel by pixel and multiply by RELION's CTF: none of the engine's imaging code."""
    box, pixel_size = truth.box, truth.pixel_size
    axis = (torch.arange(box) - box // 2) * pixel_size
    matrices = rotation_matrices(truth.euler[indices])
    points = torch.einsum("bij,bnj->bni", matrices, truth.positions(indices))[..., :2]
    points = points - truth.origins[indices][:, None]
    norm = pixel_size / (truth.molecule.atom_sigma * np.sqrt(2 * np.pi))
    x, y = (norm * torch.exp(-(((axis - points[..., i, None]) / truth.molecule.atom_sigma) ** 2) / 2) for i in (0, 1))
    projections = truth.scale * torch.einsum("bn,bny,bnx->byx", truth.molecule.weights.expand(len(x), -1), y, x)
    kx, ky = torch.fft.rfftfreq(box) / pixel_size, torch.fft.fftfreq(box)[:, None] / pixel_size
    s2, azimuth = kx**2 + ky**2, torch.atan2(ky, kx.expand(box, -1))
    ctf = truth.ctf[indices]
    u, v, angle, cs, voltage, contrast = (
        getattr(ctf, name)[:, None, None]
        for name in (
            "defocus_u",
            "defocus_v",
            "defocus_angle",
            "spherical_aberration",
            "voltage",
            "amplitude_contrast",
        )
    )
    defocus = (u + v) / 2 + (u - v) / 2 * torch.cos(2 * (azimuth - angle))
    wavelength = electron_wavelength(voltage)
    phase = np.pi * wavelength * defocus * s2 - np.pi / 2 * cs * 1e7 * wavelength**3 * s2**2
    return fourier_to_image(image_to_fourier(projections) * torch.sin(phase + torch.asin(contrast)), box)


def test_snr_is_as_asked(data):
    _, truth = data
    axis = (torch.arange(truth.box) - truth.box // 2) * truth.pixel_size
    disc = torch.hypot(axis[:, None], axis) <= truth.particle_diameter / 2
    variances = fourier_to_image(truth.project(slice(None)), truth.box)[:, disc].var(1)
    error = variances.std() / len(truth) ** 0.5
    assert abs(variances.mean() - SMALL.snr) < 3 * error


def test_noise_is_white_with_unit_variance_and_zero_mean(data, images):
    _, truth = data
    noise = images - fourier_to_image(truth.clean_transforms(slice(None)), truth.box)
    count = noise.numel()
    assert abs(noise.var() - 1) < 3 * (2 / count) ** 0.5
    assert abs(noise.mean()) < 3 / count**0.5
    power = shell_means(image_to_fourier(noise).abs().square(), truth.box).mean(0) / truth.box**2
    # A shell of radius r holds about pi r independent complex values an image, the first one 4.
    radius = torch.arange(len(power)).clamp(min=1)
    assert ((power - 1).abs()[1:] < 4 / (3 * radius[1:] * len(truth)) ** 0.5).all()


def test_background_of_images_has_unit_variance_and_zero_mean(data, images):
    _, truth = data
    axis = (torch.arange(truth.box) - truth.box // 2) * truth.pixel_size
    outside = torch.hypot(axis[:, None], axis) > truth.particle_diameter / 2 + SMALL.shifts
    background = images[:, outside]
    # fringes of the CTF reach into the background
    assert abs(background.var() - 1) < 0.02
    assert abs(background.mean()) < 0.02


def test_coloured_noise_has_the_measured_spectrum_and_unit_variance():
    options = replace(SMALL, noise="coloured", snr=1e-6)
    generator = torch.Generator().manual_seed(1)
    truth, _ = draw_truth(options, generator)
    truth.scale = 0.0
    noise = noisy_images(truth, slice(0, 240), white_noise(truth, slice(0, 240), generator))
    assert abs(noise.var() - 1) < 0.02
    power = shell_means(image_to_fourier(noise).abs().square(), truth.box).mean(0) / truth.box**2
    radius = torch.arange(len(power))
    assert ((power / truth.noise_power - 1).abs()[1:] < 4 / (3 * radius[1:] * len(truth)) ** 0.5).all()
    assert truth.noise_power[2] > 2 * truth.noise_power[-1]


def test_true_positions_give_the_images_by_a_slow_sum_over_atoms(data):
    _, truth = data
    indices = torch.arange(6)
    clean = fourier_to_image(truth.clean_transforms(indices), truth.box)
    slow = slow_images(truth, indices)
    assert ((clean - slow).norm() / slow.norm()) < 0.01


def test_images_of_high_snr_are_the_slow_sum_over_true_positions(tmp_path):
    files = simulate(replace(SMALL, particles=20, snr=1e4), tmp_path)
    truth, images = load_truth(files.truth), torch.tensor(mrcfile.read(files.stack))
    slow = slow_images(truth, torch.arange(20))
    assert min(cosine(a, b) for a, b in zip(images, slow, strict=True)) > 0.97


def test_angles_lie_in_the_range_and_halves_are_balanced(data):
    _, truth = data
    limit = np.deg2rad(20)
    assert truth.angles.abs().max() <= limit
    # the variance of a uniform distribution, its estimate three standard errors wide
    assert abs(truth.angles.var() / (limit**2 / 3) - 1) < 3 * (0.8 / len(truth)) ** 0.5
    assert truth.half.bincount().tolist() == [0, 120, 120]


def test_views_of_a_cone_are_uniform_within_it_on_either_side():
    many = replace(SMALL, particles=4000, cone=60.0)
    truth, _ = draw_truth(many, torch.Generator().manual_seed(0))
    cosine = truth.euler[:, 1].cos()
    assert 0.5 <= float(cosine.abs().min()) < 0.51
    share = (cosine.abs() < 0.75).float().mean()
    for found in (share, (cosine < 0).float().mean()):
        assert float(found) == pytest.approx(0.5, abs=3 * 0.5 / 4000**0.5)
    rest, _ = draw_truth(replace(many, cone=90.0), torch.Generator().manual_seed(0))
    assert torch.equal(rest.origins, truth.origins)


def test_two_peaks_have_two_peaks():
    angles = draw_angles(2000, 1, 1.0, "two-peaks", torch.Generator().manual_seed(0))
    assert angles.abs().max() <= 1
    histogram = torch.histc(angles, 5, -1, 1)
    assert histogram[2] < 0.1 * min(histogram[1], histogram[3])
    assert abs((angles > 0).float().mean() - 0.5) < 3 * 0.5 / 2000**0.5


def test_range_zero_is_rigid(tmp_path):
    files = simulate(replace(SMALL, motion_range=0.0, particles=20), tmp_path)
    truth = load_truth(files.truth)
    assert (truth.positions(slice(None)) - truth.molecule.positions).abs().max() < 1e-4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_seed_same_bytes_whatever_the_number_of_threads(data, threads, tmp_path):
    files, _ = data
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = simulate(SMALL, tmp_path)
    finally:
        torch.set_num_threads(before)
    for name in ("particles", "stack", "truth"):
        assert getattr(files, name).read_bytes() == getattr(again, name).read_bytes()
    for one, two in zip((files.consensus, *files.half_maps), (again.consensus, *again.half_maps), strict=True):
        # after the header, which holds the time
        assert one.read_bytes()[1024:] == two.read_bytes()[1024:]


def test_another_seed_gives_other_bytes(data, tmp_path):
    files, _ = data
    other = simulate(replace(SMALL, seed=8), tmp_path)
    for name in ("particles", "stack", "truth"):
        assert getattr(files, name).read_bytes() != getattr(other, name).read_bytes()


def test_star_reads_back(data):
    files, truth = data
    blocks = starfile.read(files.particles)
    optics, particles = blocks["optics"], blocks["particles"]
    assert float(np.squeeze(optics["rlnImagePixelSize"])) == 6.0
    assert list(particles["rlnImageName"][:2]) == ["000001@particles.mrcs", "000002@particles.mrcs"]
    assert (particles["rlnRandomSubset"].to_numpy() == truth.half.numpy()).all()
    for column, values in {
        "rlnAngleTilt": torch.rad2deg(truth.euler[:, 1]),
        "rlnOriginXAngst": truth.origins[:, 0],
        "rlnDefocusV": truth.ctf.defocus_v,
        "rlnDefocusAngle": torch.rad2deg(truth.ctf.defocus_angle),
    }.items():
        assert np.allclose(particles[column], values.numpy(), atol=2e-3)
    with mrcfile.open(files.stack) as stack:
        assert stack.is_image_stack()
        assert stack.data.shape == (240, 32, 32)
        assert stack.voxel_size.x == 6


def test_every_option_of_optics_reaches_star_and_truth(tmp_path):
    options = replace(
        SMALL,
        particles=40,
        optics_groups=3,
        phase_shift=90.0,
        aberrations=True,
        float16=True,
        views="measured",
        defoci="measured",
        noise="coloured",
        angle_distribution="two-peaks",
    )
    files = simulate(options, tmp_path)
    truth, blocks = load_truth(files.truth), starfile.read(files.particles)
    optics, particles = blocks["optics"].set_index("rlnOpticsGroup"), blocks["particles"]
    assert len(optics) == 3
    rows = optics.loc[particles["rlnOpticsGroup"]]
    assert np.allclose(rows["rlnVoltage"], truth.ctf.voltage)
    assert np.allclose(rows["rlnBeamTiltY"], truth.ctf.beam_tilt[:, 1])
    assert np.allclose(rows["rlnMagMat01"], truth.ctf.magnification[:, 0, 1], atol=1e-6)
    assert [float(v) for v in rows["rlnOddZernike"].iloc[0].strip("[]").split(",")] == truth.ctf.odd_zernike[0].tolist()
    assert particles["rlnPhaseShift"].between(0, 90).all()
    assert particles["rlnPhaseShift"].std() > 10
    assert mrcfile.read(files.stack).dtype == np.float16
    assert read_map(files.consensus)[0].shape == (32, 32, 32)


def test_half_maps_hold_their_own_half(data, images):
    """An independent program makes the same map from the same particles, and another one from the others."""
    files, truth = data
    ours, inside = torch.tensor(read_map(files.half_maps[1])[0]), sphere(32, radius=12).float()

    def agreement(half):
        chosen = truth.half == half
        ctf, euler, origins = truth.ctf[chosen], truth.euler[chosen], truth.origins[chosen]
        return fourier_shell_correlation(
            ours, reconstruct_fourier(images[chosen], ctf, euler, origins, 32, 6.0), inside
        )

    assert agreement(2)[:15].min() > 0.98
    assert agreement(1)[8:].max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("distorted", [False, True])
def test_reconstruction_recovers_a_rigid_molecule_with_hand_and_place(distorted):
    options = replace(
        SMALL, particles=400, box=48, pixel_size=4.0, motion_range=0.0, aberrations=distorted, optics_groups=2
    )
    truth, _ = draw_truth(options, torch.Generator().manual_seed(3))
    if not distorted:
        truth.ctf.beam_tilt.zero_()

    clean = fourier_to_image(truth.clean_transforms(slice(None)), 48)
    volume = reconstruct_fourier(clean, truth.ctf, truth.euler, truth.origins, 48, 4.0)
    true = truth.true_map()
    curve = fourier_shell_correlation(volume, true)
    assert (curve[1 : int(0.8 * 24) + 1] > 0.95).all(), curve
    aligned = cosine(volume, true)
    others = [volume.flip(axis).roll(1, axis) for axis in range(3)]
    others += [volume.roll(step, axis) for axis in range(3) for step in (-1, 1)]
    assert aligned > 0.99
    assert max(cosine(other, true) for other in others) < aligned - 0.02
    # The grey scale is that of the images, but for the frequencies where the CTF carries next to nothing.
    assert abs(float((volume * true).sum() / true.square().sum()) - 1) < 0.03


def test_true_map_is_the_sum_of_atoms_on_the_scale_of_the_images(data):
    _, truth = data
    fine = truth.true_map(0.1, box=64, pixel_size=3.0)
    axis = (torch.arange(64) - 32) * 3.0
    atoms = truth.molecule.positions_at(torch.tensor([0.1]))[0]
    sigma = truth.molecule.atom_sigma
    x, y, z = (torch.exp(-(((axis - atoms[:, i, None]) / sigma) ** 2) / 2) for i in range(3))
    density = torch.einsum("nz,ny,nx->zyx", z, y, x) * truth.scale * (6.0 / (sigma * np.sqrt(2 * np.pi))) ** 3
    assert (fine - density).norm() / density.norm() < 0.005
    coarse = truth.true_map(0.1)
    projected = fourier_to_image(truth.project(slice(0, 1), torch.tensor([0.1])), 32)[0]
    assert abs(coarse.sum() / projected.sum() - 1) < 1e-3


def test_displacements_of_points_are_those_of_their_domain(data):
    _, truth = data
    moving = truth.molecule.moving == 1
    jitter = 0.1 * torch.randn(truth.molecule.positions.shape, generator=torch.Generator().manual_seed(0))
    predicted = truth.displacements(truth.molecule.positions + jitter, slice(0, 30))
    true = truth.positions(slice(0, 30)) - truth.molecule.positions
    assert (predicted[:, ~moving] == 0).all()
    assert (predicted - true).norm(dim=-1)[:, moving].max() < 0.2
    angles = hinge_angle(
        truth.positions(slice(0, 30))[:, moving],
        truth.molecule.positions[moving],
        truth.molecule.axis_points[0],
        truth.molecule.axis_directions[0],
    )
    assert torch.allclose(angles, truth.angles[:30, 0], atol=1e-5)


def test_domain_masks_hold_their_domain_and_not_the_other(data):
    _, truth = data
    masks = [truth.domain_mask(label, box=64, pixel_size=3.0, soft_edge=3.0, radius=4.0) for label in (0, 1)]
    voxels = (truth.molecule.positions / 3.0 + 32).round().long()
    for label, mask in enumerate(masks):
        inside = mask[voxels[:, 2], voxels[:, 1], voxels[:, 0]]
        assert inside[truth.molecule.moving == label].min() > 0.99
        assert inside[truth.molecule.moving != label].mean() < 0.1


def test_hinge_molecule_has_the_size_and_motion_that_benchmarks_rely_on():
    for seed in range(2):
        molecule = hinge_molecule(seed)
        assert len(molecule) == 3000
        assert int(molecule.moving.sum()) == 600
        length = torch.pdist(molecule.positions).max()
        assert 110 < length < 130
        angles = torch.linspace(-1, 1, 101) * np.deg2rad(20)
        moved = (molecule.positions_at(angles) - molecule.positions).square().sum(-1)
        assert 6 < moved[:, molecule.moving == 1].mean().sqrt() < 7
        assert moved[:, molecule.moving == 0].max() == 0


def test_the_small_domains_of_two_hinges_turn_by_themselves_about_where_they_join():
    molecule = two_hinge_molecule(0)
    assert [int((molecule.moving == label).sum()) for label in range(3)] == [2640, 180, 180]
    moved = molecule.positions_at(torch.tensor([[0.3, 0.0], [0.0, 0.3]])) - molecule.positions
    for particle, label in ((0, 1), (1, 2)):
        still = molecule.moving != label
        assert float(moved[particle, still].abs().max()) < 1e-5
        lengths = moved[particle, ~still].norm(dim=1)
        # The near end stays where it is; the far end moves by the angle times the domain's length.
        assert float(lengths.min()) < 2 and 8 < float(lengths.max()) < 14


def test_hinge_molecule_has_contrast_like_a_protein():
    """At equal volume its power at 8-15 A is that of the antibody within a factor of two, and no smooth blob's."""

    def power(molecule):
        options = replace(SMALL, particles=2, box=96, pixel_size=2.5)
        truth, _ = draw_truth(options, torch.Generator().manual_seed(0))
        truth = replace(truth, molecule=replace(molecule, atom_sigma=0.01))
        curve = shell_means(volume_to_fourier(truth.true_map()).abs().square(), 96, 3)
        return float(curve[round(96 * 2.5 / 15) : round(96 * 2.5 / 8)].mean() / curve[0])

    # the power of a random structure falls as one over its mass
    hinge, igg = hinge_molecule(0), igg_molecule()
    mass = {"hinge": 3000 * 38, "igg": 10576 * 13.5}
    assert 0.5 < power(hinge) * mass["hinge"] / (power(igg) * mass["igg"]) < 2


def test_fab_is_rigid_and_the_axis_rests():
    molecule = igg_molecule()
    moved = molecule.positions_at(torch.deg2rad(torch.tensor([-40.0, 75.0, 180.0])))
    fab = (molecule.moving == 1).nonzero()[::100, 0]
    before = torch.pdist(molecule.positions[fab])
    for positions in moved:
        assert torch.allclose(torch.pdist(positions[fab]), before, atol=1e-3)
    rest = molecule.moving == 0
    assert (moved[:, rest] == molecule.positions[rest]).all()
    # H213 belongs to the Fab and lies on the axis, H244 does not belong to it and lies on the axis.
    with gzip.open(DATA / "1hzh.pdb.gz", "rt") as file:
        lines = [line for line in file if line.startswith("ATOM") and line[12:16] == " CA " and line[21] == "H"]
    first, second = (
        torch.tensor([float(line[30 + 8 * i : 38 + 8 * i]) for i in range(3)])
        for number in (" 213 ", " 244 ")
        for line in lines
        if line[22:27] == number
    )
    on_axis = molecule.axis_points[0]
    index = int((molecule.positions - on_axis).norm(dim=1).argmin())
    assert molecule.moving[index] == 1
    assert (moved[:, index] - molecule.positions[index]).norm(dim=1).max() < 1e-3
    other = on_axis + (second - first)
    index = int((molecule.positions - other).norm(dim=1).argmin())
    assert (molecule.positions[index] - other).norm() < 1e-3
    assert molecule.moving[index] == 0
    along = (second - first) / (second - first).norm()
    assert torch.allclose(molecule.axis_directions[0], along, atol=1e-5)


def test_own_structure_is_read_from_pdb_and_mmcif(tmp_path):
    import gemmi

    structure = gemmi.read_structure(str(DATA / "1hzh.pdb.gz"))
    structure.make_mmcif_document().write_file(str(tmp_path / "igg.cif"))
    ours = igg_molecule()
    again = atomic_molecule(tmp_path / "igg.cif", [Part("//H/1-213 L", axis=FAB_AXIS)], ours.atom_sigma)
    assert torch.allclose(ours.positions, again.positions, atol=1e-3)
    assert (ours.moving == again.moving).all()
    assert set(ours.weights.unique().tolist()) == {6.0, 7.0, 8.0, 16.0}
    options = replace(
        SMALL, molecule=str(tmp_path / "igg.cif"), selection="H/1-213 L", axis=FAB_AXIS, particles=4, box=40
    )
    assert len(simulate(options, tmp_path / "out").particles.read_text().splitlines()) > 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"snr": 0.0}, "--snr is 0"),
        ({"box": 33}, "--box is 33; give an even"),
        ({"noise": "pink"}, "--noise is 'pink'; choose one of white, coloured"),
        ({"pixel_size": 2.0}, "needs a box of 1"),
        ({"motion_range": 200.0}, "--motion-range is 200"),
        ({"optics_groups": 9}, "--optics-groups is 9"),
        ({"cone": 0.0}, "--cone is 0; give a value from 1 to 90"),
        ({"cone": 60.0, "views": "measured"}, "--cone narrows uniform views"),
        ({"defocus_min": 30000.0}, "--defocus-min is above --defocus-max"),
        ({"molecule": "missing.pdb", "selection": "L", "axis": FAB_AXIS}, "missing.pdb does not exist"),
        ({"molecule": "missing.pdb"}, "set --part"),
        ({"cone_fraction": 0.5}, "--cone-fraction needs a cone"),
        ({"part": ["L"]}, "--molecule hinge has its own parts"),
        ({"part": ["L"], "motion_range": 20.0}, "--part says itself"),
        ({"molecule": "igg", "part": ["L; range 20"]}, "has range without axis"),
        ({"molecule": "igg", "part": ["L; axis H/213/CA H/244/CA"]}, "does not say how far"),
        ({"molecule": "igg", "part": ["L; axis H/213/CA; range 5"]}, "has 1 values for axis; give 2"),
        ({"molecule": "igg", "part": ["L; pivot H/213/CA; cone wide"]}, "has 'wide' for cone; give numbers"),
        ({"molecule": "igg", "part": ["L; missing 2"]}, "has missing 2; give 0 to 1"),
        ({"molecule": "igg", "part": ["L; missing 0.1; missing 0.2"]}, "has missing twice"),
        ({"molecule": "igg", "part": ["L; wobble 3"]}, "has the unknown word wobble"),
        ({"molecule": "igg", "part": ["L", "L/1-107"]}, "shares atoms with another part"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        simulate(replace(SMALL, **change), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("selection", "axis", "words"),
    [
        ("X", FAB_AXIS, "selection 'X' selects no atom"),
        ("H/(((", FAB_AXIS, "is not valid"),
        ("", FAB_AXIS, "selection is empty"),
        ("L", ("H/213/CA", "H/9999/CA"), "axis atom 'H/9999/CA' is not in"),
        ("L", ("H/213/CA", "H213"), "axis atom 'H213' is not valid"),
        ("L", ("H/213/CA", "H/213/CA"), "both atoms have the same position"),
        ("H K L M A B", FAB_AXIS, "moves all of"),
    ],
)
def test_bad_selection_is_refused_with_a_sentence(selection, axis, words, tmp_path):
    with pytest.raises(InputError, match=words):
        atomic_molecule(DATA / "1hzh.pdb.gz", [Part(selection, axis=axis)])


def test_bad_files_are_refused_with_a_sentence(tmp_path, data):
    with pytest.raises(InputError, match=r"truth .* does not exist"):
        load_truth(tmp_path / "truth.npz")
    np.savez(tmp_path / "other.npz", angles=np.zeros(3))
    with pytest.raises(InputError, match=r"lacks 'ctf_defocus_u'"):
        load_truth(tmp_path / "other.npz")
    (tmp_path / "noise.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        load_truth(tmp_path / "noise.npz")
    shutil.copy(data[0].truth, tmp_path / "x.pdb")
    with pytest.raises(InputError, match=r"model .*x\.pdb"):
        atomic_molecule(tmp_path / "x.pdb", [Part("L", axis=FAB_AXIS)])


def test_oracle_reads_angles_of_clean_images_and_none_of_pure_noise():
    truth, _ = draw_truth(replace(SMALL, particles=40), torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    limit = np.deg2rad(20)

    def images():
        return noisy_images(truth, slice(0, 40), white_noise(truth, slice(0, 40), generator))

    truth.scale = 0.0
    _, deviation, _ = oracle_angles(images(), truth, limit, grid=15)
    assert torch.allclose(deviation, torch.tensor(limit / 3**0.5, dtype=torch.float32), rtol=0.01)
    truth.scale = 10.0
    _, _, correlation = oracle_angles(images(), truth, limit, grid=15)
    assert correlation > 0.995


def test_latents_that_follow_the_angle_predict_it_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(500, generator=generator)
    assert knn_r2(torch.stack([angles, angles**2], 1), angles) > 0.99
    assert knn_r2(torch.rand(500, 2, generator=generator), angles) < 0.1


def test_reconstruction_takes_views_that_see_one_direction_only():
    """Damped where nothing is known, never infinite."""
    truth, _ = draw_truth(replace(SMALL, particles=10), torch.Generator().manual_seed(2))
    euler = random_rotations(10, torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 1.0])
    images = torch.randn(10, 32, 32, generator=torch.Generator().manual_seed(1))
    ctf = CtfParameters.create(torch.full((10,), 15000.0))
    volume = reconstruct_fourier(images, ctf, euler, truth.origins, 32, 6.0)
    assert volume.isfinite().all()

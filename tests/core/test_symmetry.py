"""Symmetric molecules: every image in all equivalent poses, the motion of one subunit in each."""

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import write_map
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.projector import Projector
from dynamight_core.judging.summary import summarise
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.options import InputOptions, ReconstructOptions, TrainOptions
from dynamight_core.particles.halves import assign_halves
from dynamight_core.particles.inputs import read_input_particles
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.relatives import find_relatives
from dynamight_core.particles.symmetry import check_symmetry, expand, rotate_volume, symmetry_operators
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reconstruction.symmetrised import Subunit
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.training.stage import train
from tests.support.cryosparc_files import records, save

BOX, PIXEL = 32, 6.0


@pytest.mark.parametrize(
    ("name", "number"), [("C1", 1), ("c7", 7), ("D2", 4), ("D5", 10), ("T", 12), ("O", 24), ("I", 60)]
)
def test_operators_are_a_group_of_rotations(name, number):
    operators = symmetry_operators(name)
    assert len(operators) == number
    assert np.allclose(operators @ operators.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(operators), 1)
    products = (operators[:, None] @ operators[None]).reshape(-1, 1, 9)
    assert (np.abs(products - operators.reshape(1, -1, 9)).max(-1).min(1) < 1e-6).all()


def test_icosahedra_of_relion_are_rotated_to_each_other():
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    turned = turn @ symmetry_operators("I2") @ turn.T
    other = symmetry_operators("I1").reshape(1, -1, 9)
    assert (np.abs(turned.reshape(-1, 1, 9) - other).max(-1).min(1) < 1e-6).all()


@pytest.mark.parametrize("name", ["C", "C0", "E", "D100", "helix"])
def test_unknown_groups_are_refused(name):
    with pytest.raises(InputError, match="such as C3, or T, O, I or I1"):
        symmetry_operators(name)


def molecule(n=60, seed=0):
    """Return a core and three arms with a joint each, C3 about z: (m, 3) A, and the arm of each atom (0: core)."""
    generator = np.random.default_rng(seed)
    core = generator.normal(0, 14, (2 * n, 3)) * [1, 1, 0.5]
    arm = generator.normal(0, 6, (n, 3)) + [45, 0, 12]
    parts = [core @ g.T for g in symmetry_operators("C3")] + [arm @ g.T for g in symmetry_operators("C3")]
    labels = np.r_[np.zeros(len(core) * 3, int), np.repeat([1, 2, 3], n)]
    return torch.from_numpy(np.concatenate(parts)).float(), torch.from_numpy(labels)


def moved(atoms, labels, angles):
    """Return (b, m, 3) atoms with (b, 3) angles of the arms about a tangent at the edge of the core."""
    out = atoms.repeat(len(angles), 1, 1)
    for number, g in enumerate(torch.from_numpy(symmetry_operators("C3")).float()):
        mine = labels == number + 1
        cosine, sine = angles[:, number].cos(), angles[:, number].sin()
        zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
        turn = torch.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], -1).reshape(-1, 3, 3)
        joint = torch.tensor([25.0, 0.0, 6.0])
        local = atoms[mine] @ g - joint
        out[:, mine] = (torch.einsum("bij,mj->bmi", turn, local) + joint) @ g.T
    return out


@pytest.fixture(scope="module")
def trimer(tmp_path_factory):
    """Return the folder of 200 images of a molecule with three arms that move by themselves, and their angles."""
    folder, n = tmp_path_factory.mktemp("trimer"), 200
    generator = torch.Generator().manual_seed(3)
    atoms, labels = molecule()
    angles = torch.deg2rad(torch.rand(n, 3, generator=generator) * 60 - 30)
    gaussians = GaussianModel(atoms, 5.0, 1.0)
    projector = Projector(BOX, PIXEL, 2)
    euler = random_rotations(n, generator)
    ctf = CtfParameters.create(torch.rand(n, generator=generator) * 1e4 + 8e3)
    transfer = evaluate_ctf(ctf, BOX, PIXEL)
    with torch.no_grad():
        shown = gaussians.project(projector, rotation_matrices(euler), moved(atoms, labels, angles), transfer)
        images = fourier_to_image(shown, BOX)
        images = images / images.std() * 1.5 + torch.randn(images.shape, generator=generator)
        mean = GaussianModel(moved(atoms, labels, angles[:60]).flatten(0, 1), 5.0, 1 / 60).render(BOX, PIXEL)
    with mrcfile.new(folder / "images.mrcs") as mrc:
        mrc.set_data(images.numpy())
        mrc.set_image_stack()
    write_map(folder / "map.mrc", mean.numpy(), PIXEL)
    degrees = torch.rad2deg(euler)
    table = {"rlnImageName": [f"{i + 1}@images.mrcs" for i in range(n)]}
    table |= {f"rlnAngle{name}": degrees[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    table |= {"rlnOriginXAngst": 0.0, "rlnOriginYAngst": 0.0, "rlnOpticsGroup": 1}
    table |= {"rlnDefocusU": ctf.defocus_u, "rlnDefocusV": ctf.defocus_v, "rlnDefocusAngle": 0.0}
    optics = {"rlnOpticsGroup": [1], "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    optics |= {"rlnImagePixelSize": PIXEL, "rlnImageSize": BOX, "rlnImageDimensionality": 2}
    starfile.write({"optics": pd.DataFrame(optics), "particles": pd.DataFrame(table)}, folder / "particles.star")
    axis = (np.arange(BOX) - BOX // 2) * PIXEL
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = np.sqrt((x - 42) ** 2 + y**2 + (z - 11) ** 2)
    write_map(folder / "arm.mrc", np.clip((36 - distance) / 8, 0, 1).astype(np.float32), PIXEL)
    return folder, angles


@pytest.fixture(scope="module")
def trimer_run(trimer, tmp_path_factory):
    """Return a run of one arm of the trimer."""
    star, volume, mask = (str(trimer[0] / name) for name in ("particles.star", "map.mrc", "arm.mrc"))
    inputs = InputOptions(star=star, map=volume, mask=mask, symmetry="C3")
    options = TrainOptions(n_gaussians=300, n_latents=2, epochs=12, refits=1)
    return summarise(train(inputs, options, tmp_path_factory.mktemp("arm") / "run", reporter=QUIET), QUIET)


def test_copies_are_equivalent_poses_of_one_image_in_one_half_set(particle_files):
    particle_files.stack()
    particles = read_particles(particle_files.star(particle_files.rows(rlnRandomSubset=None)))
    copies = expand(particles, "D3")
    assert len(copies) == 72
    before = rotation_matrices(particles.angles)[:, None] @ torch.from_numpy(symmetry_operators("D3")).float()
    assert torch.allclose(rotation_matrices(copies.angles), before.flatten(0, 1), atol=1e-5)
    halves, _ = assign_halves(copies, find_relatives(copies, 0), 0)
    assert (halves.reshape(12, 6) == halves.reshape(12, 6)[:, :1]).all()
    assert list(copies.table["dynCopy"][:7]) == ["1", "2", "3", "4", "5", "6", "1"]
    with pytest.raises(InputError, match="symmetry-expanded already"):
        expand(copies, "D3")


def test_copies_of_cryosparc_have_uids_of_their_own(particle_files):
    particle_files.stack()
    cs = save(particle_files.folder / "J1_particles.cs", records(particle_files))
    copies = read_input_particles(InputOptions(star=str(cs), symmetry="C3"))
    assert len(set(copies.records["uid"].tolist())) == 36
    assert copies.records["sym_expand/src_uid"].reshape(12, 3).T.tolist()[0] == records(particle_files)["uid"].tolist()
    save(particle_files.folder / "again.cs", copies.records)
    again = read_particles(particle_files.folder / "again.cs")
    assert torch.allclose(rotation_matrices(again.angles), rotation_matrices(copies.angles), atol=1e-5)


def test_a_map_without_the_symmetry_is_refused(trimer):
    path = str(trimer[0] / "map.mrc")
    volume = torch.from_numpy(mrcfile.read(path).copy())
    check_symmetry(path, volume, "C3")
    for wrong in ("C2", "C4", "D3", "I"):
        with pytest.raises(InputError, match=f"does not have the symmetry {wrong}"):
            check_symmetry(path, volume, wrong)


def test_the_motion_of_every_arm_is_found(trimer, trimer_run):
    assert len(trimer_run.table) == 600
    found = trimer_run.motions.coordinates[:, 0].reshape(200, 3).numpy()
    assert all(np.corrcoef(found[:, arm], trimer[1][:, arm])[0, 1] ** 2 > 0.8 for arm in range(3))


def likeness(volume, mask, operator):
    """Return the correlation of a map with its rotated copy in a mask."""
    inside = mask > 0.5
    return np.corrcoef(volume[inside], rotate_volume(volume, operator, 3)[inside])[0, 1]


def test_maps_have_the_corrected_subunit_once_or_everywhere(trimer, trimer_run):
    mask, folder = mrcfile.read(trimer[0] / "arm.mrc"), trimer_run.path / "reconstruction"
    turn, maps = symmetry_operators("C3")[1], {}
    for symmetrise in (False, True):
        options = ReconstructOptions(
            symmetrise=symmetrise, choose_density=False, rigid=False, shrink=False, conformation="reference"
        )
        reconstruct_run(Run(trimer_run.path), options, reporter=QUIET)
        maps[symmetrise] = mrcfile.read(folder / "map.mrc").copy()
    assert likeness(maps[True], mask, turn) > 0.99 > likeness(maps[False], mask, turn)
    # The arm itself is the same, and sharper than the others were.
    inside = mask > 0.99
    assert np.corrcoef(maps[True][inside], maps[False][inside])[0, 1] > 0.999
    assert maps[False][inside].std() > 1.1 * rotate_volume(maps[False], turn, 3)[inside].std()


def test_symmetrised_maps_need_a_symmetry_and_a_mask(drawn_run):
    with pytest.raises(InputError, match="--symmetrise needs a run of a symmetric molecule"):
        Subunit.of(Run(drawn_run), 64)
    run = Run(drawn_run)
    run.config.inputs.symmetry = "C3"
    with pytest.raises(InputError, match="was trained without one"):
        Subunit.of(run, 64)

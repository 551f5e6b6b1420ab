"""Deformed weighted backprojection, the inverse field, FSC and the maps of a reconstruction."""

import os
import re
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.imaging.backprojection import (
    ParticleData,
    _faded,
    accumulate,
    fourier_denominator,
    solve,
)
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_image,
    fourier_to_volume,
    frequencies_2d,
    image_to_fourier,
    lowpass_volume,
    shells,
    translation_phases,
    volume_to_fourier,
)
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.imaging.voxels import ModalField, Voxels, bordered, lattice_spacing
from dynamight_core.model.decoders import BasisDecoder
from dynamight_core.options import InvertOptions, ReconstructOptions, SimulateOptions
from dynamight_core.reconstruction import checks, fsc
from dynamight_core.reconstruction.checks import check_halves, check_views
from dynamight_core.reconstruction.frames import FrameField
from dynamight_core.reconstruction.fsc import (
    HalfMapFsc,
    fourier_shell_correlation,
    half_map_fsc,
    local_resolution,
    resolution_at,
    soft_mask,
    write_fsc_star,
)
from dynamight_core.reconstruction.half_map import HalfReconstruction, shares_from_fsc
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.reconstruction.inverse import (
    ForwardFromInverse,
    InverseField,
    fit_inverse,
    load_inverse,
    save_inverse,
)
from dynamight_core.reconstruction.least_squares import DeformedProjection
from dynamight_core.reconstruction.maps import final_map, guinier_b_factor, sharpen, write_reconstruction
from dynamight_core.reconstruction.modes import find_modes
from dynamight_core.reporter import Reporter
from dynamight_core.simulate.dataset import simulate
from dynamight_core.simulate.fourier_reconstruction import reconstruct_fourier
from dynamight_core.simulate.truth import load_truth

BOX, PIXEL = 32, 6.0


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Hinged:
    """The true deformation of simulated particles; latents are hinge angles."""

    def __init__(self, truth):
        self.truth = truth

    def evaluator(self, points):
        labels = self.truth.domains(points)
        return lambda angles: self.truth.molecule.move(points, labels, angles) - points


class Data:
    def __init__(self, folder, **options):
        files = simulate(SimulateOptions(box=BOX, pixel_size=PIXEL, seed=4, **options), folder)
        self.truth = load_truth(files.truth)
        self.raw = torch.from_numpy(np.array(mrcfile.read(files.stack)))
        shifts = translation_phases(self.truth.origins / PIXEL, BOX)
        self.centred = fourier_to_image(image_to_fourier(self.raw) * shifts, BOX)
        self.transfer = evaluate_ctf(self.truth.ctf, BOX, PIXEL)
        self.matrices = rotation_matrices(self.truth.euler)
        if (self.truth.ctf.magnification != torch.eye(2)).any():
            self.matrices = self.truth.ctf.magnification.transpose(1, 2) @ self.matrices[:, :2]
        self.everything = torch.arange(len(self.truth))

    def particles(self, weights=None, device="cpu"):
        images, ctf = self.centred.__getitem__, self.transfer.__getitem__
        return ParticleData(images, ctf, self.matrices, BOX, PIXEL, weights, device)

    def sums(self, indices=None, weights=None, device="cpu", **options):
        indices = self.everything if indices is None else indices
        return accumulate(self.particles(weights, device), indices, **options)

    def mean_fsc(self, volume, label, angle=0.0):
        mask = self.truth.domain_mask(label)
        return float(fourier_shell_correlation(volume, self.truth.true_map(angle), mask)[1:].mean())


def wbp(sums, regularisation=0.3):
    return solve(sums.numerator, fourier_denominator(sums.kernel), regularisation)


@pytest.fixture(scope="module")
def hinge(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("hinge"), particles=300, snr=2.0, motion_range=30.0)


@pytest.fixture(scope="module")
def rigid_sums(hinge):
    return hinge.sums()


def random_setup(box=12, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrices = rotation_matrices(random_rotations(n, generator))
    images = torch.randn(n, box, box, generator=generator)
    ctf = CtfParameters.create(torch.full((n,), 9000.0), beam_tilt=torch.tensor([3.0, -2.0]))
    return matrices, images, evaluate_ctf(ctf, box, 4.0), generator


# --- backprojection -------------------------------------------------------------------------------------------------


def test_numerator_is_the_adjoint_of_the_deformed_projection_with_a_complex_ctf():
    box, pixel = 12, 4.0
    matrices, images, transfer, generator = random_setup(box)
    region = sphere(box)
    axis = (torch.arange(box) - box // 2) * pixel
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3).float()
    latents = torch.randn(5, 2, generator=generator)
    decoder = BasisDecoder(2, box * pixel, n_fields=4)
    torch.nn.init.normal_(decoder.fields[-1].weight, std=2.0, generator=generator)
    data = ParticleData(images.__getitem__, transfer.__getitem__, matrices, box, pixel)
    sums = accumulate(data, torch.arange(5), field=decoder, latents=latents, region=region, batch_size=2)

    volume = torch.randn(box, box, box, generator=generator) * region
    with torch.no_grad():
        delta = decoder.displacements(latents, points) * region.reshape(-1, 1)
    projected = Projector(box, pixel, 2).project(points + delta, volume.reshape(-1), matrices)
    # Images count up to their Nyquist shell.
    predicted = fourier_to_image(projected * transfer * (shells(box) <= box // 2), box)
    assert delta.abs().max() > 1
    assert torch.isclose((predicted * images).sum(), (sums.numerator * volume).sum(), rtol=1e-4)


def test_kernel_is_the_backprojection_of_the_projection_of_one_voxel():
    box, pixel = 12, 4.0
    matrices, _, transfer, _ = random_setup(box)
    at = torch.tensor([[1.0, -1.0, 2.0]]) * pixel
    projections = Projector(box, pixel, 2).project(at, torch.ones(1), matrices)
    spread = fourier_to_image(projections * transfer, box)
    data = ParticleData(spread.__getitem__, transfer.__getitem__, matrices, box, pixel)
    sums = accumulate(data, torch.arange(5))
    # Voxel i lies i - 6 from the origin, and i - 6 - (1, -1, 2) from the point; the kernel's origin is at 6.
    near = slice(5, 8)
    shifted = sums.kernel[3:6, 6:9, 4:7]
    here = sums.numerator[near, near, near]
    difference = (shifted - here).norm() / here.norm()
    assert difference < 0.15, difference


def test_sums_of_parts_add_up_whatever_the_batches_and_the_memory(hinge):
    first, second = hinge.everything[:37], hinge.everything[37:60]
    field = {"field": Hinged(hinge.truth), "latents": hinge.truth.angles}
    whole = hinge.sums(hinge.everything[:60], **field)
    parts = hinge.sums(first, batch_size=8, memory=2**20, **field) + hinge.sums(second, batch_size=1, **field)
    assert parts.n_particles == 60
    for name in ("numerator", "kernel"):
        a, b = getattr(whole, name), getattr(parts, name)
        assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))


def test_kernel_is_symmetric_and_strongest_at_its_origin(rigid_sums):
    kernel = rigid_sums.kernel[1:, 1:, 1:]
    assert torch.allclose(kernel, kernel.flip(0, 1, 2), atol=1e-4 * float(kernel.max()))
    assert kernel.argmax() == kernel.numel() // 2


def test_rigid_map_equals_an_independent_fourier_reconstruction(hinge, rigid_sums):
    t = hinge.truth
    fourier = reconstruct_fourier(hinge.raw, t.ctf, t.euler, t.origins, BOX, PIXEL)
    ours = wbp(rigid_sums)
    for label in (0, 1):
        assert abs(hinge.mean_fsc(ours, label) - hinge.mean_fsc(fourier, label)) < 0.01
    inside = sphere(BOX, radius=0.8 * BOX / 2)
    low = [lowpass_volume(volume, PIXEL, 20.0)[inside] for volume in (ours, fourier)]
    # Grey values are kept where the denominator is even within a shell; it is damped where it is weak.
    assert 0.8 < float((low[0] * low[1]).sum() / low[1].square().sum()) < 1.1


def test_true_deformations_sharpen_the_moving_domain_and_leave_the_other(hinge, rigid_sums):
    rigid = wbp(rigid_sums)
    deformed = wbp(hinge.sums(field=Hinged(hinge.truth), latents=hinge.truth.angles))
    assert hinge.mean_fsc(deformed, 1) > hinge.mean_fsc(rigid, 1) + 0.05
    assert hinge.mean_fsc(deformed, 0) > hinge.mean_fsc(rigid, 0) - 0.01


def test_wrong_sign_of_the_deformation_blurs(hinge):
    right = wbp(hinge.sums(field=Hinged(hinge.truth), latents=hinge.truth.angles))
    wrong = wbp(hinge.sums(field=Hinged(hinge.truth), latents=-hinge.truth.angles))
    assert hinge.mean_fsc(wrong, 1) < hinge.mean_fsc(right, 1) - 0.1


def test_voxels_outside_the_region_do_not_move(hinge):
    some = hinge.everything[::20]
    region = sphere(BOX, radius=6)
    moved = hinge.sums(some, field=Hinged(hinge.truth), latents=hinge.truth.angles, region=region).numerator
    still = hinge.sums(some).numerator
    assert torch.allclose(moved[~region], still[~region], atol=1e-5 * float(still.abs().max()))
    assert not torch.allclose(moved[region], still[region], atol=1e-2 * float(still.abs().max()))


def test_a_soft_region_scales_displacements(hinge):
    some, half = hinge.everything[::20], torch.full((BOX,) * 3, 0.5)

    class Halved(Hinged):
        def evaluator(self, points):
            evaluate = super().evaluator(points)
            return lambda angles: evaluate(angles) / 2

    soft = hinge.sums(some, field=Hinged(hinge.truth), latents=hinge.truth.angles, region=half).numerator
    hard = hinge.sums(some, field=Halved(hinge.truth), latents=hinge.truth.angles, region=half > 0).numerator
    assert torch.allclose(soft, hard, atol=1e-5 * float(hard.abs().max()))


def test_all_aberrations_are_undone(tmp_path):
    data = Data(tmp_path, particles=300, snr=5.0, motion_range=0.0, aberrations=True, optics_groups=2)
    assert data.transfer.is_complex()
    aware = wbp(data.sums())
    t = data.truth
    fourier = reconstruct_fourier(data.raw, t.ctf, t.euler, t.origins, BOX, PIXEL)
    assert abs(data.mean_fsc(aware, 0) - data.mean_fsc(fourier, 0)) < 0.01


def test_shell_weights_scale_numerator_and_kernel_alike(hinge):
    some = hinge.everything[::20]
    plain = hinge.sums(some)
    flat = hinge.sums(some, weights=torch.full((BOX // 2 + 1,), 3.0))
    assert torch.allclose(flat.numerator, 3 * plain.numerator, rtol=1e-3, atol=1e-3)
    assert torch.allclose(wbp(flat), wbp(plain), atol=1e-4 * float(wbp(plain).abs().max()))
    # A smooth weight cancels where every particle has the same; it is the balance of shells in a solver that it sets.
    falling = hinge.sums(weights=1 / (1 + torch.arange(BOX // 2 + 1)))
    curve = fourier_shell_correlation(wbp(falling), wbp(hinge.sums()), sphere(BOX, radius=12).float())
    assert float(curve[: BOX // 2].min()) > 0.9


def test_the_map_does_not_depend_on_how_many_particles_there_are(hinge, rigid_sums):
    doubled = rigid_sums + rigid_sums
    assert torch.allclose(wbp(doubled), wbp(rigid_sums), atol=1e-4 * float(wbp(rigid_sums).abs().max()))


class Waves(ModalField):
    """Three smooth fields."""

    def __init__(self, wavelength):
        factors = 2 * torch.pi / wavelength * torch.tensor([0.3, 0.6, 1.0])
        super().__init__(lambda points: torch.sin(points.roll(1, 1) * factors[:, None, None]))


@pytest.mark.parametrize("spacing", [None, 1, 4])
def test_compiled_loops_and_torch_read_and_spread_alike(spacing):
    # As far as the border of the images and beyond it.
    generator = torch.Generator().manual_seed(0)
    mask = sphere(24, radius=13)
    mask[:, 3] = False
    field, scale = (None, None) if spacing is None else (Waves(60.0), torch.rand(24, 24, 24, generator=generator))
    voxels = Voxels(mask, (12, 12, 12), 3.0, field, scale, spacing or 1)
    matrices = rotation_matrices(random_rotations(4, generator))[:, :2] * (2 / 3.0)
    placed = voxels.place(
        torch.cat([matrices, torch.full((4, 2, 1), 24.0)], 2), 4 * torch.randn(4, 3, generator=generator)
    )
    images, values = torch.randn(4, 48, 48, generator=generator), torch.randn(24, 24, 24, generator=generator)
    found, expected = torch.zeros(24, 24, 24), torch.zeros(24, 24, 24)
    voxels.read(bordered(images), placed, found)
    voxels._read_torch(bordered(images), placed, expected)
    assert float(expected[mask].abs().min()) > 0 and not found[~mask].any()
    assert (found - expected).norm() < 1e-5 * expected.norm()
    spread, expected = voxels.spread(values, placed, 48), torch.zeros(4, 51, 51)
    voxels._spread_torch(values, placed, expected)
    assert (spread - expected[:, 1:-2, 1:-2]).norm() < 1e-5 * spread.norm()
    forward, adjoint = float((spread * images).double().sum()), float((values * found).double().sum())
    assert abs(forward - adjoint) < 1e-5 * float(spread.norm() * images.norm())


_LOOPS = """
import hashlib, torch
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.imaging.voxels import ModalField, Voxels, bordered
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
field = ModalField(lambda points: torch.sin(points / torch.tensor([10.0, 20.0])[:, None, None]))
matrices = rotation_matrices(random_rotations(4, generator))[:, :2]
poses = torch.cat([matrices / 3, torch.full((4, 2, 1), 12.0)], 2)
images, volume = torch.randn(4, 24, 24, generator=generator), torch.zeros(24, 24, 24)
for spacing in (1, 4):
    voxels = Voxels(torch.ones(24, 24, 24, dtype=torch.bool), (12, 12, 12), 3.0, field, spacing=spacing)
    placed = voxels.place(poses, torch.randn(4, 2, generator=generator))
    voxels.read(bordered(images), placed, volume)
    images = images + voxels.spread(volume, placed, 24)
sums = SliceSums(24, torch.device("cpu"))
sums.add(matrices, torch.fft.rfft2(images), torch.fft.rfft2(images).abs())
for found in (volume, images, sums.sums):
    print(hashlib.md5(found.numpy().tobytes()).hexdigest())
"""


def test_the_process_that_compiles_and_one_that_finds_it_compiled_give_the_same_numbers(tmp_path):
    said = [
        subprocess.run(
            [sys.executable, "-c", _LOOPS],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbc"))
    assert said[0] == said[1]


def test_white_noise_weighs_alike_in_all_shells(trained):
    """Shell 0 too, which holds no noise since the mean around the particle is taken away."""
    weights = FullImages(trained[1], torch.device("cpu")).noise_weights(0)
    assert 1 / 1.5 < weights.min() and weights.max() < 1.5


@pytest.mark.parametrize("threads", [1, 3])
def test_slices_are_summed_as_the_sum_over_their_frequencies_says(threads):
    box, n = 16, 4
    generator = torch.Generator().manual_seed(0)
    matrices = rotation_matrices(random_rotations(n, generator))[:, :2]
    kept = shells(box) <= box // 2
    transforms = image_to_fourier(torch.randn(n, box, box, generator=generator)) * kept
    power = transforms.abs().square()
    sums, by_torch = SliceSums(box, torch.device("cpu")), SliceSums(box, torch.device("cpu"))
    torch.set_num_threads(threads)
    sums.add(matrices, transforms, power)
    torch.set_num_threads(1)
    by_torch._add_torch(matrices, transforms, power)
    assert (sums.sums - by_torch.sums).norm() < 1e-5 * by_torch.sums.norm()

    ky, kx = torch.meshgrid(torch.fft.fftfreq(box, 1 / box), torch.arange(box // 2 + 1.0), indexing="ij")
    used = kept & (ky.abs() < box // 2) & (kx < box // 2)
    slices = torch.stack([kx[used], ky[used]], 1) @ matrices  # (n, p, 3)
    voxels = (torch.ones(box, box, box).nonzero().flip(1) - box // 2).float()
    phase = 2 * torch.pi / box * torch.einsum("vc,npc->nvp", voxels, slices)
    twice = torch.where(kx == 0, 1.0, 2.0)[used]
    for found, values in ((sums.images(), transforms), (sums.point_spread(), power)):
        exact = (torch.polar(torch.ones_like(phase), phase) * (values[:, used] * twice)[:, None]).real.sum((0, 2))
        exact = exact.view(box, box, box) / box**2
        assert (found - exact).norm() < 1e-3 * exact.norm()


def test_a_map_of_slices_is_as_good_as_one_whose_voxels_are_all_read(hinge, rigid_sums):
    data, inside = hinge.particles(), sphere(BOX)
    voxels = Voxels(inside, (BOX // 2,) * 3, PIXEL)
    numerator, kernel = torch.zeros(BOX, BOX, BOX), torch.zeros(BOX, BOX, BOX)
    for batch in hinge.everything.split(32):
        transfer, placed = data.transfer(batch), voxels.place(data.poses(batch))
        images = data.projector.reading_grid(data.transforms(batch) * transfer.conj() * data.weights)
        voxels.read(bordered(images), placed, numerator)
        voxels.read(bordered(data.projector.reading_grid(data.power(transfer))), placed, kernel)
    assert (rigid_sums.rigid - numerator).norm() < 0.05 * numerator.norm()
    assert (rigid_sums.kernel - _faded(kernel)).norm() < 0.03 * rigid_sums.kernel.norm()
    read = solve(numerator, fourier_denominator(_faded(kernel)), 0.3)
    change = [hinge.mean_fsc(wbp(rigid_sums), label) - hinge.mean_fsc(read, label) for label in (0, 1)]
    assert abs(sum(change) / 2) < 0.002 and max(map(abs, change)) < 0.004
    # The denominator of slices serves voxels that are read.
    served = solve(numerator, fourier_denominator(rigid_sums.kernel), 0.3)
    assert max(abs(hinge.mean_fsc(served, label) - hinge.mean_fsc(read, label)) for label in (0, 1)) < 0.001


def test_a_field_is_evaluated_as_coarsely_as_its_smoothness_allows():
    mask, coordinates = sphere(32, radius=12), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    arguments = (mask, (16, 16, 16), 1.0)
    spacings = [lattice_spacing(*arguments, Waves(length), None, coordinates) for length in (400.0, 80.0, 4.0)]
    assert spacings[0] > spacings[1] > spacings[2] == 1
    exact, coarse = torch.zeros(32, 32, 32), torch.zeros(32, 32, 32)
    poses = torch.cat([rotation_matrices(torch.zeros(50, 3))[:, :2], torch.full((50, 2, 1), 16.0)], 2)
    images = torch.randn(50, 32, 32, generator=torch.Generator().manual_seed(1))
    for out, spacing in ((exact, 1), (coarse, spacings[1])):
        voxels = Voxels(*arguments, Waves(80.0), None, spacing)
        voxels.read(bordered(images), voxels.place(poses, coordinates), out)
    assert (coarse - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"box": 11}, "even"),
        ({"indices": torch.arange(0)}, "no particles"),
        ({"field": BasisDecoder(2, 48.0), "latents": torch.zeros(5, 2), "region": torch.ones(8, 8, 8)}, "region"),
    ],
)
def test_unusable_input_is_refused(change, sentence):
    matrices, images, transfer, _ = random_setup()
    arguments = {"indices": torch.arange(5), "box": 12} | change
    with pytest.raises(InputError, match=sentence):
        data = ParticleData(images.__getitem__, transfer.__getitem__, matrices, arguments.pop("box"), 4.0)
        accumulate(data, **arguments)


@pytest.mark.gpu
def test_gpu_gives_the_sums_of_the_cpu(hinge):
    field = {"field": Hinged(hinge.truth), "latents": hinge.truth.angles}
    some = hinge.everything[:50]
    cpu = hinge.sums(some, **field)

    class OnGpu(Hinged):
        def evaluator(self, points):
            evaluate = super().evaluator(points.cpu())
            return lambda angles: evaluate(angles.cpu()).cuda()

    gpu = hinge.sums(some, field=OnGpu(hinge.truth), latents=hinge.truth.angles, device="cuda")
    assert torch.allclose(gpu.numerator.cpu(), cpu.numerator, atol=1e-3 * float(cpu.numerator.abs().max()))
    assert torch.allclose(gpu.kernel.cpu(), cpu.kernel, atol=1e-3 * float(cpu.kernel.abs().max()))


# --- modes, frames and least squares --------------------------------------------------------------------------------


def test_modes_reproduce_a_rotation_on_and_between_the_points_they_were_found_on(hinge):
    t = hinge.truth
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions[::3], PIXEL)
    assert len(modes) == 2 and modes.remainder < 0.02 * PIXEL
    others = t.molecule.positions[1::7]
    exact = Hinged(t).evaluator(others)(t.angles)
    found = modes.field.evaluator(others)(modes.coordinates)
    assert float((found - exact).square().sum(-1).mean().sqrt()) < 0.04 * PIXEL
    assert find_modes(Hinged(t), 0 * t.angles, t.molecule.positions, PIXEL).coordinates.shape == (len(t), 0)


def test_modes_and_the_field_itself_give_the_same_sums(hinge):
    t, some = hinge.truth, hinge.everything[::20]
    region = 0.5 + 0.5 * sphere(BOX, radius=6).float()
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions, PIXEL)
    fast = hinge.sums(some, field=modes.field, latents=modes.coordinates, region=region, kernel=False).numerator
    plain = _Plain(modes.field)
    slow = hinge.sums(some, field=plain, latents=modes.coordinates, region=region, kernel=False).numerator
    assert torch.allclose(fast, slow, atol=1e-4 * float(slow.abs().max()))


class _Plain:
    """A modal field that does not say so."""

    def __init__(self, field):
        self.evaluator = field.evaluator


def test_dropped_modes_move_nothing(hinge):
    t = hinge.truth
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions, PIXEL)
    half = modes.scaled(torch.tensor([0.5, 0.0]))
    assert len(half) == 1 and torch.allclose(half.coordinates[:, 0], modes.coordinates[:, 0] / 2)
    assert half.field.fields(t.molecule.positions[:5]).shape == (1, 5, 3)
    still = HalfReconstruction.of(hinge.particles(), hinge.everything[::30], modes.scaled(torch.zeros(2)), sphere(BOX))
    assert torch.equal(still.sums.numerator, still.sums.rigid)


def test_a_frame_keeps_its_own_conformation_still_and_moves_the_consensus(hinge):
    t = hinge.truth
    angle = torch.tensor([0.3])
    atoms = t.molecule.positions
    there = atoms + _Exact(t).evaluator(atoms)(angle[None])[0]
    field = FrameField(_Exact(t), angle)
    assert float(field.evaluator(there)(angle[None]).abs().max()) < 1e-2
    back = there + field.evaluator(there)(torch.zeros(1, 1))[0]
    assert float((back - atoms).abs().max()) < 1e-2


class _Exact(Hinged):
    """The hinge as a smooth field: points turn in proportion to how far they lie along x."""

    def evaluator(self, points):
        share = torch.sigmoid(points[:, :1] / 10)
        turned = torch.ones(len(points), dtype=torch.long)
        return lambda angles: share * (self.truth.molecule.move(points, turned, angles) - points)


def test_a_map_solved_in_another_frame_shows_that_conformation(hinge):
    t, angle = hinge.truth, torch.tensor([0.35])
    there = t.molecule.positions_at(angle[None])[0]
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions, PIXEL)

    class Frame:
        def evaluator(self, points):
            labels = t.molecule.moving[cKDTree(there.numpy()).query(points.numpy())[1]]
            return lambda angles: t.molecule.move(points, labels, angles - angle) - points

    assert len(modes) == 2
    volume = wbp(hinge.sums(field=Frame(), latents=t.angles))
    mask = (t.true_map(0.35) > 0.2 * float(t.true_map(0.35).max())).float()
    at_angle = fourier_shell_correlation(volume, t.true_map(0.35), mask)[1:].mean()
    at_rest = fourier_shell_correlation(volume, t.true_map(0.0), mask)[1:].mean()
    assert at_angle > at_rest + 0.1


def test_deformed_projection_and_backprojection_are_adjoint(hinge):
    t = hinge.truth
    batch = hinge.everything[:7]
    operator = DeformedProjection(hinge.particles(), sphere(BOX, radius=12), Hinged(t), t.angles)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(operator), generator=generator)
    images = torch.randn(7, BOX, BOX, generator=generator)
    projected = fourier_to_image(operator.project(values, batch), BOX).double()
    read = operator.backproject(image_to_fourier(images), batch).double()
    forward, adjoint = float((projected * images).sum()), float((values * read).sum())
    scale = float(projected.norm() * images.norm())
    assert abs(forward - adjoint) < 1e-5 * scale
    other = torch.randn(len(operator), generator=generator)
    left = float(other.double() @ operator.normal(values, batch, 3).double())
    right = float(values.double() @ operator.normal(other, batch, 7).double())
    assert abs(left - right) < 1e-4 * abs(float(values @ operator.normal(values, batch, 7)))


def test_bilinear_spreading_on_the_finer_grid_errs_by_a_few_per_cent_up_to_nyquist(hinge):
    # Against the sum over voxels, exact at every frequency, for a white map.
    generator = torch.Generator().manual_seed(1)
    operator = DeformedProjection(hinge.particles(), sphere(BOX, radius=9), None, None)
    values = torch.randn(len(operator), generator=generator)
    batch = hinge.everything[:3]
    got = operator.project(values, batch)
    voxels = (operator.shape.nonzero().flip(1) - BOX // 2) * PIXEL
    places = Projector(BOX, PIXEL).image_points(voxels, hinge.matrices[batch]) - BOX // 2
    phase = -2 * torch.pi * torch.einsum("hwc,bnc->bhwn", frequencies_2d(BOX), places)
    exact = (torch.polar(torch.ones_like(phase), phase) * values).sum(-1)
    for low, high, limit in ((1, 8, 0.02), (8, 12, 0.05), (12, 16, 0.1)):
        ring = (shells(BOX) >= low) & (shells(BOX) < high)
        assert float((got - exact)[:, ring].norm() / exact[:, ring].norm()) < limit


def test_least_squares_explains_held_out_images_better_and_agrees_with_backprojection(hinge):
    t = hinge.truth
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions, PIXEL)
    used, held_out = hinge.everything[:270], hinge.everything[270:]
    region = sphere(BOX, radius=13).float()
    half = HalfReconstruction.of(hinge.particles(), used, modes, region)
    volume, solution = half.least_squares(0.3, held_out, most_steps=4)
    assert 1 <= solution.steps <= 4
    assert solution.residuals[solution.steps] < solution.residuals[0]
    plain = half.backprojected(0.3)
    for label in (0, 1):
        assert hinge.mean_fsc(volume, label) > hinge.mean_fsc(plain, label) - 0.01
    # Outside the region the solvent is that of the backprojection.
    assert torch.allclose(volume[region == 0], plain[region == 0], atol=1e-5 * float(plain.abs().max()))


def test_a_missing_cone_is_noticed_and_filled_better_by_least_squares(hinge):
    t = hinge.truth
    near = torch.where((torch.rad2deg(t.euler[:, 1]) % 180 - 90).abs() > 45)[0]
    said = []
    every = HalfReconstruction.of(hinge.particles(), hinge.everything, None, sphere(BOX))
    assert not check_views(every.denominator, 1, PIXEL, Reporter(said.append)) and not said
    region = sphere(BOX, radius=13).float()
    half = HalfReconstruction.of(hinge.particles(), near[20:], None, region)
    assert check_views(half.denominator, 1, PIXEL, Reporter(said.append))
    assert re.search(r"Note: \d+ % of the directions", said[0])
    # Noise over signal as half-maps have it: little in the first shells, as much as signal in the last.
    shares = 0.02 + (torch.arange(BOX // 2 + 1) / (BOX // 2)).square()
    solved = half.least_squares(shares, near[:20], most_steps=6)[0]
    for label in (0, 1):
        assert hinge.mean_fsc(solved, label) > hinge.mean_fsc(half.backprojected(shares), label) + 0.01


def test_automatic_method_goes_by_missing_views_and_by_memory(monkeypatch):
    said, options, cpu = [], ReconstructOptions(), torch.device("cpu")
    monkeypatch.setattr(checks, "available_memory", lambda: 6 * 10**8)
    assert checks.choose_method(False, 64, cpu, options, Reporter(said.append)) == "wbp"
    assert checks.choose_method(True, 64, cpu, options, Reporter(said.append)) == "cg" and not said
    checks.check_memory(192, cpu, options)
    assert checks.choose_method(True, 192, cpu, options, Reporter(said.append)) == "wbp"
    assert "0.6 GB are free" in said[0]
    with pytest.raises(InputError, match="use --method wbp"):
        checks.check_memory(192, cpu, ReconstructOptions(method="cg"))
    with pytest.raises(InputError, match=r"box 512 needs about [\d.]+ GB"):
        checks.check_memory(512, cpu, options)


def test_half_sets_of_very_different_size_are_noticed():
    said = []
    check_halves(torch.tensor([1] * 60 + [2] * 45), Reporter(said.append))
    assert not said
    check_halves(torch.tensor([1] * 80 + [2] * 25), Reporter(said.append))
    assert "80 and 25 particles" in said[0]


def test_signal_to_noise_of_a_shell_sets_its_regularisation():
    shares = shares_from_fsc(torch.tensor([1.0, 0.9, 0.5, 0.2, -0.1, 0.3]))
    assert torch.allclose(shares[1:3], torch.tensor([1 / 9, 1.0]), rtol=1e-4)
    assert (shares[3:] == shares[5]).all() and shares[5] > 2


# --- inverse field --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inverse(hinge):
    generator = torch.Generator().manual_seed(0)
    atoms = hinge.truth.molecule.positions
    chosen = atoms[torch.randperm(len(atoms), generator=generator)[:400]]
    options = InvertOptions(epochs=40, particles_per_epoch=64, batch_size=16, points_per_batch=64)
    return *fit_inverse(Hinged(hinge.truth), hinge.truth.angles, chosen, BOX * PIXEL, BOX, options), chosen


def test_inverse_undoes_the_motion_on_and_off_the_gaussians(inverse):
    _, report, _ = inverse
    assert report.motion > 2
    assert report.on_gaussians < 0.35 * report.motion
    assert report.off_gaussians < 0.4 * report.motion
    assert report.losses[-1] < 0.2 * report.losses[0]


def test_report_is_the_round_trip(inverse, hinge):
    field, report, points = inverse
    moved = points + Hinged(hinge.truth).evaluator(points)(hinge.truth.angles)
    back = moved + field.displacements(hinge.truth.angles, moved)
    rms = float((back - points).square().sum(-1).mean().sqrt())
    assert rms == pytest.approx(report.on_gaussians, rel=0.15)


def test_forward_field_from_the_inverse_is_two_x_minus_the_inverse(inverse):
    field, _, points = inverse
    latents = torch.tensor([[0.1], [-0.2]])
    came_from = points + field.displacements(latents, points)
    forward = points + ForwardFromInverse(field).evaluator(points)(latents)
    assert torch.allclose(forward, 2 * points - came_from, atol=1e-4)


def test_map_through_the_inverse_lies_between_rigid_and_exact(inverse, hinge, rigid_sums):
    field, _, _ = inverse
    near = sphere(BOX, radius=11)
    through = wbp(hinge.sums(field=ForwardFromInverse(field), latents=hinge.truth.angles, region=near))
    exact = wbp(hinge.sums(field=Hinged(hinge.truth), latents=hinge.truth.angles))
    assert hinge.mean_fsc(wbp(rigid_sums), 1) < hinge.mean_fsc(through, 1) < hinge.mean_fsc(exact, 1) + 0.01


def test_inverse_comes_back_from_its_file(inverse, tmp_path):
    field, _, points = inverse
    save_inverse(tmp_path / "inverse.safetensors", field)
    again = load_inverse(tmp_path / "inverse.safetensors")
    latents = torch.tensor([[0.15]])
    assert torch.equal(again.displacements(latents, points), field.displacements(latents, points))


def test_same_seed_gives_the_same_inverse(hinge):
    def fit(seed):
        options = InvertOptions(epochs=1, particles_per_epoch=32, seed=seed)
        points = hinge.truth.molecule.positions[::30]
        return fit_inverse(Hinged(hinge.truth), hinge.truth.angles, points, BOX * PIXEL, BOX, options)[1].losses

    assert fit(1) == fit(1) != fit(2)


def test_a_file_that_is_no_inverse_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_inverse(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not an inverse field"):
        load_inverse(tmp_path / "bad.safetensors")


def test_inverse_starts_at_no_motion():
    field = InverseField(2, 100.0, 32)
    points = torch.randn(3, 7, 3)
    assert torch.equal(field.displacements(torch.randn(3, 2), points), torch.zeros(3, 7, 3))
    assert torch.equal(field.displacements(torch.randn(3, 2), points[0]), torch.zeros(3, 7, 3))


def test_inverse_of_fixed_points_equals_that_of_points_per_particle(inverse):
    field, _, points = inverse
    latents = torch.tensor([[0.1], [-0.2]])
    fixed, each = field.displacements(latents, points), field.displacements(latents, points.expand(2, -1, -1))
    assert torch.allclose(fixed, each, atol=1e-4)


# --- FSC and maps ---------------------------------------------------------------------------------------------------


def noise(box, seed):
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("box", [16, 17])
def test_fsc_of_known_maps(box):
    a, b = noise(box, 0), noise(box, 1)
    assert torch.allclose(fourier_shell_correlation(a, a), torch.ones(box // 2 + 1))
    assert torch.allclose(fourier_shell_correlation(a, -3 * a), -torch.ones(box // 2 + 1))
    assert fourier_shell_correlation(a, b)[2:].abs().max() < 0.5
    slow = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    k = np.fft.fftfreq(box) * box
    radius = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    chosen = radius == 5
    cross = (slow[0] * slow[1].conj())[chosen].sum().real
    power = np.sqrt((abs(slow[0][chosen]) ** 2).sum() * (abs(slow[1][chosen]) ** 2).sum())
    assert float(fourier_shell_correlation(a, b)[5]) == pytest.approx(cross / power, abs=1e-5)


def test_fsc_of_signal_and_noise_follows_the_ratio_of_their_powers():
    signal, n1, n2 = noise(48, 0), noise(48, 1), noise(48, 2)
    curve = fourier_shell_correlation(signal + n1, signal + n2)
    assert float(curve[8:].mean()) == pytest.approx(0.5, abs=0.02)


def test_an_empty_shell_correlates_nothing():
    flat = torch.ones(8, 8, 8)
    curve = fourier_shell_correlation(flat, flat)
    assert curve[0] == 1 and torch.equal(curve[1:], torch.zeros(4))


def test_maps_of_different_boxes_are_refused():
    with pytest.raises(InputError, match="8 and 16"):
        fourier_shell_correlation(torch.ones(8, 8, 8), torch.ones(16, 16, 16))


def test_resolution_is_where_the_curve_crosses():
    curve = torch.tensor([1.0, 1.0, 0.9, 0.5, 0.1, 0.6, 0.0])
    assert resolution_at(curve, 12, 2.0, 0.3) == pytest.approx(24 / 3.5)
    assert resolution_at(curve, 12, 2.0, 0.5) == pytest.approx(24 / 3)
    assert resolution_at(torch.ones(7), 12, 2.0) == 4.0
    assert resolution_at(torch.zeros(7), 12, 2.0) == float("inf")
    assert resolution_at(torch.full((7,), float("nan")), 12, 2.0) == float("inf")
    # shell 0 is the mean of the map and says nothing
    assert resolution_at(torch.tensor([-1.0, 1, 1, 1, 1, 1, 1]), 12, 2.0) == 4.0


def blob(box, seed, radius=6.0):
    axis = torch.arange(box) - box // 2
    r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float().sqrt()
    return lowpass_volume(noise(box, seed), 3.0, 9.0) * 3 * (r < radius) + 1.5 * (r < radius)


def test_phase_randomisation_removes_what_a_tight_mask_correlates():
    mask = (blob(32, 0).abs() > 1.0).float()
    curves = half_map_fsc(noise(32, 1), noise(32, 2), mask)
    assert float(curves.masked[4:].mean()) < 0.4
    constant = 5.0
    curves = half_map_fsc(noise(32, 1) + constant, noise(32, 2) + constant, mask)
    assert float(curves.masked[4:].mean()) > 0.4
    assert float(curves.corrected[4:].mean()) < 0.1


def test_corrected_curve_of_noise_lies_below_zero_as_often_as_above():
    mask = soft_mask(blob(32, 0, 9.0) + 0.01 * noise(32, 3), 3.0)
    curves = [half_map_fsc(noise(32, 2 * i), noise(32, 2 * i + 1), mask, i).corrected[8:] for i in range(10, 22)]
    curves = torch.stack(curves)
    assert abs(float(curves.mean())) < 3 * float(curves.mean(1).std()) / len(curves) ** 0.5
    assert 0.3 < float((curves < 0).float().mean()) < 0.7


def test_random_phases_in_a_small_mask_are_drawn_more_than_once(monkeypatch):
    mask, halves = (blob(32, 0, 4.0).abs() > 0.5).float(), (noise(32, 1), noise(32, 2))

    def change():
        first, second = (half_map_fsc(*halves, mask, seed).randomised[8:] for seed in (0, 1))
        return float((first - second).square().mean().sqrt())

    several = change()
    monkeypatch.setattr(fsc, "_MOST_DRAWS", 1)
    assert several < 0.6 * change()


def test_correction_keeps_what_the_halves_share():
    signal = blob(32, 0, 9.0)
    mask = soft_mask(signal + 0.01 * noise(32, 3), 3.0)
    curves = half_map_fsc(signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2), mask)
    shared = fourier_shell_correlation(signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2), mask)
    assert torch.equal(curves.masked, shared)
    assert float((curves.masked - curves.corrected)[:8].max()) < 0.1


def test_automatic_mask_holds_the_molecule_and_no_solvent(hinge):
    t = hinge.truth
    clean = t.true_map()
    noisy = clean + 0.2 * float(clean.max()) * noise(BOX, 0)
    mask = soft_mask(noisy, PIXEL)
    assert 0 <= float(mask.min()) and float(mask.max()) == 1
    molecule = torch.maximum(t.domain_mask(0), t.domain_mask(1)) > 0.5
    assert float(mask[molecule].mean()) > 0.9
    assert float(mask[~sphere(BOX, radius=BOX / 2 - 1)].max()) == 0
    assert float(mask.mean()) < 0.5


def test_a_map_without_density_gives_no_mask():
    with pytest.raises(InputError, match="mask"):
        soft_mask(0.01 * noise(16, 0), 3.0, threshold=5.0)


def test_fsc_star_has_relions_columns_and_extra_ones(tmp_path):
    curve = torch.linspace(1, 0, 17)
    curves = HalfMapFsc(curve, curve, 0 * curve, curve)
    mask = torch.zeros(32, 32, 32)
    mask[:16, :16, :16] = 1
    more = {"rlnUnfilteredMapHalf1": "half1_unfil.mrc", "rlnBfactorUsedForSharpening": -75.0}
    write_fsc_star(tmp_path / "fsc.star", curves, 3.0, mask, {"dynFscModelConsensus": curve / 2}, more)
    blocks = starfile.read(tmp_path / "fsc.star", always_dict=True)
    table = blocks["fsc"]
    assert table["rlnSpectralIndex"].tolist() == list(range(17))
    assert table["rlnAngstromResolution"][4] == pytest.approx(32 * 3.0 / 4)
    assert table["rlnResolution"][4] == pytest.approx(4 / 96, abs=1e-7)
    for name in ("Corrected", "UnmaskedMaps", "MaskedMaps"):
        assert np.allclose(table[f"rlnFourierShellCorrelation{name}"], curve, atol=1e-6)
    # An eighth of the box is mask: f = 0.476 * 8.
    part = 3.808 * curve / (1 + 2.808 * curve)
    assert np.allclose(table["rlnFourierShellCorrelationParticleMaskFraction"], part, atol=1e-5)
    assert float(blocks["general"]["rlnParticleBoxFractionSolventMask"]) == pytest.approx(3.808, abs=1e-4)
    assert {name: blocks["general"][name] for name in more} == more
    # The curve falls by a sixteenth a shell: below 0.8 from shell 4 on.
    assert float(blocks["general"]["rlnRandomiseFrom"]) == pytest.approx(32 * 3.0 / 4)
    assert np.allclose(table["dynFscModelConsensus"], curve / 2, atol=1e-6)
    assert float(blocks["general"]["rlnFinalResolution"]) == pytest.approx(resolution_at(curve, 32, 3.0), abs=1e-3)


def test_final_map_keeps_good_shells_and_drops_the_rest():
    signal = noise(16, 0)
    curve = torch.ones(9)
    curve[5:] = 0
    out = volume_to_fourier(final_map(signal, signal, curve))
    expected = volume_to_fourier(signal)
    kept = shells(16, 3) < 5
    assert torch.allclose(out[kept], expected[kept], atol=1e-3)
    assert float(out[~kept].abs().max()) < 1e-3


def test_final_map_is_nearer_to_the_truth_than_the_average():
    signal = fourier_to_volume(
        volume_to_fourier(noise(32, 0)) * torch.exp(-expand_shells(torch.arange(17.0), 32, 3) / 4), 32
    )
    half1, half2 = signal + 0.3 * noise(32, 1), signal + 0.3 * noise(32, 2)
    final = final_map(half1, half2, fourier_shell_correlation(half1, half2))
    assert (final - signal).norm() < 0.8 * ((half1 + half2) / 2 - signal).norm()


def test_local_resolution_follows_where_the_halves_agree():
    box = 64
    signal, halves = 2 * noise(box, 0), []
    left = torch.arange(box) < box // 2
    for seed in (1, 2):
        # Signal to 8 A on one side, to 20 A on the other, in white noise.
        sharp, blurred = lowpass_volume(signal, 2.0, 8.0), lowpass_volume(signal, 2.0, 20.0)
        halves.append(torch.where(left, sharp, blurred) + 0.5 * noise(box, seed))
    local = local_resolution(*halves, 2.0)
    inside = slice(16, 48)
    assert float(local[inside, inside, 12:20].median()) == pytest.approx(8, rel=0.25)
    assert float(local[inside, inside, 44:52].median()) == pytest.approx(20, rel=0.35)
    assert float(local_resolution(noise(box, 1), noise(box, 2), 2.0)[inside, inside, inside].median()) > 20


def test_sharpening_undoes_a_known_b_factor():
    signal = noise(48, 0)
    blurred = sharpen(signal, 1.5, 150.0)
    assert guinier_b_factor(blurred, 1.5, 3.5) == pytest.approx(-150, rel=0.1)
    assert torch.allclose(sharpen(blurred, 1.5, -150.0), signal, atol=1e-3)
    assert guinier_b_factor(blurred, 1.5, 12.0) == 0.0


def test_pure_noise_reconstructed_through_any_deformation_claims_no_resolution(hinge):
    generator = torch.Generator().manual_seed(3)
    t = hinge.truth
    images = torch.randn(len(t), BOX, BOX, generator=generator)
    data = ParticleData(images.__getitem__, hinge.transfer.__getitem__, hinge.matrices, BOX, PIXEL)
    modes = find_modes(Hinged(t), t.angles, t.molecule.positions, PIXEL)
    region = sphere(BOX, radius=12).float()
    halves = [torch.where(t.half == number)[0] for number in (1, 2)]
    pair = [HalfReconstruction.of(data, rows, modes, region) for rows in halves]
    mask = torch.maximum(t.domain_mask(0), t.domain_mask(1))
    solved = [half.least_squares(1.0, other, most_steps=2)[0] for half, other in zip(pair, halves[::-1], strict=True)]
    for maps in ([half.backprojected(1.0) for half in pair], solved):
        curve = half_map_fsc(*maps, mask).corrected[1:]
        # Fourier voxels of a shell, as many fewer as the mask is smaller than the box; half of them are mirror images.
        voxels = 4 * torch.pi * torch.arange(1, BOX // 2 + 1).square() * float(mask.square().mean()) / 2
        assert int((curve.abs() > 3 / voxels.clamp(min=1).sqrt()).sum()) <= 1


def test_a_reconstruction_is_written_with_the_names_that_others_read(hinge, tmp_path):
    halves = [wbp(hinge.sums(hinge.everything[hinge.truth.half == number])) for number in (1, 2)]
    files = write_reconstruction(tmp_path / "reconstruction", *halves, PIXEL)
    names = {path.name for path in (tmp_path / "reconstruction").iterdir()}
    assert names == {
        "half1_unfil.mrc",
        "half2_unfil.mrc",
        "map.mrc",
        "map_sharpened.mrc",
        "fsc.star",
        "mask.mrc",
    }
    stored, pixel = read_map(files.half_maps[1])
    assert pixel == pytest.approx(PIXEL) and np.allclose(stored, halves[1], atol=1e-6)
    # half-maps keep the solvent's noise, in the corners of the box as well
    assert stored[:4, :4, :4].std() > 0.1 * stored.std()
    with mrcfile.open(files.sharpened, header_only=True) as mrc:
        assert any(label.startswith("SHARPENED") for label in mrc.get_labels())
    with mrcfile.open(files.final, header_only=True) as mrc:
        assert any("not sharpened" in label for label in mrc.get_labels())
    assert 2 * PIXEL <= files.resolution < 40
    final, _ = read_map(files.final)
    assert hinge.mean_fsc(torch.from_numpy(final), 0) > hinge.mean_fsc(halves[0], 0)

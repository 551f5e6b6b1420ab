"""Deformed weighted backprojection: its sums, what true deformations do to the map, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.backprojection import (
    ParticleData,
    _faded,
    accumulate,
    accumulate_groups,
    fourier_denominator,
    solve,
)
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, lowpass_volume, shells
from dynamight_core.imaging.masks import sphere
from dynamight_core.imaging.poses import random_rotations, rotation_matrices
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.imaging.voxels import ModalField, Voxels, bordered, lattice_spacing
from dynamight_core.model.decoders.basis import BasisDecoder
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.simulate.measures import HingeField
from tests.support.fourier_maps import reconstruct_fourier
from tests.support.hinge_images import BOX, PIXEL, HingeImages, wbp


def random_setup(box=12, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrices = rotation_matrices(random_rotations(n, generator))
    images = torch.randn(n, box, box, generator=generator)
    ctf = CtfParameters.create(torch.full((n,), 9000.0), beam_tilt=torch.tensor([3.0, -2.0]))
    return matrices, images, evaluate_ctf(ctf, box, 4.0), generator


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
    field = {"field": HingeField(hinge.truth), "latents": hinge.truth.angles}
    whole = hinge.sums(hinge.everything[:60], **field)
    parts = hinge.sums(first, batch_size=8, memory=2**20, **field) + hinge.sums(second, batch_size=1, **field)
    assert parts.n_particles == 60
    for name in ("numerator", "kernel"):
        a, b = getattr(whole, name), getattr(parts, name)
        assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))


def test_groups_are_summed_as_each_by_itself(hinge):
    field, groups = HingeField(hinge.truth), [hinge.everything[:5], hinge.everything[5:45]]
    data, latents = hinge.particles(), hinge.truth.angles
    together = accumulate_groups(data, groups, field=field, latents=latents, memory=1)
    for group, summed in zip(groups, together, strict=True):
        alone = accumulate(data, group, field=field, latents=latents)
        assert summed.n_particles == len(group)
        for name in ("numerator", "rigid", "kernel"):
            assert torch.allclose(
                getattr(summed, name), getattr(alone, name), atol=1e-4 * float(alone.rigid.abs().max())
            )


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
    deformed = wbp(hinge.sums(field=HingeField(hinge.truth), latents=hinge.truth.angles))
    assert hinge.mean_fsc(deformed, 1) > hinge.mean_fsc(rigid, 1) + 0.05
    assert hinge.mean_fsc(deformed, 0) > hinge.mean_fsc(rigid, 0) - 0.01


def test_wrong_sign_of_the_deformation_blurs(hinge):
    right = wbp(hinge.sums(field=HingeField(hinge.truth), latents=hinge.truth.angles))
    wrong = wbp(hinge.sums(field=HingeField(hinge.truth), latents=-hinge.truth.angles))
    assert hinge.mean_fsc(wrong, 1) < hinge.mean_fsc(right, 1) - 0.1


def test_voxels_outside_the_region_do_not_move(hinge):
    some = hinge.everything[::20]
    region = sphere(BOX, radius=6)
    moved = hinge.sums(some, field=HingeField(hinge.truth), latents=hinge.truth.angles, region=region).numerator
    still = hinge.sums(some).numerator
    assert torch.allclose(moved[~region], still[~region], atol=1e-5 * float(still.abs().max()))
    assert not torch.allclose(moved[region], still[region], atol=1e-2 * float(still.abs().max()))


def test_a_soft_region_scales_displacements(hinge):
    some, half = hinge.everything[::20], torch.full((BOX,) * 3, 0.5)

    class Halved(HingeField):
        def evaluator(self, points):
            evaluate = super().evaluator(points)
            return lambda angles: evaluate(angles) / 2

    soft = hinge.sums(some, field=HingeField(hinge.truth), latents=hinge.truth.angles, region=half).numerator
    hard = hinge.sums(some, field=Halved(hinge.truth), latents=hinge.truth.angles, region=half > 0).numerator
    assert torch.allclose(soft, hard, atol=1e-5 * float(hard.abs().max()))


@pytest.mark.slow
def test_all_aberrations_are_undone(tmp_path):
    data = HingeImages(tmp_path, particles=300, snr=5.0, motion_range=0.0, aberrations=True, optics_groups=2)
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("threads", "size"), [(1, 16), (3, 16), (1, 32)])
def test_slices_are_summed_as_the_sum_over_their_frequencies_says(threads, size):
    box, n = 16, 4
    generator = torch.Generator().manual_seed(0)
    matrices = rotation_matrices(random_rotations(n, generator))[:, :2]
    kept = shells(box) <= box // 2
    transforms = image_to_fourier(torch.randn(n, box, box, generator=generator)) * kept
    power = transforms.abs().square()
    sums, by_torch = (SliceSums(box, torch.device("cpu"), size) for _ in range(2))
    torch.set_num_threads(threads)
    sums.add(matrices, transforms, power)
    torch.set_num_threads(1)
    by_torch._add_torch(matrices, transforms, power)
    assert (sums.sums - by_torch.sums).norm() < 1e-5 * by_torch.sums.norm()

    ky, kx = torch.meshgrid(torch.fft.fftfreq(box, 1 / box), torch.arange(box // 2 + 1.0), indexing="ij")
    used = kept & (ky.abs() < box // 2) & (kx < box // 2)
    slices = torch.stack([kx[used], ky[used]], 1) @ matrices  # (n, p, 3)
    voxels = (torch.ones(size, size, size).nonzero().flip(1) - size // 2).float()
    phase = 2 * torch.pi / box * torch.einsum("vc,npc->nvp", voxels, slices)
    twice = torch.where(kx == 0, 1.0, 2.0)[used]
    for found, values in ((sums.images(), transforms), (sums.point_spread(), power)):
        exact = (torch.polar(torch.ones_like(phase), phase) * (values[:, used] * twice)[:, None]).real.sum((0, 2))
        exact = exact.view(size, size, size) / box**2
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
    spacings = [lattice_spacing(Voxels(*arguments, Waves(length)), coordinates) for length in (400.0, 80.0, 4.0)]
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
    field = {"field": HingeField(hinge.truth), "latents": hinge.truth.angles}
    some = hinge.everything[:50]
    cpu = hinge.sums(some, **field)

    class OnGpu(HingeField):
        def evaluator(self, points):
            evaluate = super().evaluator(points.cpu())
            return lambda angles: evaluate(angles.cpu()).cuda()

    gpu = hinge.sums(some, field=OnGpu(hinge.truth), latents=hinge.truth.angles, device="cuda")
    assert torch.allclose(gpu.numerator.cpu(), cpu.numerator, atol=1e-3 * float(cpu.numerator.abs().max()))
    assert torch.allclose(gpu.kernel.cpu(), cpu.kernel, atol=1e-3 * float(cpu.kernel.abs().max()))


def test_known_sums_save_those_without_deformation(hinge):
    some, truth = hinge.everything[:60], hinge.truth
    first = hinge.sums(some, field=HingeField(truth), latents=truth.angles)
    whole = hinge.sums(some, field=HingeField(truth), latents=-truth.angles)
    data = hinge.particles()
    (short,) = accumulate_groups(data, [some], field=HingeField(truth), latents=-truth.angles, known=first)
    torch.testing.assert_close(short.numerator, whole.numerator)
    torch.testing.assert_close(short.rigid, whole.rigid)
    assert short.kernel is None


def test_values_of_a_field_are_remembered_at_the_same_points_and_within_memory():
    asked = []

    def fields(points):
        asked.append(len(points))
        return points[None].clone()

    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    field = ModalField(fields).remembered(memory=50 * 12)
    for _ in range(2):
        torch.testing.assert_close(field.fields(points), points[None])
        torch.testing.assert_close(field.fields(points + 1), points[None] + 1)
    assert asked == [50, 50, 50]

"""How an image forms: projector and adjoint, poses, shifts, CTF, Fourier helpers."""

import numpy as np
import pytest
import torch

from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_image,
    fourier_to_volume,
    frequencies_2d,
    frequencies_3d,
    image_to_fourier,
    lowpass_volume,
    plane_multiplicity,
    resample_image,
    resample_volume,
    resize_fourier,
    shell_means,
    shell_sums,
    shells,
    translation_phases,
    volume_to_fourier,
)
from dynamight_core.imaging.poses import euler_angles, random_rotations, rotation_matrices
from dynamight_core.imaging.projector import LinearPoints, Projector, read_bilinear, spread_bilinear
from tests.support.rotations import axis_rotations


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inner(a, b, box):
    """The sum over pixels of two real images, from their half-plane transforms."""
    return (fourier_to_image(a, box) * fourier_to_image(b, box)).sum()


# --- projector ------------------------------------------------------------------------------------------------------


def check_adjoint(box, oversampling, n_channels, dtype, device="cpu"):
    generator = seeded(box)
    pixel, n, b = 2.0, 60, 3
    positions = ((torch.rand(b, n, 3, generator=generator) - 0.5) * box * pixel * 0.6).to(device, dtype)
    matrices = rotation_matrices(random_rotations(b, generator)).to(device, dtype)
    shape = (b, n) if n_channels is None else (b, n_channels, n)
    weights = torch.randn(shape, generator=generator).to(device, dtype)
    image_shape = (*shape[:-1], box, box)
    images = image_to_fourier(torch.randn(image_shape, generator=generator).to(device, dtype))
    projector = Projector(box, pixel, oversampling)
    forward = inner(projector.project(positions, weights, matrices), images, box)
    back = (weights * projector.backproject(images, positions, matrices)).sum()
    scale = weights.norm() * projector.backproject(images, positions, matrices).norm()
    assert abs(float(forward - back)) < 1e-5 * float(scale)


@pytest.mark.parametrize("oversampling", [1, 2])
@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("n_channels", [None, 1, 3])
def test_backprojection_is_the_adjoint_of_projection(box, oversampling, n_channels):
    check_adjoint(box, oversampling, n_channels, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("oversampling", [1, 2])
def test_backprojection_is_the_adjoint_of_projection_on_a_gpu(oversampling):
    check_adjoint(24, oversampling, 2, torch.float32, "cuda")


def slow_projection(positions, weights, matrices, box, pixel):
    """Sum complex exponentials, straight from the definition, in double precision."""
    points = (matrices.double() @ positions.double().transpose(-1, -2)).transpose(-1, -2)[..., :2]
    frequency = frequencies_2d(box).double() / pixel
    phase = -2 * torch.pi * torch.einsum("hwc,bnc->bhwn", frequency, points)
    return torch.polar(weights.double().expand_as(phase), phase).sum(-1)


def gaussian_error(box, width, oversampling, device="cpu", n=1000):
    """The error of the image of n Gaussians (width in pixels) inside 0.9 of Nyquist, relative to the norm there."""
    generator = seeded(1)
    pixel = 3.0
    positions = (torch.rand(2, n, 3, generator=generator) - 0.5) * box * pixel * 0.5
    weights = torch.rand(n, generator=generator) + 0.5
    matrices = rotation_matrices(random_rotations(2, generator))
    frequency = frequencies_2d(box)
    blur = torch.exp(-2 * torch.pi**2 * width**2 * frequency.square().sum(-1))
    working = frequency.norm(dim=-1) < 0.45
    projector = Projector(box, pixel, oversampling)
    fast = projector.project(positions.to(device), weights.to(device), matrices.to(device)).cpu()
    slow = slow_projection(positions, weights, matrices, box, pixel)
    difference = ((fast - slow) * blur)[:, working]
    return float(difference.norm() / (slow * blur)[:, working].norm())


@pytest.mark.parametrize("box", [32, 33])
def test_projection_equals_the_sum_over_points(box):
    assert gaussian_error(box, 1.2, 2) < 1e-3


@pytest.mark.gpu
def test_projection_equals_the_sum_over_points_on_a_gpu():
    assert gaussian_error(32, 1.2, 2, "cuda") < 1e-3


def test_error_of_the_projection_falls_with_width_and_oversampling():
    assert gaussian_error(32, 1.2, 2) < gaussian_error(32, 1.2, 1) / 3
    assert gaussian_error(32, 2.0, 2) < gaussian_error(32, 1.2, 2)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_gradients_equal_finite_differences(oversampling):
    generator = seeded(3)
    positions = ((torch.rand(2, 5, 3, generator=generator) - 0.5) * 20).double().requires_grad_()
    weights = torch.randn(2, 5, generator=generator).double().requires_grad_()
    matrices = rotation_matrices(random_rotations(2, generator)).double()
    target = torch.randn(2, 12, 12, generator=generator).double()
    projector = Projector(12, 2.0, oversampling)

    def loss(positions, weights):
        images = fourier_to_image(projector.project(positions, weights, matrices), 12)
        return (images * target).sum()

    # Bilinear weights have kinks at grid lines: steps must stay between them.
    points = projector.image_points(positions, matrices)
    assert float((points - points.round()).detach().abs().min()) > 1e-4
    assert torch.autograd.gradcheck(loss, (positions, weights), eps=1e-6, atol=1e-6)


def test_shared_positions_and_weights_stand_for_those_of_every_particle():
    generator = seeded(4)
    positions, weights = torch.randn(9, 3, generator=generator) * 8, torch.rand(9, generator=generator)
    matrices = rotation_matrices(random_rotations(3, generator))
    projector = Projector(16, 2.0, 2)
    shared = projector.project(positions, weights, matrices)
    each = projector.project(positions.expand(3, 9, 3), weights.expand(3, 9), matrices)
    assert torch.allclose(shared, each, atol=1e-5)


def test_a_point_at_the_origin_projects_to_the_middle_of_the_image():
    for box in (16, 17):
        image = fourier_to_image(Projector(box, 2.0).project(torch.zeros(1, 3), torch.ones(1), torch.eye(3)[None]), box)
        assert divmod(int(image.argmax()), box) == (box // 2, box // 2)


def test_points_are_x_y_z_and_images_are_y_x():
    point = torch.tensor([[6.0, -4.0, 20.0]])
    image = fourier_to_image(Projector(16, 2.0, 2).project(point, torch.ones(1), torch.eye(3)[None]), 16)
    assert divmod(int(image.argmax()), 16) == (8 - 2, 8 + 3)


def test_what_falls_outside_the_image_is_lost_and_read_as_zero():
    far = torch.tensor([[[500.0, 0.0]]])
    assert float(spread_bilinear(torch.ones(1, 1, 1), far, 16).abs().max()) == 0
    assert float(read_bilinear(torch.ones(1, 1, 16, 16), far)) == 0


def test_reading_interpolates_and_spreading_keeps_the_sum():
    ramp = torch.arange(8.0)[None, None, None].expand(1, 1, 8, 8)
    at = torch.tensor([[[2.25, 3.5], [6.5, 1.0]]])
    assert torch.allclose(read_bilinear(ramp, at)[0, 0], torch.tensor([2.25, 6.5]), atol=1e-5)
    weights = torch.tensor([[[2.0, -0.5]]])
    assert float(spread_bilinear(weights, at, 8).sum()) == pytest.approx(1.5, abs=1e-5)


# --- poses ----------------------------------------------------------------------------------------------------------


def test_rotation_matrix_is_relions():
    a, b, g = 0.7, 1.1, -2.3
    ca, cb, cg, sa, sb, sg = np.cos(a), np.cos(b), np.cos(g), np.sin(a), np.sin(b), np.sin(g)
    expected = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    matrix = rotation_matrices(torch.tensor([a, b, g], dtype=torch.float64))
    assert np.allclose(matrix, expected, atol=1e-12)


def test_rotation_matrix_is_three_turns_z_y_z_of_the_frame():
    a, b, g = (torch.tensor(value, dtype=torch.float64) for value in (0.7, 1.1, -2.3))
    z, y = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
    turns = axis_rotations(z, -g) @ axis_rotations(y, -b) @ axis_rotations(z, -a)
    assert torch.allclose(rotation_matrices(torch.stack([a, b, g])), turns.double(), atol=1e-6)


def test_rotations_are_proper_and_angles_come_back():
    angles = random_rotations(500, seeded()).double()
    matrices = rotation_matrices(angles)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), torch.eye(3).double().expand(500, 3, 3), atol=1e-9)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(500).double(), atol=1e-9)
    again = euler_angles(matrices)
    assert torch.allclose(torch.exp(1j * again), torch.exp(1j * angles), atol=1e-6)


@pytest.mark.parametrize("tilt", [0.0, np.pi])
def test_at_the_poles_the_rotation_comes_back_with_rot_zero(tilt):
    angles = torch.tensor([[0.4, tilt, 1.3], [-2.0, tilt, 0.2]], dtype=torch.float64)
    again = euler_angles(rotation_matrices(angles))
    assert torch.equal(again[:, 0], torch.zeros(2).double())
    assert torch.allclose(rotation_matrices(again), rotation_matrices(angles), atol=1e-7)


def test_random_rotations_are_uniform():
    matrices = rotation_matrices(random_rotations(20000, seeded()))
    # Each entry of a uniform rotation has mean 0 and variance 1/3: three standard errors.
    assert float(matrices.mean(0).abs().max()) < 4 * (1 / 3 / 20000) ** 0.5
    assert float((matrices.square().mean(0) - 1 / 3).abs().max()) < 0.01


def test_axis_rotation_is_right_handed_and_leaves_the_axis():
    axis = torch.tensor([0.0, 0.0, 3.0])
    turned = axis_rotations(axis, torch.tensor(torch.pi / 2)) @ torch.tensor([1.0, 0.0, 5.0])
    assert torch.allclose(turned, torch.tensor([0.0, 1.0, 5.0]), atol=1e-6)


# --- CTF ------------------------------------------------------------------------------------------------------------


def reference_ctf(box, pixel, **p):
    """RELION's CTF of one particle, written from its definition with numpy; returns a complex half plane."""
    p = {"dv": p["du"], "angle": 0, "phase": 0, "kv": 300, "cs": 2.7, "q0": 0.1, "b": 0, "scale": 1} | p
    ky, kx = np.meshgrid(np.fft.fftfreq(box, pixel), np.fft.rfftfreq(box, pixel), indexing="ij")
    m = np.array(p.get("mag", np.eye(2)))
    kx, ky = m[0, 0] * kx + m[0, 1] * ky, m[1, 0] * kx + m[1, 1] * ky
    volts = p["kv"] * 1e3
    wavelength = 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))
    s2 = kx**2 + ky**2
    along = np.arctan2(ky, kx) - p["angle"]
    defocus = (p["du"] + p["dv"]) / 2 + (p["du"] - p["dv"]) / 2 * np.cos(2 * along)
    cs = p["cs"] * 1e7
    gamma = np.pi * wavelength * defocus * s2 - np.pi / 2 * cs * wavelength**3 * s2**2
    gamma = gamma + np.arcsin(p["q0"]) + p["phase"] - p.get("even", lambda x, y: 0)(kx, ky)
    ctf = p["scale"] * np.exp(-p["b"] / 4 * s2) * np.sin(gamma)
    tilt = np.array(p.get("tilt", (0, 0))) * 1e-3
    odd = -2 * np.pi * cs * wavelength**2 * s2 * (kx * tilt[0] + ky * tilt[1])
    odd = odd + p.get("odd", lambda x, y: 0)(kx, ky)
    return ctf * np.exp(1j * odd)


CASES = {
    "defocus": ({"du": 15000.0}, {}),
    "overfocus": ({"du": -8000.0}, {}),
    "astigmatism": ({"du": 15000.0, "dv": 11000.0, "angle": 0.5}, {}),
    "astigmatism, v above u": ({"du": 11000.0, "dv": 15000.0, "angle": -0.7}, {}),
    "phase shift": ({"du": 9000.0, "phase": 1.2}, {}),
    "200 kV, small Cs": ({"du": 12000.0, "kv": 200.0, "cs": 0.01}, {}),
    "amplitude contrast": ({"du": 12000.0, "q0": 0.2}, {}),
    "envelope and scale": ({"du": 12000.0, "b": 60.0, "scale": 0.7}, {}),
    "magnification": ({"du": 12000.0, "dv": 10000.0, "angle": 0.3, "mag": [[1.02, 0.01], [0.005, 0.98]]}, {}),
    "beam tilt": ({"du": 12000.0, "tilt": (2.0, -1.0)}, {}),
    "beam tilt and magnification": ({"du": 12000.0, "tilt": (2.0, -1.0), "mag": [[1.02, 0.01], [0.01, 0.97]]}, {}),
    "even Zernike": (
        # Z(2,-2) = 2 x y, Z(2,0) = 2 r^2 - 1, Z(2,2) = x^2 - y^2
        {"du": 12000.0, "even": lambda x, y: 5 * (2 * x * y) + 8 * (2 * (x**2 + y**2) - 1) + 3 * (x**2 - y**2)},
        {"even_zernike": [0.0, 5.0, 8.0, 3.0]},
    ),
    "odd Zernike": (
        # Z(1,-1) = y, Z(1,1) = x, Z(3,-3) = 3 x^2 y - y^3
        {"du": 12000.0, "odd": lambda x, y: 2 * y - 3 * x + 90 * (3 * x**2 * y - y**3)},
        {"odd_zernike": [2.0, -3.0, 90.0]},
    ),
}


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("case", CASES)
def test_ctf_equals_an_independent_formula(case, box):
    values, terms = CASES[case]
    names = {
        "angle": "defocus_angle",
        "phase": "phase_shift",
        "kv": "voltage",
        "cs": "spherical_aberration",
        "q0": "amplitude_contrast",
        "b": "b_factor",
        "scale": "scale",
    }
    given = {names[key]: value for key, value in values.items() if key in names}
    given |= {name: torch.tensor([list_]) for name, list_ in terms.items()}
    if "tilt" in values:
        given["beam_tilt"] = torch.tensor([values["tilt"]])
    if "mag" in values:
        given["magnification"] = torch.tensor([values["mag"]])
    if "dv" in values:
        given["defocus_v"] = torch.tensor([values["dv"]])
    ctf = evaluate_ctf(CtfParameters.create(torch.tensor([values["du"]]), **given), box, 2.0)[0].numpy()
    expected = reference_ctf(box, 2.0, **values)
    assert np.iscomplexobj(ctf) == ("tilt" in values or "odd" in values)
    # the Nyquist column of an even box stands for both signs of kx
    inner_columns = slice(0, (box - 1) // 2 + 1)
    rows = np.arange(box) != box // 2 if box % 2 == 0 else slice(None)
    assert np.abs(ctf - expected)[rows, inner_columns].max() < 2e-3


def test_particles_of_different_magnification_are_each_evaluated_with_their_own():
    mags = [[[1.02, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.97]], [[1.02, 0.0], [0.0, 1.0]]]
    parameters = CtfParameters.create(torch.tensor([9000.0, 10000.0, 12000.0]), magnification=torch.tensor(mags))
    together = evaluate_ctf(parameters, 24, 2.0)
    for i in range(3):
        assert torch.allclose(together[i], evaluate_ctf(parameters[i : i + 1], 24, 2.0)[0], atol=1e-5)


def test_underfocus_makes_low_frequencies_positive():
    ctf = evaluate_ctf(CtfParameters.create(torch.tensor([10000.0])), 64, 2.0)[0]
    assert float(ctf[0, 0]) == pytest.approx(0.1, abs=1e-4)
    assert bool((ctf[0, 1:6] > 0).all())


# --- Fourier helpers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [16, 17])
def test_transforms_come_back_and_have_their_origin_at_the_middle(box):
    image, volume = torch.randn(2, box, box, generator=seeded()), torch.randn(box, box, box, generator=seeded())
    assert torch.allclose(fourier_to_image(image_to_fourier(image), box), image, atol=1e-5)
    assert torch.allclose(fourier_to_volume(volume_to_fourier(volume), box), volume, atol=1e-5)
    point = torch.zeros(box, box)
    point[box // 2, box // 2] = 1
    assert torch.allclose(image_to_fourier(point), torch.ones(box, box // 2 + 1).cfloat(), atol=1e-6)


@pytest.mark.parametrize(("box", "small"), [(16, 12), (16, 11), (17, 12), (17, 13)])
def test_cropping_is_the_adjoint_of_padding(box, small):
    a = image_to_fourier(torch.randn(box, box, generator=seeded(0)))
    b = image_to_fourier(torch.randn(small, small, generator=seeded(1)))
    left = (resize_fourier(a, box, small) * b.conj()).real * plane_multiplicity(small)
    right = (a * resize_fourier(b, small, box).conj()).real * plane_multiplicity(box)
    assert float(left.sum()) == pytest.approx(float(right.sum()), rel=1e-5)


@pytest.mark.parametrize(("box", "new_box"), [(16, 12), (16, 24), (17, 12), (16, 13)])
def test_resampling_keeps_grey_values_and_places(box, new_box):
    def wave(size):
        axis = (torch.arange(size) - size // 2) / size
        return 2 + torch.cos(2 * torch.pi * (2 * axis - 0.2)), axis

    line, _ = wave(box)
    expected, _ = wave(new_box)
    assert torch.allclose(resample_image(line.expand(box, box), new_box), expected.expand(new_box, -1), atol=1e-5)
    volume = resample_volume(line.expand(box, box, box), new_box)
    assert torch.allclose(volume, expected.expand(new_box, new_box, -1), atol=1e-5)


def test_shifts_move_content_to_the_right_and_down():
    point = torch.zeros(1, 16, 16)
    point[0, 8, 8] = 1
    moved = fourier_to_image(image_to_fourier(point) * translation_phases(torch.tensor([[3.0, -2.0]]), 16), 16)
    assert torch.allclose(moved, torch.roll(point, (-2, 3), (1, 2)), atol=1e-5)


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("ndim", [2, 3])
def test_shells_count_every_element_of_the_full_transform_once(box, ndim):
    k = np.fft.fftfreq(box) * box
    grids = np.meshgrid(*[k] * ndim, indexing="ij")
    radius = np.rint(np.sqrt(sum(g**2 for g in grids)))
    expected = [(radius == shell).sum() for shell in range(box // 2 + 1)]
    ones = torch.ones(shells(box, ndim).shape)
    assert shell_sums(ones, box, ndim).tolist() == expected
    curve = torch.arange(box // 2 + 1.0)
    assert torch.allclose(shell_means(expand_shells(curve, box, ndim), box, ndim), curve)


def test_white_noise_has_equal_power_in_all_shells():
    noise = torch.randn(200, 32, 32, generator=seeded())
    power = shell_means(image_to_fourier(noise).abs().square(), 32).mean(0) / 32**2
    assert float((power[2:] - 1).abs().max()) < 0.08


def test_lowpass_keeps_low_frequencies_and_removes_high_ones():
    volume = torch.randn(24, 24, 24, generator=seeded())
    before, after = volume_to_fourier(volume), volume_to_fourier(lowpass_volume(volume, 2.0, 8.0))
    radius = frequencies_3d(24).norm(dim=-1) / 2.0
    low, high = radius < 1 / 8.0 - 2 / 48, radius > 1 / 8.0 + 2 / 48
    assert torch.allclose(before[low], after[low], atol=1e-3)
    assert float(after[high].abs().max()) < 1e-3


@pytest.mark.parametrize("oversampling", [1, 2])
def test_points_moved_by_fields_are_projected_as_where_they_are(oversampling):
    generator = torch.Generator().manual_seed(3)
    # Some end outside the image, in part or as a whole.
    positions, basis = (30 * torch.randn(*shape, 700, 3, generator=generator) for shape in ((), (4,)))
    coefficients, weights = torch.randn(19, 4, generator=generator) / 8, torch.rand(700, generator=generator)
    matrices = rotation_matrices(random_rotations(19, generator))
    transfer = torch.randn(19, 24, 13, generator=generator)
    projector = Projector(24, 5.0, oversampling)
    moved = LinearPoints(positions.T.contiguous(), basis.transpose(1, 2).contiguous())
    found = projector.project_moved(moved, coefficients, weights, matrices, transfer)
    where = positions + torch.einsum("bf,fnc->bnc", coefficients, basis)
    expected = projector.project(where, weights, matrices) * transfer
    assert (found - expected).norm() < 1e-5 * expected.norm()

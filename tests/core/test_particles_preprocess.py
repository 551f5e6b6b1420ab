"""Preprocessing: particles are centred, noise is normalised, a CTF twice applied is once undone."""

import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.imaging.masks import soft_circle
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.preprocess import Preprocessing, prepare_images, read_prepared

PIXEL_SIZE = 2.0
ONE = torch.ones(1)
PLAIN = {"normalise": "none"}


def blob(box, x, y, width=3.0):
    """A Gaussian of unit height at (x, y), pixels from index 0."""
    axis = np.arange(box)
    image = np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * width**2))
    return torch.tensor(image, dtype=torch.float32)


def noise(n, box, seed=0):
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


def no_shift(n):
    return torch.zeros(n, 2)


@pytest.mark.parametrize("box", [64, 63])
def test_a_particle_at_its_origin_comes_to_the_centre(box):
    origins = torch.tensor([[0.0, 0.0], [7.3, -4.1], [-11.0, 5.5]])  # rlnOriginX/YAngst
    places = box // 2 - origins.numpy() / PIXEL_SIZE
    raw = torch.stack([blob(box, x, y) for x, y in places])
    out = prepare_images(raw, origins, torch.ones(3), PIXEL_SIZE, Preprocessing(32, **PLAIN))
    expected = blob(32, 16, 16, 3.0 * 32 / box)
    assert (out - expected).abs().max() < 2e-3


def test_the_origin_of_the_star_file_is_the_one_that_is_centred(particle_files):
    files = particle_files
    raw = np.stack([blob(16, 8 - x / 2.0, 8 - y / 2.0, 1.5) for x, y in files.shifts])
    files.stack(images=raw)
    for rows, optics in ((files.rows("3.0"), False), (files.rows(), None)):
        reader = ImageReader(read_particles(files.star(rows, optics)))
        near = np.flatnonzero(np.abs(files.shifts).max(1) < 4)
        out = read_prepared(reader, near, Preprocessing(16, **PLAIN))
        assert len(near) > 5 and (out - blob(16, 8, 8, 1.5)).abs().max() < 0.02


def test_cropping_keeps_grey_values():
    raw = 5 + blob(64, 32, 32, 6.0)[None]
    out = prepare_images(raw, no_shift(1), ONE, PIXEL_SIZE, Preprocessing(32, **PLAIN))
    assert (out - 5 - blob(32, 16, 16, 3.0)).abs().max() < 1e-3


def test_noise_outside_the_circle_has_mean_zero_and_deviation_one():
    image = 3 * noise(1, 64) + 100 + 50 * blob(64, 32, 32)
    raw = image * torch.tensor([1.0, 2.0, 5.0, 10.0])[:, None, None]
    prepare = Preprocessing(64, diameter=80.0)
    out = prepare_images(raw, no_shift(4), torch.ones(4), PIXEL_SIZE, prepare)
    outside = soft_circle(64, PIXEL_SIZE, 80.0) == 0
    assert out[:, outside].mean(1).abs().max() < 0.02
    assert (out[:, outside].std(1) - 1).abs().max() < 0.03
    torch.testing.assert_close(out[1:], out[:1].expand(3, 64, 64), atol=1e-3, rtol=0)


def test_the_circle_follows_the_particle():
    raw = noise(1, 64) + 50 * blob(64, 32 - 20, 32)
    prepare = Preprocessing(64, diameter=60.0)
    shifted = prepare_images(raw, torch.tensor([[40.0, 0.0]]), ONE, PIXEL_SIZE, prepare)
    centred = prepare_images(raw, no_shift(1), ONE, PIXEL_SIZE, prepare)
    assert shifted.max() > 40 > 2 * centred.max()


def test_one_scale_for_the_set_keeps_the_ratio_of_particles(particle_files):
    files = particle_files
    scale = np.linspace(1, 2, 12)[:, None, None]
    files.stack(images=(files.pixels * scale).astype(np.float32))
    reader = ImageReader(read_particles(files.star(files.rows(rlnOriginXAngst=["0"] * 12))))
    by_set, halves = Preprocessing(16, diameter=16.0, normalise="set"), torch.ones(12)
    measured = by_set.with_set_noise(reader, halves, seed=1)
    assert measured.set_noise.tolist() == pytest.approx([np.sqrt((scale**2).mean())] * 12, rel=0.1)
    assert measured.set_noise.equal(by_set.with_set_noise(reader, halves, 1).set_noise)
    deviation = read_prepared(reader, slice(None), measured).std(dim=(1, 2))
    assert deviation[-1] / deviation[0] == pytest.approx(2, rel=0.2)
    by_image = Preprocessing(16, diameter=16.0)
    assert by_image.with_set_noise(reader, halves, 1) is by_image
    deviation = read_prepared(reader, slice(None), by_image).std(dim=(1, 2))
    assert deviation[-1] / deviation[0] == pytest.approx(1, rel=0.2)


def test_images_of_one_half_set_do_not_scale_those_of_the_other(particle_files):
    halves = torch.tensor([1, 2] * 6)
    read = []
    for scale in (1, 3):
        files = particle_files
        files.stack(images=np.where(halves.numpy()[:, None, None] == 2, scale, 1).astype(np.float32) * files.pixels)
        reader = ImageReader(read_particles(files.star()))
        prepare = Preprocessing(16, diameter=16.0, normalise="set").with_set_noise(reader, halves, seed=1)
        read.append(read_prepared(reader, slice(None), prepare))
    assert read[0][halves == 1].equal(read[1][halves == 1])
    torch.testing.assert_close(read[0][halves == 2], read[1][halves == 2])


def test_an_image_is_divided_by_its_norm_correction():
    raw = noise(2, 32)
    norms = torch.tensor([0.5, 1.5])
    for normalise in ("image", "none"):
        prepare = Preprocessing(32, normalise=normalise)
        plain = prepare_images(raw, no_shift(2), torch.ones(2), PIXEL_SIZE, prepare)
        corrected = prepare_images(raw, no_shift(2), norms, PIXEL_SIZE, prepare)
        torch.testing.assert_close(corrected, plain / norms[:, None, None])


def test_inverted_contrast_changes_the_sign_of_everything():
    raw = noise(2, 32) + 3
    light = prepare_images(raw, no_shift(2), torch.ones(2), PIXEL_SIZE, Preprocessing(32))
    dark = prepare_images(raw, no_shift(2), torch.ones(2), PIXEL_SIZE, Preprocessing(32, invert=True))
    torch.testing.assert_close(dark, -light)


def test_a_circular_mask_is_soft_and_keeps_the_circle():
    mask = soft_circle(64, PIXEL_SIZE, 80.0)
    axis = (torch.arange(64) - 32) * PIXEL_SIZE
    radius = torch.hypot(axis[:, None], axis[None])
    assert (mask[radius <= 40] == 1).all() and (mask[radius > 46.01] == 0).all()
    assert mask.diff(dim=0).abs().max() < 0.55 and ((mask > 0) & (mask < 1)).any()


def ctf_parameters(**aberrations):
    return CtfParameters.create(torch.tensor([9000.0, 14000.0]), torch.tensor([8500.0, 13000.0]), **aberrations)


@pytest.mark.parametrize("aberrations", [{}, {"beam_tilt": [2.0, -1.0], "odd_zernike": [0.0, 0.0, 5.0]}])
def test_premultiplication_is_undone(aberrations):
    box = 64
    ctf = ctf_parameters(**aberrations)
    real = evaluate_ctf(ctf_parameters(), box, PIXEL_SIZE)
    particle = blob(box, 30, 34, 1.5) * 20
    image = fourier_to_image(evaluate_ctf(ctf, box, PIXEL_SIZE) * image_to_fourier(particle), box) + noise(2, box)
    multiplied = fourier_to_image(real * image_to_fourier(image), box)
    out = prepare_images(multiplied, no_shift(2), torch.ones(2), PIXEL_SIZE, Preprocessing(box, **PLAIN), ctf)
    error = (image_to_fourier(out - image)).abs() / image_to_fourier(image).abs().mean()
    # C^2 / (C^2 + 0.01) is 0.99 where |C| = 1, and no frequency gains anything.
    assert error[real.abs() > 0.9].max() < 0.1
    relative = torch.linalg.vector_norm(out - image) / torch.linalg.vector_norm(image)
    untouched = torch.linalg.vector_norm(multiplied - image) / torch.linalg.vector_norm(image)
    assert relative < 0.25 < 0.5 < untouched
    assert (image_to_fourier(out).abs() <= image_to_fourier(image).abs() * 1.001 + 1e-2).all()


def test_premultiplied_particles_of_a_star_file_are_undone(particle_files):
    files = particle_files
    optics = files.optics(rlnCtfDataAreCtfPremultiplied=["1"])
    files.stack()
    particles = read_particles(files.star(optics=optics))
    assert particles.premultiplied
    reader = ImageReader(particles)
    undone = read_prepared(reader, [0, 3], Preprocessing(16, **PLAIN))
    with_ctf = prepare_images(
        reader.read([0, 3]),
        particles.shifts[[0, 3]],
        torch.ones(2),
        2.0,
        Preprocessing(16, **PLAIN),
        particles.ctf[[0, 3]],
    )
    assert torch.equal(undone, with_ctf)
    plain = read_prepared(ImageReader(read_particles(files.star())), [0, 3], Preprocessing(16, **PLAIN))
    assert (undone - plain).abs().max() > 0.1


def test_a_circle_that_leaves_no_noise_is_refused():
    with pytest.raises(InputError, match="diameter of 80 A in a box of 64 A leaves too few pixels"):
        prepare_images(noise(1, 32), no_shift(1), ONE, PIXEL_SIZE, Preprocessing(32, diameter=80.0))


def test_images_without_noise_are_refused_or_left_alone():
    raw = blob(64, 32, 32)[None]
    with pytest.raises(InputError, match="no noise outside"):
        prepare_images(raw, no_shift(1), ONE, PIXEL_SIZE, Preprocessing(64, diameter=100.0))
    out = prepare_images(raw, no_shift(1), ONE, PIXEL_SIZE, Preprocessing(64, **PLAIN))
    torch.testing.assert_close(out, raw, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"working_box": 31}, "working box is 31"),
        ({"working_box": 32, "normalise": "all"}, "image, set, none"),
        ({"working_box": 32, "diameter": -1.0}, "diameter is -1"),
    ],
)
def test_impossible_options_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        Preprocessing(**options)


def test_a_working_box_beyond_the_images_is_refused():
    with pytest.raises(InputError, match="larger than the images"):
        prepare_images(noise(1, 32), no_shift(1), ONE, PIXEL_SIZE, Preprocessing(64))

"""Image stacks: what is asked for is read and nothing else, and a bad stack is refused by name."""

import os

import mrcfile
import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.particles import images as images_module
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.stacks import OpenStack


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "float16", "float32"])
def test_every_pixel_type_is_read(particle_files, kind):
    files = particle_files
    pixels = (np.abs(files.pixels) * 20).astype(kind)
    files.stack(images=pixels)
    with ImageReader(read_particles(files.star())) as reader:
        images = reader.read(slice(None))
        assert images.dtype == torch.float32
        np.testing.assert_array_equal(images, pixels.astype(np.float32))


def test_swapped_bytes_and_extended_headers_are_read(particle_files):
    files = particle_files
    path = files.folder / "particles.mrcs"
    with mrcfile.new(path) as mrc:
        mrc.set_data(files.pixels.astype(">f4"))
        mrc.set_extended_header(np.zeros(512, dtype="V1"))
    particles = read_particles(files.star())
    np.testing.assert_array_equal(ImageReader(particles).read([3])[0], files.pixels[3])


def test_images_come_in_the_order_asked_for(particle_files, monkeypatch):
    monkeypatch.setattr(images_module, "_MAX_OPEN", 2)
    files = particle_files
    names = files.stacks_and_single_images()
    order = np.random.default_rng(1).permutation(12)
    rows = files.rows(rlnImageName=[names[i] for i in order])
    reader = ImageReader(read_particles(files.star(rows)))
    nothing = np.zeros(0, dtype=int)
    for index in ([7, 0, 7, 11], np.arange(12) % 5 == 0, slice(2, 9), torch.arange(11, -1, -1), nothing):
        np.testing.assert_array_equal(reader.read(index), files.pixels[order[index]])
    assert len(reader._open) == 2


def test_of_a_stack_one_image_is_read(particle_files, monkeypatch):
    stack, sizes, pread = OpenStack(particle_files.stack()), [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: sizes.append(size) or pread(file, size, start))
    np.testing.assert_array_equal(stack[3], particle_files.pixels[3])
    assert sizes == [particle_files.pixels[3].nbytes]
    stack.close()


def truncated(files):
    path = files.stack()
    path.write_bytes(path.read_bytes()[:-100])
    return ["particles.mrcs", "truncated"]


def headless(files):
    (files.folder / "particles.mrcs").write_bytes(b"MAP ")
    return ["particles.mrcs", "cannot be read as MRC"]


def no_mrc(files):
    (files.folder / "particles.mrcs").write_bytes(b"\x7fELF and more" * 1000)
    return ["particles.mrcs", "mode"]


def complex_pixels(files):
    files.stack(images=files.pixels.astype(np.complex64))
    return ["particles.mrcs", "mode 4"]


def not_square(files):
    files.stack(images=files.pixels[:, :8])
    return ["particles.mrcs", "16 x 8"]


def another_box(files):
    files.stack(images=np.zeros((12, 20, 20), np.float32))
    return ["particles.mrcs", "20 pixels", "16", "rlnImageSize"]


def too_few(files):
    files.stack(images=files.pixels[:9])
    return ["particles.star", "row 10", "image 10", "holds 9"]


@pytest.mark.parametrize("damage", [truncated, headless, no_mrc, complex_pixels, not_square, another_box, too_few])
def test_a_bad_stack_is_refused_before_anything_is_read(particle_files, damage):
    parts = damage(particle_files)
    particles = read_particles(particle_files.star())
    assert_sentence(lambda: ImageReader(particles), parts)


def test_a_stack_that_went_away_is_refused(particle_files):
    path = particle_files.stack()
    particles = read_particles(particle_files.star())
    path.unlink()
    assert_sentence(lambda: ImageReader(particles), [str(path), "does not exist"])


def test_only_stacks_in_use_are_checked(particle_files):
    files = particle_files
    names = ["1@good.mrcs"] * 6 + ["1@bad.mrcs"] * 6
    files.stack("good.mrcs")
    files.stack("bad.mrcs", files.pixels[:, :8])
    particles = read_particles(files.star(files.rows(rlnImageName=names)))
    assert len(ImageReader(particles.subset(slice(6))).read(slice(None))) == 6


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (None, "constant")]
)
def test_an_image_without_values_is_refused_by_name(particle_files, value, word):
    pixels = particle_files.pixels.copy()
    if value is None:
        pixels[4] = 1
    else:
        pixels[4, 3, 3] = value
    path = particle_files.stack(images=pixels)
    reader = ImageReader(read_particles(particle_files.star()))
    assert_sentence(lambda: reader.read([2, 4, 6]), [f"5@{path}", word])


def test_the_box_is_the_stacks_where_the_file_gives_none(particle_files):
    particle_files.stack()
    assert read_particles(particle_files.star(optics=particle_files.optics(rlnImageSize=None))).box == 16


def assert_sentence(call, parts):
    with pytest.raises(InputError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and "; " in sentence
    for part in parts:
        assert part in sentence

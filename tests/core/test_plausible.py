"""Values in wrong units and impossible poses are refused, all of them at once."""

import mrcfile
import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import read_map, write_map
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.plausible import check_plausible
from dynamight_core.particles.stacks import OpenStack
from dynamight_core.training.validate import check_contrast, check_mask_range


@pytest.fixture
def particles(particle_files):
    particle_files.stack()
    return read_particles(particle_files.star())


def test_usual_values_pass(particles):
    check_plausible(particles)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("voltage", 300_000.0, "rlnVoltage 300000 in 1 rows, first in row 4, .*in volts"),
        ("spherical_aberration", 2.7e7, "rlnSphericalAberration"),
        ("amplitude_contrast", 10.0, "rlnAmplitudeContrast 10 .*per cent"),
        ("amplitude_contrast", -1.0, "rlnAmplitudeContrast"),
        ("defocus_u", 1e7, "rlnDefocusU"),
        ("phase_shift", 100.0, "rlnPhaseShift"),
    ],
)
def test_a_value_in_other_units_is_refused(particles, field, value, sentence):
    getattr(particles.ctf, field)[3] = value
    with pytest.raises(InputError, match=sentence):
        check_plausible(particles)


def test_everything_that_is_wrong_is_said_at_once(particles):
    particles.ctf.voltage[:] = 300_000
    particles.ctf.defocus_u /= 1e4
    particles.ctf.defocus_v /= 1e4
    particles.shifts[2, 0] = 1e20
    particles.angles[:, :2] = 0
    with pytest.raises(InputError, match=r"volts.*µm\?.*row 3, outside the box.*2D classification"):
        check_plausible(particles)


def test_inverted_maps_and_masks_that_ring():
    volume = torch.zeros(8, 8, 8)
    volume[3:5, 3:5, 3:5] = 1
    check_contrast("map.mrc", volume)
    with pytest.raises(InputError, match="inverted contrast"):
        check_contrast("map.mrc", -volume)
    check_mask_range("mask", "mask.mrc", 1.08 * volume - 0.04)
    with pytest.raises(InputError, match=r"from 0 to 1\.3;"):
        check_mask_range("mask", "mask.mrc", 1.3 * volume)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header: header.cella.fill(0), "no pixel size"),
        (lambda header: header.__setattr__("mx", 0), "no pixel size"),
        (lambda header: header.cella.__setattr__("z", 5), "pixels of"),
        (lambda header: header.__setattr__("mapc", 3) or header.__setattr__("maps", 1), "axis order"),
    ],
)
def test_maps_with_a_strange_cell_or_axis_order_are_refused(tmp_path, change, sentence):
    write_map(tmp_path / "map.mrc", np.random.default_rng(0).normal(size=(8, 8, 8)), 2.0)
    with mrcfile.open(tmp_path / "map.mrc", "r+") as mrc:
        change(mrc.header)
    with pytest.raises(InputError, match=sentence):
        read_map(tmp_path / "map.mrc")


def unsigned(path):
    """Give a stack of bytes the stamp of IMOD, whose bytes are unsigned."""
    contents = bytearray(path.read_bytes())
    contents[152:160] = np.array([1146047817, 0], "<i4").tobytes()
    path.write_bytes(bytes(contents))


def test_unsigned_bytes_are_read_as_such(particle_files):
    pixels = np.random.default_rng(0).integers(0, 256, particle_files.pixels.shape).astype(np.uint8)
    path = particle_files.stack(images=pixels.view(np.int8))
    unsigned(path)
    read = ImageReader(read_particles(particle_files.star())).read(slice(None))
    assert np.array_equal(read.numpy(), pixels)


def test_a_stack_that_changes_while_it_is_read_is_noticed(particle_files):
    path = particle_files.stack()
    stack = OpenStack(path)
    assert np.array_equal(stack[11], particle_files.pixels[11])
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match="changed while it was read"):
        stack[11]
    stack.close()


def test_all_bad_images_are_counted(particle_files):
    pixels = particle_files.pixels.copy()
    pixels[[2, 5]], pixels[7, 1, 1] = 1, np.nan
    particle_files.stack(images=pixels)
    reader = ImageReader(read_particles(particle_files.star()))
    assert np.flatnonzero(~reader.usable(slice(None))).tolist() == [2, 5, 7]

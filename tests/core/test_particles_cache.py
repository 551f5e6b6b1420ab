"""The image cache: the same images from every storage, to half precision, and nothing left behind."""

from contextlib import closing

import numpy as np
import pytest
import torch

from dynamight_core.errors import InputError
from dynamight_core.particles import cache as cache_module
from dynamight_core.particles import shared as shared_module
from dynamight_core.particles.cache import ImageCache
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.memory import _group_memory, available_memory
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.preprocess import Preprocessing, read_prepared

PREPROCESSING = Preprocessing(12, diameter=24.0)


@pytest.fixture
def reader(particle_files):
    particle_files.stack()
    return ImageReader(read_particles(particle_files.star()))


@pytest.mark.parametrize("storage", ["memory", "device", "file"])
def test_images_come_back_to_half_precision(reader, tmp_path, storage, monkeypatch):
    monkeypatch.setattr(cache_module, "batch_size", lambda box: 5)
    expected = read_prepared(reader, slice(None), PREPROCESSING)
    done = []
    with closing(
        ImageCache(reader, PREPROCESSING, storage=storage, folder=tmp_path / "c", progress=lambda *d: done.append(d))
    ) as cache:
        assert len(cache) == 12
        for index in ([3, 0, 3], slice(2, 9), torch.arange(12), np.arange(12) % 2 == 0):
            images = cache.images(index)
            assert images.dtype == torch.float32
            wanted = expected[index]
            # Half precision rounds the eleventh bit; the smallest numbers have a fixed step instead.
            assert ((images - wanted).abs() <= wanted.abs() * 2**-11 + 2**-25).all()
        assert (tmp_path / "c").exists() == (storage == "file")
        assert not list(tmp_path.glob("c/*")), "a program that is killed leaves no images behind"
    assert done == [(5, 12), (10, 12), (12, 12)]


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["auto", "device", "memory"])
def test_the_device_holds_the_same_images(reader, storage):
    expected = ImageCache(reader, PREPROCESSING, storage="memory").images(slice(None))
    cache = ImageCache(reader, PREPROCESSING, device="cuda", storage=storage)
    assert cache.storage == ("memory" if storage == "memory" else "device")
    images = cache.images([1, 5])
    assert images.is_cuda
    torch.testing.assert_close(images.cpu(), expected[[1, 5]], atol=2e-3, rtol=2e-3)


def test_symmetry_expanded_rows_share_memory(particle_files):
    files = particle_files
    files.stack()
    names = [f"{i % 4 + 1}@particles.mrcs" for i in range(12)]
    same = {f"rlnOrigin{axis}Angst": [f"{i % 4}.5" for i in range(12)] for axis in "XY"}
    reader = ImageReader(read_particles(files.star(files.rows(rlnImageName=names, **same))))
    cache = ImageCache(reader, PREPROCESSING, storage="memory")
    assert len(cache) == 12 and len(cache._images) == 4
    expected = read_prepared(reader, slice(None), PREPROCESSING)
    torch.testing.assert_close(cache.images(slice(None)), expected, atol=2e-3, rtol=1e-3)
    # One image at two shifts is two images.
    reader = ImageReader(read_particles(files.star(files.rows(rlnImageName=names))))
    assert len(ImageCache(reader, PREPROCESSING, storage="memory")._images) == 12


def test_a_file_is_used_when_memory_is_short(reader, tmp_path, monkeypatch):
    size = 2 * 12 * 12 * 12
    monkeypatch.setattr(cache_module, "available_memory", lambda: 2 * size)
    assert ImageCache(reader, PREPROCESSING, folder=tmp_path).storage == "memory"
    monkeypatch.setattr(cache_module, "available_memory", lambda: 2 * size - 1)
    cache = ImageCache(reader, PREPROCESSING, folder=tmp_path / "run")
    assert cache.storage == "file"


def test_a_failed_cache_leaves_no_file(particle_files, tmp_path):
    pixels = particle_files.pixels.copy()
    pixels[7, 0, 0] = np.nan
    particle_files.stack(images=pixels)
    reader = ImageReader(read_particles(particle_files.star()))
    with pytest.raises(InputError, match="8@"):
        ImageCache(reader, PREPROCESSING, storage="file", folder=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_is_refused(reader, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_module.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="no space left on device"):
        ImageCache(reader, PREPROCESSING, storage="file", folder=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("scale", [1e5, 1e-5])
def test_values_that_half_precision_does_not_hold_are_refused(particle_files, scale):
    particle_files.stack(images=particle_files.pixels * np.float32(scale))
    reader = ImageReader(read_particles(particle_files.star()))
    with pytest.raises(InputError, match=r"image 1@.*half precision"):
        ImageCache(reader, Preprocessing(16, normalise="none"), storage="memory")
    assert ImageCache(reader, PREPROCESSING, storage="memory").images([0]).std() > 0.1


def test_impossible_storage_is_refused(reader, tmp_path):
    with pytest.raises(InputError, match="auto, memory, device, file"):
        ImageCache(reader, PREPROCESSING, storage="tape")
    with pytest.raises(InputError, match="no folder"):
        ImageCache(reader, PREPROCESSING, storage="file")
    (tmp_path / "plain").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        ImageCache(reader, PREPROCESSING, storage="file", folder=tmp_path / "plain")


def test_there_is_memory():
    assert 2**20 < available_memory() < 2**50


def test_limits_of_control_groups_count(tmp_path):
    def group(folder, limit, used, files, names):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, used, files), strict=True):
            (folder / name).write_text(f"{text}\n")

    version_2 = ("memory.max", "memory.current", "memory.stat")
    root, process = tmp_path / "cgroup", tmp_path / "self"
    process.write_text("0::/batch/job_7/step_0\n")
    group(root / "batch/job_7/step_0", "max", 100, "inactive_file 5", version_2)
    group(root / "batch/job_7", 1000, 300, "anon 200\ninactive_file 50", version_2)
    group(root, 900, 500, "inactive_file 0", version_2)
    assert sorted(_group_memory(root, process)) == [400, 750]
    # Version 1, seen from inside a container, where the group's name is the host's.
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    process.write_text("11:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    group(root / "memory", 800, 300, "total_inactive_file 20", version_1)
    assert _group_memory(root, process) == [520]
    assert _group_memory(root, tmp_path / "none") == []

"""Files appear whole or not at all; maps come back as they went."""

import os
import signal
import subprocess
import sys

import mrcfile
import numpy as np
import pytest

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_files, atomic_path, read_map, write_map


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "table.star"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half of the n")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.star"]


def test_a_write_under_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), atomic_path(tmp_path / "file" / "map.mrc") as path:
        path.write_text("")


def test_maps_come_back_with_values_and_pixel_size_and_the_same_bytes(tmp_path):
    volume = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    for name in ("one.mrc", "two.mrc"):
        write_map(tmp_path / name, volume, 1.35)
    read, pixel_size = read_map(tmp_path / "one.mrc")
    assert np.array_equal(read, volume)
    assert pixel_size == pytest.approx(1.35)
    assert (tmp_path / "one.mrc").read_bytes() == (tmp_path / "two.mrc").read_bytes()
    assert mrcfile.validate(tmp_path / "one.mrc")


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (np.random.default_rng(0).normal(size=(8, 8, 6)), "not a cube"),
        (np.ones((8, 8, 8)), "constant"),
        (np.full((8, 8, 8), np.nan), "NaN"),
    ],
)
def test_unusable_maps_are_refused_in_a_sentence(tmp_path, volume, sentence):
    path = tmp_path / "map.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume.astype(np.float32))
    with pytest.raises(InputError, match=sentence):
        read_map(path)


def test_a_truncated_or_missing_map_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "map.mrc"
    write_map(path, np.random.default_rng(0).normal(size=(8, 8, 8)), 1.0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"truncated|cannot be read"):
        read_map(path)
    with pytest.raises(InputError, match="does not exist"):
        read_map(tmp_path / "none.mrc")


def killed_at(moment, action):
    """Run an action in a process that is killed when `moment` of its module is called."""
    child = os.fork()
    if child == 0:
        try:
            setattr(os, moment, lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    target, other = tmp_path / "a[1].txt", tmp_path / "b.txt"

    def write(path):
        with atomic_path(path) as part:
            part.write_text("x")

    for path in (target, other):
        killed_at("replace", lambda path=path: write(path))
    assert not target.exists() and len(list(tmp_path.iterdir())) == 2
    write(target)
    assert target.read_text() == "x"
    # The other file is another command's.
    assert len(list(tmp_path.glob(".b.*.part.txt"))) == 1


def test_a_part_of_a_process_that_lives_stays(tmp_path):
    with atomic_path(tmp_path / "a.txt") as part:
        part.write_text("x")
        with subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "a.txt")]) as other:
            assert other.wait() == 0
        assert part.exists()


WRITE = """
import sys
from dynamight_core.files import atomic_path
with atomic_path(sys.argv[1]) as part:
    part.write_text("y")
"""


@pytest.mark.parametrize("moment", ["mkdir", "replace", "unlink"])
def test_files_that_belong_together_are_found_together_or_not_at_all(tmp_path, moment):
    data, star = tmp_path / "data.txt", tmp_path / "star.txt"

    def write(text):
        with atomic_files(data, star) as folder:
            (folder / data.name).write_text(text)
            (folder / star.name).write_text(text)

    write("old")
    killed_at(moment, lambda: write("new"))
    assert not star.exists() or star.read_text() == data.read_text() == "old"
    write("newer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {data.name: "newer", star.name: "newer"}
    with pytest.raises(RuntimeError), atomic_files(data, star) as folder:
        (folder / data.name).write_text("not whole")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {data.name: "newer", star.name: "newer"}

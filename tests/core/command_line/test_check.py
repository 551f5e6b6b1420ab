"""`dynamight check` finds all that is wrong at once, and whether images and map belong together."""

import re
import shutil

import mrcfile
import numpy as np
import pytest
import torch

from dynamight_core.errors import FAILED, InputError, Problems
from dynamight_core.files import read_map, write_map
from dynamight_core.options import TrainOptions
from dynamight_core.particles.images import ImageReader
from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.preprocess import Preprocessing
from dynamight_core.training import check
from dynamight_core.training.comparison import compare_with_map, comparison_box
from dynamight_core.training.suggest import find_half_maps
from tests.support.command_line import BOX, PIXEL, SMALL, N, dynamight


@pytest.fixture
def folder(data, tmp_path):
    """A copy of the data set that a test may spoil."""
    return shutil.copytree(data.particles.parent, tmp_path / "d")


def words(folder, *more):
    return ["check", folder / "particles.star", "--map", folder / "consensus.mrc", *SMALL, *more]


def edit(path, change):
    with mrcfile.open(path, "r+", permissive=True) as stack:
        change(stack.data)


def spoil(images):
    images[3, 5, 5], images[77], images[150] = np.nan, np.inf, 0


def test_all_that_is_wrong_is_told_at_once_and_the_usable_particles_are_written(folder):
    edit(folder / "particles.mrcs", spoil)
    write_map(folder / "mask.mrc", 3 * np.eye(BOX)[:, :, None] * np.ones(BOX), PIXEL)
    half = folder / "consensus_half1.mrc"
    code, text = dynamight(
        *words(folder, "--mask", folder / "mask.mrc", "--half-maps", half, half, "--initial-resolution", "100"),
        "--cleaned",
        folder / "clean.star",
    )
    assert code == 2
    assert "4 things must be corrected" in text
    for sentence in (
        "same map",
        "mask.mrc has values from 0 to 3",
        "--initial-resolution is 100 A",
        rf"3 images are constant or hold NaN .*4@.*78@.*151@.*clean.star has the other {N - 3} particles",
    ):
        assert re.search(sentence, text.replace("\n", " ")), text
    code, text = dynamight("check", folder / "clean.star", "--map", folder / "consensus.mrc", *SMALL)
    assert code == 0, text
    assert f"{N - 3} particles" in text


def test_the_cleaned_file_is_not_written_over_an_input(folder):
    edit(folder / "particles.mrcs", spoil)
    before = (folder / "particles.star").read_bytes()
    code, text = dynamight(*words(folder, "--cleaned", folder / "particles.star"))
    assert code == 2
    assert "--cleaned is" in text
    assert (folder / "particles.star").read_bytes() == before


def test_dark_particles_are_found_and_the_command_for_them_suggested(folder):
    edit(folder / "particles.mrcs", lambda images: np.negative(images, out=images))
    code, text = dynamight(*words(folder))
    assert code == 2
    assert "negatively" in text
    code, text = dynamight(*words(folder, "--suggest"))
    assert code == 0, text
    command = next(line for line in text.splitlines() if line.startswith("Suggested: dynamight train"))
    assert "--invert-contrast" in command
    assert f"--half-maps {folder / 'consensus_half1.mrc'} {folder / 'consensus_half2.mrc'}" in command


def test_half_maps_are_found_if_there_is_one_pair(tmp_path):
    (tmp_path / "run_class001.mrc").touch()
    for half in (1, 2):
        (tmp_path / f"run_half{half}_class001_unfil.mrc").touch()
    found = find_half_maps(tmp_path / "run_class001.mrc")
    assert [name.split("/")[-1] for name in found] == [f"run_half{half}_class001_unfil.mrc" for half in (1, 2)]
    for half in "AB":
        (tmp_path / f"J12_map_half_{half}.mrc").touch()
    assert find_half_maps(tmp_path / "run_class001.mrc") is None


CHANGES = {
    "dark": (lambda map: -map, "negatively"),
    "x mirrored": (lambda map: map.flip(2), "better with x mirrored"),
    "z mirrored": (lambda map: map.flip(0), "better with z mirrored"),
    "axes": (lambda map: map.permute(2, 1, 0), "better with axes z, y, x as x, y, z"),
    "centre": (lambda map: map.roll(4, 2), rf"better shifted by \(-{4 * PIXEL:g}, 0, 0\) A"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_map_of_other_contrast_hand_axes_or_centre_is_refused(data, case):
    reader = ImageReader(read_particles(data.particles))
    prepare = Preprocessing(comparison_box(BOX))
    volume = torch.from_numpy(read_map(data.consensus)[0])
    assert compare_with_map(reader, prepare, volume, "map.mrc", 0) > 10
    change, sentence = CHANGES[case]
    with pytest.raises(InputError, match=sentence):
        compare_with_map(reader, prepare, change(volume), "map.mrc", 0)


def test_noise_is_no_reason_to_turn_a_map(data):
    reader = ImageReader(read_particles(data.particles))
    volume = torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(0))
    assert abs(compare_with_map(reader, Preprocessing(comparison_box(BOX)), volume, "map.mrc", 0)) < 6


def test_too_little_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(check, "available_memory", lambda: 10**8)
    code, text = dynamight(*words(folder))
    assert code == 2
    assert re.search(r"training needs about .* 0.1 GB are free", text.replace("\n", " "))
    assert check.estimate_memory(10**6, 64, TrainOptions()) > check.estimate_images(10**6, 64)


def test_a_mask_beside_the_molecule_is_refused(folder):
    mask = np.zeros((BOX,) * 3)
    mask[:2, :2, :2] = 1
    write_map(folder / "mask.mrc", mask, PIXEL)
    code, text = dynamight(*words(folder, "--mask", folder / "mask.mrc"))
    assert code == 2
    assert "covers 0 % of the molecule" in text.replace("\n", " ")


def test_steps_that_need_one_that_failed_are_not_done():
    def refuse():
        raise InputError("no")

    problems = Problems()
    assert problems.step(lambda: 1) == 1
    failed = problems.step(refuse)
    assert failed is FAILED
    assert problems.step(lambda value: value, failed) is FAILED
    assert problems.step(lambda: 1, after=[failed]) is FAILED
    with pytest.raises(InputError, match=r"^no$"):
        problems.refuse()
    problems.step(lambda: (_ for _ in ()).throw(InputError("nor this")))
    with pytest.raises(InputError, match=r"2 things must be corrected:\n  1. no\n  2. nor this"):
        problems.refuse()

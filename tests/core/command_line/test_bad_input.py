"""Bad input is refused before training, with one sentence."""

import re
import shutil

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from dynamight_core.files import read_map, write_map
from tests.support.command_line import BOX, PIXEL, SMALL, N, dynamight


class BadInput:
    """A copy of the data set that a case spoils, and the words of a training on it."""

    def __init__(self, data, folder):
        self.folder, self.star = folder, folder / "particles.star"
        self.stack, self.map = folder / "particles.mrcs", folder / "map.mrc"
        self.run, self.more = folder / "run", []
        shutil.copy(data.particles, self.star)
        shutil.copy(data.stack, self.stack)
        shutil.copy(data.consensus, self.map)

    @property
    def words(self):
        return ["train", self.star, self.run, "--map", self.map, *SMALL, *self.more]

    def edit(self, change):
        """Rewrite the STAR file with the tables that `change(optics, particles)` returns."""
        blocks = starfile.read(self.star, always_dict=True)
        optics, rows = change(pd.DataFrame(blocks["optics"]), blocks["particles"])
        starfile.write({"optics": optics, "particles": rows}, self.star, overwrite=True, na_rep="nan")

    def without(self, column):
        self.edit(
            lambda optics, rows: (
                optics.drop(columns=column, errors="ignore"),
                rows.drop(columns=column, errors="ignore"),
            )
        )

    def rewrite_map(self, volume, pixel_size):
        write_map(self.map, volume, pixel_size)


def missing_stack(bad):
    bad.stack.unlink()


def truncated_stack(bad):
    bad.stack.write_bytes(bad.stack.read_bytes()[:-5000])


def unreadable_stack(bad):
    bad.stack.write_bytes(b"not an MRC file" * 200)


def index_beyond(bad):
    bad.edit(lambda optics, rows: (optics, rows.replace({"rlnImageName": {"000220": "000221"}}, regex=True)))


def nan_in_image(bad):
    with mrcfile.mmap(bad.stack, mode="r+") as stack:
        stack.data[17, 3, 4] = np.nan


def nan_in_column(bad):
    def change(optics, rows):
        rows.loc[4, "rlnAngleTilt"] = np.nan
        return optics, rows

    bad.edit(change)


def map_of_another_box(bad):
    volume, _ = read_map(bad.map)
    bad.rewrite_map(volume[2:-2, 2:-2, 2:-2], PIXEL)


def map_of_another_pixel_size(bad):
    bad.rewrite_map(read_map(bad.map)[0], PIXEL * 1.1)


def map_that_is_not_cubic(bad):
    bad.rewrite_map(read_map(bad.map)[0][:-4], PIXEL)


def map_that_is_missing(bad):
    bad.map.unlink()


def map_with_nan(bad):
    volume = read_map(bad.map)[0]
    volume[3, 3, 3] = np.nan
    bad.rewrite_map(volume, PIXEL)


def empty_star(bad):
    bad.edit(lambda optics, rows: (optics, rows.iloc[:0]))


def blank_star(bad):
    bad.star.write_text("")


def few_particles(bad):
    bad.edit(lambda optics, rows: (optics, rows.iloc[:199]))


def few_in_a_half(bad):
    def change(optics, rows):
        rows["rlnRandomSubset"] = [2] * 49 + [1] * (len(rows) - 49)
        return optics, rows

    bad.edit(change)


def output_under_a_file(bad):
    (bad.folder / "file").write_text("")
    bad.run = bad.folder / "file" / "run"


def output_is_a_file(bad):
    bad.run.write_text("")


def unknown_option_value(bad):
    bad.more = ["--decoder", "transformer"]


def unknown_device(bad):
    bad.more = ["--device", "77"]


def options(*words):
    def spoil(bad):
        bad.more = words

    return spoil


def half_maps_of_another_box(bad):
    volume, _ = read_map(bad.map)
    write_map(bad.folder / "half.mrc", volume[2:-2, 2:-2, 2:-2], PIXEL)
    bad.more = ["--half-maps", bad.map, bad.folder / "half.mrc"]


def one_half_map_twice(bad):
    bad.more = ["--half-maps", bad.map, bad.map]


def mask_of_another_box(bad):
    write_map(bad.folder / "mask.mrc", np.eye(28)[:, :, None] * np.ones(28), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def mask_beyond_one(bad):
    write_map(bad.folder / "mask.mrc", 3 * np.eye(BOX)[:, :, None] * np.ones(BOX), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def constant_mask(bad):
    write_map(bad.folder / "mask.mrc", np.ones((BOX, BOX, BOX)), PIXEL)
    bad.more = ["--mask", bad.folder / "mask.mrc"]


def without(column):
    return lambda bad: bad.without(column)


BAD = {
    "missing stack": (missing_stack, r"particles\.mrcs"),
    "truncated stack": (truncated_stack, r"particles\.mrcs is truncated"),
    "unreadable stack": (unreadable_stack, r"particles\.mrcs has MRC mode"),
    "index beyond the stack": (index_beyond, r"row 220 .*rlnImageName image 221"),
    "NaN in an image": (nan_in_image, r"image 18@.*NaN"),
    "NaN in a column": (nan_in_column, r"row 5 .*rlnAngleTilt|rlnAngleTilt.*row 5"),
    "no pose column": (without("rlnAngleRot"), r"rlnAngleRot"),
    "no CTF column": (without("rlnDefocusU"), r"rlnDefocusU"),
    "no optics column": (without("rlnVoltage"), r"rlnVoltage"),
    "no pixel size": (without("rlnImagePixelSize"), r"pixel size|rlnImagePixelSize"),
    "no image column": (without("rlnImageName"), r"rlnImageName"),
    "map of another box": (map_of_another_box, r"map\.mrc has a box of 28 voxels"),
    "map of another pixel size": (map_of_another_pixel_size, r"map\.mrc has a pixel size of 6\.6 A"),
    "map not cubic": (map_that_is_not_cubic, r"map\.mrc is 28 x 32 x 32, not a cube"),
    "no map": (map_that_is_missing, r"map\.mrc does not exist"),
    "NaN in the map": (map_with_nan, r"map\.mrc has NaN"),
    "empty STAR": (empty_star, r"particles\.star .*empty|no particles"),
    "blank STAR": (blank_star, r"particles\.star"),
    "fewer than 200 particles": (few_particles, r"holds 199 particles.*at least 200"),
    "few in a half-set": (few_in_a_half, r"has 49 images with rlnRandomSubset 2"),
    "few held out": (options("--validation-fraction", "0.02"), r"--validation-fraction 0.02 holds out \d images"),
    "unwritable output": (output_under_a_file, r"not a directory; choose"),
    "output is a file": (output_is_a_file, r"is a file"),
    "half-maps of another box": (half_maps_of_another_box, r"half-map .*half\.mrc has a box of 28 voxels"),
    "one half-map twice": (one_half_map_twice, r"--half-maps .* are the same map"),
    "mask of another box": (mask_of_another_box, r"mask .*mask\.mrc has a box of 28 voxels"),
    "mask beyond one": (mask_beyond_one, r"mask .*mask\.mrc has values from 0 to 3"),
    "constant mask": (constant_mask, r"mask .*mask\.mrc is constant"),
    "option value": (unknown_option_value, r"--decoder is 'transformer'"),
    "normalisation": (options("--normalise", "all"), r"--normalise is 'all'; choose one of image, set, none"),
    "storage": (options("--storage", "tape"), r"--storage is 'tape'; choose one of auto"),
    "working box": (options("--working-box", "31"), r"--working-box is 31; give an even number"),
    "particle diameter": (options("--particle-diameter", "250"), r"diameter of 250 A in a box of 192 A"),
    "initial resolution": (options("--initial-resolution", "100"), r"--initial-resolution is 100 A.*at most 48"),
    "not a number": (options("--stiffness", "nan"), r"--stiffness is nan"),
    "dark particles": (options("--invert-contrast"), r"negatively"),
    "project": (options("--project", "nowhere"), r"--project is .*nowhere, not a folder"),
    "device": (unknown_device, r"--device is '77'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_training_with_one_sentence(data, tmp_path, case):
    spoil, reason = BAD[case]
    bad = BadInput(data, tmp_path)
    spoil(bad)
    code, text = dynamight(*bad.words)
    assert code == 2, text
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, text
    assert re.search(reason, errors[0]), errors[0]
    assert not (bad.run / "config.yaml").is_file() if bad.run.is_dir() else True, "nothing is left to be in the way"
    # What needs the Gaussians is found when they have been fitted.
    if not case.startswith(("unwritable", "output", "dark")):
        assert dynamight("check", *bad.words[1:2], *bad.words[3:])[0] == 2


def test_check_says_what_was_understood(data):
    code, text = dynamight("check", data.particles, "--map", data.consensus, *SMALL)
    assert code == 0, text
    for part in (f"{N} particles", f"box {BOX} pixels of {PIXEL:g} A", "half-sets", "Memory: about", "Time: about"):
        assert part in text
    assert "The input is ready for training." in text
    assert dynamight("check", data.particles)[0] == 0


def test_relatives_in_both_half_sets_are_counted_and_warned_of(data, tmp_path):
    blocks = starfile.read(data.particles, always_dict=True)
    table = blocks["particles"]
    name = "rlnImageOriginalName"
    table[name] = [f"{i + 1}@original.mrcs" for i in range(N)]
    halves = table["rlnRandomSubset"].to_numpy()
    table.loc[np.flatnonzero(halves == 2)[:3], name] = table.loc[np.flatnonzero(halves == 1)[:3], name].to_numpy()
    # Paths of images are relative to the folder of the file.
    star = data.particles.parent / "relatives.star"
    starfile.write(blocks, star)
    code, text = dynamight("check", star, "--map", data.consensus, *SMALL)
    assert code == 0, text
    assert "Warning: 6 particles have relatives (the same original image, helical tube or place)" in text


def test_train_without_a_map_is_refused(data, tmp_path):
    code, text = dynamight("train", data.particles, tmp_path / "run")
    assert code == 2
    assert "--map is missing" in text


def test_simulate_does_not_replace_a_data_set_unasked(tmp_path):
    words = ["simulate", tmp_path / "data", "--particles", "4", "--box", "32", "--pixel-size", "6"]
    assert dynamight(*words)[0] == 0
    assert dynamight(*words)[0] == 2
    assert dynamight(*words, "--overwrite")[0] == 0

"""The script that compares two runs sees every change of a number, and nothing in what may differ."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import yaml
from safetensors.numpy import save_file

from dynamight_core.files import write_map

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_runs.py"


def compare(*words):
    """Return exit status and lines of the script."""
    ended = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)
    assert not ended.stderr
    return ended.returncode, ended.stdout.splitlines()


def write(folder, shift=0.0, seconds=1.0):
    """Write a tiny run, its numbers shifted."""
    (folder / "analysis").mkdir(parents=True)
    values = np.arange(5, dtype=np.float32) + np.float32(shift)
    save_file({"latents": values, "halves": np.array([1, 2])}, folder / "latents.safetensors")
    write_map(folder / "map.mrc", np.full((4, 4, 4), 2.0 + shift), 3.0)
    starfile.write({"particles": {"dynMotion1": 1.0 + shift, "rlnImageName": "1@a.mrcs"}}, folder / "particles.star")
    (folder / "analysis" / "points.csv").write_text(f"x,name\n{1 + shift},a\nnan,b\n")
    (folder / "analysis" / "numbers.csv").write_text(f"number in the text,value\nminutes of training,{seconds}\n")
    summary = {"motion": [1.0, 2.0 + shift], "dynamight_core": str(seconds)}
    (folder / "analysis" / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(json.dumps({"data": 1.0 + shift, "seconds": seconds}) + "\n")
    config = {"inputs": {"star": f"{folder}/particles.star"}, "provenance": {"python": seconds}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "analysis" / "report.html").write_text(str(seconds))
    return folder


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "old")


def test_runs_that_differ_in_times_versions_and_folders_are_equal(old, tmp_path):
    assert compare(old, write(tmp_path / "new", seconds=2.0)) == (0, ["8 files compared: no differences"])


def test_every_changed_number_is_found_with_its_size(old, tmp_path):
    status, lines = compare(old, write(tmp_path / "new", shift=1e-3))
    assert status == 1
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "analysis/points.csv",
        "analysis/summary.json",
        "latents.safetensors",
        "map.mrc",
        "metrics.jsonl",
        "particles.star",
    ]
    assert "latents.safetensors: latents: 5 of 5 differ, at most by 0.001 (largest value 4)" in lines
    assert lines[-1] == "8 files compared: 6 differences"


def test_differences_within_the_tolerance_are_accepted(old, tmp_path):
    new = write(tmp_path / "new", shift=1e-3)
    assert compare(old, new, "--tolerance", "1e-2")[0] == 0
    assert compare(old, new, "--tolerance", "1e-4")[0] == 1


def test_what_is_missing_renamed_reshaped_or_not_a_number_is_found_at_any_tolerance(old, tmp_path):
    new = shutil.copytree(old, tmp_path / "new")
    (new / "metrics.jsonl").unlink()
    (new / "half.star").write_text("")
    save_file({"latents": np.full(5, np.nan, np.float32), "half": np.array([1, 2, 2])}, new / "latents.safetensors")
    with mrcfile.open(new / "map.mrc", "r+") as mrc:
        mrc.voxel_size = 4.0
    (new / "analysis" / "points.csv").write_text("x,name\n1.0,a\n,c\n")
    status, lines = compare(old, new, "--tolerance", "0.1")
    assert status == 1
    assert lines[:-1] == [
        "analysis/points.csv: name: 1 of 2 differ, first 'b' became 'c'",
        "half.star: only in NEW",
        "latents.safetensors: half only in NEW",
        "latents.safetensors: halves only in OLD",
        "latents.safetensors: latents: 5 of 5 differ, at most by nan (largest value 4)",
        "map.mrc: voxel size: 3 of 3 differ, at most by 1 (largest value 3)",
        "metrics.jsonl: only in OLD",
    ]
    status, lines = compare(old, new, "--tolerance", "1", "--numbers-only")
    assert status == 1 and not any("points.csv" in line for line in lines)


def test_folders_without_files_are_refused(old, tmp_path):
    ended = subprocess.run([sys.executable, SCRIPT, old, tmp_path / "none"], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr == f"{tmp_path / 'none'} holds no files; name a run\n"

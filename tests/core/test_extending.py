"""The examples of docs/extending.md, installed as they are printed, train a run and add to its report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
import tomllib

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUICK = "--n-gaussians 60 --n-latents 2 --epochs 1 --warm-up-epochs 0 --refits 0 --threads 1".split()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the files that the page prints, and the metadata that pip would make of its pyproject.toml."""
    folder = tmp_path_factory.mktemp("package")
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```\w+\n(?:# |{# )([\w.]+)(?: #})?\n(.*?)^```$", page, re.M | re.S)
    for name, text in blocks:
        with open(folder / name, "a") as file:
            file.write(text)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def engine(package):
    """Return a function that runs the engine where the package is installed."""
    path = os.pathsep.join([str(package), str(ROOT)])

    def run(*words):
        command = [sys.executable, "-m", "dynamight_core", *map(str, words)]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def csv(hinge_set, package):
    """The hinge data set as the table that the page's reader takes."""
    from csv_particles import COLUMNS, OPTICS

    blocks = starfile.read(hinge_set.particles)
    table = blocks["particles"].rename(columns={label: name for name, label in COLUMNS.items()})
    index, _, stack = table.image.str.partition("@").T.to_numpy()
    table["image"] = [f"{i}@{hinge_set.particles.parent / name}" for i, name in zip(index, stack, strict=True)]
    for label in OPTICS:
        table[label] = blocks["optics"][label].iloc[0]
    path = package / "particles.csv"
    table[[*COLUMNS, *OPTICS]].to_csv(path, index=False)
    return path


@pytest.fixture(autouse=True, scope="module")
def importable(package):
    sys.path.insert(0, str(package))
    yield
    sys.path.remove(str(package))


def test_decoder_loss_term_and_format_train_a_run_and_the_figure_is_in_its_report(engine, csv, hinge_set, tmp_path):
    run = tmp_path / "run"
    extras = ("--decoder", "breathing", "--loss-weights", "drift=0.5")
    ended = engine("train", csv, run, "--map", hinge_set.consensus, *QUICK, *extras)
    assert ended.returncode == 0, ended.stderr
    losses = [json.loads(line)["losses"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(loss.get("drift", 0) > 0 for loss in losses)
    ended = engine("analyse", run, "--embedding", "pca")
    assert ended.returncode == 0, ended.stderr
    report = (run / "analysis" / "report.html").read_text()
    assert 'id="defocus"' in report and "probably\nan artefact" in report
    table = pd.read_csv(run / "analysis" / "tables" / "defocus.csv")
    truth = starfile.read(hinge_set.particles)["particles"]
    assert np.allclose(table.defocus_um, truth.rlnDefocusU / 1e4, atol=1e-4)
    assert list(starfile.read(run / "particles.star")["particles"].rlnImageName) == list(pd.read_csv(csv).image)


def test_a_file_of_the_format_is_checked_as_a_star_file_is(engine, csv, hinge_set, tmp_path):
    table = pd.read_csv(csv, dtype=str)
    for name, change, reason in (
        ("short.csv", lambda t: t.drop(columns="tilt"), "has no column tilt; add it"),
        ("text.csv", lambda t: t.assign(psi="north"), "rlnAnglePsi"),
    ):
        change(table).to_csv(tmp_path / name, index=False)
        ended = engine("check", tmp_path / name, "--map", hinge_set.consensus)
        assert ended.returncode == 2 and reason in ended.stderr


def test_the_engine_alone_has_none_of_them(csv, hinge_set, tmp_path):
    words = ("train", csv, tmp_path / "run", "--map", hinge_set.consensus, "--decoder", "breathing")
    command = [sys.executable, "-m", "dynamight_core", *map(str, words)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == 2 and "basis, coordinate, bodies" in ended.stderr

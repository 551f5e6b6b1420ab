"""Particles that trained nothing: their motion is found, their half-set is decided, later commands take them."""

import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.analysis.select import write_selection
from dynamight_core.errors import InputError
from dynamight_core.judging.new_particles import infer_particles
from dynamight_core.options import InferOptions, ReconstructOptions, SelectOptions
from dynamight_core.reconstruction.stage import reconstruct_run
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run
from dynamight_core.simulate.dataset import SimulateOptions, simulate

N = 200


@pytest.fixture(scope="module")
def new_set(tmp_path_factory):
    """Return further images of the molecule of `hinge_set`."""
    folder = tmp_path_factory.mktemp("new")
    return simulate(SimulateOptions(particles=N, box=32, pixel_size=6.0, snr=8.0, seed=1), folder)


@pytest.fixture(scope="module")
def run(trained):
    return Run(trained[1].path)


@pytest.fixture(scope="module")
def merged(hinge_set, new_set, run, tmp_path_factory):
    """Return a run of training particles and new ones, from a file without half-sets, and what was said."""
    folder = tmp_path_factory.mktemp("merged")
    blocks = [starfile.read(files.particles) for files in (hinge_set, new_set)]
    tables = []
    for block, files in zip(blocks, (hinge_set, new_set), strict=True):
        table = block["particles"].drop(columns="rlnRandomSubset")
        table["rlnImageName"] = table["rlnImageName"].str.replace("particles.mrcs", str(files.stack))
        tables.append(table)
    rows = pd.concat(tables)
    starfile.write({"optics": blocks[0]["optics"], "particles": rows}, folder / "both.star")
    said = []
    made = infer_particles(run, folder / "both.star", folder / "run", InferOptions(), reporter=Reporter(said.append))
    return made, "\n".join(said)


def angles(files):
    return np.load(files.truth)["angles"][:, 0]


def test_new_particles_show_the_motion_as_held_out_ones_do(hinge_set, new_set, run, tmp_path):
    made = infer_particles(run, new_set.particles, tmp_path / "run", InferOptions(), reporter=QUIET)
    own = np.corrcoef(run.motions.coordinates[run.validation, 0], angles(hinge_set)[run.validation.numpy()])[0, 1]
    new = np.corrcoef(made.motions.coordinates[:, 0], angles(new_set))[0, 1]
    assert np.sign(new) == np.sign(own)
    assert abs(new) > abs(own) - 0.05
    assert made.validation.all()
    assert made.halves.tolist() == starfile.read(new_set.particles)["particles"]["rlnRandomSubset"].tolist()
    assert made.summary["verdict"] == run.summary["verdict"]
    assert made.table["dynMotionError"].median() == pytest.approx(run.table["dynMotionError"].median(), rel=0.3)


def test_training_particles_are_recognised_and_found_again(run, merged):
    made, said = merged
    n = len(run.halves)
    assert torch.equal(made.halves[:n], run.halves)
    assert torch.equal(made.validation[:n], run.validation)
    assert made.validation[n:].all()
    again, before = made.motions.coordinates[:n, 0].numpy(), run.motions.coordinates[:, 0].numpy()
    assert np.corrcoef(again, before)[0, 1] > 0.99
    assert f"{n + N} particles: {n} belong to the run and keep their half-sets, {N} are new" in said
    assert "decoder of its own half-set alone" in said
    assert abs(int((made.halves[n:] == 1).sum()) - N // 2) <= 1


def test_later_commands_take_the_merged_particles(merged):
    made, _ = merged
    path = write_selection(Run(made.path), SelectOptions(half=1), reporter=QUIET)
    assert len(starfile.read(path)["particles"]) == int((made.halves == 1).sum())
    options = ReconstructOptions(choose_density=False, rigid=False)
    reconstruct_run(Run(made.path), options, reporter=QUIET)
    assert (made.path / "reconstruction" / "map.mrc").exists()


def test_half_sets_that_contradict_the_training_are_refused(hinge_set, run, tmp_path):
    blocks = starfile.read(hinge_set.particles)
    blocks["particles"]["rlnRandomSubset"] = 3 - blocks["particles"]["rlnRandomSubset"]
    starfile.write(blocks, hinge_set.particles.with_name("swapped.star"))
    with pytest.raises(InputError, match=r"in half-set \d, but it belongs to half-set \d of .*; take rlnRandomSubset"):
        infer_particles(
            run, hinge_set.particles.with_name("swapped.star"), tmp_path / "x", InferOptions(), reporter=QUIET
        )


def test_particles_of_another_box_or_contrast_and_the_run_itself_are_refused(new_set, run, tmp_path):
    wrong = simulate(SimulateOptions(particles=20, box=24, pixel_size=6.0), tmp_path / "small")
    with pytest.raises(InputError, match="was trained in a box of 192"):
        infer_particles(run, wrong.particles, tmp_path / "x", InferOptions(), reporter=QUIET)
    with pytest.raises(InputError, match="correlate negatively"):
        infer_particles(run, new_set.particles, tmp_path / "x", InferOptions(invert_contrast=True), reporter=QUIET)
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").iterdir())
    with pytest.raises(InputError, match="is the trained run itself"):
        infer_particles(run, new_set.particles, run.path, InferOptions(), reporter=QUIET)

"""Subsets of particles from the command line."""

import re

import pytest
import starfile

from tests.support.command_line import N, dynamight


def test_a_selection_and_its_complement_hold_every_particle_once_with_its_optics(data, moving, tmp_path):
    particles = starfile.read(moving / "particles.star")["particles"]
    middle = particles["dynMotion1"][particles["dynHalf"] == 1].median()
    words = ["select", moving, "--along", f"1::{middle}", "--half", "1"]
    code, text = dynamight(*words, "--name", "low")
    assert code == 0, text
    assert re.search(r"\d+ of 220 particles \(\d+ of half-set 1, 0 of half-set 2\)", text)
    low = starfile.read(moving / "analysis" / "selections" / "low.star")
    assert (low["particles"]["dynMotion1"] <= middle).all()
    assert (low["particles"]["dynHalf"] == 1).all()
    assert dynamight(*words, "--complement", "--out", tmp_path / "rest.star")[0] == 0
    rest = starfile.read(tmp_path / "rest.star")
    names = [*low["particles"]["rlnImageName"], *rest["particles"]["rlnImageName"]]
    assert sorted(names) == sorted(starfile.read(data.particles)["particles"]["rlnImageName"])
    assert rest["optics"].equals(low["optics"])


def test_particles_are_selected_by_conformation_and_by_what_the_halves_agree_on(moving, tmp_path):
    table = starfile.read(moving / "particles.star")["particles"]
    centre = table[["dynMotion1", "dynMotion2"]].to_numpy()[7]
    limit = table["dynMotionDisagreement"].median()
    words = [f"--near={centre[0]},{centre[1]}:2", "--disagreement", f":{limit}", "--out", tmp_path / "near.star"]
    assert dynamight("select", moving, *words)[0] == 0
    rows = table[(table["dynMotion1"] - centre[0]) ** 2 + (table["dynMotion2"] - centre[1]) ** 2 <= 4]
    rows = rows[rows["dynMotionDisagreement"] <= limit]
    assert 0 < len(rows) < N
    assert list(starfile.read(tmp_path / "near.star")["particles"]["rlnImageName"]) == list(rows["rlnImageName"])


def test_clusters_divide_the_particles(moving, tmp_path):
    assert dynamight("select", moving, "--clusters", "3", "--out", tmp_path / "all.star")[0] == 0
    labels = starfile.read(tmp_path / "all.star")["particles"]["dynCluster"]
    counts = []
    for cluster in (1, 2, 3):
        words = ["--clusters", "3", "--cluster", cluster, "--out", tmp_path / f"{cluster}.star"]
        assert dynamight("select", moving, *words)[0] == 0
        counts.append(len(starfile.read(tmp_path / f"{cluster}.star")["particles"]))
    assert sum(counts) == N
    assert counts == [(labels == cluster).sum() for cluster in (1, 2, 3)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "there is no condition"),
        (["--near", "1,2"], "COORDINATES:DISTANCE"),
        (["--motion", "5:1"], "LOW below HIGH"),
        (["--error", "high"], "LOW:HIGH"),
        (["--along", "x:0:1"], "K:LOW:HIGH"),
        (["--along", "9:0:1"], "motion 9 is not in this run"),
        (["--cluster", "1"], "--clusters"),
        (["--clusters", "2", "--cluster", "3"], "from 1 to 2"),
        (["--motion", "1000:"], "the selection is empty"),
    ],
)
def test_selections_that_cannot_be_made_are_refused(moving, words, reason):
    code, text = dynamight("select", moving, *words)
    assert code == 2
    assert reason in text

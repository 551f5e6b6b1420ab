"""The one conclusion of a run: what is known of it is read together, and told in the same words everywhere."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.analysis.overview import overview
from dynamight_core.analysis.report import write_report
from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.imaging.correlation import fourier_shell_correlation, fsc_deviation, shell_covariance
from dynamight_core.judging.agreement import correlates
from dynamight_core.judging.conclusion import conclude, record_conclusion, shared_motions
from dynamight_core.judging.evidence import controls_folder
from dynamight_core.reconstruction.gains import gain_over_rigid
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run
from tests.support.command_line import dynamight

FSC = "data_general\n\n_rlnFinalResolution {}\n_dynResolutionAtLeast {}\n"
COMPOSITION = {
    "name": "composition",
    "value": 4.0,
    "error": 0.5,
    "found": True,
    "sentence": "Particles of two groups differ by 12 % in mass",
    "next_step": "Classify the two groups apart.",
}

EVIDENCE = {"content": [1.8, 0.2], "motion beyond content": [0.0, 0.1]}


class Case:
    """A run whose files say what a test wants."""

    def __init__(self, folder):
        self.folder = folder

    def summary(self, **changed):
        path = self.folder / "analysis" / "summary.json"
        found = json.loads(path.read_text())
        found["verdict"] |= changed.pop("verdict", {})
        path.write_text(json.dumps(found | changed))
        return self

    def control(self, kind, verdict):
        folder = controls_folder(Run(self.folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}.json").write_text(
            json.dumps({"kind": kind, "verdict": verdict, "sentence": "", "figures": {}})
        )
        return self

    def map(self, gain, error, rigid_fraction=0.1):
        folder = self.folder / "reconstruction"
        (folder / "rigid").mkdir(parents=True)
        (folder / "map.mrc").touch()
        (folder / "fsc.star").write_text(FSC.format(9.1, 9.4))
        (folder / "rigid" / "fsc.star").write_text(FSC.format(9.0, 9.6))
        row = {"region": "moving", "fsc_gain": gain, "fsc_gain_error": error}
        pd.DataFrame([row]).to_csv(folder / "gains.csv", index=False)
        row = {"region": "moving", "rigid": rigid_fraction, "resolution_A": 9.3, "rigid_resolution_A": 13.3}
        pd.DataFrame([row]).to_csv(folder / "densities.csv", index=False)
        return self

    @property
    def conclusion(self):
        return conclude(Run(self.folder))

    @property
    def text(self):
        return " ".join(self.conclusion.lines)


@pytest.fixture
def case(drawn_run, tmp_path):
    return Case(shutil.copytree(drawn_run, tmp_path / "run"))


def test_a_run_that_was_only_trained_says_what_moves_how_sure_and_what_is_next(case):
    found = case.conclusion
    assert (found.motion, found.title, found.map) == ("supported", "The molecule moves", "")
    assert re.fullmatch(
        r"A part with \d+ % of the molecule moves by [\d.]+ A rms about the mean, with an uncertainty of [\d.]+ A for "
        r"one particle; the rest by [\d.]+ A rms\.",
        found.moves,
    )
    assert "better by 8.00 +- 0.30 nats with each particle's own deformation, and worse by 1.00" in found.certainty
    assert found.advice == "Reconstruct the map with motion corrected (reconstruct)."


def test_the_first_screen_leads_with_motion_or_with_why_there_is_none(case):
    assert case.conclusion.lead == case.conclusion.moves
    case.summary(causes=[COMPOSITION], verdict={"verdict": "not supported", "cause": "composition"}, evidence=EVIDENCE)
    assert case.conclusion.lead == "Particles of two groups differ by 12 % in mass."
    # A number's point ends no sentence.
    case.summary(causes=[COMPOSITION | {"sentence": "0.7 A would be seen"}])
    assert case.conclusion.lead == "0.7 A would be seen."


def test_domains_are_named_once_they_were_found(case):
    rows = {"domain": [1, 2], "share_of_points": [0.79, 0.21], "motion_A": [0.5, 5.6], "error_A": [0.5, 3.3]}
    folder = case.folder / "analysis" / "domains"
    folder.mkdir()
    pd.DataFrame(rows | {"angle_std_deg": [1.1, 8.0]}).to_csv(folder / "domains.csv", index=False)
    assert case.conclusion.moves == (
        "Relative to domain 1, the largest, domain 2 (21 % of the molecule) moves by 5.6 A rms and 8 degrees (standard "
        "deviation; the uncertainty for one particle is 3.3 A)."
    )


def test_controls_that_cannot_decide_do_not_contradict_the_verdict(case):
    case.control("shuffled-latents", "from the motion").control("held-out", "no difference").map(0.004, 0.006)
    found = case.conclusion
    assert found.motion == "supported"
    assert "as good as without deformation, within the error (mean FSC of the half-maps +0.004 +- 0.006)" in found.map
    assert "Use reconstruction/map.mrc." in found.advice
    assert "rigid" not in case.text and "13.3" not in case.text


def test_a_gain_beyond_its_error_is_told_in_resolution(case):
    assert "better than without deformation (mean FSC of the half-maps +0.063 +- 0.020; 13.3 -> 9.3 A)" in (
        case.map(0.063, 0.02).conclusion.map
    )


def test_a_map_that_is_clearly_worse_is_not_to_be_used(case):
    found = case.map(-0.06, 0.02).conclusion
    assert "agree less than without deformation" in found.map
    assert "Use reconstruction/rigid/map.mrc." in found.advice


def test_a_map_that_kept_the_rigid_density_says_so(case):
    assert "it keeps the density without deformation" in case.map(0.0, 0.0, rigid_fraction=0.99).conclusion.map


@pytest.mark.parametrize(
    ("change", "title", "sentence"),
    [
        (
            lambda case: case.control("shuffled-latents", "not from the motion"),
            "Undecided whether it moves",
            "Deformations permuted among the particles improve the map as much as their own.",
        ),
        (
            lambda case: case.summary(shared_motions=[], motion_correlations=[-0.4]),
            "Undecided whether it moves",
            "The two half-sets do not share a motion on held-out particles.",
        ),
    ],
)
def test_what_speaks_against_a_supported_verdict_makes_it_undecided(case, change, title, sentence):
    found = change(case.map(0.06, 0.02)).conclusion
    assert (found.motion, found.title) == ("undecided", title)
    assert sentence in found.certainty
    assert found.moves.startswith("If it is real: a part with")
    assert "Do not interpret the motions." in found.advice


@pytest.mark.parametrize(("verdict", "end"), [("not supported", "not motion"), ("undecided", "perhaps no motion")])
def test_a_cause_in_the_place_of_motion_is_the_title(case, verdict, end):
    gains = {"content": [2.0, 0.3], "motion beyond content": [0.1, 0.2]}
    case.summary(verdict={"verdict": verdict, "cause": "composition"}, causes=[COMPOSITION], evidence=gains)
    found = case.conclusion
    assert (found.motion, found.title) == (verdict, f"Differences in composition, {end}")
    assert "Particles of two groups differ by 12 % in mass." in found.certainty
    assert "regions alone gain +2.00 +- 0.30 nats, and motion adds +0.10 +- 0.20 to that." in found.certainty
    assert found.advice.endswith("Do not interpret the motions. Classify the two groups apart.")


def test_a_joint_model_is_a_control_whatever_it_shows(case):
    config = RunConfig.read(case.folder)
    replace(config, train=replace(config.train, halves="joint")).write(case.folder)
    found = case.map(0.06, 0.02).conclusion
    assert (found.motion, found.title) == ("undecided", "A control only: one model was trained on both half-sets")
    assert found.map == "The map has a resolution of 9.1 A, which is overestimated: both half-maps come from one model."
    assert found.advice.startswith("Do not use the map or interpret the motions.")


def test_a_cause_beside_a_motion_leaves_the_motion_and_gives_its_next_step_first(case):
    found = case.summary(causes=[COMPOSITION]).conclusion
    assert found.motion == "supported"
    assert found.advice.startswith("Classify the two groups apart. Reconstruct")


def test_without_motion_the_detection_limit_and_its_cause_are_said(case):
    little = COMPOSITION | {
        "name": "too little data",
        "found": "suspected",
        "sentence": "motion of up to 0.5 A rms over the molecule could go undetected",
        "next_step": "Add particles.",
    }
    found = case.summary(
        verdict={"verdict": "not supported", "gain": 0.01, "gain_error": 0.02}, causes=[little]
    ).conclusion
    assert (found.motion, found.title, found.moves) == ("not supported", "No motion found", "")
    assert "equally well (+0.01 +- 0.02 nats) with each particle's own deformation" in found.certainty
    assert found.certainty.startswith("Motion of up to 0.5 A rms over the molecule could go undetected.")
    assert "Use the consensus map. Do not interpret the motions. Add particles." in found.advice


def test_every_place_shows_the_same_words(case):
    case.control("shuffled-latents", "from the motion").control("held-out", "improves the map")
    told = []
    lines = record_conclusion(Run(case.folder), Reporter(told.append)).lines
    assert told == [f"Conclusion: {lines[0]}", *(f"  {line}" for line in lines[1:])]
    assert Run(case.folder).summary["conclusion"]["lines"] == lines
    explorer = Explorer(Run(case.folder), reporter=QUIET)
    about = explorer.about().values["conclusion"]
    assert (about["motion"], about["lines"]) == ("supported", lines)
    page = write_report(Run(case.folder), reporter=QUIET).read_text()
    for line in lines[1:]:
        assert re.sub(r"(?<=\d) A\b", " Å", line).replace("+-", "±").replace("'", "&#39;") in page
    code, text = dynamight("analyse", case.folder, "--embedding", "pca", "--threads", "1")
    assert code == 0, text
    assert all(line in text for line in conclude(Run(case.folder)).lines)


def test_pages_of_an_unsupported_run_say_so_in_their_heads(case):
    case.summary(verdict={"verdict": "not supported", "gain": 0.0, "gain_error": 0.1})
    page = write_report(Run(case.folder), reporter=QUIET).read_text()
    head = page[: page.index("<details")]
    assert "(motion not supported)</title>" in head
    for words in ("No motion found.", "What this page shows of motion may be noise."):
        assert words in head


def test_motions_that_the_half_sets_do_not_share_are_not_shown_as_motions(case):
    case.summary(shared_motions=[2, 3], motion_correlations=[-0.9, 0.8, 0.7])
    run = Run(case.folder)
    assert shared_motions(run) == [2, 3]
    page = write_report(run, reporter=QUIET).read_text()
    assert "coordinate 1, not shared by the half-sets" in page
    assert [played["number"] for played in overview(run, conclude(run)).values["motions"]] == [2], "motion 3 is a trace"
    assert Explorer(run, reporter=QUIET).about().values["shared"] == [2, 3]


@pytest.mark.parametrize(
    ("correlation", "n", "shared"),
    [(0.98, 60, True), (0.2, 60, False), (0.2, 600, True), (-0.95, 200, False), (np.nan, 200, False), (1.0, 3, False)],
)
def test_a_motion_is_shared_if_its_coordinates_correlate_positively_beyond_chance(correlation, n, shared):
    assert correlates(correlation, n) == shared


def test_covariance_of_shells_is_that_of_noise_in_a_mask():
    box, generator = 24, torch.Generator().manual_seed(0)
    mask = _ball(box, 3.5)
    noise = [[torch.randn(box, box, box, generator=generator) for _ in range(2)] for _ in range(500)]
    seen = torch.cov(torch.stack([fourier_shell_correlation(*pair, mask)[2:12] for pair in noise]).T)
    expected = shell_covariance(mask, 12)[1:11, 1:11]
    assert torch.allclose(expected.diag(), fsc_deviation(mask)[2:12].square())
    for diagonal in (0, 1):
        assert float(expected.diag(diagonal).sum() / seen.diag(diagonal).sum()) == pytest.approx(1, abs=0.15)


def test_the_error_of_a_gain_is_its_scatter_where_nothing_is_gained():
    box, generator = 24, torch.Generator().manual_seed(1)

    def noise(size):
        return [size * torch.randn(box, box, box, generator=generator) for _ in range(2)]

    signal, mask = 2 * torch.randn(box, box, box, generator=generator), _ball(box, 4.0)
    ratios = []
    for _ in range(150):
        both = [signal + part for part in noise(0.7)]
        maps = [[half + part for half, part in zip(both, noise(0.4), strict=True)] for _ in range(2)]
        gain, error = gain_over_rigid(*map(tuple, maps), mask)
        ratios.append(gain / error)
    assert abs(np.mean(ratios)) < 0.35
    assert np.std(ratios) == pytest.approx(1, abs=0.3)
    assert gain_over_rigid(tuple(both), tuple(both), mask) == pytest.approx((0.0, 0.0), abs=1e-4)


def _ball(box, radius):
    axis = torch.arange(box) - box // 2
    squares = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float()
    return torch.exp(-squares / (2 * radius**2))


WRITING = {
    "states": ["--n-states", "2", "--no-movie"],
    "select": ["--motion", "0:9"],
    "displace": ["--points", "points.npy", "--out", "moved.npz", "--particles", "1"],
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("verdict", ["not supported", "undecided"])
def test_what_motion_that_is_not_supported_would_write_asks_for_a_flag(case, tmp_path, monkeypatch, command, verdict):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.zeros((2, 3)))
    case.summary(verdict={"verdict": verdict, "gain": 0.0, "gain_error": 0.1})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    words = [command, case.folder, *WRITING[command]]
    title = case.conclusion.title
    code, text = dynamight(*words)
    assert code == 2 and text.startswith(f"Error: {title}. Held-out images")
    assert "set --use-unsupported-motion to write these results all the same" in text
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    code, text = dynamight(*words, "--use-unsupported-motion")
    assert code == 0 and text.startswith(f"Warning: {title}. Held-out images"), text
    assert {path for path in tmp_path.rglob("*") if path.is_file()} > before


def test_a_selection_by_half_set_needs_no_motion(case):
    case.summary(verdict={"verdict": "not supported"})
    code, text = dynamight("select", case.folder, "--half", "1")
    assert code == 0, text


def test_a_page_saves_nothing_of_unsupported_motion_without_its_switch(case):
    case.summary(verdict={"verdict": "undecided"})
    saver = Explorer(Run(case.folder), reporter=QUIET).saver
    with pytest.raises(InputError, match="Undecided whether it moves"):
        saver.save_states({"at": ["1"]}, "one")
    saved = saver.save_states({"at": ["1"], "use_unsupported_motion": True}, "one")
    assert "--use-unsupported-motion" in saved.values["commands"][0]

"""The report of a run: one file, complete, offline, of bounded size, and true to its tables."""

import ast
import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import starfile
import torch

import dynamight_core.analysis.report
from dynamight_core.analysis.controls.result import Control, write_control
from dynamight_core.analysis.report import write_report
from dynamight_core.config import RunConfig
from dynamight_core.files import write_map
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.reporter import QUIET
from dynamight_core.training.curves import LOSS, training_curves

SECTIONS = "verdict landscape certainty gaussians maps fsc controls coordinates latents training files".split()


def make_run(folder, n=400, n_points=300, n_motions=4, answer="supported", reconstructed=False, rigid=True):
    """Return an object with the attributes of run.Run, and its files, without training anything."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    points = 40 * torch.randn(n_points, 3, generator=generator)
    components = torch.randn(n_motions, n_points, 3, generator=generator)
    components /= components.square().sum(-1).mean(1).sqrt()[:, None, None]
    size = 3.0 / torch.arange(1, n_motions + 1)
    coordinates = torch.randn(n, n_motions, generator=generator) * size
    shares = size.square() / size.square().sum()
    motions = PrincipalMotions(points, torch.zeros(n_points, 3), components, coordinates, shares)
    halves = torch.arange(n) % 2 + 1
    rms = coordinates.square().sum(1).sqrt()
    error = 0.5 + torch.rand(n, generator=generator)
    summary = {
        "verdict": {
            "verdict": answer,
            "gain": 7.654,
            "gain_error": 0.321,
            "null": -1.234,
            "null_error": 0.456,
            "particles": n // 10,
            "sentence": "Held-out particles say so: 7.65 +- 0.32 nats.",
        },
        "motion_rms": 3.456,
        "motion_between_particles_rms": 3.21,
        "error_factor": 1.37,
        "error_rms": 1.789,
        "error_disagreement_rms": 1.11,
        "error_posterior_rms": 1.44,
        "unseen_motion_rms": 0.77,
        "warnings": ["a warning about <the map>"],
        "point_motion": torch.rand(n_points, generator=generator).tolist(),
        "point_error": torch.rand(n_points, generator=generator).tolist(),
    }
    _write_metrics(folder)
    write_map(folder / "consensus.mrc", _ball(), 3.0)
    config = RunConfig(
        InputOptions(star="in/particles.star", map=str(folder / "consensus.mrc")),
        TrainOptions(),
        {"dynamight_core": "0.1.0", "torch": "2", "commands": {"train": "dynamight train in.star RUN"}, "folder": "/x"},
    )
    if reconstructed:
        for part in ("reconstruction", "reconstruction/rigid")[: 1 + rigid]:
            write_map(folder / part / "map.mrc", _ball(), 3.0)
            _write_fsc(folder / part / "fsc.star", 7.25 if part == "reconstruction" else 8.5)
    table = pd.DataFrame({"dynMotionRms": rms.numpy(), "dynMotionError": error.numpy()})
    return SimpleNamespace(
        path=folder,
        config=config,
        latents=torch.randn(2, n, 3, generator=generator),
        halves=halves,
        validation=torch.arange(n) % 10 == 0,
        motions=motions,
        summary=summary,
        table=table,
        models=(),
    )


def _ball(box=32):
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.05, (box,) * 3)
    return (x**2 + 2 * y**2 + z**2 < 60).astype(np.float32) + noise


def _write_metrics(folder):
    lines = []
    for epoch, kind in enumerate(["warm-up", "encoder", "encoder", "refinement", "reference", "refinement"], 1):
        for half in (1, 2):
            lines.append(
                {
                    "epoch": epoch,
                    "half": half,
                    "kind": kind,
                    "data": 2000.0 - 10 * epoch + half,
                    "fixed_loss": None if kind == "warm-up" else 1900.0 - 5 * epoch,
                    "kl": 0.3 * epoch,
                    "regularity": 0.01,
                    "repulsion": 0.002,
                    "motion": 0.5 * epoch,
                    "lambda": 30.0,
                    "resolution": 14.0,
                    "sparse_weight": 0.0,
                    "seconds": 2.0,
                    "particles_per_second": 456.0,
                    "peak_memory_gb": 0.5,
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_fsc(path, resolution, n_shells=17):
    index = np.arange(n_shells)
    frequency = index / (3.0 * 2 * (n_shells - 1))
    columns = {"rlnSpectralIndex": index, "rlnResolution": frequency, "rlnAngstromResolution": 1 / (frequency + 1e-3)}
    for name in ("Corrected", "UnmaskedMaps", "MaskedMaps"):
        columns[f"rlnFourierShellCorrelation{name}"] = np.exp(-index / resolution)
    columns["dynModelMap"] = columns["dynModelConsensus"] = np.exp(-index / 6)
    columns["dynRegion_arm"] = np.exp(-index / 5)
    starfile.write({"general": {"rlnFinalResolution": resolution}, "fsc": pd.DataFrame(columns)}, path)


class Links(HTMLParser):
    """Collects the addresses that a browser would load, and the ids of elements."""

    def __init__(self):
        super().__init__()
        self.loaded, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action") or (name == "href" and tag != "a"):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)


def parse(path):
    links = Links()
    links.feed(path.read_text())
    return links


def decode(value):
    """Return plotly's typed arrays as arrays, everything else as it is."""
    if isinstance(value, dict) and "bdata" in value:
        return np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
    return value


def figure_data(path, name):
    """Return the traces of a figure on the page, arrays decoded."""
    text = path.read_text()
    start = text.index(f'data-figure="{name}"')
    traces = json.JSONDecoder().raw_decode(text[text.index("{", start) :])[0]["data"]
    return [{name: decode(value) for name, value in trace.items()} for trace in traces]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with everything, and its report."""
    run = make_run(tmp_path_factory.mktemp("report") / "run", reconstructed=True)
    return run, write_report(run, reporter=QUIET)


def test_report_is_one_file_that_loads_nothing(full):
    _, path = full
    assert path == full[0].path / "analysis" / "report.html"
    for address in parse(path).loaded:
        assert address.startswith("data:")
    own = re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.S)
    assert not re.search(r"url\(|@import", own)


def test_report_has_every_section_once(full):
    ids = parse(full[1]).ids
    assert len(ids) == len(set(ids))
    assert [name for name in ids if name in SECTIONS] == SECTIONS


def test_supported_motion_is_said_in_words(full):
    assert "The molecule moves" in full[1].read_text()


def test_no_html_is_written_in_python():
    """Templates hold the HTML; plotly's own markup in labels of its figures is another language."""
    (package,) = dynamight_core.analysis.report.__path__
    modules = list(Path(package).glob("*.py"))
    assert len(modules) > 10
    strings = {
        (module.name, node.value)
        for module in modules
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    tags = {
        (name, text)
        for name, text in strings
        if re.search(r"</?[a-z]\w*[\s/>]", re.sub("</?(extra|br|sub)>", "", text))
    }
    assert tags == set()


def test_report_embeds_plotly_once(full):
    assert full[1].read_text().count("* plotly.js v") == 1


def test_user_text_is_escaped(full):
    text = full[1].read_text()
    assert "A warning about &lt;the map&gt;." in text
    assert "<the map>" not in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [("not supported", "No motion found"), ("undecided", "Undecided whether it moves")],
)
def test_verdict_is_said_in_words_with_its_numbers(tmp_path, answer, words):
    run = make_run(tmp_path / "run", answer=answer)
    text = write_report(run, reporter=QUIET).read_text()
    assert words in text
    assert "Held-out particles say so: 7.65 ± 0.32 nats." in text
    for number in ("7.7", "0.32", "-1.2", "0.46"):
        assert f">{number}<" in text


def test_without_reconstruction_the_report_says_which_command_makes_it(tmp_path):
    run = make_run(tmp_path / "run")
    path = write_report(run, reporter=QUIET)
    text = path.read_text()
    assert f"dynamight reconstruct {run.path}" in text
    assert "data:image/png;base64," in text  # the consensus map
    assert "figure-fsc" not in parse(path).ids


def test_without_a_rigid_map_the_consensus_stands_for_before(tmp_path):
    run = make_run(tmp_path / "run", reconstructed=True, rigid=False)
    text = write_report(run, reporter=QUIET).read_text()
    assert "before: consensus map" in text
    assert "no reconstruction of the same particles without deformation" in text


def test_a_missing_map_does_not_stop_the_report(tmp_path):
    run = make_run(tmp_path / "run")
    (run.path / "consensus.mrc").unlink()
    assert "consensus.mrc was not found" in write_report(run, reporter=QUIET).read_text()


def test_numbers_on_top_are_those_of_the_table(full):
    run, path = full
    table = pd.read_csv(run.path / "analysis" / "tables" / "summary.csv")
    text = path.read_text()
    for row in table.itertuples():
        shown = re.search(rf"<td>{re.escape(row.number.replace(chr(39), '&#39;'))}</td><td class=n>([^<]*)</td>", text)
        number = float(shown.group(1).split()[0].replace(",", ""))
        assert number == pytest.approx(row.value, rel=5e-2)
    values = dict(zip(table["number"], table["value"], strict=True))
    assert values["resolution without deformation (FSC 0.143)"] == 8.5
    assert values["resolution of the map (FSC 0.143)"] == 7.25
    assert values["rms motion relative to the reference"] == run.summary["motion_rms"]


def test_the_error_factor_is_the_one_that_the_run_was_judged_with(full):
    run, path = full
    assert f"by {run.summary['error_factor']}" in path.read_text()


def test_figures_show_the_numbers_of_their_tables(full):
    run, path = full
    tables = run.path / "analysis" / "tables"
    landscape = pd.read_csv(tables / "landscape.csv")
    drawn = figure_data(path, "figure-landscape")
    np.testing.assert_allclose(drawn[0]["x"], landscape["motion_1"], rtol=1e-5)
    np.testing.assert_allclose(drawn[1]["y"], landscape["motion_2"], rtol=1e-5)
    np.testing.assert_allclose(decode(drawn[1]["marker"]["color"]), landscape["error"], rtol=1e-5)
    training = pd.read_csv(tables / "training.csv")
    np.testing.assert_allclose(
        figure_data(path, "figure-training")[0]["y"], training["data_change_percent"][training["half"] == 1], rtol=1e-5
    )
    fsc = pd.read_csv(tables / "fsc.csv")
    after = fsc[fsc["map"] == "after"]
    curves = {trace["name"]: trace for trace in figure_data(path, "figure-fsc")}
    shown = curves["after: half-maps, corrected"]["y"]
    np.testing.assert_allclose(shown, after["rlnFourierShellCorrelationCorrected"], rtol=1e-5)
    np.testing.assert_allclose(curves["before: half-maps, in arm"]["y"], after["dynRegion_arm"], rtol=1e-5)
    histograms = pd.read_csv(tables / "coordinates.csv")
    first = histograms[(histograms["motion"] == 1) & (histograms["half"] == 1)]
    np.testing.assert_array_equal(figure_data(path, "figure-coordinates")[0]["y"], first["particles"])


def test_training_curves_have_what_each_kind_of_epoch_has():
    terms = {"half": 1, "kl": 0.3, "regularity": 0.25, "repulsion": 0.5, "motion": 2.0}
    kinds, losses = ("warm-up", "refinement", "refinement"), (None, 200.0, 190.0)
    lines = [
        terms | {"epoch": epoch, "kind": kind, "data": 100.0 * epoch, "fixed_loss": loss}
        for epoch, (kind, loss) in enumerate(zip(kinds, losses, strict=True), 1)
    ]
    curves = training_curves(lines)
    values = {name: list(curve["value"]) for name, curve in curves.groupby("curve")}
    np.testing.assert_allclose(values.pop(LOSS), [np.nan, 0, -5], err_msg="of the same images in the same units")
    np.testing.assert_array_equal(values.pop("Distance restraints (Å²)"), [np.nan, 0.75, 0.75])
    np.testing.assert_array_equal(values.pop("Motion (Å rms)"), [np.nan, 2.0, 2.0])
    assert not values, "no KL term without an encoder epoch"


def test_every_loss_term_has_a_curve_by_its_name():
    line = {"half": 1, "kl": 0.0, "regularity": 0.25, "repulsion": 0.5, "motion": 2.0, "fixed_loss": 5.0, "data": 5.0}
    lines = [
        line | {"epoch": 1, "kind": "warm-up", "losses": {"data": 5.0}},
        line | {"epoch": 2, "kind": "refinement", "losses": {"data": 5.0, "regularity": 0.25, "mean_drift": 0.125}},
    ]
    curves = training_curves(lines)
    assert list(curves["curve"].unique()) == [LOSS, "Distance restraints (Å²)", "Motion (Å rms)", "Mean drift"]
    np.testing.assert_array_equal(curves["value"][curves["curve"] == "Mean drift"], [np.nan, 0.125])


class Prose(HTMLParser):
    """Collects the text that a reader sees, figures and lists of files left out."""

    def __init__(self):
        super().__init__()
        self.parts, self._hidden = [], []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "style", "code", "pre", "select", "nav", "footer", "h1"):
            self._hidden.append(tag)

    def handle_endtag(self, tag):
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()

    def handle_data(self, text):
        if not self._hidden:
            self.parts.append(text)


# Numbers of the language, not of the run: FSC thresholds, per cents of a definition, names of halves and motions.
SAID = {"0.143", "0.5", "95", "1", "2", "99.8", "3", "5"}


def test_every_number_in_the_text_is_in_a_table(full):
    run, path = full
    prose = Prose()
    html = path.read_text()
    html = html[: html.index('<details id="files">')]
    prose.feed(html)
    text = " ".join(prose.parts)
    shown = set(re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", text.replace("\u2212", "-")))
    tables = [pd.read_csv(file) for file in (run.path / "analysis" / "tables").glob("*.csv")]
    known = np.concatenate([t.select_dtypes("number").to_numpy(dtype=float).ravel() for t in tables])
    assert len(shown - SAID) > 20
    missing = []
    for word in shown - SAID:
        value = float(word.replace(",", ""))
        digits = len(word.partition("e")[0].partition(".")[2])
        exponent = int(word.partition("e")[2] or 0)
        rounding = 0.5 * 10.0 ** (exponent - digits)
        if not (np.abs(known - value) <= rounding * 1.001 + 1e-6 * abs(value)).any():
            missing.append(word)
    assert not missing


def test_one_motion_and_one_latent_are_enough(tmp_path):
    run = make_run(tmp_path / "run", n_motions=1)
    run.latents = run.latents[..., :1]
    assert write_report(run, reporter=QUIET).exists()


def test_no_motion_at_all_is_reported(tmp_path):
    run = make_run(tmp_path / "run", answer="not supported")
    run.motions.coordinates.zero_()
    run.motions.components.zero_()
    run.latents.zero_()
    run.table["dynMotionRms"] = 0.0
    run.summary["point_motion"] = [0.0] * len(run.motions.points)
    assert write_report(run, reporter=QUIET).exists()


def test_report_of_100000_particles_is_below_20_mb(tmp_path):
    run = make_run(tmp_path / "run", n=100_000, n_points=2000, n_motions=6, reconstructed=True)
    path = write_report(run, tmp_path / "elsewhere.html", reporter=QUIET)
    assert path.stat().st_size < 20e6
    counts = pd.read_csv(run.path / "analysis" / "tables" / "landscape_density.csv")["particles"]
    # All but the thin tails beyond the drawn range
    assert counts.sum() > 0.99 * 100_000


def test_controls_are_shown_with_their_verdicts_curves_and_errors(tmp_path):
    run = make_run(tmp_path / "run")
    shells = [0.0, 0.01, 0.02, 0.03]
    figures = {
        "gain": 2.5,
        "gain_error": 0.25,
        "permuted_map_gain": 1.0,
        "permuted_map_gain_error": 0.2,
        "permuted_gain": -1.5,
        "permuted_gain_error": 0.1,
        "resolution": shells,
        "curves": {"own": [1, 0.9, 0.8, 0.7], "rigid": [1, 0.8, 0.6, 0.4], "permuted 1": [1, 0.5, 0.3, 0.2]},
    }
    table = pd.DataFrame({"particle": [1]})
    write_control(run, Control("shuffled-latents", "from the motion", "It is 2.5 +- 0.25 nats.", figures, table))
    write_control(run, Control("held-out", "no motion", "Nothing moves."))
    path = write_report(run, reporter=QUIET)
    text = path.read_text()
    for words in ("From the motion", "It is 2.5 ± 0.25 nats.", "No motion", "Nothing moves."):
        assert words in text
    assert "--kind noise-particles" in text
    assert "--kind held-out" not in text
    traces = figure_data(path, "figure-shuffled-latents")
    curves = {trace["name"]: list(trace["y"]) for trace in traces if trace["type"] == "scatter"}
    assert curves["own deformations"] == [0.9, 0.8, 0.7]
    assert curves["permuted"] == [0.5, 0.3, 0.2]
    (bars,) = (trace for trace in traces if trace["type"] == "bar")
    assert list(bars["y"]) == [2.5, 1.0, -1.5]
    assert list(bars["error_y"]["array"]) == pytest.approx([0.75, 0.6, 0.3])

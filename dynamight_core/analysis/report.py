"""The report of a run: one HTML file that opens offline, and the numbers behind its figures as CSV.

Every section is a function of the page that returns HTML. Figures are drawn by plotly.js, which is embedded
once; maps are drawn by matplotlib and embedded as PNG. What grows with the number of particles is binned or
thinned above `_MOST_POINTS`, so that the file's size does not.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import starfile
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from scipy.stats import binned_statistic_2d
from sklearn.decomposition import PCA

from dynamight_core.analysis.controls.result import read_controls
from dynamight_core.analysis.exports import spread_out
from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.files import atomic_path, read_map
from dynamight_core.judging.bias import record_model_bias
from dynamight_core.judging.errors import ALIKE

_ASSETS = Path(__file__).parent / "assets"
# More particles than this are shown as densities: the browser and the file's size thank for it.
_MOST_POINTS = 20_000
_BINS = 90
# Points of the 3D figures.
_CLOUD_POINTS = 2500
_MOVIE_POINTS = 1500
_ARROWS = 120
_DOMAIN_COLOURS = ["#7f8b94", "#1f6f8b", "#c8643c", "#6a8f3f", "#8a6bb1", "#b08d2f"]
_HALF_COLOURS = {1: "#1f6f8b", 2: "#c8643c"}
_SANS = "Inter, Source Sans 3, Segoe UI, Helvetica Neue, Liberation Sans, Arial, sans-serif"
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _SANS, "size": 13, "color": "#22282e"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [*_HALF_COLOURS.values(), "#6a8f3f", "#8a6bb1", "#b08d2f", "#5d6873"],
        "margin": {"l": 64, "r": 24, "t": 64, "b": 52},
        "xaxis": {
            "showline": True,
            "linecolor": "#9aa5ad",
            "ticks": "outside",
            "tickcolor": "#9aa5ad",
            "gridcolor": "#eef1f3",
            "zeroline": False,
        },
        "yaxis": {
            "showline": True,
            "linecolor": "#9aa5ad",
            "ticks": "outside",
            "tickcolor": "#9aa5ad",
            "gridcolor": "#eef1f3",
            "zeroline": False,
        },
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "hoverlabel": {"font": {"family": _SANS}},
    }
)
_MEANING = {
    "supported": (
        "The data support motion",
        "On particles that trained no decoder, and on Fourier pixels that were not used to place them, the "
        "deformed model explains the images better than the rigid one, and better than the same deformations "
        "given to other particles.",
        [
            "Look at the principal motions below and ask whether they are plausible for this molecule.",
            "Compare the maps before and after in the moving region; take regions of large error with care.",
            "Make states along the motions (<code>dynamight states RUN</code>) or take a subset of particles "
            "(<code>dynamight select RUN</code>) and refine it.",
        ],
    ),
    "not supported": (
        "The data do not support motion",
        "On particles that trained no decoder, deformation explains the images no better than the rigid "
        "consensus. What the figures below show as motion is noise, or smaller than these data can show.",
        [
            "Use the rigid reconstruction, and do not interpret the motions below.",
            "If you expect motion: check poses and CTFs, give a mask around the flexible part, look for discrete "
            "classes, or use more particles.",
        ],
    ),
    "undecided": (
        "The data do not decide",
        "On particles that trained no decoder, deformation seems to help, but not by more than chance could do "
        "with so few of them.",
        [
            "Do not interpret the motions yet.",
            "Use more particles or a larger share for validation (<code>--validation-fraction</code>), or train "
            "longer.",
        ],
    ),
}
_FILES = {
    "config.yaml": "every option of every stage as used, versions, checksum of the input",
    "metrics.jsonl": "one line per epoch and half: losses, weights; seconds and memory of both",
    "particles.star": "the input rows with half, validation, latents, motions (Å), rms motion and error (Å)",
    "latents.safetensors": "latents and their covariances under both halves' decoders",
    "half1/model.safetensors": "Gaussians and networks of half 1",
    "half2/model.safetensors": "Gaussians and networks of half 2",
    "analysis/report.html": "this report",
    "analysis/motions.safetensors": "principal motions at the common points, and all particles' coordinates",
    "analysis/motion.mrc": "motion at every voxel around the molecule, Å rms",
    "analysis/motion_error.mrc": "error of a displacement at every voxel, Å rms",
    "analysis/motion_beyond_error.mrc": "motion that exceeds its error, Å rms",
    "analysis/clusters.csv": "cluster of every particle: Gaussian mixture, k-means",
    "analysis/cluster_centres.csv": "centres and sizes of the clusters",
    "analysis/cluster_criterion.csv": "by which their number was chosen",
    "analysis/motion1_arrows.bild": "arrows of the first motion, spheres of its error at their tips (ChimeraX)",
    "analysis/motion1_arrows.csv": "the same as numbers",
    "analysis/agreement.csv": "how the halves agree on validation particles",
    "analysis/distributions.csv": "how the molecule is spread along the motions, errors taken out",
    "analysis/distribution_widths.csv": "standard deviations of the same",
    "analysis/bodies.csv": "angles and shifts of the rigid bodies given, in every particle, with errors",
    "analysis/bodies_summary.csv": "a row for each of these bodies",
    "analysis/relion_bodies.star": "the bodies in the form of RELION's multi-body refinement",
    "analysis/relion_data.star": "the particles and their bodies' angles and offsets in that form",
    "analysis/embedding.csv": "a place in a plane for each particle",
    "analysis/gaussians_half1.cif": "Gaussians of half 1, their motion in the B-factor column",
    "analysis/gaussians_half2.cif": "Gaussians of half 2, their motion in the B-factor column",
    "analysis/explored.sh": "commands of what was saved in dynamight explore",
    "analysis/summary.json": "verdict, statistics and warnings",
    "reconstruction/half1_unfil.mrc": "half-map 1, motion corrected, unfiltered and unmasked",
    "reconstruction/half2_unfil.mrc": "half-map 2, motion corrected, unfiltered and unmasked",
    "reconstruction/map.mrc": "their mean, filtered",
    "reconstruction/mask.mrc": "mask of the FSC",
    "reconstruction/fsc.star": "FSC curves",
    "reconstruction/rigid/map.mrc": "the map of the same particles without deformation",
}


def write_report(run, path: str | Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Write the report of a run, and the numbers behind its figures to RUN/analysis/tables.

    Parameters
    ----------
    run
        `dynamight_core.judging.summary.Run`.
    path
        of the HTML file; RUN/analysis/report.html if None.
    say
        takes lines for the user.

    Returns
    -------
    Path
        of the HTML file.
    """
    folder = Path(run.path)
    path = folder / "analysis" / "report.html" if path is None else Path(path)
    record_model_bias(run)
    page = _Page(run, folder)
    sections = [
        ("verdict", "What was found", _verdict_section(page)),
        ("training", "Training", _training_section(page)),
        ("landscape", "Landscape of motions", _landscape_section(page)),
        ("latents", "Latent spaces of the halves", _latents_section(page)),
        ("errors", "Motion and its error", _errors_section(page)),
        ("gaussians", "Motion in the molecule", _gaussians_section(page)),
        ("domains", "Rigid domains", _domains_section(page)),
        *([("bodies", "Rigid bodies given", _bodies_section(page))] if page.run.config.inputs.bodies else []),
        ("movie", "Principal motions, animated", _movie_section(page)),
        ("maps", "Maps before and after", _maps_section(page)),
        ("fsc", "Fourier shell correlation", _fsc_section(page)),
        ("controls", "Controls", _controls_section(page)),
        ("files", "Files and commands", _files_section(page)),
    ]
    text = _assemble(page, sections)
    page.table("numbers", pd.DataFrame(page.said, columns=["number in the text", "value"]))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    size = path.stat().st_size / 2**20
    say(f"Report: {path} ({size:.1f} MB); the numbers of its figures are in {page.tables}.")
    return path


@dataclass
class _Page:
    """What the sections share: the run, what was worked out of it once, and where tables go.

    Parameters
    ----------
    run
        of the report.
    folder
        of the run.
    """

    run: object
    folder: Path
    n_figures: int = field(default=0, init=False)
    said: list[tuple[str, float]] = field(default_factory=list, init=False)

    def __post_init__(self):
        table = self.run.table
        self.halves = np.asarray(self.run.halves).astype(int)
        self.validation = np.asarray(self.run.validation).astype(bool)
        self.coordinates = np.asarray(self.run.motions.coordinates, dtype=np.float32)
        self.rms = np.asarray(table["dynMotionRms"], dtype=np.float32)
        self.error = np.asarray(table["dynMotionError"], dtype=np.float32)
        self.points = np.asarray(self.run.motions.points, dtype=np.float32)
        self.mean = np.asarray(self.run.motions.mean, dtype=np.float32)
        self.components = np.asarray(self.run.motions.components, dtype=np.float32)
        self.shares = np.asarray(self.run.motions.shares, dtype=float)
        # The mean displacement of a particle's points about the mean conformation, linear in its coordinates, and where
        # it points in the plane in which these spread most.
        self.displacement = self.coordinates @ self.components.mean(1)
        plane, _ = _principal_plane(self.displacement)
        self.direction = np.degrees(np.arctan2(plane[:, 1], plane[:, 0])).astype(np.float32)
        n = len(self.halves)
        self.few = n <= _MOST_POINTS
        # Thinned the same way in every figure, so that they show the same particles.
        chosen = np.random.default_rng(0).permutation(n)[:_MOST_POINTS]
        self.shown = np.sort(chosen)

    @property
    def tables(self) -> Path:
        """Folder of the CSV files."""
        return self.folder / "analysis" / "tables"

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Write the numbers behind a figure, with six digits."""
        with atomic_path(self.tables / f"{name}.csv") as path:
            frame.to_csv(path, index=False, float_format="%.6g")

    def say(self, what: str, value: float, form: str = ",") -> str:
        """Return a number of the text in a format, and keep it for the table of these numbers."""
        self.said.append((what, float(value)))
        return format(value, form)

    def share(self, k: int) -> str:
        """Return which per cent of the motion is along principal motion k, from 0."""
        return self.say(f"share of motion {k + 1}, %", 100 * self.shares[k], ".0f")

    def command(self, stage: str) -> str:
        """Return the command line that runs a stage on this run, as HTML."""
        return f"<code>dynamight {stage} {escape(str(self.run.path))}</code>"

    def figure(self, figure: go.Figure, height: int, name: str | None = None, before: str = "") -> str:
        """Return a plotly figure as HTML, `before` above it in the same frame."""
        self.n_figures += 1
        figure.update_layout(template=_TEMPLATE, height=height)
        html = pio.to_html(
            figure,
            full_html=False,
            include_plotlyjs=False,
            div_id=name or f"figure-{self.n_figures}",
            config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
        )
        return f'<div class="figure">{before}{html}</div>'


def _assemble(page: _Page, sections: list[tuple[str, str, str]]) -> str:
    """Return the whole page."""
    name = escape(page.folder.resolve().name)
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{a}"><h2>{title}</h2>{html}</section>' for a, title, html in sections)
    version = escape(str(page.run.config.provenance.get("dynamight_core", "")))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DynaMight report: {name}</title>
<style>{(_ASSETS / "report.css").read_text(encoding="utf-8")}</style>
<script>{get_plotlyjs()}</script></head>
<body><div class="page">
<header><h1>{name}</h1><p>{_what_was_run(page)}</p></header>
<nav>{links}</nav>
{body}
<footer>Written by dynamight-core {version}. The method: Schwab et al., <i>DynaMight: estimating molecular motions
with improved reconstruction from cryo-EM images</i>, Nature Methods (2024), doi 10.1038/s41592-024-02377-5.</footer>
</div><script>{(_ASSETS / "report.js").read_text(encoding="utf-8")}</script></body></html>
"""


def _what_was_run(page: _Page) -> str:
    inputs, train = page.run.config.inputs, page.run.config.train
    n_validation = int(page.validation.sum())
    model = inputs.atomic_model
    atomic = f" of the atomic model <code>{escape(Path(model).name)}</code>" if model else ""
    return (
        f"{page.say('particles', len(page.halves))} particles of <code>{escape(Path(inputs.star).name)}</code> with "
        "the map "
        f"<code>{escape(Path(inputs.map).name)}</code>; {page.say('half 1', (page.halves == 1).sum())} in half 1 and "
        f"{page.say('half 2', (page.halves == 2).sum())} in half 2, {page.say('validation', n_validation)} of them "
        f"kept from training. {page.say('Gaussians', train.n_gaussians)} Gaussians{atomic}, "
        f"{page.say('latent dimensions', train.n_latents)} latent dimensions, {escape(train.decoder)} decoder."
    )


def _caption(text: str) -> str:
    return f'<p class="caption">{text}</p>'


def _absent(text: str) -> str:
    return f'<div class="absent">{text}</div>'


def _tabulate(frame: pd.DataFrame) -> str:
    """Return a frame as an HTML table, numbers right-aligned; cells are HTML already where they are text."""
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in frame]
    head = "".join(f"<th{' class=n' * n}>{escape(str(c))}</th>" for c, n in zip(frame, numeric, strict=True))
    rows = []
    for values in frame.itertuples(index=False):
        cells = zip(values, numeric, strict=True)
        rows.append("".join(f"<td{' class=n' * n}>{_number(v) if n else v}</td>" for v, n in cells))
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _number(value) -> str:
    """Return a number with three significant digits, integers whole."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not np.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


# ---------------------------------------------------------------- what was found


def _verdict_section(page: _Page) -> str:
    summary = page.run.summary
    verdict = summary["verdict"]
    answer = verdict["verdict"]
    title, meaning, steps = _MEANING[answer]
    cards = _headline(page)
    numbers = pd.DataFrame(
        [
            ("an image's own deformation", verdict["gain"], verdict["gain_error"]),
            ("another image's deformation (null)", verdict["null"], verdict["null_error"]),
        ],
        columns=["gain in log-likelihood on held-out pixels, nats a particle", "mean", "standard error"],
    )
    page.table("summary", cards)
    page.table("verdict", numbers)
    tiles = "".join(
        f'<div class="number"><b>{_number(row.value)}{" " + row.unit if row.unit else ""}</b>'
        f"<span>{escape(row.number)}</span></div>"
        for row in cards.itertuples()
    )
    warnings = "".join(
        f'<div class="warning"><p>{escape(line[:1].upper() + line[1:].rstrip("."))}.</p></div>'
        for line in summary["warnings"]
    )
    run = page.run.path
    steps = "".join(f"<li>{step.replace('RUN', escape(str(run)))}</li>" for step in steps)
    return (
        f'<div class="verdict {answer.replace(" ", "-")}"><h3>{title}</h3><p>{meaning}</p>'
        f"{_tabulate(numbers)}<p>{escape(verdict['sentence'].replace('+-', '±'))}</p></div>"
        f"<h3>What to do next</h3><ul>{steps}</ul>"
        f'<div class="numbers">{tiles}</div>{warnings}'
    )


def _headline(page: _Page) -> pd.DataFrame:
    """Return the numbers on top of the page: number, value, unit."""
    summary = page.run.summary
    rows = [
        ("particles", len(page.halves), ""),
        ("of them kept from training (validation)", int(page.validation.sum()), ""),
        ("rms motion from the reference", summary["motion_rms"], "Å"),
        ("rms motion about the mean conformation", summary["motion_between_particles_rms"], "Å"),
        ("rms error of a displacement", summary["error_rms"], "Å"),
        ("of it: disagreement of the halves' decoders", summary["error_disagreement_rms"], "Å"),
        ("of it: noise of the particle's own image", summary["error_posterior_rms"], "Å"),
        ("of it: what both halves do alike, or would not show", _remaining_error(summary), "Å"),
        ("motion that could be there and not show, up to", summary["unseen_motion_rms"], "Å"),
        ("of the motion is along the first principal motion", 100 * float(page.shares[0]), "%"),
    ]
    for name, part in (("before (rigid)", "reconstruction/rigid"), ("after", "reconstruction")):
        curves = _read_fsc(page.folder / part / "fsc.star")
        if curves is not None:
            rows.append((f"resolution {name}, FSC 0.143", curves[1], "Å"))
            if np.isfinite(curves[2]):
                rows.append((f"resolution {name}, at least", curves[2], "Å"))
    return pd.DataFrame(rows, columns=["number", "value", "unit"]).astype({"value": object})


def _remaining_error(summary: dict) -> float:
    """Return the part of the error, A rms, that is neither the halves' disagreement nor the images' noise."""
    parts = summary["error_disagreement_rms"] ** 2 + summary["error_posterior_rms"] ** 2
    return max(0.0, summary["error_rms"] ** 2 - parts) ** 0.5


# ---------------------------------------------------------------- training


def _training_section(page: _Page) -> str:
    path = page.folder / "metrics.jsonl"
    if not path.exists():
        return _absent(f"{escape(path.name)} is missing; {page.command('train')} writes it.")
    metrics = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines() if line.strip()])
    # The loss of filtered images is another one than that of all frequencies.
    first = metrics.groupby(["half", "resolution"])["data"].transform("first")
    metrics.insert(3, "data_change_percent", 100 * (metrics["data"] / first - 1))
    page.table("training", metrics)
    moves = metrics["kind"].isin(["encoder", "refinement"])
    regularisation = metrics["regularity"] + metrics["repulsion"]
    # Terms that an epoch's kind does not have are left out, not drawn as zero.
    panels = [
        ("data loss against the first epoch with the same filter, %", metrics["data_change_percent"]),
        ("KL term (encoder epochs)", metrics["kl"].where(metrics["kind"] == "encoder")),
        ("regularisation R<sub>d</sub> + R<sub>r</sub>, Å²", regularisation.where(moves)),
        ("rms motion, Å", metrics["motion"].where(moves)),
    ]
    figure = make_subplots(2, 2, subplot_titles=[title for title, _ in panels], vertical_spacing=0.15)
    for number, (_, values) in enumerate(panels):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        for half, colour in _HALF_COLOURS.items():
            mine = metrics["half"] == half
            figure.add_scatter(
                x=metrics["epoch"][mine],
                y=values[mine],
                name=f"half {half}",
                legendgroup=str(half),
                showlegend=number == 0,
                mode="lines+markers",
                line={"color": colour, "width": 1.8},
                marker={"size": 4},
                text=metrics["kind"][mine],
                **place,
                hovertemplate="epoch %{x} (%{text}): %{y:.4g}",
            )
    kinds = metrics[metrics["half"] == metrics["half"].min()]
    shades = {"warm-up": "#f1ead9", "encoder": "#e8f1f4", "refinement": "#eef4e8", "reference": "#f3e6ea"}
    runs = (kinds["kind"] != kinds["kind"].shift()).cumsum()
    for _, part in kinds.groupby(runs):
        figure.add_vrect(
            x0=part["epoch"].min() - 0.5,
            x1=part["epoch"].max() + 0.5,
            opacity=0.9,
            fillcolor=shades.get(part["kind"].iloc[0], "#eeeeee"),
            line_width=0,
            layer="below",
            row="all",
            col="all",
        )
    for name, colour in shades.items():
        if (kinds["kind"] == name).any():
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=f"{name} epochs",
                marker={"symbol": "square", "size": 13, "color": colour, "line": {"color": "#b9c3ca", "width": 1}},
            )
    figure.update_xaxes(title="epoch", row=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.13, "x": 0, "yanchor": "bottom"}, margin={"t": 92})
    # Both halves' lines give the time of the epoch of both.
    seconds = metrics.groupby("epoch")["seconds"].first().sum()
    return page.figure(figure, 620, "figure-training") + _caption(
        f"{page.say('epochs', metrics['epoch'].max())} epochs of both halves took "
        f"{page.say('minutes of training', seconds / 60, '.1f')} minutes; at the end "
        f"{page.say('particles a second', metrics['particles_per_second'].iloc[-1], ',.0f')} particles a second, peak "
        f"memory {page.say('peak memory, GB', metrics['peak_memory_gb'].max(), '.2g')} GB. "
        "The data loss is minus the log-likelihood of a particle given the "
        "noise spectrum, which is estimated anew as training goes: small steps in the curve are often its."
    )


# ---------------------------------------------------------------- landscape


def _landscape_section(page: _Page) -> str:
    c = page.coordinates
    second = c[:, 1] if c.shape[1] > 1 else np.zeros(len(c), dtype=np.float32)
    particles = {"motion_1": c[:, 0], "motion_2": second, "rms": page.rms, "error": page.error}
    particles["direction_deg"] = page.direction
    particles |= {"half": page.halves, "validation": page.validation.astype(int)}
    # Above the limit the file would not hold all particles; particles.star does.
    page.table("landscape", pd.DataFrame(particles).iloc[page.shown])
    figure = _scatter(page, c[:, 0], second) if page.few else _density(page, c[:, 0], second)
    titles = [f"motion {k + 1}, Å rms ({page.share(k)} % of the motion)" for k in range(len(page.shares[:2]))]
    figure.update_xaxes(title=titles[0])
    figure.update_yaxes(title=titles[1] if len(titles) > 1 else "")
    how = (
        "Each point is a particle."
        if page.few
        else "Particles are too many to draw one by one: colours are means over those of a bin."
    )
    return (
        page.figure(figure, 640, "figure-landscape")
        + _caption(
            f"{how} Mind the scales: they differ. Coordinates are in Å of rms displacement over the molecule, about "
            "the mean conformation, and common to both halves. The menu chooses the colour. Clouds that separate by "
            "half, or only among particles of large error, are not motion. The direction is that of the mean "
            "displacement, in the plane in which these spread most."
        )
        + page.figure(_coordinate_histograms(page), 250 * -(-min(6, c.shape[1]) // 3) + 60, "figure-coordinates")
        + _caption(
            "Distribution of the coordinates of the principal motions, each half by itself. Halves that agree on the "
            "motion agree here."
        )
        + _free_energy(page, c[:, 0], second)
        + _distributions(page)
        + _clusters(page)
    )


def _free_energy(page: _Page, x: np.ndarray, y: np.ndarray) -> str:
    found = plane_landscape(x, y)
    known = found.relative_error < 1.0
    energy, error = (np.where(known, grid, np.nan) for grid in (found.free_energy, found.free_energy_error))
    centres = [((edges[1:] + edges[:-1]) / 2).astype(np.float32) for edges in (found.x_edges, found.y_edges)]
    grid = {"motion_1": np.repeat(centres[0], len(centres[1])), "motion_2": np.tile(centres[1], len(centres[0]))}
    columns = {"particles": found.counts, "density": found.density, "free_energy_kT": energy, "error_kT": error}
    page.table("free_energy", pd.DataFrame(grid | {name: part.ravel() for name, part in columns.items()}))
    titles = ["free energy, kT", "its sampling error, kT"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.14)
    for column, (part, top) in enumerate(((energy, 6.0), (error, 1.0)), 1):
        figure.add_heatmap(
            x=centres[0],
            y=centres[1],
            z=part.T.astype(np.float32),
            colorscale="Viridis_r",
            zmin=0,
            zmax=top,
            colorbar={"thickness": 12, "outlinewidth": 0, "x": 0.43 if column == 1 else 1.0},
            row=1,
            col=column,
            hovertemplate="%{x:.2f} Å, %{y:.2f} Å: %{z:.2f} kT<extra></extra>",
        )
        figure.update_xaxes(title="motion 1, Å rms", row=1, col=column)
    figure.update_yaxes(title="motion 2, Å rms", row=1, col=1)
    return page.figure(figure, 420, "figure-free-energy") + _caption(
        "Minus the logarithm of the particles' density, smoothed, its least value at zero: a free energy if the sample "
        "was frozen in equilibrium. The error is that of counting; errors of the coordinates flatten the landscape "
        "besides."
    )


def _clusters(page: _Page) -> str:
    folder = page.folder / "analysis"
    if not (folder / "cluster_centres.csv").is_file():
        return ""
    centres, criterion = (pd.read_csv(folder / f"{name}.csv") for name in ("cluster_centres", "cluster_criterion"))
    page.table("cluster_centres", centres)
    page.table("cluster_criterion", criterion)
    figure = go.Figure(
        go.Scatter(
            x=criterion["clusters"],
            y=criterion["bic"] - criterion["bic"].min(),
            mode="lines+markers",
            line={"color": _HALF_COLOURS[1]},
        )
    )
    figure.update_xaxes(title="clusters", dtick=1)
    figure.update_yaxes(title="criterion above its least, per particle")
    shown = centres[[c for c in centres if not c.startswith("motion") or int(c[6:].split("_")[0]) <= 3]]
    return (
        "<h3>Clusters</h3>"
        + _tabulate(shown)
        + page.figure(figure, 300, "figure-clusters")
        + _caption(
            "Groups of particles by their coordinates: a mixture of normal distributions, as many as the Bayesian "
            "information criterion wants, and k-means of the same number; centres in Å rms. A continuous motion is cut "
            "into several normal distributions, too: clusters are states only where the density between them is low."
        )
    )


def _distributions(page: _Page) -> str:
    folder = page.folder / "analysis"
    if not (folder / "distributions.csv").is_file():
        return _absent(f"The errors are not taken out of these distributions yet. {page.command('analyse')} does it.")
    curves, widths = (pd.read_csv(folder / f"{name}.csv") for name in ("distributions", "distribution_widths"))
    page.table("distributions", curves)
    page.table("distribution_widths", widths)
    motions = curves["motion"].unique()
    if not len(motions):
        return _absent("No motion spreads the particles by more than the error of one: nothing is said of states.")
    figure = make_subplots(1, len(motions), subplot_titles=[f"motion {k}" for k in motions])
    for column, motion in enumerate(motions, 1):
        mine = curves[curves["motion"] == motion]
        x, y, error = (mine[name] for name in ("coordinate_A", "density_per_A", "error_per_A"))
        figure.add_scatter(
            x=x,
            y=mine["as_estimated_per_A"],
            mode="lines",
            line={"color": "#9aa5ad", "shape": "hvh", "width": 1},
            name="coordinates as estimated",
            legendgroup="estimated",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=pd.concat([x, x[::-1]]),
            y=pd.concat([y + error, (y - error).clip(lower=0)[::-1]]),
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=_faint(_HALF_COLOURS[1]),
            hoverinfo="skip",
            name="its standard error",
            legendgroup="error",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": _HALF_COLOURS[1], "width": 2.2},
            name="errors taken out",
            legendgroup="out",
            showlegend=column == 1,
            row=1,
            col=column,
        )
    figure.update_xaxes(title="Å rms")
    figure.update_yaxes(title="share of the particles per Å", col=1)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.14, "yanchor": "bottom"}, margin={"t": 84})
    shown = widths.rename(
        columns={
            "as_estimated_A": "standard deviation of the coordinates, Å rms",
            "error_A": "error of one, Å rms",
            "errors_taken_out_A": "standard deviation, errors taken out, Å rms",
        }
    )
    return (
        "<h3>How the molecule is spread</h3>"
        + page.figure(figure, 380, "figure-distributions")
        + _tabulate(shown)
        + _caption(
            "The coordinates of particles are drawn towards the mean, and scatter by their errors. The distribution "
            "that would give them, with the errors as they are estimated, is the coloured line, for motions that "
            "spread by more than the error of one particle. States are peaks that lie apart by two such errors or "
            "more: closer ones, as behind a sharp edge, are waves of the method. The table "
            "<code>analysis/distributions.csv</code> also has the angle of each domain that goes with a coordinate."
        )
    )


def _colourings(page: _Page) -> list[tuple[str, np.ndarray, object]]:
    return [
        ("rms motion, Å", page.rms, "Viridis"),
        ("error, Å", page.error, "Cividis"),
        ("direction of motion, °", page.direction, "HSV"),
        ("half", page.halves.astype(np.float32), [[0, _HALF_COLOURS[1]], [1, _HALF_COLOURS[2]]]),
        ("validation", page.validation.astype(np.float32), [[0, "#c3ccd2"], [1, "#b3412c"]]),
    ]


def _limits(name: str, values: np.ndarray) -> tuple[float, float]:
    if name == "half":
        return 1.0, 2.0
    if name == "validation":
        return 0.0, 1.0
    if name.startswith("direction"):
        return -180.0, 180.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(max(high, low + 1e-6))


def _menu(buttons: list[dict]) -> dict:
    return {
        "buttons": buttons,
        "x": 0,
        "y": 1.02,
        "xanchor": "left",
        "yanchor": "bottom",
        "showactive": True,
        "bgcolor": "#f4f6f7",
        "bordercolor": "#cbd3d9",
        "pad": {"b": 4},
    }


def _scatter(page: _Page, x: np.ndarray, y: np.ndarray) -> go.Figure:
    figure = go.Figure()
    buttons = []
    colourings = _colourings(page)
    for index, (name, values, scale) in enumerate(colourings):
        low, high = _limits(name, values)
        bar = {"title": {"text": name}, "thickness": 14, "outlinewidth": 0}
        if name in ("half", "validation"):
            bar |= {"tickvals": [low, high], "ticktext": ["1", "2"] if name == "half" else ["no", "yes"]}
        figure.add_scattergl(
            x=x,
            y=y,
            mode="markers",
            visible=index == 0,
            name=name,
            showlegend=False,
            marker={
                "color": values,
                "colorscale": scale,
                "cmin": low,
                "cmax": high,
                "size": 4.5,
                "opacity": 0.75,
                "colorbar": bar,
            },
            hovertemplate=f"%{{x:.2f}} Å, %{{y:.2f}} Å<br>{name}: %{{marker.color:.3g}}<extra></extra>",
        )
        seen = [i == index for i in range(len(colourings))]
        buttons.append({"label": f"colour: {name}", "method": "update", "args": [{"visible": seen}]})
    figure.update_layout(updatemenus=[_menu(buttons)])
    return figure


def _density(page: _Page, x: np.ndarray, y: np.ndarray) -> go.Figure:
    span = [np.quantile(v, [0.0005, 0.9995]) + [-1e-3, 1e-3] for v in (x, y)]
    counts, x_edges, y_edges, _ = binned_statistic_2d(x, y, None, "count", bins=_BINS, range=span)
    layers = [("particles", counts, "Blues", (0.0, float(counts.max())))]
    for name, values, scale in _colourings(page):
        # The mean of directions is that of their unit vectors: -179 and 179 degrees are neighbours.
        turned = np.stack([np.cos(np.radians(values)), np.sin(np.radians(values))])
        parts = turned if name.startswith("direction") else [values]
        means = [binned_statistic_2d(x, y, part, "mean", bins=_BINS, range=span)[0] for part in parts]
        means = np.degrees(np.arctan2(means[1], means[0])) if len(means) == 2 else means[0]
        layers.append((name, means, scale, _limits(name, values)))
    centres = [((edges[1:] + edges[:-1]) / 2).astype(np.float32) for edges in (x_edges, y_edges)]
    grid = {"motion_1": np.repeat(centres[0], _BINS), "motion_2": np.tile(centres[1], _BINS)}
    page.table("landscape_density", pd.DataFrame(grid | {name: values.ravel() for name, values, *_ in layers}))
    figure = go.Figure()
    buttons = []
    for index, (name, values, scale, (low, high)) in enumerate(layers):
        shown = np.where(counts > 0, values, np.nan).T.astype(np.float32)
        figure.add_heatmap(
            x=centres[0],
            y=centres[1],
            z=shown,
            colorscale=scale,
            zmin=low,
            zmax=high,
            visible=index == 0,
            colorbar={"title": {"text": name}, "thickness": 14, "outlinewidth": 0},
            hovertemplate=f"%{{x:.2f}} Å, %{{y:.2f}} Å<br>{name}: %{{z:.3g}}<extra></extra>",
        )
        seen = [i == index for i in range(len(layers))]
        buttons.append({"label": f"colour: {name}", "method": "update", "args": [{"visible": seen}]})
    figure.update_layout(updatemenus=[_menu(buttons)])
    return figure


def _coordinate_histograms(page: _Page) -> go.Figure:
    n = min(6, page.coordinates.shape[1])
    columns = min(3, n)
    titles = [f"motion {k + 1} ({page.share(k)} %)" for k in range(n)]
    figure = make_subplots(-(-n // columns), columns, subplot_titles=titles, vertical_spacing=0.2)
    rows = []
    for k in range(n):
        low, high = np.quantile(page.coordinates[:, k], [0.001, 0.999])
        edges = np.linspace(low, max(high, low + 1e-3), 41)
        for half, colour in _HALF_COLOURS.items():
            counts, _ = np.histogram(page.coordinates[page.halves == half, k], edges)
            rows += [(k + 1, half, a, b, int(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)]
            figure.add_scatter(
                x=(edges[1:] + edges[:-1]) / 2,
                y=counts,
                mode="lines",
                line={"color": colour, "shape": "hvh"},
                fill="tozeroy",
                fillcolor=_faint(colour),
                name=f"half {half}",
                showlegend=k == 0,
                legendgroup=str(half),
                row=k // columns + 1,
                col=k % columns + 1,
            )
    page.table("coordinates", pd.DataFrame(rows, columns=["motion", "half", "from", "to", "particles"]))
    figure.update_xaxes(title="Å rms", row=-(-n // columns))
    figure.update_yaxes(title="particles", col=1)
    return figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"})


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


# ---------------------------------------------------------------- both latent spaces


def _latents_section(page: _Page) -> str:
    shown = page.shown
    latents = np.asarray(page.run.latents, dtype=np.float32)
    direction = page.displacement
    colours, spread = _direction_colours(direction)
    figure = make_subplots(1, 2, subplot_titles=["decoder of half 1", "decoder of half 2"], horizontal_spacing=0.08)
    table = {"particle": shown + 1}
    for half in (1, 2):
        projected, shares = _principal_plane(latents[half - 1])
        projected = projected[shown]
        table |= {f"half_{half}_pc_{k + 1}": projected[:, k] for k in range(2)}
        figure.add_scattergl(
            x=projected[:, 0].astype(np.float32),
            y=projected[:, 1].astype(np.float32),
            mode="markers",
            marker={"color": colours[shown], "size": 4.5, "opacity": 0.8},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=half,
        )
        share = page.say(f"share of component 1, half {half}, %", 100 * shares[0], ".0f")
        figure.update_xaxes(title=f"component 1 ({share} %)", row=1, col=half)
        share = page.say(f"share of component 2, half {half}, %", 100 * shares[1], ".0f")
        figure.update_yaxes(title=f"component 2 ({share} %)", row=1, col=half)
    table |= {f"direction_{axis}": direction[shown, i] for i, axis in enumerate("xyz")}
    page.table("latents", pd.DataFrame(table))
    some = "" if page.few else f"A random {page.say('particles drawn', _MOST_POINTS)} of them are drawn. "
    return page.figure(figure, 540, "figure-latents") + _caption(
        f"All particles under each half's decoder, whose latent spaces have nothing in common but what the images say: "
        f"principal components of each by itself. {some}Hue is the direction of a particle's mean displacement "
        f"about the mean conformation, in the plane in which these spread most; saturation its size (full at "
        f"{page.say('displacement of full saturation, Å', spread, '.2g')} Å). "
        "Where both halves have learned the same motion, colours change in the same order in both; "
        "orientation and sign of the axes mean nothing."
    )


def _principal_plane(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 2) coordinates in the plane in which (n, d) values spread most, and its shares of the variance."""
    with np.errstate(invalid="ignore"):  # where nothing spreads, sklearn's shares are 0 / 0
        pca = PCA(random_state=0).fit(values)
    # One latent spans a line.
    plane = np.pad(pca.transform(values), ((0, 0), (0, 1)))[:, :2]
    variance = np.pad(pca.explained_variance_, (0, 1))
    return plane, variance[:2] / max(float(variance.sum()), 1e-30)


def _direction_colours(direction: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (n,) colours of (n, 3) mean displacements, and the size (A) that has full saturation."""
    plane, _ = _principal_plane(direction)
    size = np.hypot(*plane.T)
    full = float(max(np.quantile(size, 0.95), 1e-6))
    hue = np.arctan2(plane[:, 1], plane[:, 0]) / (2 * np.pi) % 1
    rgb = hsv_to_rgb(np.column_stack([hue, np.clip(size / full, 0, 1) * 0.85, np.full(len(hue), 0.82)]))
    # Few enough colours that their names compress; the eye does not see the steps.
    levels = (np.round(rgb * 31) * 255 / 31).astype(int)
    names = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in levels]
    return np.array(names), full


# ---------------------------------------------------------------- errors


def _errors_section(page: _Page) -> str:
    figure = make_subplots(
        1, 3, subplot_titles=["rms motion of a particle", "its error", "error against motion"], horizontal_spacing=0.08
    )
    rows = []
    for column, (name, values) in enumerate((("motion", page.rms), ("error", page.error)), 1):
        edges = np.linspace(0, max(float(np.quantile(values, 0.998)), 1e-3), 51)
        for kind, mine, colour in (
            ("training", ~page.validation, "#5d7f92"),
            ("validation", page.validation, "#b3412c"),
        ):
            share = np.histogram(values[mine], edges)[0] / max(1, mine.sum()) * 100
            rows += [(name, kind, a, b, s) for a, b, s in zip(edges[:-1], edges[1:], share, strict=True)]
            figure.add_scatter(
                x=(edges[1:] + edges[:-1]) / 2,
                y=share,
                mode="lines",
                line={"color": colour, "shape": "hvh"},
                fill="tozeroy",
                fillcolor=_faint(colour),
                name=f"{kind} particles",
                legendgroup=kind,
                showlegend=column == 1,
                row=1,
                col=column,
            )
        figure.update_xaxes(title="Å", row=1, col=column)
        figure.update_yaxes(title="% of the particles" if column == 1 else "", row=1, col=column)
    page.table("motion_and_error", pd.DataFrame(rows, columns=["quantity", "particles", "from", "to", "percent"]))
    top = [max(float(np.quantile(v, 0.995)), 1e-3) for v in (page.rms, page.error)]
    counts, x_edges, y_edges = np.histogram2d(page.rms, page.error, bins=60, range=[[0, top[0]], [0, top[1]]])
    grid = np.where(counts > 0, counts, np.nan).T.astype(np.float32)
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges)]
    figure.add_heatmap(
        x=centres[0],
        y=centres[1],
        z=grid,
        colorscale="Blues",
        zmin=-0.15 * counts.max(),
        row=1,
        col=3,
        colorbar={"title": {"text": "particles"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="motion %{x:.2f} Å, error %{y:.2f} Å: %{z} particles<extra></extra>",
    )
    figure.add_scatter(
        x=[0, min(top)],
        y=[0, min(top)],
        mode="lines",
        line={"color": "#5d6873", "dash": "dot", "width": 1.5},
        name="error = motion",
        row=1,
        col=3,
        hoverinfo="skip",
    )
    figure.update_xaxes(title="rms motion, Å", row=1, col=3)
    figure.update_yaxes(title="error, Å", row=1, col=3)
    x, y = np.meshgrid(*centres, indexing="ij")
    page.table(
        "error_against_motion",
        pd.DataFrame({"motion": x.ravel(), "error": y.ravel(), "particles": counts.ravel().astype(int)}),
    )
    figure.update_layout(legend={"orientation": "h", "y": 1.14, "x": 0, "yanchor": "bottom"}, margin={"t": 84})
    above = 100 * float((page.rms > page.error).mean())
    page.table("above_error", pd.DataFrame({"particles_that_move_by_more_than_their_error_percent": [above]}))
    return (
        _agreement(page)
        + page.figure(figure, 440, "figure-errors")
        + _caption(
            "Root mean squares over the molecule. The error is seen in two parts: what the two halves' decoders "
            "disagree on, and how far the noise of the particle's own image leaves its latent open; both are raised by "
            f"{ALIKE} for what the halves do wrong alike, as simulated molecules showed. Training and validation "
            "particles should look alike; a validation curve with less motion or more error means that the decoders "
            "have learned noise. "
            f"{page.say('particles that move by more than their error, %', above, '.0f')} % of the particles "
            "move by more than their error."
        )
    )


def _agreement(page: _Page) -> str:
    path = page.folder / "analysis" / "agreement.csv"
    if not path.is_file():
        return ""
    table = pd.read_csv(path)
    page.table("agreement", table)
    shown = table.rename(
        columns={
            "share": "share of the motion",
            "particles": "validation particles",
            "deviation_A": "standard deviation, Å rms",
            "difference_A": "halves differ by, Å rms",
        }
    )
    return (
        "<h3>Do the halves agree on particles that trained neither?</h3>"
        + _tabulate(shown)
        + _caption(
            "Coordinates of validation particles under the decoder of either half: their correlation over particles. "
            "What the halves do not share has no correlation, however large it is."
        )
    )


# ---------------------------------------------------------------- motion in the molecule


def _gaussians_section(page: _Page) -> str:
    moved, errors = (np.asarray(page.run.summary[name], dtype=np.float32) for name in ("point_motion", "point_error"))
    table = {axis: page.points[:, i] for i, axis in enumerate("xyz")} | {"rms_motion": moved, "error": errors}
    table |= {f"motion_1_{axis}": page.components[0][:, i] for i, axis in enumerate("xyz")}
    page.table("points", pd.DataFrame(table))
    # Points in the mean conformation, where the motions are zero.
    rest = page.points + page.mean
    cloud = np.random.default_rng(1).permutation(len(rest))[:_CLOUD_POINTS]
    figure = make_subplots(
        1,
        2,
        specs=[[{"type": "scene"}, {"type": "scene"}]],
        horizontal_spacing=0.02,
        subplot_titles=["rms motion over all particles", "first principal motion, and its error at each arrow's tip"],
    )
    size = 2.5 + 6 * errors[cloud] / max(float(errors.max()), 1e-6)
    figure.add_scatter3d(
        x=rest[cloud, 0],
        y=rest[cloud, 1],
        z=rest[cloud, 2],
        mode="markers",
        showlegend=False,
        marker={
            "size": size,
            "color": moved[cloud],
            "colorscale": "Viridis",
            "cmin": 0,
            "line": {"width": 0},
            "colorbar": {"title": {"text": "rms motion, Å"}, "thickness": 12, "x": 0.47, "len": 0.6, "outlinewidth": 0},
        },
        hovertemplate="(%{x:.0f}, %{y:.0f}, %{z:.0f}) Å: %{marker.color:.2f} Å<extra></extra>",
        row=1,
        col=1,
    )
    _add_arrows(figure, page, rest, moved, errors)
    _frame_scenes(figure, rest, page.components[0])
    return page.figure(figure, 500, "figure-gaussians") + _caption(
        f"{page.say('points drawn', len(cloud))} of the {page.say('points', len(rest))} points at which motion was "
        "compared, in the frame of the consensus map. "
        "Larger points have larger errors (left); spheres at the arrows' tips have the error as their radius, to scale "
        "(right). Arrows go from the mean conformation to one standard deviation of the first motion's coordinate "
        f"({page.say('standard deviation along motion 1, Å rms', page.coordinates[:, 0].std(), '.3g')} Å rms over the "
        "molecule), to scale."
    )


def _add_arrows(figure: go.Figure, page: _Page, rest, moved, errors) -> None:
    """Add arrows of the first motion, evenly spread over the molecule, with spheres of the error's radius."""
    chosen = spread_out(rest, _ARROWS)
    vector = page.components[0][chosen] * float(page.coordinates[:, 0].std())
    start, tip = rest[chosen], rest[chosen] + vector
    figure.add_scatter3d(
        x=rest[::2, 0],
        y=rest[::2, 1],
        z=rest[::2, 2],
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        marker={"size": 1.6, "color": "#c3ccd2", "opacity": 0.5},
        row=1,
        col=2,
    )
    lines = np.stack([start, tip, np.full_like(tip, np.nan)], 1).reshape(-1, 3)
    figure.add_scatter3d(
        x=lines[:, 0],
        y=lines[:, 1],
        z=lines[:, 2],
        mode="lines",
        line={"color": "#22282e", "width": 4},
        hoverinfo="skip",
        showlegend=False,
        connectgaps=False,
        row=1,
        col=2,
    )
    colours = {"colorscale": "Viridis", "cmin": 0, "cmax": float(moved.max())}
    corners, faces = _icosphere()
    vertices = (tip[:, None] + corners * errors[chosen, None, None]).reshape(-1, 3)
    triangles = (faces + len(corners) * np.arange(len(tip))[:, None, None]).reshape(-1, 3)
    figure.add_mesh3d(
        **_xyz(vertices),
        i=triangles[:, 0],
        j=triangles[:, 1],
        k=triangles[:, 2],
        opacity=0.35,
        intensity=np.repeat(moved[chosen], len(corners)),
        showscale=False,
        hoverinfo="skip",
        **colours,
        row=1,
        col=2,
    )


def _xyz(points: np.ndarray) -> dict:
    points = np.asarray(points, dtype=np.float32)
    return {"x": points[:, 0], "y": points[:, 1], "z": points[:, 2]}


def _icosphere() -> tuple[np.ndarray, np.ndarray]:
    """Return corners (42, 3) and faces (80, 3) of a unit sphere: an icosahedron, divided once."""
    g = (1 + 5**0.5) / 2
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
    corners += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4)]
    faces += [(11, 10, 2), (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8)]
    faces += [(3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    middles: dict[tuple[int, int], int] = {}

    def middle(a, b):
        key = (min(a, b), max(a, b))
        if key not in middles:
            middles[key] = len(corners)
            corners.append(tuple((np.array(corners[a]) + np.array(corners[b])) / 2))
        return middles[key]

    divided = []
    for a, b, c in faces:
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        divided += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    sphere = np.array(corners, dtype=np.float32)
    return sphere / np.linalg.norm(sphere, axis=1, keepdims=True), np.array(divided)


def _frame_scenes(figure: go.Figure, points: np.ndarray, motion: np.ndarray, room: float = 1.15) -> None:
    """Give all scenes the same cube around the points, without axes, and a view in which the motion is seen."""
    middle, half = (points.max(0) + points.min(0)) / 2, room * float(np.ptp(points, 0).max()) / 2
    axes = {
        f"{name}axis": {"range": [float(middle[i] - half), float(middle[i] + half)], "visible": False}
        for i, name in enumerate("xyz")
    }
    # Along the direction that the motion uses least, so that it lies in the page, and the molecule lengthwise.
    eye = np.linalg.eigh(motion.T @ motion)[1][:, 0]
    eye = eye if eye.sum() > 0 else -eye
    length = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    up = np.cross(eye, length)
    camera = {
        "eye": dict(zip("xyz", (1.6 * eye + 0.25 * up).tolist(), strict=True)),
        "up": dict(zip("xyz", up.tolist(), strict=True)),
        "projection": {"type": "orthographic"},
    }
    # Larger than plotly's own cube, whose corners always stay in sight.
    scale = {"x": 1.9, "y": 1.9, "z": 1.9}
    figure.update_scenes(**axes, aspectmode="manual", aspectratio=scale, camera=camera, dragmode="orbit")
    figure.update_layout(margin={"l": 4, "r": 4, "t": 56, "b": 4})


# ---------------------------------------------------------------- rigid domains


def _domains_section(page: _Page) -> str:
    folder = page.folder / "analysis" / "domains"
    if not (folder / "domains.csv").is_file():
        return _absent(f"The motion is not divided into rigid domains yet. {page.command('analyse')} does it.")
    domains, particles, points, residuals = (
        pd.read_csv(folder / f"{name}.csv") for name in ("domains", "particles", "points", "residuals")
    )
    for name, table in (("domains", domains), ("domain_residuals", residuals)):
        page.table(name, table)
    n = len(domains)
    figure = make_subplots(
        1,
        2,
        specs=[[{"type": "scene"}, {"type": "xy"}]],
        horizontal_spacing=0.1,
        column_widths=[0.55, 0.45],
        subplot_titles=["points by domain", "turn of each domain"],
    )
    cloud = np.random.default_rng(1).permutation(len(points))[:_CLOUD_POINTS]
    rows = []
    for domain in range(1, n + 1):
        colour = _DOMAIN_COLOURS[(domain - 1) % len(_DOMAIN_COLOURS)]
        mine = points.iloc[cloud].query("domain == @domain")
        figure.add_scatter3d(
            **_xyz(mine[["x_A", "y_A", "z_A"]].to_numpy()),
            mode="markers",
            name=f"domain {domain}",
            hoverinfo="name",
            legendgroup=str(domain),
            marker={"size": 4, "color": colour, "line": {"width": 0}},
            row=1,
            col=1,
        )
        values = particles[f"domain{domain}_angle_deg"].to_numpy()
        edges = np.linspace(*np.quantile(values, [0.001, 0.999]) + [-1e-3, 1e-3], 51)
        counts = np.histogram(values, edges)[0]
        rows += [(domain, a, b, int(c)) for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)]
        figure.add_scatter(
            x=(edges[1:] + edges[:-1]) / 2,
            y=100 * counts / len(values) / (edges[1] - edges[0]),
            mode="lines",
            line={"color": colour, "shape": "hvh"},
            fill="tozeroy",
            fillcolor=_faint(colour),
            showlegend=False,
            name=f"domain {domain}",
            legendgroup=str(domain),
            row=1,
            col=2,
        )
    page.table("domain_angles", pd.DataFrame(rows, columns=["domain", "from_deg", "to_deg", "particles"]))
    _frame_scenes(figure, points[["x_A", "y_A", "z_A"]].to_numpy(), page.components[0])
    figure.update_xaxes(title="angle, °")
    figure.update_yaxes(title="% of the particles per degree")
    figure.update_layout(margin={"b": 52}, legend={"x": 0, "y": 1})
    shown = (
        domains[["domain", "against", "share_of_points", "motion_A", "error_A", "motion_beyond_error_A"]]
        .rename(
            columns={
                "share_of_points": "share",
                "motion_A": "motion, Å",
                "error_A": "error, Å",
                "motion_beyond_error_A": "beyond error, Å",
            }
        )
        .assign(
            **{
                "turn, °": domains["angle_std_deg"],
                "from, °": domains["angle_low_deg"],
                "to, °": domains["angle_high_deg"],
                "shift, Å": domains["shift_rms_A"],
            }
        )
    )
    left = ", ".join(f"{row.residual_rms_A:.2f} Å" for row in residuals.itertuples())
    return (
        _tabulate(shown)
        + page.figure(figure, 480, "figure-domains")
        + _caption(
            f"The parts of the molecule that move as rigid bodies. With {_counted(len(residuals))}, what they leave of "
            f"the motion about the mean is {left} rms. Domain 1 is the largest; the others turn and shift against it, "
            "about their main axis, and about their joint with domain 1 where that explains their motion. The table "
            "has the standard deviation of the turn, where 95 % of the particles lie, and the rms of motion, error and "
            "shift. A field that bends over a domain turns it too little: train again with these masks as rigid bodies "
            "(<code>--bodies</code>) to have domains turn as wholes. Angles of particles are drawn towards the mean by "
            "the noise of their images; see the distributions with the errors taken out. "
            "Masks for focused refinement are <code>analysis/domains/domain*_mask.mrc</code>, "
            "<code>bodies.star</code> beside them is the list of bodies for RELION's multi-body refinement; every "
            "particle's angles and shifts <code>analysis/domains/particles.csv</code>."
        )
    )


def _bodies_section(page: _Page) -> str:
    """Return what the bodies do that the run was trained with; domains are found again in any motion."""
    path = page.folder / "analysis" / "bodies_summary.csv"
    if not path.is_file():
        return _absent(f"The bodies' motions are not written yet. {page.command('analyse')} does it.")
    table = pd.read_csv(path)
    page.table("bodies", table)
    shown = pd.DataFrame(
        {
            "body": table["body"],
            "mask": table["mask"].map(lambda name: f"<code>{escape(name)}</code>"),
            "share of the molecule": table["share"],
            "turn, °": table["angle_std_deg"],
            "from, °": table["angle_low_deg"],
            "to, °": table["angle_high_deg"],
            "error, °": table["rotation_error_rms_deg"],
            "shift, Å": table["shift_std_A"],
            "error, Å": table["shift_error_rms_A"],
        }
    )
    return _tabulate(shown) + _caption(
        "What the bodies do that training was given as masks; the largest stays, since poses are fixed. Turns about a "
        "body's main axis and shifts of its centre: standard deviation over particles, where 95 % of the turns lie, "
        "rms error. Every particle's angles and shifts with their errors are in <code>analysis/bodies.csv</code>; "
        "<code>analysis/relion_bodies.star</code> and <code>analysis/relion_data.star</code> have them in the form of "
        "RELION's multi-body refinement."
    )


def _counted(n: int) -> str:
    return "one body" if n == 1 else "1 to " + f"{n} bodies"


def _movie_section(page: _Page) -> str:
    rest = page.points + page.mean
    chosen = np.random.default_rng(2).permutation(len(rest))[:_MOVIE_POINTS]
    n = min(3, len(page.components))
    motions = []
    reach = 0.0
    for k in range(n):
        low, high = (float(v) for v in np.quantile(page.coordinates[:, k], [0.05, 0.95]))
        motions.append({"field": _encode(page.components[k][chosen]), "low": low, "high": high})
        reach = max(reach, float(np.abs(page.components[k]).max()) * max(abs(low), abs(high)))
    data = json.dumps({"rest": _encode(rest[chosen]), "motions": motions})
    size = np.linalg.norm(page.components[0][chosen], axis=1)
    figure = go.Figure(
        go.Scatter3d(
            **_xyz(rest[chosen]),
            mode="markers",
            hoverinfo="skip",
            marker={
                "size": 4,
                "color": size,
                "colorscale": "Viridis",
                "cmin": 0,
                "line": {"width": 0},
                "colorbar": {
                    "title": {"text": "displacement,<br>Å per Å rms"},
                    "thickness": 12,
                    "len": 0.7,
                    "outlinewidth": 0,
                },
            },
        )
    )
    _frame_scenes(figure, rest, page.components[0], 1.1 + 2 * reach / float(np.ptp(rest, 0).max()))
    options = "".join(f'<option value="{k}">motion {k + 1} ({page.share(k)} %)</option>' for k in range(n))
    controls = (
        f'<div class="controls"><select id="movie-motion">{options}</select>'
        '<button id="movie-play" type="button">Play</button>'
        '<input id="movie-coordinate" type="range" min="0" max="1000" value="900" aria-label="coordinate">'
        '<output id="movie-value"></output></div>'
    )
    return (
        page.figure(figure, 500, "figure-movie", before=controls)
        + f'<script type="application/json" id="movie-data">{data}</script>'
        + _caption(
            f"{page.say('points of the animation', len(chosen))} points of the model, moved along "
            "one principal motion from the 5th to the 95th "
            "percentile of the particles' coordinates. Maps along a motion: "
            f"{page.command('states')}."
        )
    )


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


# ---------------------------------------------------------------- maps


def _maps_section(page: _Page) -> str:
    inputs = page.run.config.inputs
    rigid, consensus = page.folder / "reconstruction" / "rigid" / "map.mrc", Path(inputs.map)
    maps = []
    for name, path in (("before: without deformation", rigid), ("before: the consensus map given", consensus)):
        if path.is_file():
            maps.append((name, path))
            break
    deformed = page.folder / "reconstruction" / "map.mrc"
    note = ""
    if deformed.is_file():
        maps.append(("after: motion corrected", deformed))
    else:
        note = _absent(f"There is no motion-corrected map yet. {page.command('reconstruct')} makes it.")
    if not maps:
        return note + _absent(f"The consensus map {escape(inputs.map)} is not where it was.")
    volumes = [(name, *read_map(path)) for name, path in maps]
    crop = _crop(volumes[-1][1])
    pictures = []
    for title, reduce in (("Central slices", _slice), ("Projections", _project)):
        image = _picture([(name, volume[crop, crop, crop], pixel) for name, volume, pixel in volumes], reduce)
        pictures.append(f'<h3>{title}</h3><div class="figure"><img alt="{title}" src="{image}"></div>')
    sources = "; ".join(f"{escape(name)}, <code>{escape(str(path))}</code>" for name, path in maps)
    return (
        note
        + "".join(pictures)
        + _caption(f"Above to below: {sources}. Grey values of each map from its own 1st to 99.8th percentile.")
    )


def _crop(volume: np.ndarray) -> slice:
    """Return the central part of each axis that holds the density, and some margin."""
    strong = np.argwhere(volume > 0.15 * np.quantile(volume, 0.9995))
    middle = len(volume) // 2
    reach = int(np.quantile(np.abs(strong - middle).max(1), 0.98)) + 6 if len(strong) else middle
    return slice(max(0, middle - reach), middle + reach)


def _slice(volume: np.ndarray, axis: int) -> np.ndarray:
    return volume.take(volume.shape[axis] // 2, axis)


def _project(volume: np.ndarray, axis: int) -> np.ndarray:
    return volume.sum(axis)


def _picture(volumes, reduce) -> str:
    """Return a PNG of maps as rows and views along z, y, x as columns, as a data URI."""
    figure = Figure(figsize=(11.6, 4.0 * len(volumes)), facecolor="white")
    axes = figure.subplots(len(volumes), 3, squeeze=False)
    figure.subplots_adjust(0.004, 0.004, 0.996, 1 - 0.08 / len(volumes), 0.02, 0.09)
    for row, (name, volume, pixel_size) in zip(axes, volumes, strict=True):
        bar = _round_length(0.3 * len(volume) * pixel_size)
        for axis, (panel, view) in enumerate(zip(row, ("z", "y", "x"), strict=True)):
            image = reduce(volume, axis)
            low, high = np.quantile(image, [0.01, 0.998])
            panel.imshow(
                image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), origin="lower", interpolation="bicubic"
            )
            panel.set_title(f"{name}, along {view}", fontsize=10, color="#22282e")
            panel.axis("off")
        start = 0.05 * len(volume)
        row[0].plot([start, start + bar / pixel_size], [start, start], color="white", linewidth=3)
        row[0].text(start, 1.5 * start, f"{bar:g} Å", color="white", fontsize=9, va="bottom")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=105)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _round_length(length: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)


# ---------------------------------------------------------------- FSC


_FSC_NAMES = {
    "rlnFourierShellCorrelationCorrected": "half-maps, corrected",
    "rlnFourierShellCorrelationUnmaskedMaps": "half-maps, unmasked",
    "dynFourierShellCorrelationWithMotion": "residual motion counted",
    "dynFourierShellCorrelationAtLeast": "at least: less an error",
    "rlnFourierShellCorrelationMaskedMaps": "half-maps, in the mask",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "random phases, in the mask",
    "dynModelConsensus": "Gaussian model and consensus",
    "dynModelMap": "Gaussian model and this map",
}


def _read_fsc(path: Path) -> tuple[pd.DataFrame, float, float] | None:
    """Return the curves of an fsc.star, its resolution, and what that is at least (A; NaN where none is told).

    None if there is no such file.
    """
    if not path.is_file():
        return None
    blocks = starfile.read(path, always_dict=True)
    general = blocks["general"]
    cautious = float(general.get("dynResolutionAtLeast", float("nan")))
    return blocks["fsc"], float(general["rlnFinalResolution"]), cautious


def _fsc_section(page: _Page) -> str:
    found = {
        name: curves
        for name, part in (("before", "reconstruction/rigid"), ("after", "reconstruction"))
        if (curves := _read_fsc(page.folder / part / "fsc.star")) is not None
    }
    if "after" not in found:
        return _absent(f"There are no half-maps yet. {page.command('reconstruct')} makes them and their FSC.")
    figure = go.Figure()
    tables, resolutions = [], []
    for name, (curves, resolution, cautious) in found.items():
        curves = curves[curves["rlnSpectralIndex"] > 0]
        tables.append(curves.assign(map=name))
        row = {"map": name, "resolution at FSC 0.143, Å": resolution}
        resolutions.append(row | ({"at least, Å": cautious} if np.isfinite(cautious) else {}))
        regions = {name: name.removeprefix("dynRegion_") for name in curves if name.startswith("dynRegion_")}
        for column, title in (_FSC_NAMES | {name: f"half-maps, in {part}" for name, part in regions.items()}).items():
            # The model's agreement with the consensus is the same before and after.
            if column not in curves or (column == "dynModelConsensus" and len(tables) > 1):
                continue
            colour = "#5d6873" if column == "dynModelConsensus" else "#c8643c" if name == "before" else "#1f6f8b"
            main, model = column == "rlnFourierShellCorrelationCorrected", column.startswith("dynModel")
            figure.add_scatter(
                x=curves["rlnResolution"],
                y=curves[column],
                mode="lines",
                name=title if column == "dynModelConsensus" else f"{name}: {title}",
                visible=True if main or model else "legendonly",
                line={
                    "color": colour,
                    "width": 2.6 if main else 1.5,
                    "dash": "solid" if main else "dash" if model else "dot",
                },
                customdata=curves["rlnAngstromResolution"],
                hovertemplate="%{customdata:.2f} Å: %{y:.3f}",
            )
    page.table("fsc", pd.concat(tables))
    page.table("resolution", pd.DataFrame(resolutions))
    figure.add_hline(0.143, line={"color": "#5d6873", "width": 1, "dash": "dot"}, annotation_text="0.143")
    ticks = _resolution_ticks(float(next(iter(found.values()))[0]["rlnResolution"].max()))
    figure.update_xaxes(title="resolution, Å", tickvals=[1 / t for t in ticks], ticktext=[f"{t:g}" for t in ticks])
    figure.update_yaxes(title="Fourier shell correlation", range=[-0.1, 1.04])
    legend = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "entrywidth": 215}
    figure.update_layout(legend=legend, margin={"t": 40})
    note = ""
    if "before" not in found:
        note = _absent("There is no reconstruction of the same particles without deformation to compare with.")
    return (
        _tabulate(pd.DataFrame(resolutions))
        + note
        + page.figure(figure, 560, "figure-fsc")
        + _caption(
            "Solid: FSC of the half-maps in the mask, corrected by random phases. Dashed: FSC of the Gaussian model "
            "and a map. Dotted curves are hidden until clicked in the legend; among them the FSC as it would be if the "
            "half-maps saw the motion that was not undone, which blurs both alike, and the same less a standard error: "
            "where that falls below 0.143 is the resolution at least. A half-map FSC of 0.143 corresponds to 0.5 with "
            "the true structure."
        )
    )


def _resolution_ticks(highest: float) -> list[float]:
    """Return resolutions (A) for an axis in 1/A up to `highest`, not too close to each other."""
    ticks: list[float] = []
    for value in (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.5, 1.2, 1):
        if 1 / value <= highest and (not ticks or 1 / value - 1 / ticks[-1] > 0.055 * highest):
            ticks.append(value)
    return ticks


# ---------------------------------------------------------------- controls


# For every kind: what it asks, verdicts that are good news, what its curves are, and names of curves and gains.
_CONTROLS = {
    "shuffled-latents": (
        "Deformations permuted among particles",
        ("from the motion",),
        "FSC of the half-maps in the moving part",
        {"own": "own deformations", "rigid": "none"},
        [("own deformations", "gain"), ("map permuted", "permuted_map_gain"), ("all permuted", "permuted_gain")],
        "gain over the rigid map, nats an image",
    ),
    "held-out": (
        "The map of particles that trained nothing",
        ("improves the map",),
        "FSC with the other half's map in the moving part",
        {
            "deformed": "both with deformations",
            "rigid": "both without",
            "deformed_to_rigid": "only this with deformations",
        },
        [("own deformations", "gain"), ("permuted", "permuted_gain")],
        "gain in the moving part's density, share",
    ),
    "noise-particles": (
        "Noise in the place of particles",
        ("nothing appears from noise", "a trace appears from noise"),
        "FSC of the half-maps of noise",
        {"beside": "deformed as noise beside a signal asks", "alone": "as noise alone asks", "rigid": "not deformed"},
        [("beside a signal", "share_of_model"), ("alone", "share_of_model_alone")],
        "share of the moving part's density",
    ),
    "wrong-model": (
        "A wrong atomic model",
        ("follows the data",),
        "FSC of the map in the part with a wrong model",
        {
            "deformed_right": "with the right structure",
            "deformed_wrong": "with the wrong one",
            "rigid_right": "rigid map, right",
            "rigid_wrong": "rigid map, wrong",
        },
        [],
        "",
    ),
}


def _controls_section(page: _Page) -> str:
    found = read_controls(page.folder)
    asked = [kind for kind in _CONTROLS if kind != "wrong-model" or page.run.config.inputs.atomic_model]
    missing = [kind for kind in asked if kind not in found]
    parts = [_control_section(page, found[kind]) for kind in _CONTROLS if kind in found]
    if missing:
        commands = "; ".join(f"{page.command('control')} <code>--kind {kind}</code>" for kind in missing)
        parts.append(_absent(f"Not made: {commands}."))
    return "".join(parts)


def _control_section(page: _Page, control: dict) -> str:
    title, good, quantity, names, gains, unit = _CONTROLS[control["kind"]]
    # Controls of other versions may lack some.
    names = {name: label for name, label in names.items() if name in control["figures"].get("curves", ())}
    gains = [(label, name) for label, name in gains if f"{name}_error" in control["figures"]]
    figures, colour = control["figures"], "supported" if control["verdict"] in good else "not-supported"
    if control["verdict"] in ("undecided", "no motion", "partly from the motion"):
        colour = "undecided"
    words = escape(control["sentence"].replace("+-", "±"))
    head = f'<h3>{title}</h3><div class="verdict {colour}"><h3>{escape(control["verdict"].capitalize())}</h3>'
    head += f"<p>{words}</p></div>"
    if "curves" not in figures:
        return head
    figure = make_subplots(1, 2 if gains else 1, column_widths=[0.62, 0.38] if gains else [1.0])
    frequency, colours = np.array(figures["resolution"]), ["#1f6f8b", "#c8643c", "#6a8f3f", "#b08d2f"]
    if "three_deviations" in figures:
        # A correlation cannot stray farther than this.
        band = np.array(figures["three_deviations"])[1:].clip(max=1)
        for values, name in ((band, "three deviations"), (-band, None)):
            figure.add_scatter(
                x=frequency[1:],
                y=values,
                mode="lines",
                line={"color": "#9aa5ad", "dash": "dot"},
                name=name or "",
                showlegend=name is not None,
                row=1,
                col=1,
            )
    others = [name for name in figures["curves"] if name.startswith("permuted")]
    for name in others:
        figure.add_scatter(
            x=frequency[1:],
            y=figures["curves"][name][1:],
            mode="lines",
            line={"color": "#c9a0b4", "width": 1.2},
            name="permuted",
            legendgroup="permuted",
            showlegend=name == others[0],
            row=1,
            col=1,
        )
    for (name, label), line in zip(names.items(), colours, strict=False):
        figure.add_scatter(
            x=frequency[1:],
            y=figures["curves"][name][1:],
            mode="lines",
            line={"color": line, "width": 2.4},
            name=label,
            row=1,
            col=1,
        )
    ticks = _resolution_ticks(float(frequency[-1]))
    figure.update_xaxes(
        title="resolution, Å",
        tickvals=[1 / value for value in ticks],
        ticktext=[f"{v:g}" for v in ticks],
        row=1,
        col=1,
    )
    figure.update_yaxes(title=quantity, row=1, col=1)
    if gains:
        figure.add_bar(
            x=[label for label, _ in gains],
            y=[figures[name] for _, name in gains],
            showlegend=False,
            error_y={"array": [3 * figures[f"{name}_error"] for _, name in gains], "color": "#22282e"},
            marker={"color": ["#1f6f8b", *["#c9a0b4"] * 2][: len(gains)]},
            width=0.5,
            row=1,
            col=2,
        )
        figure.update_yaxes(title=unit, row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.04, "x": 0, "yanchor": "bottom", "entrywidth": 150})
    name = f"figure-{control['kind']}"
    bars = f" Right: {unit}, with bars of three standard errors." if gains else ""
    return (
        head
        + page.figure(figure, 420, name)
        + _caption(f"{quantity}.{bars} The numbers are in <code>analysis/controls/{control['kind']}.csv</code>.")
    )


# ---------------------------------------------------------------- files


def _files_section(page: _Page) -> str:
    rows = []
    together: dict[str, list[int]] = {}
    for path in sorted(p for p in page.folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name, size = path.relative_to(page.folder).as_posix(), path.stat().st_size
        if name.startswith("analysis/") and name.count("/") > 1:
            # States, selections and tables come in dozens: a line a folder.
            together.setdefault(name.rpartition("/")[0], []).append(size)
        elif "checkpoints" not in name:
            rows.append((f"<code>{escape(name)}</code>", _FILES.get(name, ""), _size(size)))
    for name, sizes in together.items():
        what = {
            "analysis/tables": "the numbers behind these figures",
            "analysis/domains": "masks and motions of the rigid domains",
            "analysis/controls": "verdicts and numbers of the control experiments",
            "analysis/controls/wrong-model": "the wrong model, and maps of the run that was trained with it",
            "analysis/controls/held-out": "maps of the particles that trained nothing, on the grid of the particles",
        }.get(name, "")
        rows.append((f"<code>{escape(name)}/</code> {len(sizes)} files", what, _size(sum(sizes))))
    frame = pd.DataFrame(rows, columns=["file", "what it holds", "size"])
    plain = frame["file"].str.replace(r"</?code>", "", regex=True)
    page.table("files", pd.DataFrame({"file": plain, "size": frame["size"]}))
    checkpoints = [p for p in page.folder.glob("half*/checkpoints/**/*") if p.is_file()]
    total = sum(p.stat().st_size for p in checkpoints)
    kept = f"<p>{len(checkpoints)} files of checkpoints besides, {_size(total)}; training resumes from them.</p>"
    provenance = page.run.config.provenance
    commands = "\n".join(escape(str(line)) for line in provenance.get("commands", {}).values())
    versions = ", ".join(
        f"{escape(name.replace('_', '-'))} {escape(str(provenance[name]))}"
        for name in ("dynamight_core", "python", "torch", "numpy", "starfile", "mrcfile")
        if name in provenance
    )
    folder = escape(str(provenance.get("folder", "")))
    return (
        f"<p>In <code>{escape(str(page.folder.resolve()))}</code>:</p>{_tabulate(frame)}{kept if checkpoints else ''}"
        f"<h3>Commands</h3><p>Started in <code>{folder}</code>, with {versions}.</p><pre>{commands}</pre>"
    )


def _size(n_bytes: int) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"

"""Fills the templates in, and writes the page and the tables."""

import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dynamight_core.analysis.explorer.page import first_style, script
from dynamight_core.analysis.report.clusters import clusters
from dynamight_core.analysis.report.controls import controls
from dynamight_core.analysis.report.distributions import distributions
from dynamight_core.analysis.report.domains import bodies, domains
from dynamight_core.analysis.report.draw import TEMPLATE
from dynamight_core.analysis.report.errors import agreement, errors
from dynamight_core.analysis.report.files import files
from dynamight_core.analysis.report.fsc import fsc
from dynamight_core.analysis.report.gaussians import gaussians
from dynamight_core.analysis.report.landscape import coordinates, landscape
from dynamight_core.analysis.report.latents import latents
from dynamight_core.analysis.report.maps import maps
from dynamight_core.analysis.report.page import Page, Part
from dynamight_core.analysis.report.training import training
from dynamight_core.analysis.report.verdict import certainty, verdict
from dynamight_core.files import atomic_path, write_tables
from dynamight_core.judging.bias import record_model_bias
from dynamight_core.registry import REPORT_SECTIONS
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

_PACKAGE = "dynamight_core.analysis.report"
_ASSETS = Path(inspect.getfile(Page)).parent / "assets"
# Sections that are not folded.
_OPEN = ("verdict", "landscape")


def write_report(run: Run, path: str | Path | None = None, reporter: Reporter = PRINT) -> Path:
    """Write the report of a run, and the numbers behind its figures to RUN/analysis/tables.

    Parameters
    ----------
    run
        `dynamight_core.run.Run`.
    path
        of the HTML file; RUN/analysis/report.html if None.
    reporter
        takes lines for the user.

    Returns
    -------
    Path
        of the HTML file.
    """
    record_model_bias(run)
    page = Page(run)
    path = page.folder / "analysis" / "report.html" if path is None else Path(path)
    tables = page.folder / "analysis" / "tables"
    environment = _environment(page)
    sections = []
    for anchor, title, parts in _sections(page):
        html = []
        for make in parts:
            part = make(page)
            write_tables(tables, part.tables)
            html.append(_render(environment, make.__name__, part))
        # What there is nothing to say about has no section.
        if "".join(html).strip():
            sections.append((anchor, title, "".join(html)))
    text = environment.get_template("page.html.j2").render(
        name=page.folder.resolve().name,
        sections=sections,
        open=_OPEN,
        config=run.config,
        conclusion=page.conclusion,
        halves=[(page.halves == half).sum() for half in (1, 2)],
        validation=page.validation.sum(),
        css=(_ASSETS / "report.css").read_text(encoding="utf-8") + first_style(),
        script=script(_ASSETS / "report.js"),
        plotly=get_plotlyjs(),
    )
    write_tables(tables, {"numbers": pd.DataFrame(page.numbers, columns=["number in the text", "value"])})
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    size = path.stat().st_size / 2**20
    reporter.say(f"Report: {path} ({size:.1f} MB); the values behind its figures are in {tables}.")
    return path


def _sections(page: Page) -> Iterator[tuple[str, str, list[Callable[[Page], Part]]]]:
    """Yield of each section its anchor, its heading, and the functions of its parts."""
    yield "verdict", "Conclusion", [verdict]
    yield "landscape", "Conformational landscape", [landscape, distributions]
    yield "certainty", "How sure this is", [certainty, agreement, errors]
    yield "domains", "Rigid-body domains", [domains]
    yield "gaussians", "Motion across the molecule", [gaussians]
    if page.run.config.inputs.bodies:
        yield "bodies", "Rigid bodies used in training", [bodies]
    yield "maps", "Maps before and after", [maps]
    yield "fsc", "Fourier shell correlation", [fsc]
    for name in REPORT_SECTIONS:
        yield name, name.replace("_", " ").capitalize(), [REPORT_SECTIONS.load(name)]
    yield "controls", "Controls", [controls]
    yield "coordinates", "All coordinates and clusters", [coordinates, clusters]
    yield "latents", "Latent spaces of the two halves", [latents]
    yield "training", "Training", [training]
    yield "files", "Files and commands", [files]


def _environment(page: Page) -> jinja2.Environment:
    # Templates of added sections are beside their modules.
    added = [Path(inspect.getfile(REPORT_SECTIONS.load(name))).parent for name in REPORT_SECTIONS]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(_PACKAGE), jinja2.FileSystemLoader(added)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"run": page.run.path, "number": page.number, "zip": zip}
    environment.filters |= {"digits": _digits, "filename": lambda path: Path(path).name, "angstrom": _typeset}
    environment.tests["numeric"] = pd.api.types.is_numeric_dtype
    return environment


def _render(environment: jinja2.Environment, name: str, part: Part) -> str:
    figures = {name: _embed(environment, figure, f"figure-{name}") for name, figure in part.figures.items()}
    return environment.get_template(f"{name}.html.j2").render(part.values, figures=figures)


def _embed(environment: jinja2.Environment, figure: go.Figure, name: str) -> Markup:
    """Return a figure as HTML, which the page's script draws when it comes into sight."""
    figure.update_layout(template=TEMPLATE)
    data = str(pio.to_json(figure)).replace("</", "<\\/")
    height = figure.layout.height or 450
    return Markup(environment.get_template("figure.html.j2").render(name=name, data=data, height=height))


def _typeset(text: str) -> str:
    """Return a text of the command line with the signs that it has no letters for."""
    return re.sub(r"(?<=\d) A\b", " Å", text).replace("+-", "±").replace("->", "→")


def _digits(value: float) -> str:
    """Return a number with two significant digits, from 100 on whole, and integers whole."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not np.isfinite(value):
        return "–"
    if abs(value) < 1e-4:
        return f"{value:.1e}" if value else "0"
    return f"{value:,.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"

"""What the pages of docs show in Python runs as it stands there."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import dynamight_core as dm
from dynamight_core.api import train
from tools.sentences import long_sentences, pages

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
QUICK = {"n_gaussians": 60, "n_latents": 2, "epochs": 1, "warm_up_epochs": 0, "refits": 0}


def snippets(page):
    """Return the Python of a page, each block with the number of the line before it."""
    text = (ROOT / "docs" / page).read_text()
    return [
        (text[: m.start()].count("\n") + 1, m[1]) for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ]


@pytest.fixture(scope="module")
def demo(hinge_set, trained, tmp_path_factory):
    """A folder with what `make demo` leaves, of the tests' small run."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(hinge_set.particles.parent, folder / "demo" / "data")
    shutil.copytree(trained[1].path, folder / "demo" / "run")
    dm.reconstruct(folder / "demo" / "run", method="wbp", reporter=dm.QUIET)
    return folder


def test_the_page_on_python_runs_from_top_to_bottom(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    monkeypatch.setattr(dm, "train", lambda *files, **options: train(*files, **options | QUICK))
    names = {}
    for line, code in snippets("python.md"):
        exec(compile("\n" * line + code, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "did you mean method?" in printed and "Open my_run/analysis/report.html" in printed
    assert all((demo / name).exists() for name in ("landscape.png", "state.mrc", "one_end.star"))


def test_the_page_on_python_names_everything_that_there_is():
    text = (ROOT / "docs" / "python.md").read_text()
    of_a_run = [f"run.{name}" for name in dir(dm.Run) if not name.startswith("_") and name not in ("path", "stored")]
    offered = [f"dm.{name}" for name in dm.__all__ if name not in ("Maps", "Run", "Volume", "__version__")]
    assert [name for name in of_a_run + offered if name not in text] == []


def test_the_notebook_runs_and_leaves_a_figure_and_a_subset(demo, monkeypatch, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("DYNAMIGHT_RUN", str(demo / "demo" / "run"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "image/png" in kinds and "text/html" in kinds
    assert (tmp_path / "one_end.star").exists()


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_the_picture_of_the_architecture_has_the_rooms_of_today(tmp_path):
    def words(path):
        return re.findall(r"<text[^>]*>([^<]*)", path.read_text())

    subprocess.run([sys.executable, "-m", "docs.make_architecture", tmp_path / "now.svg"], cwd=ROOT, check=True)
    assert words(tmp_path / "now.svg") == words(ROOT / "docs" / "pictures" / "architecture.svg")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_site_builds_without_a_broken_link(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "first-hour" / "index.html").exists()


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_no_sentence_of_a_page_is_too_long(page):
    assert long_sentences(page.read_text()) == []


def test_long_sentences_are_found_in_text_lists_and_tables_and_not_in_code():
    words = " ".join(["word"] * 31)
    for text in (words, f"Short. {words}.", f"- {words}", f"| a | {words} |", f"A [link]({words}) {words}"):
        assert len(long_sentences(text)) == 1
    for text in (f"    {words}", f"```\n{words}\n```", f"# {words}", f"Say `{words}` so.", "One. " * 31):
        assert long_sentences(text) == []


def test_the_figure_of_how_good_it_is_shows_the_table_of_today(tmp_path):
    program = ROOT / "docs" / "make_how_good.py"
    subprocess.run([sys.executable, program, tmp_path / "now.svg"], check=True)
    bars = re.compile(r'<path d="(M [^"]*)"[^>]*clip-path', re.S)
    now, stored = (path.read_text() for path in (tmp_path / "now.svg", ROOT / "docs" / "pictures" / "how-good.svg"))
    assert bars.findall(now) == bars.findall(stored) != []


def sentences_of_the_program():
    """Return the texts in the sources of engine and plugin, with "..." for what is filled in."""
    found = []
    for path in (*(ROOT / "dynamight_core").rglob("*.py"), *(ROOT / "dynamight_scipion").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_of_the_page_on_troubleshooting_are_those_of_the_program():
    said = sentences_of_the_program().lower()
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    messages = [message for row in rows for message in re.findall(r"`([^`]*)`", row)]
    pieces = {piece.strip(" ,.:;").lower() for message in messages for piece in message.split("...")}
    # Of the shell and of the published program
    pieces -= {"dynamight: command not found", "no such option --require-version"}
    assert [piece for piece in pieces if len(piece) > 8 and piece not in said] == []


def test_commands_in_the_pages_have_options_that_there_are():
    known = set(re.findall(r"`(--[a-z0-9-]+)", (ROOT / "docs" / "command-line.md").read_text()))
    # Of every command
    known |= {"--help-all", "--show-preset"}
    unknown = {}
    for page in pages():
        # Indented or in backticks: a dynamight command with its options, lines that end in a backslash joined
        for command in re.findall(r"\bdynamight [a-z]+ [^`\n]*", page.read_text().replace("\\\n", " ")):
            unknown[command] = set(re.findall(r"(?<!\S)(--[a-z0-9-]+)", command)) - known
    assert {command: options for command, options in unknown.items() if options} == {}


def test_files_that_the_architecture_names_exist():
    named = re.findall(r"`([\w/]+(?:\.py|/\w+))`", (ROOT / "docs" / "architecture.md").read_text())
    places = (ROOT, ROOT / "dynamight_core")
    assert len(named) > 10
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_citation_is_of_this_version():
    assert f"\nversion: {dm.__version__}\n" in (ROOT / "CITATION.cff").read_text()

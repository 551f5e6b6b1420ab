"""Options are declared once: the command line, its help, the documents and the plugin's schema say the same."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import jsonschema
import pytest

from dynamight_core.cli import app
from dynamight_core.errors import InputError, option_name
from dynamight_core.options import STAGES, ControlOptions, InputOptions
from dynamight_core.options.declare import LEVELS, declared
from dynamight_core.options.schema import make_schema
from tests.support.command_line import dynamight

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "simulate check train infer invert reconstruct analyse states displace fields deform select control explore bundle "
    "demo"
).split()
DECLARED = [(stage, f.name, option) for stage, options in STAGES.items() for f, option in declared(options)]


def shown(command, flag, monkeypatch):
    """Return the lines of a command's help on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, text = dynamight(command, flag)
    assert code == 0, text
    return text.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_most_runs_need_and_says_where_the_rest_is(command, monkeypatch):
    basic, everything = (shown(command, flag, monkeypatch) for flag in ("--help", "--help-all"))
    words = [word for word in app.words_of(command) if not word.positional]
    for lines in (basic, everything):
        assert max(map(len, lines)) <= 80
    names = {option_name(word.name) for word in words}
    assert names == {name for name in names if any(re.search(rf" {name}(?![\w-])", line) for line in everything)}
    some = {name for name in names if any(re.match(rf"│ +(\* +)?{name}(?![\w-])", line) for line in basic)}
    assert 1 <= len(some) <= 18
    hidden = len(names) - len(some)
    assert any(f"{hidden} more options: dynamight {command} --help-all" in line for line in basic) == bool(hidden)


@pytest.mark.parametrize(
    ("stage", "name", "option"), DECLARED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_sentence_of_help_is_short_and_in_our_words(stage, name, option):
    assert option.help.endswith(".")
    assert option.level in LEVELS
    for sentence in re.split(r"(?<=[.?]) |; ", f"{option.help} {option.more}"):
        assert len(sentence.split()) <= 25, sentence
    for word in ("left out", "give ", " shall ", "so many", "that of ", "those that", "filled anew"):
        assert word not in f"{option.help} {option.more}"


def test_no_text_of_engine_and_plugin_says_left_out_for_omitted():
    sources = [path for name in ("dynamight_core", "dynamight_scipion") for path in (ROOT / name).rglob("*.py")]
    assert sources
    said = [
        path
        for path in sources
        if re.search(r"left out|allowed motion|filled anew|\b_?(LEAST|MOST)_", path.read_text())
    ]
    assert not said


def test_all_commands_are_there_with_help_in_the_order_of_the_work(monkeypatch):
    assert list(app._COMMANDS) == [*COMMANDS, "options"]
    monkeypatch.setenv("COLUMNS", "80")
    code, text = dynamight("--help")
    assert code == 0
    assert re.findall(r"^│ (\w+)  ", text, re.MULTILINE) == [*COMMANDS, "options"]
    assert all(word.option.help for command in COMMANDS for word in app.words_of(command))


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--help-all"]])
def test_help_imports_neither_torch_nor_numpy(words):
    program = (
        f"import sys; from dynamight_core.cli import run; assert run({words}) == 0;"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_documents_and_schema_are_those_of_the_options():
    script = [sys.executable, ROOT / "docs" / "make_options.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "command-line.md").read_text()
    for command in COMMANDS:
        described = re.search(rf"^## dynamight {command} .*\n\n(.*)$", text, re.MULTILINE)
        assert described[1] == app._COMMANDS[command].__doc__
        for word in app.words_of(command):
            assert word.positional or f"`{option_name(word.name)}" in text


def test_the_schema_allows_what_the_engine_allows():
    schema = make_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for stage, options in STAGES.items():
        values = asdict(options(kind="held-out") if options is ControlOptions else options())
        named = {name.replace("_", "-"): list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        jsonschema.validate(named, schema["$defs"][stage])
    for name, value in (("n-gaussians", 49), ("validation-fraction", 0.5), ("decoder", "none"), ("seed", -1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value}, schema["$defs"]["train"])


def test_every_limit_is_refused_by_the_engine_by_the_name_of_the_option():
    for stage, name, option in DECLARED:
        for limit, step in ((option.at_least, -1), (option.above, 0), (option.at_most, 1), (option.below, 0)):
            if abs(limit) == float("inf"):
                continue
            kind = next(f.type for f in fields(STAGES[stage]) if f.name == name)
            value = [limit + step] if str(kind).startswith(("list", "tuple")) else limit + step
            given = {"kind": "held-out"} if stage == "control" else {}
            with pytest.raises(InputError, match=f"^{option_name(name)} is .*; give "):
                STAGES[stage](**given, **{name: value})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decoder", "toy"], "Error: --decoder is 'toy'; choose one of basis, coordinate, bodies"),
        (["--epochs", "1.5"], "Error: --epochs is '1.5'; give a whole number, at least 1"),
        (["--stiffness", "stiff"], "Error: --stiffness is 'stiff'; give a number, at least 0"),
        (["--particle-diameter", "0"], "Error: --particle-diameter is 0; give more than 0 A"),
        (["--working-box", "31"], "Error: --working-box is 31; give an even number, at least 16 px"),
        (["--bodies", "a.mrc"], "--bodies"),
        (["--frobnicate"], "Error: Unknown option: --frobnicate; see dynamight train --help"),
        (["--map"], "Error: --map needs a value; see dynamight train --help"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_the_cure(words, said, tmp_path):
    code, text = dynamight("train", "in.star", tmp_path / "run", *words)
    assert code == 2
    assert text.startswith("Error: ") and text.count("\n") == 1
    assert said in text


def test_lists_are_one_option_with_all_words_or_several_with_one_each(monkeypatch):
    taken = []
    monkeypatch.setitem(app._COMMANDS, "train", recorded(app._COMMANDS["train"], taken))
    words = ["train", "in.star", "RUN", "--bodies", "a.mrc", "b.mrc", "--half-maps", "1.mrc", "2.mrc", "--fit"]
    assert dynamight(*words, "--atomic-model", "m.cif", "--bodies", "c.mrc", "d.mrc")[0] == 0
    inputs = taken[0]["inputs"]
    assert inputs == InputOptions(
        star="in.star",
        bodies=["a.mrc", "b.mrc", "c.mrc", "d.mrc"],
        half_maps=["1.mrc", "2.mrc"],
        fit=True,
        atomic_model="m.cif",
    )
    monkeypatch.setitem(app._COMMANDS, "states", recorded(app._COMMANDS["states"], taken))
    assert dynamight("states", "--through", "-1,2", "--through=0,1", "RUN", "--percentiles", "5", "95")[0] == 0
    assert taken[1]["options"].through == ["-1,2", "0,1"]
    assert taken[1]["options"].percentiles == [5.0, 95.0]
    assert taken[1]["run"] == Path("RUN")
    words = ["train", "--half-maps", "1.mrc", "2.mrc", "in.star", "RUN", "--epochs", "2", "--epochs", "3", "--fit"]
    assert dynamight(*words, "--atomic-model", "m.cif")[0] == 0
    assert taken[2]["inputs"].half_maps == ["1.mrc", "2.mrc"]
    assert taken[2]["options"].epochs == 3, "the last counts"


def recorded(function, taken):
    """Return a command that takes what another does, and notes it."""

    def record(**values):
        taken.append(values)

    record.__signature__, record.__annotations__ = app.inspect.signature(function), function.__annotations__
    record.__name__, record.__doc__ = function.__name__, function.__doc__
    return record


def test_a_former_name_is_understood_with_a_note_and_not_shown(monkeypatch):
    taken = []
    monkeypatch.setitem(app._COMMANDS, "states", recorded(app._COMMANDS["states"], taken))
    for words in (["--n", "3"], ["--n=3"]):
        code, text = dynamight("states", "RUN", *words)
        assert (code, text) == (0, "Note: --n is now called --n-states; the old name will go.\n")
        assert taken.pop()["options"].n_states == 3
    assert not any(re.search(r" --n(?![\w-])", line) for line in shown("states", "--help-all", monkeypatch))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completion_knows_commands_options_and_choices(shell):
    script = app.make_app(everything=True).generate_completion(shell=shell)
    for word in ("reconstruct", "n-gaussians", "kl-weight", "shuffled-latents"):
        assert word in script


def test_tab_completion_is_installed_for_the_shell_in_use(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    code, text = dynamight("--install-completion", "--shell", "bash")
    assert code == 0, text
    assert any("kl-weight" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_list_of_options_reads_as_json():
    assert json.loads((ROOT / "dynamight_scipion" / "options.json").read_text()) == json.loads(
        json.dumps(make_schema())
    )

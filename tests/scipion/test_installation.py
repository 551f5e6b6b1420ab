"""The two distributions install as they should, and the plugin finds, starts and checks its engine."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from scipion.install.funcs import Environment

import dynamight_core
import dynamight_scipion
from dynamight_scipion.constants import DYNAMIGHT_ENV_ACTIVATION, ENGINE_VERSION

ROOT = Path(__file__).resolve().parents[2]
Plugin = dynamight_scipion.Plugin


# ------------------------------------------------------------------ versions


def test_installed_versions_are_those_of_the_sources():
    assert metadata.version("scipion-em-dynamight") == dynamight_scipion.__version__
    assert metadata.version("dynamight-core") == dynamight_core.__version__


def test_plugin_expects_the_engine_beside_it():
    assert ENGINE_VERSION == dynamight_core.__version__


# What Python 3.8 lacks: methods, functions, and keywords of functions.
TOO_NEW = {"removeprefix", "removesuffix", "is_relative_to", "cache", "batched"}


@pytest.mark.parametrize("path", sorted((ROOT / "dynamight_scipion").rglob("*.py")), ids=lambda path: path.stem)
def test_the_plugin_is_written_for_the_python_that_scipions_installer_makes(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    later = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    for node in ast.walk(tree):
        assert getattr(node, "attr", "") not in TOO_NEW, f"{path.name}, line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert not (node.module == "functools" and TOO_NEW & {alias.name for alias in node.names})
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
            assert not node.keywords, f"{path.name}, line {node.lineno}"
        # Generic and alternative types in annotations, where they are evaluated.
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if annotation is not None and not later:
            parts = list(ast.walk(annotation))
            assert not any(isinstance(part, ast.BinOp) for part in parts), f"{path.name}, line {node.lineno}"
            generics = {getattr(part.value, "id", "") for part in parts if isinstance(part, ast.Subscript)}
            assert not generics & {"list", "dict", "tuple", "set", "type"}, f"{path.name}, line {node.lineno}"


# ------------------------------------------------------------------ how the engine is installed and started


def installation_commands():
    environment = Environment()
    Plugin.defineBinaries(environment)
    target = environment.getTarget(f"dynamight-{ENGINE_VERSION}")
    return [command._cmd for command in target._finalCommands if isinstance(command._cmd, str)]


def test_engine_is_installed_from_the_checkout_beside_the_plugin():
    assert any(f"-e '{ROOT}/dynamight_core[film,umap]'" in command for command in installation_commands())


def test_engine_is_installed_by_name_where_there_is_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(dynamight_scipion, "__file__", str(tmp_path / "dynamight_scipion" / "__init__.py"))
    (command,) = [command for command in installation_commands() if "pip install" in command]
    assert command.endswith(f"'dynamight-core[film,umap]=={ENGINE_VERSION}'")


@pytest.mark.parametrize(
    ("version", "activateConda", "inPath", "command", "needs"),
    [
        ((3, 11), "", None, f"{sys.executable} -m venv env", []),
        ((3, 11), "eval hook &&", None, "eval hook && conda create -y -p ./env python=3.11", []),
        ((3, 11), "", "/opt/bin/conda", "conda create -y -p ./env python=3.11", ["conda"]),
        ((3, 10), "", None, "conda create -y -p ./env python=3.11", ["conda"]),
    ],
)
def test_environment_is_made_by_conda_where_there_is_one(monkeypatch, version, activateConda, inPath, command, needs):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(Plugin, "_condaActivationCmd", activateConda)
    monkeypatch.setattr(shutil, "which", lambda name: inPath)
    assert Plugin._getEnvironmentCommand() == (command, needs)


# In the place of the real ones. Environments of this conda find the packages of the tests' Python, so that nothing is
# downloaded; what Scipion downloads for a package without an archive is an empty file.
CONDA = """#!/bin/bash
echo "$@" >> {calls}
case "$1" in
shell.bash) echo 'export CONDA_IS_ACTIVE=yes' ;;
create)
    test "$CONDA_IS_ACTIVE" || exit 1
    {python} -m venv --without-pip "$4"
    echo {packages} > "$(echo "$4"/lib/python3*/site-packages)/packages.pth" ;;
esac
"""
WGET = """#!/bin/bash
while [ "$1" != -O ]; do shift; done
touch "$2"
"""


def test_scipion_installs_the_engine_with_a_stub_conda(tmp_path):
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    packages = Path(pytest.__file__).parent.parent
    python = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    conda = CONDA.format(calls=tmp_path / "calls", python=python, packages=packages)
    for name, text in (("conda", conda), ("wget", WGET)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SCIPION_", "DYNAMIGHT_"))}
    environ |= {
        "SCIPION_DOMAIN": "pwem",
        "SCIPION_HOME": str(home),
        "SCIPION_USER_DATA": str(home / "data"),
        "SCIPION_NOTIFY": "False",
        "SCIPION_PYTHON": sys.executable,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CONDA_ACTIVATION_CMD": f'eval "$({programs}/conda shell.bash hook)"',
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
    }

    def scipion(*words):
        run = subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    scipion("-m", "scipion", "config", "--unattended")
    output = scipion("-m", "scipion", "installb", "dynamight")
    environment = home / "software" / "em" / f"dynamight-{ENGINE_VERSION}" / "env"
    assert (environment / "bin" / "dynamight").exists(), output
    assert (tmp_path / "calls").read_text().splitlines() == ["shell.bash hook", "create -y -p ./env python=3.11"]
    ask = "Plugin._defineVariables(); print(Plugin.validateInstallation()); print(Plugin.getProgram('train'))"
    errors, program = scipion("-c", f"from dynamight_scipion import Plugin; {ask}").splitlines()[-2:]
    assert errors == "[]"
    assert program.startswith(f'export PATH="{environment}/bin:$PATH" && dynamight ')
    shown = subprocess.run(
        [f"{environment}/bin/dynamight", "--version"], env=Plugin.getEnviron(), capture_output=True, text=True
    )
    assert shown.stdout.split() == ["dynamight", ENGINE_VERSION], shown.stderr


def fake_environment(folder, version):
    packages = folder / "lib" / "python3.11" / "site-packages"
    (packages / f"dynamight_core-{version}.dist-info").mkdir(parents=True)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty folder for the engine, and a Scipion whose own Python has no engine."""
    monkeypatch.setitem(Plugin._vars, "DYNAMIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))
    monkeypatch.setitem(Plugin._vars, DYNAMIGHT_ENV_ACTIVATION, Plugin._getDefaultActivation())
    return tmp_path / "home"


def test_installation_is_valid_with_the_expected_engine_only(home):
    assert "not installed" in Plugin.validateInstallation()[0]
    fake_environment(home / "env", "0.0.1")
    assert f"0.0.1 is installed in {home}/env, but this plugin needs" in Plugin.validateInstallation()[0]
    (home / "env").rename(home / "older")
    fake_environment(home / "env", ENGINE_VERSION)
    assert Plugin.validateInstallation() == []


def test_engine_in_scipions_own_python_serves_until_it_has_its_own_environment(home, tmp_path):
    fake_environment(tmp_path / "python", ENGINE_VERSION)
    assert Plugin._getEnvironment() == str(tmp_path / "python")
    fake_environment(home / "env", ENGINE_VERSION)
    assert Plugin._getEnvironment() == str(home / "env")


def test_program_starts_in_the_activated_environment(monkeypatch):
    monkeypatch.setitem(Plugin._vars, DYNAMIGHT_ENV_ACTIVATION, ". /opt/env/bin/activate")
    start, command = Plugin.getProgram("train").split(" && ")
    assert start == ". /opt/env/bin/activate"
    assert (command.split()[0], command.split()[-1]) == ("dynamight", "train")
    assert Plugin.validateInstallation() == [], "only starting it would tell what the user's own environment holds"


def test_conda_environments_are_activated_by_scipions_conda(monkeypatch):
    monkeypatch.setattr(Plugin, "_condaActivationCmd", "eval hook &&")
    monkeypatch.setitem(Plugin._vars, DYNAMIGHT_ENV_ACTIVATION, "conda activate mine")
    assert Plugin.getProgram("train").startswith("eval hook && conda activate mine && dynamight ")


def test_engine_of_another_version_is_refused_in_a_sentence_in_any_environment(monkeypatch, tmp_path):
    status = tmp_path / "status.json"
    monkeypatch.setattr(dynamight_scipion, "ENGINE_VERSION", "99.0")
    line = f"{Plugin.getProgram(f'--status-file {status} analyse')} {tmp_path}"
    assert subprocess.run(line, shell=True, capture_output=True, env=Plugin.getEnviron()).returncode == 2
    message = json.loads(status.read_text())["message"]
    assert message.startswith(f"dynamight-core 99.0 is needed, but the environment {sys.prefix} has {ENGINE_VERSION}")


def test_default_activation_puts_the_engine_on_the_path():
    find = f"{Plugin.getVar(DYNAMIGHT_ENV_ACTIVATION)} && command -v dynamight"
    found = subprocess.run(find, shell=True, capture_output=True, text=True, env=Plugin.getEnviron())
    assert found.stdout.strip() == f"{sys.prefix}/bin/dynamight"


def test_engine_does_not_see_scipions_python_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/scipion")
    environ = Plugin.getEnviron()
    assert "PYTHONPATH" not in environ
    assert environ["PATH"] == os.environ["PATH"]


# ------------------------------------------------------------------ what the distributions contain


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Copy of what the distributions are built from: building writes beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    leave_out = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("dynamight_core", "dynamight_scipion"):
        shutil.copytree(ROOT / name, copy / name, ignore=leave_out)
    return copy


def wheel_contents(project, out):
    """Build a wheel of the project and return the names of the files in it, its metadata left out."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", out, project],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = Path(out).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not re.match(r"[^/]+\.dist-info/", name)}


def python_files(folder):
    return {str(path.relative_to(folder.parent)) for path in folder.rglob("*.py")}


def test_plugins_wheel_holds_the_plugin_alone(sources, tmp_path):
    modules = python_files(sources / "dynamight_scipion")
    contents = wheel_contents(sources, tmp_path)
    assert {name for name in contents if name.endswith(".py")} == modules
    assert contents >= {"dynamight_scipion/protocols.conf", f"dynamight_scipion/{dynamight_scipion._logo}"}
    templates = {str(path.relative_to(sources)) for path in sources.glob("dynamight_scipion/templates/*")}
    assert templates
    assert contents >= templates


def test_engines_wheel_holds_every_module_and_its_data(sources, tmp_path):
    engine = sources / "dynamight_core"
    modules = python_files(engine)
    data = {
        str(path.relative_to(sources))
        for folder in (
            "simulate/data",
            "analysis/explorer/assets",
            "analysis/report/assets",
            "analysis/report/templates",
        )
        for path in (engine / folder).glob("*")
    }
    assert wheel_contents(engine, tmp_path) == modules | data | {"dynamight_core/py.typed"}

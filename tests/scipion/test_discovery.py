"""The two distributions install as they should, and Scipion finds the plugin."""

import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image
from pyworkflow import Config
from pyworkflow.gui.project.viewprotocols_extra import ProtocolTreeConfig
from scipion.install.funcs import Environment
from scipion.install.plugin_funcs import PluginInfo

import dynamight_core
import dynamight_scipion
from dynamight_scipion.constants import DYNAMIGHT_ENV_ACTIVATION, ENGINE_VERSION

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(dynamight_scipion.__file__).parent
Plugin = dynamight_scipion.Plugin


# ------------------------------------------------------------------ Scipion finds the plugin


def test_entry_point_names_the_plugin_module():
    (entry_point,) = metadata.distribution("scipion-em-dynamight").entry_points
    assert (entry_point.group, entry_point.name) == ("pyworkflow.plugin", "dynamight_scipion")
    assert entry_point.load() is dynamight_scipion


def test_scipion_discovers_the_plugin():
    assert Config.getDomain().getPlugins()["dynamight_scipion"] is dynamight_scipion


def test_plugin_manager_takes_the_plugin_for_the_module_of_the_distribution():
    info = PluginInfo(pipName="scipion-em-dynamight", name="scipion-em-dynamight", remote=False)
    assert info.getDirName() == "dynamight_scipion"
    assert isinstance(info.getPluginClass(), Plugin)
    assert info.getBinVersions() == [f"dynamight-{ENGINE_VERSION}"]


@pytest.mark.parametrize("flags", [[], ["-O"]])
def test_discovery_imports_neither_torch_nor_the_engine(flags):
    discover = (
        "import sys; from pyworkflow import Config; domain = Config.getDomain();"
        "assert 'dynamight_scipion' in domain.getPlugins();"
        "domain.getProtocols(), domain.getObjects(), domain.getViewers(), domain.getWizards();"
        "print(*sorted({'torch', 'dynamight_core'} & set(sys.modules)), sep=',')"
    )
    run = subprocess.run([sys.executable, *flags, "-c", discover], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == ""


# ------------------------------------------------------------------ what it shows


def branches(menu, path=()):
    """Texts from the root, for every branch of a protocol tree."""
    for child in menu.childs:
        if child.tag != ProtocolTreeConfig.TAG_PROTOCOL:
            yield (*path, child.text)
            yield from branches(child, (*path, child.text))


def test_protocol_tree_is_read_and_merged_with_scipions_own(caplog):
    # The logger's own level may have been set by an earlier Scipion project.
    with caplog.at_level(logging.INFO, logger="pyworkflow.gui.project.viewprotocols_extra"):
        views = ProtocolTreeConfig.load(Config.getDomain(), Config.SCIPION_PROTOCOLS)
    assert "Failed to read protocols.conf" not in caplog.text

    hub = list(branches(views["Flexibility Hub"]))
    field = ("Landscape estimation", "Deformation field")
    for branch in [field, ("Data analysis",), ("Map reconstruction",)]:
        assert hub.count(branch) == 1
    single_particles = list(branches(views["Protocols SPA"]))
    for branch in [("3D",), ("3D", "Analysis"), ("3D", "Analysis", "Heterogeneity"), ("3D", "Reconstruct")]:
        assert single_particles.count(branch) == 1, "a branch of Scipion's own is doubled, not extended"


def test_icon_is_an_image():
    with Image.open(PLUGIN / dynamight_scipion._logo) as icon:
        icon.verify()
        assert icon.format == "PNG"


def test_references_are_in_the_bibliography():
    for key in dynamight_scipion._references:
        assert dynamight_scipion._bibtex[key]["doi"] == "10.1038/s41592-024-02377-5"


# ------------------------------------------------------------------ versions


def test_installed_versions_are_those_of_the_sources():
    assert metadata.version("scipion-em-dynamight") == dynamight_scipion.__version__
    assert metadata.version("dynamight-core") == dynamight_core.__version__


def test_plugin_expects_the_engine_beside_it():
    assert ENGINE_VERSION == dynamight_core.__version__


# ------------------------------------------------------------------ how the engine is installed and started


def installation_commands():
    environment = Environment()
    Plugin.defineBinaries(environment)
    target = environment.getTarget(f"dynamight-{ENGINE_VERSION}")
    return [command._cmd for command in target._finalCommands if isinstance(command._cmd, str)]


def test_engine_is_installed_from_the_checkout_beside_the_plugin():
    assert any(f"-e '{ROOT}/dynamight_core[umap]'" in command for command in installation_commands())


def test_engine_is_installed_by_name_where_there_is_no_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(dynamight_scipion, "__file__", str(tmp_path / "dynamight_scipion" / "__init__.py"))
    (command,) = [command for command in installation_commands() if "pip install" in command]
    assert command.endswith(f"'dynamight-core[umap]=={ENGINE_VERSION}'")


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
    assert Plugin.getProgram("train") == ". /opt/env/bin/activate && dynamight train"
    assert Plugin.validateInstallation() == [], "an environment of the user's own is taken as it is"


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
        capture_output=True, text=True,
    )  # fmt: skip
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


def test_engines_wheel_holds_every_module_and_its_data(sources, tmp_path):
    engine = sources / "dynamight_core"
    modules = python_files(engine)
    data = {
        str(path.relative_to(sources))
        for folder in ("simulate/data", "analysis/assets")
        for path in (engine / folder).glob("*")
    }
    assert wheel_contents(engine, tmp_path) == modules | data

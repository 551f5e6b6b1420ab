"""Scipion finds the plugin and shows it where users look."""

import logging
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image
from pyworkflow import Config
from pyworkflow.gui.project.viewprotocols_extra import ProtocolTreeConfig
from pyworkflow.protocol.params import Line
from scipion.install.plugin_funcs import PluginInfo

import dynamight_scipion
from dynamight_scipion.constants import ENGINE_VERSION

PLUGIN = Path(dynamight_scipion.__file__).parent
Plugin = dynamight_scipion.Plugin


# ------------------------------------------------------------------ Scipion finds the plugin


def test_entry_point_names_the_plugin_module():
    (entry_point,) = metadata.distribution("scipion-em-dynamight").entry_points
    assert (entry_point.group, entry_point.name) == ("pyworkflow.plugin", "dynamight_scipion")
    assert entry_point.load() is dynamight_scipion


def test_scipion_discovers_the_plugin():
    assert Config.getDomain().getPlugins()["dynamight_scipion"] is dynamight_scipion


def test_labels_begin_with_a_name_that_leaves_them_room():
    labels = {
        p.getClassLabel()
        for p in Config.getDomain().getProtocols().values()
        if p.__module__.startswith("dynamight_scipion")
    }
    assert "dynamight - estimate deformations" in labels
    assert all(label.startswith("dynamight - ") and len(label) < 40 for label in labels)


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


def test_the_plugin_adds_next_to_nothing_to_the_start_of_scipion():
    measure = (
        "import pwem; from time import process_time; start = process_time();"
        "import dynamight_scipion; print(process_time() - start)"
    )
    seconds = min(float(subprocess.check_output([sys.executable, "-c", measure])) for _ in range(2))
    assert seconds < 0.1


# ------------------------------------------------------------------ what it shows


OURS = {
    "DynamightProtDeformations",
    "DynamightProtReconstruct",
    "DynamightProtStates",
    "DynamightProtSelect",
    "DynamightProtDisplaceModel",
    "DynamightProtApplyField",
    "DynamightProtImportFields",
    "DynamightProtInfer",
    "DynamightProtControl",
}


def branches(menu, path=()):
    """Texts from the root, for every branch of a protocol tree."""
    for child in menu.childs:
        if child.tag != ProtocolTreeConfig.TAG_PROTOCOL:
            yield (*path, child.text)
            yield from branches(child, (*path, child.text))


def leaves(menu):
    """Yield the protocols in a protocol tree."""
    for child in menu.childs:
        if child.tag == ProtocolTreeConfig.TAG_PROTOCOL:
            yield child
        yield from leaves(child)


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
    for menu in views.values():
        for leaf in leaves(menu):
            protocol = Config.getDomain().getProtocols().get(leaf.value)
            if protocol is not None and protocol.__module__.startswith("dynamight_scipion"):
                assert leaf.text in ("default", protocol.getClassLabel(prependPackageName=False))

    for view in ("Flexibility Hub", "Protocols SPA"):
        assert sorted(leaf.value for leaf in leaves(views[view]) if leaf.value in OURS) == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_protocols_explain_every_parameter_and_have_valid_defaults(name):
    protocol = Config.getDomain().getProtocols()[name]()
    assert len(protocol.getDoc()) > 100
    form = protocol.getDefinition()
    lines = [param for _, param in form.iterAllParams() if isinstance(param, Line)]
    # A line's help stands for all in it.
    explained = {inLine for line in lines for inLine, _ in line.iterParams()} | {"runName", "runMode", "hostName"}
    # Scipion has its own words for these.
    explained |= {"useGpu", "gpuList"}
    for line in lines:
        assert len(line.help.get()) > 20, line.getLabel()
    for parameter, param in form.iterParams():
        assert param.label.get() or parameter in explained, parameter
        assert parameter in explained or len(param.help.get("")) > 20, parameter
        value = getattr(protocol, parameter)
        if not value.isPointer() and protocol.evalParamCondition(parameter):
            assert param.validate(value.get()) == [], parameter


def test_icon_is_an_image():
    with Image.open(PLUGIN / dynamight_scipion._logo) as icon:
        icon.verify()
        assert icon.format == "PNG"


def test_references_are_in_the_bibliography():
    for key in dynamight_scipion._references:
        assert dynamight_scipion._bibtex[key]["doi"] == "10.1038/s41592-024-02377-5"

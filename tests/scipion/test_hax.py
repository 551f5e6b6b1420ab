"""Our latents in Hax: by the interface that its viewer loads, and in its own code where it is installed."""

import importlib.util
import json
import os
import shlex

import numpy as np
import pytest

from dynamight_core.analysis.results import Run
from dynamight_core.analysis.states import state_volume
from dynamight_core.files import read_map
from dynamight_scipion.annotate_space import INTERFACE, getAnnotateSpaceArguments
from dynamight_scipion.objects import FLEX_PROGRAM


def argumentsOf(words):
    """Return the arguments as Hax's parser does: names to texts, of those given twice the last."""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_latents_become_maps_through_the_file_that_hax_loads(chain, tmp_path):
    particles = chain["deformations"].outputParticles
    arguments = argumentsOf(shlex.split(getAnnotateSpaceArguments(particles, tmp_path)))
    assert np.loadtxt(arguments["z_space_reduced"]).shape == (len(particles), 3), "the viewer draws in space"

    # As Hax's server does it.
    spec = importlib.util.spec_from_file_location("loaded_module", arguments["server_functions_path"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    template = str(tmp_path / "decoded_map_class_{:02d}.mrc")
    interface = module.HeterogeneityProgramInterface(
        _path_template=template, _program_loading_params=arguments | {"outdir": str(tmp_path)}
    )
    latents = np.array([[0.0, 0.0, 0.0], [0.5, -0.2, 0.1]])
    interface.decode_state_from_latent(latent=latents)
    run = Run.open(chain["deformations"].outputModel.getRunFolder())
    for number, latent in enumerate(latents, 1):
        expected = state_volume(run, latent)
        np.testing.assert_allclose(
            read_map(template.format(number))[0], expected, atol=1e-4 * np.abs(expected).max()
        )
    with pytest.raises(RuntimeError, match="4 coordinates"):
        interface.decode_state_from_latent(latent=np.zeros((1, 4)))
    interface.model.stdin.close()
    assert interface.model.wait(30) == 0, "the engine ends with the viewer"


def test_the_interface_needs_nothing_that_hax_may_not_have():
    imports = [line.split()[1] for line in open(INTERFACE) if line.startswith(("import ", "from "))]
    assert set(imports) == {"atexit", "json", "os", "subprocess"}


def test_the_name_of_our_latents_is_fit_for_files_and_not_that_of_other_programs():
    assert FLEX_PROGRAM.isidentifier()
    known = {"Zernike3D", "HetSIREN", "ReconSIREN", "FlexConsensus", "FlexSIREN", "NMA", "CryoDRGN", "cryoSPARC"}
    assert FLEX_PROGRAM not in known | {"Dynamight", "Opus-DSD", "FromFiles"}


# ------------------------------------------------------------------ with the plugins scipion-em-hax and -flexutils


@pytest.fixture
def hax():
    """Return Hax's protocols, or skip where they cannot be imported."""
    return pytest.importorskip("hax.protocols", reason="scipion-em-hax, or what it needs, is not installed")


def prepared(workflow, protocol):
    """Return a protocol whose steps can be called."""
    workflow.project.saveProtocol(protocol)
    protocol.makePathsAndClean()
    return protocol


def test_hax_writes_and_filters_our_latents(hax, workflow, chain):
    particles = chain["deformations"].outputParticles
    protocol = prepared(
        workflow, workflow.new(hax.JaxProtFilterLatents, {"inputParticles": (chain["deformations"], "outputParticles")})
    )
    protocol.writeLatentsStep()
    assert np.load(protocol._getExtraPath("latents.npy")).shape == (len(particles), 3)
    np.save(protocol._getExtraPath("filtered_latents.npy"), [0, 5, 7])
    protocol.createOutputStep()
    ids = sorted(particles.getIdSet())
    assert protocol.outputParticles.getIdSet() == {ids[0], ids[5], ids[7]}
    assert protocol.outputParticles.getFlexInfo().getAttr("modelPath") == particles.getFlexInfo().getAttr("modelPath")


def test_flexutils_reduces_our_latents_and_keeps_what_they_belong_to(workflow, chain):
    flexutils = pytest.importorskip("flexutils.protocols", reason="scipion-em-flexutils, or Xmipp, is not installed")
    source = chain["deformations"].outputParticles
    protocol = prepared(
        workflow, workflow.new(flexutils.ProtFlexDimRedSpace, {"particles": (chain["deformations"], "outputParticles")})
    )
    np.savetxt(protocol._getExtraPath("red_coords.txt"), np.arange(3 * len(source)).reshape(-1, 3))
    protocol.createOutputStep()
    info = protocol.outputParticles.getFlexInfo()
    assert (info.getProgName(), info.getAttr("modelPath")) == (FLEX_PROGRAM, source.getFlexInfo().getAttr("modelPath"))
    for before, after in zip(source, protocol.outputParticles, strict=True):
        np.testing.assert_array_equal(after.getZFlex(), before.getZFlex())
        assert len(after.getZRed()) == 3


def test_hax_annotates_our_space_with_its_own_protocol(hax, workflow, chain, tmp_path, monkeypatch):
    from dynamight_scipion.protocols import DynamightProtAnnotateSpace

    # In the place of Hax's environment: conda does nothing, and its program keeps its words.
    for name, text in (("conda", "true"), ("hax_project_manager", 'python3 -c "$KEEP" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KEEP", f"import json, sys; json.dump(sys.argv[1:], open('{tmp_path}/words.json', 'w'))")
    protocol = workflow.new(DynamightProtAnnotateSpace, {"particles": (chain["deformations"], "outputParticles")})
    assert protocol.validate() == []
    prepared(workflow, protocol)
    from pyworkflow.protocol import StepExecutor

    executor = StepExecutor(protocol.getHostConfig(), gpuList=[0])
    executor.setProtocol(protocol)
    protocol.setStepsExecutor(executor)
    protocol.launchVolumeSlicer()
    words = json.loads((tmp_path / "words.json").read_text())
    arguments = argumentsOf(words[words.index("annotate_space") + 1 :])
    assert arguments["mode"] == FLEX_PROGRAM
    assert arguments["server_functions_path"] == INTERFACE
    assert np.loadtxt(arguments["z_space"]).shape == (300, 3)
    assert np.loadtxt(arguments["z_space_reduced"]).shape == (300, 3)
    assert arguments["engine"].endswith("--listen")

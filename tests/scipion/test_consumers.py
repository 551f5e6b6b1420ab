"""Our latents in the code of the plugins that take them: scipion-em-flexutils and scipion-em-hax.

Their programs run in environments of their own, which are not here: what these would write is written by the tests.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import pyworkflow
from pyworkflow.object import Pointer
from pyworkflow.protocol import StepExecutor
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_scipion.annotate_space import INTERFACE
from dynamight_scipion.objects import FLEX_PROGRAM
from dynamight_scipion.viewers import ADynamightModelViewer

# Where `make install` puts these plugins, beside the environment's packages.
FOLDER = Path(pyworkflow.__file__).parents[4] / "consumers"


@pytest.fixture
def installed(monkeypatch):
    """Let the plugins be imported in the test's process, and there alone."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(FOLDER)])


@pytest.fixture
def hax(installed):
    """Return Hax's protocols, or skip where they cannot be imported."""
    return pytest.importorskip("hax.protocols", reason="scipion-em-hax is not in .venv/consumers (make install)")


@pytest.fixture
def flexutils(installed):
    """Return the protocols of flexutils, or skip where they cannot be imported."""
    return pytest.importorskip(
        "flexutils.protocols", reason="scipion-em-flexutils is not in .venv/consumers (make install)"
    )


@pytest.fixture
def given(chain):
    """Return our particles, and where their protocol is: what others take as an input."""
    return chain["deformations"].outputParticles, (chain["deformations"], "outputParticles")


@pytest.fixture
def prepared(workflow):
    """Return a function that makes a protocol whose steps can be called; it is deleted after the test."""
    made = []

    def prepare(protocolClass, inputs, **parameters):
        protocol = workflow.new(protocolClass, inputs, **parameters)
        workflow.project.saveProtocol(protocol)
        protocol.makePathsAndClean()
        executor = StepExecutor(protocol.getHostConfig(), gpuList=[0])
        executor.setProtocol(protocol)
        protocol.setStepsExecutor(executor)
        made.append(protocol)
        return protocol

    yield prepare
    for protocol in made:
        workflow.project.deleteProtocol(protocol)


def program(protocol, monkeypatch, *written):
    """Stand for the programs that a protocol starts: keep their words, and write (path, array) for them."""
    words = []

    def runJob(name, arguments, **_):
        words.extend(arguments.split())
        for path, array in written:
            np.savetxt(path, array)

    monkeypatch.setattr(protocol, "runJob", runJob)
    return words


def latents(particles):
    return np.array([particle.getZFlex() for particle in particles.iterItems()])


def belongs(particles, source):
    """Whether latents are still known to be ours, and of which model, and the particles have what we found."""
    info = particles.getFlexInfo()
    viewers = pyworkflow.Config.getDomain().findViewers(particles, DESKTOP_TKINTER)
    return (
        info.getProgName() == FLEX_PROGRAM
        and info.getAttr("modelPath") == source.getFlexInfo().getAttr("modelPath")
        and ADynamightModelViewer in viewers
        and particles.getFirstItem()._dynMotionRms.get() > 0
    )


# ------------------------------------------------------------------ flexutils


def test_flexutils_reduces_our_latents(flexutils, prepared, given):
    source, pointer = given
    protocol = prepared(flexutils.ProtFlexDimRedSpace, {"particles": pointer})
    assert protocol.validate() == []
    np.savetxt(protocol._getExtraPath("red_coords.txt"), np.arange(3 * len(source)).reshape(-1, 3))
    protocol.createOutputStep()
    assert belongs(protocol.outputParticles, source)
    np.testing.assert_array_equal(latents(protocol.outputParticles), latents(source))
    assert len(protocol.outputParticles.getFirstItem().getZRed()) == 3


def test_flexutils_filters_our_latents_by_pca(flexutils, prepared, given):
    source, pointer = given
    protocol = prepared(flexutils.ProtFlexFilterPCA, {"particles": pointer}, keepPCA="1")
    assert protocol.validate() == []
    protocol.filterPCASpace()
    protocol.createOutputStep()
    assert belongs(protocol.outputParticles, source)
    assert protocol.outputParticles.getIdSet() == source.getIdSet()
    before, after = latents(source), latents(protocol.outputParticles)
    assert np.linalg.matrix_rank(after - after.mean(0), tol=1e-3) == 1
    assert abs(np.corrcoef(before[:, 0], after[:, 0])[0, 1]) > 0.99, "our first motion is the largest"


def test_flexutils_looks_for_clusters_in_our_latents(flexutils, prepared, given, monkeypatch):
    source, pointer = given
    protocol = prepared(flexutils.ProtFlexOptimalClusters, {"inputParticles": pointer})
    words = program(protocol, monkeypatch)
    protocol.clusterAnalysis()
    np.testing.assert_allclose(np.loadtxt(words[words.index("--data_file") + 1]), latents(source), rtol=1e-6)


def test_flexutils_leaves_out_our_outliers(flexutils, prepared, given, monkeypatch):
    source, pointer = given
    protocol = prepared(flexutils.ProtFlexScoreLandscape, {"inputParticles": pointer}, filter=1)
    scores = np.linspace(0, 2, len(source))
    words = program(protocol, monkeypatch, (protocol._getExtraPath("z_scores.txt"), scores))
    protocol.detectOutliers()
    protocol.createOutputStep()
    np.testing.assert_allclose(np.loadtxt(words[words.index("--i") + 1]), latents(source), rtol=1e-6)
    assert belongs(protocol.outputParticles, source)
    np.testing.assert_array_equal(latents(protocol.outputParticles), latents(source)[scores <= 1])


def test_flexutils_gives_our_latents_to_other_images_of_the_particles(flexutils, prepared, given, chain):
    source, pointer = given
    others = chain["particles"], "outputParticles"
    protocol = prepared(flexutils.ProtFlexAssociateSpace, {"particlesFlex": pointer, "particles": others})
    protocol._createOutputStep()
    assert belongs(protocol.flexParticles, source)
    np.testing.assert_array_equal(latents(protocol.flexParticles), latents(source))


# ------------------------------------------------------------------ Hax


def test_hax_filters_our_latents(hax, prepared, given):
    source, pointer = given
    protocol = prepared(hax.JaxProtFilterLatents, {"inputParticles": pointer})
    protocol.writeLatentsStep()
    np.testing.assert_allclose(np.load(protocol._getExtraPath("latents.npy")), latents(source))
    np.save(protocol._getExtraPath("filtered_latents.npy"), [0, 5, 7])
    protocol.createOutputStep()
    ids = sorted(source.getIdSet())
    assert protocol.outputParticles.getIdSet() == {ids[0], ids[5], ids[7]}
    assert belongs(protocol.outputParticles, source)


def test_hax_compares_our_latents_with_others(hax, prepared, given):
    source, pointer = given
    protocol = prepared(hax.JaxProtTrainFlexConsensus, {})
    for _ in range(2):
        protocol.inputSets.append(Pointer(pointer[0], extended=pointer[1]))
    protocol.convertInputStep()
    for number in (0, 1):
        name = f"{FLEX_PROGRAM}_{number}"
        np.testing.assert_allclose(np.load(protocol._getExtraPath("data", f"{name}.npy")), latents(source))
        np.save(protocol._getExtraPath(f"{name}_consensus.npy"), np.tile(np.arange(3.0), (len(source), 1)) + number)
        for error in ("consensus", "representation"):
            np.save(protocol._getExtraPath(f"{name}_{error}_error.npy"), np.full(len(source), 0.5))
    protocol.createOutputStep()
    (_, first), (_, second) = sorted(protocol.iterOutputAttributes())
    for number, found in enumerate((first, second)):
        np.testing.assert_array_equal(latents(found), latents(source))
        assert found.getFirstItem().getZRed().tolist() == [number, number + 1, number + 2]
        assert found.getFlexInfo().getAttr("modelPath") == source.getFlexInfo().getAttr("modelPath")


def test_hax_annotates_our_space_with_its_own_protocol(hax, prepared, given, tmp_path, monkeypatch):
    from hax import Plugin

    from dynamight_scipion.protocols.protocol_annotate_space import DynamightProtAnnotateSpace

    Plugin._defineVariables()
    # In the place of Hax's environment: conda does nothing, and its program keeps its words.
    for name, text in (("conda", "true"), ("hax_project_manager", 'python3 -c "$KEEP" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KEEP", f"import json, sys; json.dump(sys.argv[1:], open('{tmp_path}/words.json', 'w'))")
    source, pointer = given
    protocol = prepared(DynamightProtAnnotateSpace, {"particles": pointer})
    assert protocol.validate() == []
    protocol.launchVolumeSlicer()
    words = json.loads((tmp_path / "words.json").read_text())
    words = words[words.index("annotate_space") + 1 :]
    arguments = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert arguments["mode"] == FLEX_PROGRAM
    assert arguments["server_functions_path"] == INTERFACE
    np.testing.assert_allclose(np.loadtxt(arguments["z_space"]), latents(source))
    assert np.loadtxt(arguments["z_space_reduced"]).shape == (len(source), 3)
    assert arguments["engine"].endswith("--listen")

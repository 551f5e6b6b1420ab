"""A model applied to particles that trained nothing, in Scipion."""

from types import SimpleNamespace

import numpy as np
import pytest

from dynamight_core.run import Run
from dynamight_core.simulate.dataset import SimulateOptions, simulate
from dynamight_scipion.objects import FLEX_PROGRAM
from dynamight_scipion.protocols import DynamightProtInfer
from dynamight_scipion.viewers import ADynamightModelViewer
from tests.scipion.test_states_select_displace import sourcesOf
from tests.scipion.test_viewers import viewersOf
from tests.support.plugin import BOX, PIXEL


@pytest.fixture
def others(workflow, tmp_path):
    """Return a finished import of 60 other particles of the same molecule."""
    options = SimulateOptions(particles=60, box=BOX, pixel_size=PIXEL, snr=8.0, seed=9)
    return workflow.imported(SimpleNamespace(particles=simulate(options, tmp_path / "others").particles))


def test_new_particles_get_motions_of_the_model(workflow, chain, others):
    inputs = {"inputModel": (chain["deformations"], "outputModel"), "inputParticles": (others, "outputParticles")}
    inferred = workflow.run(DynamightProtInfer, inputs, numberOfThreads=1)
    model, trained = inferred.outputModel, chain["deformations"].outputModel
    assert model.getNumberOfParticles() == len(inferred.outputParticles) == 60
    assert model.getNumberOfMotions() == trained.getNumberOfMotions()
    assert model.getConsensusMap() == trained.getConsensusMap()
    assert not model.getMissingFiles()
    run = Run(model.getRunFolder())
    for row, particle in enumerate(inferred.outputParticles.iterItems()):
        np.testing.assert_allclose(particle.getZFlex(), run.motions.coordinates[row], atol=1e-3)
        # None of them trained a decoder.
        assert particle._dynValidation.get() == 1
        assert particle.getLocation() == others.outputParticles[particle.getObjId()].getLocation()
    info = inferred.outputParticles.getFlexInfo()
    assert (info.getProgName(), info.getAttr("modelPath")) == (FLEX_PROGRAM, model.getRunFolder())
    names = {f"{chain['deformations'].getObjId()}.outputModel", f"{others.getObjId()}.outputParticles"}
    assert sourcesOf(workflow, inferred, "outputModel") == names
    assert any("Motions of 60 particles were inferred" in line for line in inferred.summary())
    assert viewersOf(inferred)[0] is viewersOf(inferred.outputParticles)[0] is ADynamightModelViewer


def test_particles_of_another_box_are_refused_before_the_run(workflow, chain, others, monkeypatch):
    inputs = {"inputModel": (chain["deformations"], "outputModel"), "inputParticles": (others, "outputParticles")}
    protocol = workflow.new(DynamightProtInfer, inputs)
    assert protocol.validate() == []
    monkeypatch.setattr(protocol.inputParticles.get(), "getSamplingRate", lambda: 4.0)
    (error,) = protocol.validate()
    assert "32 pixels of 4 Å, the model's 32 of 6 Å" in error

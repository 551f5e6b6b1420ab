"""The control protocol: what the engine finds, in the summary and as curves."""

import json
from pathlib import Path

import pytest

from dynamight_scipion.protocols import DynamightProtControl
from dynamight_scipion.protocols.protocol_control import KINDS


@pytest.fixture
def model(chain):
    """Return the input of the protocol."""
    return {"inputModel": (chain["deformations"], "outputModel")}


@pytest.mark.parametrize("kind", ["shuffled-latents", "noise-particles"])
def test_a_control_says_its_verdict_and_leaves_the_model_alone(workflow, chain, model, kind):
    protocol = workflow.run(DynamightProtControl, model, kind=KINDS.index(kind), nPermutations=2, numberOfThreads=1)
    found = json.loads(Path(protocol._getControlPath(".json")).read_text())
    assert found["options"]["kind"] == kind
    assert found["options"]["permutations"] == 2
    assert any(found["verdict"].capitalize() in line and found["sentence"] in line for line in protocol.summary())
    assert found["sentence"] in protocol.methods()[0]
    stages = Path(chain["deformations"].outputModel.getRunPath("config.yaml")).read_text()
    assert f"control {kind}" not in stages
    # Copied at once: a set that is iterated hands out one object for all of its items.
    curves = {c.getObjLabel(): [list(map(float, axis)) for axis in c.getData()] for c in protocol.outputFSCs}
    assert len(curves) == len(found["figures"]["curves"])
    label = "without deformation" if kind == "shuffled-latents" else "noise, not deformed"
    frequencies, values = curves[label]
    assert values == pytest.approx(found["figures"]["curves"]["rigid"][1:], abs=1e-3)
    assert frequencies == pytest.approx(found["figures"]["resolution"][1:], abs=1e-3)


def test_what_changes_a_control_changes_its_step(workflow, model):
    before = workflow.new(DynamightProtControl, model)._getOptions()
    for parameter, value in {"kind": 1, "nParticles": 500, "nPermutations": 3, "shrink": False, "seed": 1}.items():
        assert workflow.new(DynamightProtControl, model, **{parameter: value})._getOptions() != before


def test_an_empty_pointer_is_named_and_nothing_else_fails(workflow):
    protocol = workflow.new(DynamightProtControl)
    assert protocol.validate() == ["*Model* cannot be EMPTY."]
    assert protocol.warnings() == []
    assert protocol.summary()

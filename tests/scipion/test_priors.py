"""An atomic model and rigid bodies given to the deformations: what goes to the engine, and what is refused and said."""

from pathlib import Path

import pytest
from pwem.objects import AtomStruct, Pointer
from pwem.protocols import ProtImportPdb

from dynamight_core.simulate.truth import load_truth
from dynamight_scipion.protocols import DynamightProtControl, DynamightProtDeformations
from dynamight_scipion.protocols.protocol_control import WRONG_MODEL
from tools.structures import write_chains

QUICK = {
    "nEpochs": 6,
    "warmUpEpochs": 1,
    "refits": 0,
    "nLatents": 2,
    "nMotions": 2,
    "batchSize": 64,
    "embedding": 1,
    # So few particles need many for validation.
    "validationFraction": 0.25,
    "numberOfThreads": 1,
}


def inputs(chain):
    return {"inputParticles": (chain["particles"], "outputParticles"), "inputVolume": (chain["volume"], "outputVolume")}


@pytest.fixture(scope="module")
def atoms(simulated, tmp_path_factory):
    """The molecule as a PDB file: chain A rests, chain B moves; every fifth of its points."""
    molecule = load_truth(simulated.particles.parent / "truth.npz").molecule
    parts = (molecule.positions[molecule.moving == label][::5] for label in (0, 1))
    return write_chains(tmp_path_factory.mktemp("atoms") / "atoms.cif", *parts)


def test_an_atomic_model_goes_to_the_engine_with_its_warning_and_its_control(workflow, chain, atoms):
    imported = workflow.run(ProtImportPdb, inputPdbData=ProtImportPdb.IMPORT_FROM_FILES, pdbFile=str(atoms))
    given = inputs(chain) | {"inputStructure": (imported, "outputPdb")}
    star = chain["deformations"].opticsStar.get()
    protocol = workflow.new(DynamightProtDeformations, given, opticsStar=star, **QUICK)
    assert any("half-sets share the atomic model" in line for line in protocol.warnings())
    workflow.launch(protocol)
    assert protocol.isFinished(), workflow.log(protocol)
    model = protocol.outputModel
    assert model.getNumberOfGaussians() == 600
    assert model.getAtomicModel() == imported.outputPdb.getFileName()
    assert any("wrong-model" in line and "was not run" in line for line in protocol.summary())

    control = workflow.run(
        DynamightProtControl,
        {"inputModel": (protocol, "outputModel")},
        kind=WRONG_MODEL,
        selection="B",
        numberOfThreads=1,
    )
    found = control.loadControl()
    assert found["options"]["selection"] == "B"
    assert any(found["sentence"] in line for line in control.summary())
    assert len(control.outputFSCs) == 4
    assert Path(control._getControlPath(""), "wrong.cif").exists()


def test_what_the_priors_are_changes_the_steps(workflow, chain, atoms):
    protocol = workflow.new(DynamightProtDeformations, inputs(chain))
    before = protocol._describeInputs()
    structure = AtomStruct(str(atoms))
    structure.setObjId(77)
    protocol.inputStructure.set(structure)
    assert protocol._describeInputs() != before
    assert "--fit" not in protocol._getTrainOptions()
    protocol.fitStructure.set(True)
    assert "--fit" in protocol._getTrainOptions()
    before = protocol._describeInputs()
    protocol.inputBodies.append(Pointer(chain["reconstruction"], extended="outputMask"))
    assert protocol._describeInputs() != before


def test_priors_that_cannot_be_used_are_refused_before_the_run(workflow, chain, atoms, tmp_path):
    protocol = workflow.new(DynamightProtDeformations, inputs(chain), fitStructure=True)
    assert "no atomic model to fit" in protocol.validate()[0]
    protocol.inputStructure.set(AtomStruct(str(tmp_path / "gone.pdb")))
    protocol.widthClasses.set(2)
    first, second = protocol.validate()
    assert "is missing" in first
    assert "set the *number of width classes* to 1" in second
    protocol.inputStructure.set(AtomStruct(str(atoms)))
    protocol.widthClasses.set(1)
    assert protocol.validate() == []
    mask = Pointer(chain["reconstruction"], extended="outputMask")
    protocol.inputBodies.append(mask)
    protocol.inputMask.copy(mask)
    one, both = protocol.validate()
    assert "two or more" in one
    assert "omit the *mask of the flexible region*" in both
    protocol.decoder.set(1)
    protocol.regularisation.set(1)
    assert "set *decoder* to its default" in protocol.validate()[2]
    assert "set *regularisation* to fixed weight" in protocol.validate()[3]
    control = workflow.new(
        DynamightProtControl, {"inputModel": (chain["deformations"], "outputModel")}, kind=WRONG_MODEL
    )
    assert "without an atomic model" in control.validate()[0]

"""Deformation fields as objects: what they hold, where they go, and what becomes of maps and models."""

import os
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from matplotlib.figure import Figure
from pwem.protocols import ProtImportPdb
from pyworkflow.object import Pointer
from pyworkflow.project import Manager

from dynamight_core.analysis.displace import Displacer, read_points
from dynamight_core.analysis.field_files import read_field
from dynamight_core.analysis.molecule import all_gaussians
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.files import read_map
from dynamight_core.run import Run
from dynamight_scipion.objects import DeformationField, SetOfDeformationFields
from dynamight_scipion.protocols import (
    DynamightProtApplyField,
    DynamightProtDeformations,
    DynamightProtDisplaceModel,
    DynamightProtImportFields,
    DynamightProtStates,
)
from dynamight_scipion.protocols.protocol_displace_model import BY_FIELDS
from dynamight_scipion.viewers import ADynamightFieldsViewer, field_figures
from dynamight_scipion.viewers.viewer_fields import arrowsOf
from tests.scipion.test_states_select_displace import positionsOf, sourcesOf, writeAtoms
from tests.scipion.test_viewers import eye, opened, parameters, viewersOf  # noqa: F401 opened is a fixture
from tests.support.plugin import BOX, PIXEL, same_input, small

PARTICLE = 12


@pytest.fixture(scope="module")
def _cache():
    return {}


@pytest.fixture
def states(workflow, chain, _cache):
    """Return a finished protocol with two states and the field of a particle."""
    if "states" not in _cache:
        model = {"inputModel": (chain["deformations"], "outputModel")}
        _cache["states"] = workflow.run(
            DynamightProtStates, model, nStates=2, doMovie=False, fieldParticles=f"{PARTICLE}", numberOfThreads=1
        )
    return _cache["states"]


@pytest.fixture
def atoms(workflow, chain, _cache, tmp_path):
    """Return a finished import of atoms near the Gaussians."""
    if "atoms" not in _cache:
        gaussians = all_gaussians(Run(chain["deformations"].outputModel.getRunFolder()))
        writeAtoms(tmp_path / "atoms.pdb", gaussians[::40] + BOX // 2 * PIXEL)
        _cache["atoms"] = workflow.run(
            ProtImportPdb, inputPdbData=ProtImportPdb.IMPORT_FROM_FILES, pdbFile=str(tmp_path / "atoms.pdb")
        )
    return _cache["atoms"]


def fieldsIn(given):
    return {field.getName(): field.clone() for field in given.iterItems()}


def displaceBy(workflow, source, output, atoms, **parameters):
    inputs = {"inputFields": (source, output), "inputStructure": (atoms, "outputPdb")}
    return workflow.run(DynamightProtDisplaceModel, inputs, displaceBy=BY_FIELDS, numberOfThreads=1, **parameters)


def test_states_have_fields_that_say_where_they_lead(workflow, chain, states):
    fields = fieldsIn(states.outputFields)
    model = chain["deformations"].outputModel
    assert len(fields) == 3 and isinstance(states.outputFields, SetOfDeformationFields)
    for state in states.outputStates.iterItems():
        field = fields[state.getObjLabel()]
        np.testing.assert_allclose(field.getZFlex(), state.getZFlex(), atol=1e-3)
        assert (field.getKind(), field.getFrame(), field.getParticleId()) == ("state", "consensus", 0)
        assert field.getReferenceMap() == model.getConsensusMap()
        assert field.getReferenceGrid() == (BOX, PIXEL)
        assert 3.5 < field.getSamplingRate() < 4.5
        assert min(field.getRms(), field.getError()) > 0
        arrays = field.loadField()
        assert arrays["displacement"].shape == arrays["points"].shape == (*arrays["error"].shape, 3)
        np.testing.assert_allclose(
            read_field(field.getFileName()).positions(), arrays["points"].reshape(-1, 3), atol=1e-4
        )
    (particle,) = [field for field in fields.values() if field.getKind() == "particle"]
    assert particle.getParticleId() == PARTICLE
    expected = chain["deformations"].outputParticles[PARTICLE]
    np.testing.assert_allclose(particle.getZFlex(), expected.getZFlex(), atol=1e-3)
    assert particle.getRms() == pytest.approx(expected._dynMotionRms.get(), rel=0.3)
    assert sourcesOf(workflow, states, "outputFields") == {f"{chain['deformations'].getObjId()}.outputModel"}
    assert all(str(path).startswith(states.getPath()) for path in states.outputFields.getFiles())


def test_principal_motions_are_fields_if_they_are_supported(workflow, chain):
    estimated = chain["deformations"]
    assert hasattr(estimated, "outputFields") == estimated.outputModel.isMotionSupported()
    if hasattr(estimated, "outputFields"):
        fields = list(fieldsIn(estimated.outputFields).values())
        assert len(fields) == estimated.outputModel.getNumberOfMotions()
        for number, field in enumerate(fields):
            coordinates = field.getZFlex()
            assert coordinates[number] > 0
            assert np.count_nonzero(coordinates) <= 1


def test_a_structure_displaced_by_fields_is_where_displace_puts_it(workflow, chain, states, atoms):
    moved = displaceBy(workflow, states, "outputFields", atoms)
    run = Run(chain["deformations"].outputModel.getRunFolder())
    given = read_points(atoms.outputPdb.getFileName(), run)
    displacer = Displacer(run, given.positions)
    fields = list(fieldsIn(states.outputFields).values())
    structures = [structure.clone() for structure in moved.outputStructures.iterItems()]
    assert len(structures) == len(fields) == 3
    for structure, field in zip(structures, fields, strict=True):
        row = PARTICLE - 1
        there = (
            displacer.of_particles(np.array([row]))[0]
            if field.getParticleId()
            else displacer.at_state(field.getZFlex())
        )
        expected = there.numpy() + given.offset
        np.testing.assert_allclose(positionsOf(structure.getFileName()), expected, atol=1e-3 + 1e-3)
        np.testing.assert_allclose(structure.getZFlex(), field.getZFlex(), atol=1e-6)
    assert "Displacement of the atoms" in moved.summary()[1]
    assert moved.loadShifts().shape == (3, len(expected), 3)
    names = {f"{states.getObjId()}.outputFields", f"{atoms.getObjId()}.outputPdb"}
    assert sourcesOf(workflow, moved, "outputStructures") == names


def test_a_map_is_deformed_by_one_field_and_by_a_set(workflow, chain, states):
    inputs = {"inputFields": (states, "outputFields"), "inputVolume": (chain["volume"], "outputVolume")}
    every = workflow.run(DynamightProtApplyField, inputs, numberOfThreads=1)
    volumes = [volume.clone() for volume in every.outputVolumes.iterItems()]
    fields = list(fieldsIn(states.outputFields).values())
    assert [volume.getObjLabel() for volume in volumes] == [field.getName() for field in fields]
    model = chain["deformations"].outputModel
    pushed = PushedMap(Run(model.getRunFolder()), path=Path(model.getConsensusMap()))
    expected = pushed.volume(fields[1].getZFlex())
    before, found = read_map(model.getConsensusMap())[0], read_map(volumes[1].getFileName())[0]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected - before)
    one = workflow.run(
        DynamightProtApplyField,
        inputs | {"inputFields": (states, f"outputFields.{fields[1].getObjId()}")},
        numberOfThreads=1,
    )
    np.testing.assert_allclose(read_map(one.outputVolume.getFileName())[0], found, atol=1e-6)
    assert one.outputVolume.getSamplingRate() == PIXEL
    assert fields[1].getName() in one.summary()[0]


def test_a_field_survives_export_copy_of_the_project_and_import(workflow, chain, states, atoms, tmp_path):
    before = displaceBy(workflow, states, "outputFields", atoms)
    fields = list(fieldsIn(states.outputFields).values())
    for suffix in (".npz", ".mrc"):
        for field in fields:
            shutil.copy(Path(field.getFileName()).with_suffix(suffix), tmp_path)
    before_copy = {field.getName(): field.loadField()["displacement"] for field in fields}
    copied = Manager().getProjectPath("copied")
    shutil.copytree(workflow.project.path, copied, symlinks=True)
    original = os.getcwd()
    try:
        # Its folder becomes the working folder.
        project = Manager().loadProject("copied")
        assert os.getcwd() == os.path.realpath(copied)
        there = project.getProtocol(states.getObjId()).outputFields
        for field, other in zip(fields, fieldsIn(there).values(), strict=True):
            assert str(other) == str(field)
            np.testing.assert_array_equal(other.loadField()["displacement"], before_copy[field.getName()])
        project.closeMapper()
    finally:
        os.chdir(original)
        shutil.rmtree(copied)
    shifts = []
    for suffix in (".npz", ".mrc"):
        imported = workflow.run(
            DynamightProtImportFields,
            {"referenceVolume": (chain["volume"], "outputVolume")},
            filesPath=str(tmp_path / f"*{suffix}"),
        )
        found = fieldsIn(imported.outputFields)
        for field in fields:
            again = found[field.getName()]
            np.testing.assert_array_equal(again.loadField()["displacement"], field.loadField()["displacement"])
            np.testing.assert_allclose(again.loadField()["points"], field.loadField()["points"], atol=1e-3)
            assert again.getKind() == (field.getKind() if suffix == ".npz" else "imported")
        moved = displaceBy(workflow, imported, "outputFields", atoms)
        labels = [structure.getObjLabel() for structure in moved.outputStructures.iterItems()]
        shifts.append(dict(zip(labels, moved.loadShifts(), strict=True)))
    for field, shift in zip(fields, before.loadShifts(), strict=True):
        # Without the run, they are interpolated on the grid.
        np.testing.assert_allclose(shifts[0][field.getName()], shift, atol=0.05)
        np.testing.assert_allclose(shifts[1][field.getName()], shifts[0][field.getName()], atol=1e-3)


def test_fields_that_cannot_be_used_are_refused_before_the_run(workflow, chain, states, tmp_path):
    reference = {"referenceVolume": (chain["volume"], "outputVolume")}
    (tmp_path / "no.npz").write_text("nothing")
    for path, reason in [
        (tmp_path / "gone.npz", "No file is called"),
        (tmp_path / "no.npz", "is not a deformation field"),
    ]:
        (error,) = workflow.new(DynamightProtImportFields, reference, filesPath=str(path)).validate()
        assert reason in error
    given = workflow.new(DynamightProtApplyField, {"inputVolume": (chain["volume"], "outputVolume")})
    assert "cannot be EMPTY" in given.validate()[0]
    lost = DeformationField("gone.npz")
    lost._samplingRate.set(4.0)
    lost.setReference(None, BOX, PIXEL)
    given.inputFields = Pointer(lost)
    assert "is missing" in given._validate()[0]
    model = {"inputModel": (chain["deformations"], "outputModel")}
    for words, reason in [("7, x", "are not ids of particles"), ("99999", "no particle with id 99999")]:
        (error,) = workflow.new(DynamightProtStates, model, fieldParticles=words).validate()
        assert reason in error


def test_zflex_can_be_latents_of_either_half_set(workflow, chain):
    columns = ("_dynLatents1", "_dynLatents2")
    estimated = chain["deformations"].outputParticles
    latents = Run(chain["deformations"].outputModel.getRunFolder()).latents.numpy()
    for row, particle in enumerate(estimated.iterItems()):
        for half, name in enumerate(columns):
            np.testing.assert_allclose(
                np.array(getattr(particle, name), dtype=float), latents[half, row], rtol=1e-4, atol=1e-5
            )
    run = workflow.run(DynamightProtDeformations, same_input(chain), **small(chain, nEpochs=1, zFlexFrom=2))
    assert run.outputParticles.getFlexInfo().getAttr("space") == "latents of half-set 2"
    for particle in run.outputParticles.iterItems():
        np.testing.assert_allclose(particle.getZFlex(), np.array(particle._dynLatents2, dtype=float), rtol=1e-5)


def test_the_viewer_shows_fields_as_arrows_and_slices(opened, states):  # noqa: F811
    assert viewersOf(states.outputFields)[0] is ADynamightFieldsViewer
    viewer = opened(states.outputFields)
    assert parameters(viewer) == ["field", "overview", "arrows", "chimera", "slices", "difference"]
    (message,) = eye(viewer, "overview")
    assert f"of particle {PARTICLE}" in message.getMessage()
    field = viewer._getField()
    points, shift, error = arrowsOf(field)
    assert points.shape == shift.shape == (len(error), 3)
    (plot,) = eye(viewer, "arrows")
    assert len(plot.getFigure().axes) == 4
    plot.close()
    (plot,) = eye(viewer, "slices")
    length = np.linalg.norm(field.loadField()["displacement"], axis=-1)
    np.testing.assert_allclose(plot.getFigure().axes[0].images[0].get_array(), length[len(length) // 2])
    plot.close()
    eye(viewer, "chimera")
    eye(viewer, "difference")
    script, second = (
        Path(viewer.protocol._getExtraPath(f"{name}.cxc")).read_text() for name in ("field", "difference")
    )
    bild = Path(viewer.protocol._getExtraPath(f"{field.getName()}_arrows.bild")).read_text()
    assert field.getReferenceMap() in script and "_arrows.bild" in script
    assert "color sample #2 map #3" in second and "color sample" not in script
    with mrcfile.open(viewer.protocol._getExtraPath(f"{field.getName()}_difference.mrc")) as mrc:
        np.testing.assert_array_equal(mrc.data, field.loadField()["difference"])
    assert bild.count(".arrow") == bild.count(".sphere") == len(points)


def test_arrows_without_uncertainties_are_drawn_without_spheres(tmp_path):
    figure = Figure()
    field_figures.drawArrows(figure, np.eye(3), np.eye(3), np.full(3, np.nan))
    assert len(figure.axes) == 3

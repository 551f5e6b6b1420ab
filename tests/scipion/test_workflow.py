"""A real project: from an import to a corrected map, and in a chain with other programs."""

import json
import shutil
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import starfile
from pwem.objects import (
    Acquisition,
    AtomStruct,
    Coordinate,
    CTFModel,
    Micrograph,
    Particle,
    SetOfParticlesFlex,
    Transform,
    Volume,
)
from pwem.protocols import ProtImportCTF, ProtImportMicrographs
from pyworkflow.object import Integer, Pointer
from relion.protocols import (
    ProtRelionExportParticles,
    ProtRelionExtractParticles,
    ProtRelionLocalRes,
    ProtRelionPostprocess,
)

from dynamight_core.simulate.truth import load_truth
from dynamight_scipion.convert.poses import matricesOfPoses
from dynamight_scipion.objects import SUMMARY_FILE, DynamightModel
from dynamight_scipion.protocols import DynamightProtDeformations, DynamightProtReconstruct
from dynamight_scipion.protocols.protocol_deformations import describeShares
from dynamight_scipion.viewers import DynamightReconstructViewer
from tests.support.plugin import BOX, PARTICLES, PIXEL, small

# ------------------------------------------------------------------ deformations


def test_every_particle_comes_out_with_what_the_engine_found_for_it(chain):
    given, found = (chain[name].outputParticles for name in ("particles", "deformations"))
    assert isinstance(found, SetOfParticlesFlex)
    assert len(found) == len(given) == PARTICLES
    table = starfile.read(chain["deformations"].outputModel.getParticlesStar())["particles"].set_index("rlnImageId")
    for particle in found:
        row, before = table.loc[particle.getObjId()], given[particle.getObjId()]
        np.testing.assert_allclose(particle.getZFlex(), row[[f"dynMotion{k}" for k in (1, 2, 3)]].to_list(), rtol=1e-5)
        assert len(particle.getZRed()) == 2
        assert particle._dynHalf.get() == row["dynHalf"] == before._rlnRandomSubset.get()
        assert particle._dynMotionRms.get() == pytest.approx(row["dynMotionRms"])
        assert particle._dynMotionError.get() == pytest.approx(row["dynMotionError"])
        assert particle.getLocation() == before.getLocation()
        assert particle._rlnRandomSubset.get() == before._rlnRandomSubset.get()
        assert particle.getCTF().getPhaseShift() == before.getCTF().getPhaseShift() > 0
        np.testing.assert_array_equal(particle.getTransform().getMatrix(), before.getTransform().getMatrix())


def test_motions_are_those_that_were_simulated_particle_by_particle(chain, simulated):
    angles = load_truth(simulated.truth).angles[:, 0].numpy()
    # The import numbers particles as they stand in the STAR file.
    found = {particle.getObjId(): particle.getZFlex()[0] for particle in chain["deformations"].outputParticles}
    assert abs(np.corrcoef(angles, [found[number] for number in range(1, PARTICLES + 1)])[0, 1]) > 0.6


def test_the_set_keeps_what_it_was_and_says_which_model_its_latents_are_of(chain):
    given, found = (chain[name].outputParticles for name in ("particles", "deformations"))
    assert found.hasAlignmentProj()
    assert found.hasCTF()
    assert found.getSamplingRate() == given.getSamplingRate() == PIXEL
    assert found.getAcquisition().getVoltage() == given.getAcquisition().getVoltage()
    assert found.getAcquisition().opticsGroupInfo.get() == given.getAcquisition().opticsGroupInfo.get()
    info = found.getFlexInfo()
    assert info.getAttr("modelPath") == chain["deformations"].outputModel.getRunFolder()
    assert Path(info.getAttr("refMap")).exists()


def test_the_summary_says_what_trained_the_model(chain):
    lines = [line for line in chain["deformations"].summary() if line.startswith("Trained on the ")]
    device = chain["deformations"].outputModel.loadSummary()["model"]["device"]
    assert lines == ["Trained on the CPU, although a GPU was chosen: the log says why."] or device != "cpu"


def test_particles_of_two_compositions_become_two_sets(chain):
    protocol, given = chain["deformations"], chain["particles"].outputParticles
    assert protocol._createGroups(given) == {}
    whole = starfile.read(protocol.outputModel.getParticlesStar())["particles"]
    folder = Path(protocol.outputModel.getRunFolder(), "analysis", "composition")
    folder.mkdir()
    try:
        for group, rows in ((1, whole[5:]), (2, whole[:5])):
            starfile.write({"particles": rows}, folder / f"group{group}.star")
        groups = protocol._createGroups(given)
        assert {name: [item.getObjId() for item in found] for name, found in groups.items()} == {
            "outputMoreMass": whole["rlnImageId"][5:].to_list(),
            "outputLessMass": whole["rlnImageId"][:5].to_list(),
        }
        assert next(iter(groups["outputLessMass"]))._rlnRandomSubset.get() in (1, 2)
    finally:
        shutil.rmtree(folder)


def test_the_model_knows_its_run_and_its_particles_and_survives_a_copy(chain):
    for model in (chain["deformations"].outputModel, chain["deformations"].outputModel.clone()):
        assert isinstance(model, DynamightModel)
        assert model.getMissingFiles() == []
        assert (model.getBoxSize(), model.getSamplingRate()) == (BOX, PIXEL)
        assert (model.getNumberOfGaussians(), model.getNumberOfLatents(), model.getNumberOfMotions()) == (200, 2, 3)
        assert model.getNumberOfParticles() == PARTICLES == sum(model.getNumberOfParticles(half) for half in (1, 2))
        assert not model.areHalfSetsRandom()
        assert model.getVerdict() in ("supported", "not supported", "undecided")
        assert len(model.getParticles()) == PARTICLES
        assert not Path(model.getRunFolder()).is_absolute()
        assert f"{PARTICLES} particles, 200 Gaussians" in str(model)


def test_motion_is_a_volume_and_the_gaussians_are_atoms_in_its_frame(chain):
    deformations = chain["deformations"]
    assert isinstance(deformations.outputMotion, Volume)
    assert deformations.outputMotion.getSamplingRate() == PIXEL
    with mrcfile.open(deformations.outputMotion.getFileName()) as mrc:
        motion = mrc.data.copy()
    # Scipion shows a volume with the centre of its box at zero.
    assert deformations.outputMotion.getOrigin(force=True).getShifts() == (-BOX / 2 * PIXEL,) * 3
    for gaussians in (deformations.outputGaussians1, deformations.outputGaussians2):
        assert isinstance(gaussians, AtomStruct)
        assert gaussians.getPseudoAtoms()
        structure = gemmi.read_structure(gaussians.getFileName())
        atoms = [cra.atom for cra in structure[0].all()]
        assert len(atoms) == 200
        positions = np.array([atom.pos.tolist() for atom in atoms])
        assert np.abs(positions.mean(0)).max() < 40, "they lie around the centre of the box"
        voxels = np.round(positions / PIXEL + BOX // 2).astype(int)
        assert (motion[tuple(voxels.T[::-1])] > 0).mean() > 0.95
        assert max(atom.b_iso for atom in atoms) > 1, "the B-factor is the motion, A"


def test_the_summary_states_the_verdict_and_the_methods_cite_the_paper(chain):
    deformations = chain["deformations"]
    title, *lines = deformations.outputModel.loadSummary()["conclusion"]["lines"]
    assert deformations.summary()[: 1 + len(lines)] == [f"*{title}*", *lines]
    assert deformations.outputModel.getVerdictSentence() == " ".join([title, *lines])
    assert "Optics groups (2) are from" in "\n".join(deformations.summary())
    assert "Schwab2024" in " ".join(deformations.methods())
    assert "Schwab" in " ".join(deformations.citations())


def test_shares_of_the_motions_are_told_as_far_as_they_matter():
    assert describeShares([0.62, 0.31, 0.07]) == "62 %, 31 %, 7 %"
    assert describeShares([0.985, 0.009, 0.006]) == "98 %, less than 1 % in each of 2 more"


def test_the_engine_got_both_optics_groups_though_the_import_dropped_them(chain, simulated):
    assert "all particles will be assigned to the first group" in _warning_without_star(chain).lower()
    given = starfile.read(simulated.particles)
    written = starfile.read(chain["deformations"]._getExtraPath("particles.star"))
    np.testing.assert_allclose(written["optics"]["rlnVoltage"], [300, 200])
    assert list(written["particles"]["rlnOpticsGroup"]) == list(given["particles"]["rlnOpticsGroup"])


def _warning_without_star(chain):
    copied = chain["deformations"].getProject().copyProtocol(chain["deformations"])
    copied.opticsStar.set(None)
    return " ".join(copied.warnings())


def test_provenance_leads_from_the_map_to_the_particles(workflow, chain):
    graph = workflow.project.getSourceGraph(refresh=True)

    def parents(protocol, output):
        return {node.getName() for node in graph.getNode(f"{protocol.getObjId()}.{output}").getParents()}

    def key(name, output):
        return f"{chain[name].getObjId()}.{output}"

    inputs = {key("particles", "outputParticles"), key("volume", "outputVolume")}
    for output in ("outputParticles", "outputModel", "outputMotion", "outputGaussians1", "outputGaussians2"):
        assert parents(chain["deformations"], output) == inputs
    for output in ("outputVolume", "outputFSC", "outputMask"):
        assert parents(chain["reconstruction"], output) == {key("deformations", "outputModel")}


# ------------------------------------------------------------------ reconstruction


def test_the_map_has_half_maps_sampling_fsc_and_mask(chain):
    reconstruction, model = chain["reconstruction"], chain["deformations"].outputModel
    volume = reconstruction.outputVolume
    assert volume.getSamplingRate() == PIXEL
    halves = volume.getHalfMaps(asList=True)
    assert len(halves) == 2
    for path in [volume.getFileName(), *halves, reconstruction.outputMask.getFileName()]:
        assert "," not in path
        assert not Path(path).is_absolute()
        with mrcfile.open(path) as mrc:
            assert mrc.is_volume()
            assert mrc.data.shape == (BOX,) * 3
            assert float(mrc.voxel_size.x) == pytest.approx(PIXEL)
    frequency, correlation = reconstruction.outputFSC.getData()
    assert (frequency[0], correlation[0]) == (0.0, 1.0)
    assert frequency[-1] == pytest.approx(1 / (2 * PIXEL))
    assert float(reconstruction.outputFSC.calculateResolution()) > 2 * PIXEL - 0.1
    labels = {curve.getObjLabel() for curve in reconstruction.outputFSCs}
    assert len(labels) == 10
    assert {"motion corrected, conservative", "without deformation, conservative"} <= labels
    assert reconstruction.outputRigid.hasHalfMaps()
    found = json.loads(Path(reconstruction._getRunFolder(), SUMMARY_FILE).read_text())["conclusion"]
    assert reconstruction.summary() == [f"*{found['title']}.*", *found["lines"][1:]]
    assert found["map"].startswith("The map has a resolution of") and found["map"] in found["lines"]
    assert not Path(model.getRunPath("reconstruction")).exists(), "the model's own run is left as it was"


def test_masks_are_handed_on_and_an_inverse_field_is_an_option_whose_error_is_told(workflow, chain):
    inverse = workflow.new(
        DynamightProtReconstruct,
        {"inputModel": (chain["deformations"], "outputModel"), "inputMask": (chain["reconstruction"], "outputMask")},
        throughInverse=True,
        inverseEpochs=2,
        rigid=False,
        numberOfThreads=1,
    )
    inverse.inputRegions.append(Pointer(chain["reconstruction"], extended="outputMask"))
    workflow.launch(inverse)
    assert inverse.isFinished(), workflow.log(inverse)
    assert "In region1: " in workflow.log(inverse)
    # The region is the mask itself, and so is its curve.
    curves = {curve.getObjLabel(): [list(axis) for axis in curve.getData()] for curve in inverse.outputFSCs}
    assert curves["motion corrected, in region 1"] == curves["motion corrected, corrected for the mask"]
    viewer = DynamightReconstructViewer(project=workflow.project)
    viewer.setProtocol(inverse)
    (view,) = viewer._getVisualizeDict()["fsc"]("fsc")
    drawn = [line.get_label() for line in view.getFigure().axes[0].lines]
    assert {"motion corrected, corrected for the mask", "motion corrected, in region 1"} <= set(drawn)
    given, used = (protocol.outputMask.getFileName() for protocol in (chain["reconstruction"], inverse))
    np.testing.assert_array_equal(mrcfile.read(used), mrcfile.read(given))
    assert [f"Error of the inverse of half-set {half}" in "\n".join(inverse.summary()) for half in (1, 2)] == [
        True,
        True,
    ]
    assert not hasattr(inverse, "outputRigid")


@pytest.fixture
def stub_relion(tmp_path, monkeypatch):
    """A RELION whose programs do nothing but write the files that its protocols look for.

    It shows that files and options are handed on, and nothing about what RELION makes of them.
    """
    home = tmp_path / "stub_relion"
    (home / "bin").mkdir(parents=True)
    find = 'while [ $# -gt 0 ]; do case "$1" in --i) i=$2;; --o) o=$2;; --mask) m=$2;; esac; shift; done\n'
    second = 'half2="${i/half1/half2}"; test -s "$i" && test -s "$half2" || exit 3\n'
    scripts = {
        "relion_image_handler": 'cp "$i" "$o"\n',
        "relion_postprocess": f'{second}for end in "" _locres _locres_filtered; do cp "$i" "$o$end.mrc"; done\n'
        'printf "data_general\\n\\n_rlnFinalResolution 12.0\\n_rlnBfactorUsedForSharpening -90.0\\n" > "$o.star"\n',
    }
    for name, script in scripts.items():
        for suffix in ("", "_mpi"):
            (home / "bin" / (name + suffix)).write_text(f"#!/bin/bash\n{find}{script}")
            (home / "bin" / (name + suffix)).chmod(0o755)
    monkeypatch.setenv("RELION_HOME", str(home))
    from relion import Plugin

    monkeypatch.setitem(Plugin._vars, "RELION_HOME", str(home))
    return home


def test_postprocessing_takes_the_reconstruction_as_a_refinement_with_stub_relion(workflow, chain, stub_relion):
    reconstruction = chain["reconstruction"]
    post = workflow.new(ProtRelionPostprocess, mtf=str(stub_relion / "bin" / "relion_postprocess"))
    post.protRefine.set(reconstruction)
    post.solventMask.set(reconstruction)
    post.solventMask.setExtended("outputMask")
    workflow.launch(post)
    assert post.isFinished(), post.getErrorMessage() + workflow.log(post)
    assert post.outputVolume.getSamplingRate() == PIXEL
    assert f"--angpix {PIXEL}" in workflow.log(post)
    for half, path in enumerate(reconstruction.outputVolume.getHalfMaps(asList=True), 1):
        used = post._getPath("input", f"relion_half{half}_class001_unfil.mrc")
        np.testing.assert_array_equal(mrcfile.read(used), mrcfile.read(path))


def test_local_resolution_takes_the_reconstruction_as_a_refinement_with_stub_relion(workflow, chain, stub_relion):
    local = workflow.new(ProtRelionLocalRes, mtf=str(stub_relion / "bin" / "relion_postprocess"))
    local.protRefine.set(chain["reconstruction"])
    workflow.launch(local)
    assert local.isFinished(), local.getErrorMessage() + workflow.log(local)
    assert "--locres" in workflow.log(local)
    assert local.outputVolume.getSamplingRate() == PIXEL


# ------------------------------------------------------------------ in a chain with other programs


def as_if_run(workflow, protocol, **outputs):
    """Register outputs of another plugin's protocol, as if its program had been run."""
    protocol._defineOutputs(**outputs)
    protocol.setFinished()
    workflow.project._storeProtocol(protocol)
    return protocol


@pytest.fixture
def extracted(workflow, simulated):
    """Particles as RELION's extraction makes them: one a micrograph, each with the CTF that was estimated there."""
    truth = starfile.read(simulated.particles)["particles"]
    importing = workflow.new(ProtImportMicrographs)
    estimating = workflow.new(ProtImportCTF)
    extracting = workflow.new(ProtRelionExtractParticles)
    for protocol in (importing, estimating, extracting):
        workflow.project.saveProtocol(protocol)
        protocol.makePathsAndClean()

    acquisition = Acquisition(voltage=300.0, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000.0)
    micrographs = importing._createSetOfMicrographs()
    micrographs.setSamplingRate(PIXEL)
    micrographs.setAcquisition(acquisition)
    ctfs = estimating._createSetOfCTF()
    particles = extracting._createSetOfParticles()
    particles.setSamplingRate(PIXEL)
    particles.setAcquisition(acquisition)
    particles.setAlignmentProj()
    particles.setHasCTF(True)
    matrices = matricesOfPoses(
        *(truth[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")),
        *(truth[f"rlnOrigin{axis}Angst"] for axis in "XY"),
        PIXEL,
    )
    for number, row in truth.iterrows():
        micrograph = Micrograph(str(simulated.consensus))
        micrograph.setObjId(number + 1)
        micrograph.setMicName(f"mic{number:03d}.mrc")
        micrographs.append(micrograph)
        ctf = CTFModel()
        ctf.setStandardDefocus(row["rlnDefocusU"], row["rlnDefocusV"], row["rlnDefocusAngle"])
        ctf.setPhaseShift(row["rlnPhaseShift"])
        ctf.setMicrograph(micrograph)
        ctfs.append(ctf)
        particle = Particle(location=(number + 1, str(simulated.stack)))
        # Ids as of coordinates that were picked, with gaps.
        particle.setObjId(3 * number + 11)
        particle.setMicId(number + 1)
        particle.setCoordinate(Coordinate(x=100 + number, y=900 - number))
        particle.getCoordinate().setMicrograph(micrograph)
        particle.setCTF(ctf)
        particle.setTransform(Transform(matrices[number]))
        particle._rlnRandomSubset = Integer(int(row["rlnRandomSubset"]))
        particles.append(particle)
    as_if_run(workflow, importing, outputMicrographs=micrographs)
    ctfs.setMicrographs(micrographs)
    as_if_run(workflow, estimating, outputCTF=ctfs)
    return as_if_run(workflow, extracting, outputParticles=particles)


def test_particles_of_another_plugin_with_ctfs_from_a_set_of_ctfs_go_through_and_on_to_relion(
    workflow, chain, simulated, extracted, stub_relion
):
    run = workflow.run(
        DynamightProtDeformations,
        {"inputParticles": (extracted, "outputParticles"), "inputVolume": (chain["volume"], "outputVolume")},
        **small(chain, nEpochs=1, opticsStar=None),
    )
    export = workflow.run(ProtRelionExportParticles, {"inputParticles": (run, "outputParticles")}, stackType=0)
    truth = starfile.read(simulated.particles)["particles"]
    for star in (run._getExtraPath("particles.star"), export._getStarFile()):
        rows = starfile.read(star)["particles"].sort_values("rlnImageId", ignore_index=True)
        assert list(rows["rlnImageId"]) == [3 * number + 11 for number in range(PARTICLES)]
        for column in ("rlnDefocusU", "rlnDefocusV", "rlnPhaseShift", "rlnOriginXAngst", "rlnOriginYAngst"):
            np.testing.assert_allclose(rows[column], truth[column], rtol=1e-5, atol=1e-4, err_msg=column)
        assert list(rows["rlnRandomSubset"]) == list(truth["rlnRandomSubset"])
        assert list(rows["rlnCoordinateX"]) == [100 + number for number in range(PARTICLES)]
        assert list(rows["rlnMicrographName"]) == [f"mic{number:03d}.mrc" for number in range(PARTICLES)]
        assert [name.split("@")[0] for name in rows["rlnImageName"]] == [f"{i + 1:06d}" for i in range(PARTICLES)]

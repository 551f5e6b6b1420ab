"""States, selections and displaced models: their outputs, what they keep, and what they refuse."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
from pwem.objects import Pointer, SetOfParticlesFlex
from pwem.protocols import ProtImportPdb
from relion.convert import writeSetOfParticles

from dynamight_core.analysis.displace import Displacer, read_points
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.files import read_map
from dynamight_core.run import Run
from dynamight_scipion.objects import FLEX_PROGRAM
from dynamight_scipion.protocols import DynamightProtDisplaceModel, DynamightProtSelect, DynamightProtStates
from dynamight_scipion.protocols.protocol_from_model import ALONG_PATH, AT_CLUSTERS, BETWEEN_PARTICLES, LOCAL

CENTRE = 32 // 2 * 6.0


@pytest.fixture
def model(chain):
    """Return the input of every protocol here."""
    return {"inputModel": (chain["deformations"], "outputModel")}


@pytest.fixture(scope="module")
def _cache():
    return {}


@pytest.fixture
def states(workflow, model, _cache):
    """Return a finished protocol with three states along the first motion."""
    if "states" not in _cache:
        movie = {"caption": False, "transparent": True}
        _cache["states"] = workflow.run(DynamightProtStates, model, nStates=3, numberOfThreads=1, **movie)
    return _cache["states"]


def engineRun(chain):
    return Run(chain["deformations"].outputModel.getRunFolder())


def sourcesOf(workflow, protocol, output):
    """Return the names of what Scipion's graph of sources says an output was made from."""
    node = workflow.project.getSourceGraph(refresh=True).getNode(f"{protocol.getObjId()}.{output}")
    return {parent.getName() for parent in node.getParents()}


def coordinates(particles):
    return {particle.getObjId(): particle.getZFlex() for particle in particles.iterItems()}


# ------------------------------------------------------------------ states


def test_states_are_maps_of_the_model_at_their_latents(chain, states):
    maps = [(volume.clone(), volume.getZFlex()) for volume in states.outputStates]
    latents = np.array([latent for _, latent in maps])
    assert (np.diff(latents[:, 0]) > 0).all()
    mean = np.mean(list(coordinates(chain["deformations"].outputParticles).values()), 0)
    np.testing.assert_allclose(latents[:, 1:], np.tile(mean[1:], (3, 1)), atol=1e-3)
    for volume, latent in maps:
        data, pixelSize = read_map(volume.getFileName())
        assert pixelSize == pytest.approx(volume.getSamplingRate())
        expected = StateModels(engineRun(chain)).volume(latent)
        np.testing.assert_allclose(data, expected, atol=1e-3 * np.abs(expected).max())
        assert volume.getFlexInfo().getProgName() == FLEX_PROGRAM


def test_states_leave_the_model_alone_and_are_found_from_it(workflow, chain, states):
    assert "states" not in engineRun(chain).config.stages
    assert all(str(path).startswith(states.getPath()) for path in states.outputStates.getFiles())
    movies = {Path(path).suffix: Path(path).read_bytes() for path in states.getMovies()}
    assert movies[".gif"][:3] == b"GIF"
    assert movies[".mp4"][4:8] == b"ftyp"
    assert movies[".png"][1:4] == b"PNG", "transparent"
    assert "--no-caption" in states._getMovieOptions()
    assert workflow.project.getProtocol(states.getObjId()).outputStates._dynMovie.get() == states.getMovies()[0]
    assert sourcesOf(workflow, states, "outputStates") == {f"{chain['deformations'].getObjId()}.outputModel"}
    model = chain["deformations"].outputModel
    assert (states.summary()[0] == model.getVerdictSentence()) is not model.isMotionSupported()


@pytest.mark.parametrize("protocolClass", [DynamightProtStates, DynamightProtSelect])
def test_motion_that_is_not_supported_is_used_only_if_that_is_allowed(workflow, chain, model, protocolClass):
    estimated = chain["deformations"].outputModel
    before = estimated.getVerdict()
    protocol = workflow.new(protocolClass, model, useUnsupportedMotion=False)
    try:
        estimated._verdict.set("undecided")
        (error,) = protocol.validate()
        assert error == (
            f"{estimated.getVerdictSentence()} Set *use motion that is not supported* to Yes to write these results "
            "all the same."
        )
        assert protocol.warnings() == [estimated.getVerdictSentence()]
        protocol.useUnsupportedMotion.set(True)
        assert protocol.validate() == []
        estimated._verdict.set("supported")
        protocol.useUnsupportedMotion.set(False)
        assert protocol.validate() == protocol.warnings() == []
    finally:
        estimated._verdict.set(before)


def test_states_from_particles_have_half_maps_and_say_how_they_were_made(workflow, chain, model):
    if chain["deformations"].outputModel.getVerdict() == "not supported":
        (error,) = workflow.new(DynamightProtStates, model, method=LOCAL).validate()
        assert "render the Gaussian models" in error
        return
    protocol = workflow.run(DynamightProtStates, model, method=LOCAL, nStates=2, doMovie=False, numberOfThreads=1)
    for volume in protocol.outputStates.iterItems():
        for path in volume.getHalfMaps(asList=True):
            assert read_map(path)[0].shape == read_map(volume.getFileName())[0].shape
        assert 0 <= volume._dynTrust.get() <= 1
        assert 0 < volume._dynEffectiveParticles.get() <= 1.01 * chain["deformations"].outputParticles.getSize()
    assert sum("trust in the field" in line for line in protocol.summary()) == 2
    assert "near each state" in protocol.methods()[0]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"motion": 4}, "has 3 motions"),
        ({"lowPercentile": 60.0, "highPercentile": 40.0}, "must be below"),
        ({"statesAt": AT_CLUSTERS, "nStates": 301}, "has only 300 particles"),
        ({"statesAt": BETWEEN_PARTICLES}, "ids of both particles"),
        ({"statesAt": BETWEEN_PARTICLES, "firstParticle": 1, "lastParticle": 9999}, "no particle with id 9999"),
        ({"statesAt": BETWEEN_PARTICLES, "firstParticle": 7, "lastParticle": 7}, "are the same"),
        ({"statesAt": ALONG_PATH, "path": "12"}, "at least two points"),
        ({"statesAt": ALONG_PATH, "path": "1\nnear the middle"}, "'near the middle' is not a point"),
        ({"statesAt": ALONG_PATH, "path": "1; 0,0,0,0"}, "has 4 coordinates"),
        ({"statesAt": ALONG_PATH, "path": "1; 2", "nStates": 1}, "at least 2 states"),
    ],
)
def test_states_that_cannot_be_had_are_refused_before_the_run(workflow, model, parameters, reason):
    (error,) = workflow.new(DynamightProtStates, model, **parameters).validate()
    assert reason in error


@pytest.mark.parametrize("protocolClass", [DynamightProtStates, DynamightProtSelect, DynamightProtDisplaceModel])
def test_empty_pointers_are_named_and_nothing_else_fails(workflow, protocolClass):
    protocol = workflow.new(protocolClass)
    errors = protocol.validate()
    assert errors[0] == "*Model* cannot be EMPTY."
    assert all("cannot be EMPTY" in error for error in errors)
    assert protocol.warnings() == []
    assert protocol.summary()
    assert protocol.citations()


# ------------------------------------------------------------------ selections


def test_selected_particles_keep_all_that_they_had_and_are_matched_by_id(workflow, chain, model, tmp_path):
    particles = chain["deformations"].outputParticles
    places = np.array(list(coordinates(particles).values()))
    low = float(np.median(places[:, 0]))
    limit = float(np.median([particle._dynMotionError.get() for particle in particles.iterItems()]))
    selection = workflow.run(
        DynamightProtSelect, model, nClusters=2, region=f"1: {low} :", maxError=limit, numberOfThreads=1
    )

    expected = {
        particle.getObjId()
        for particle in particles.iterItems()
        if particle.getZFlex()[0] >= low and particle._dynMotionError.get() <= limit
    }
    output = selection.outputParticles
    # The engine compares more decimals than a text of the set holds.
    assert len(expected ^ output.getIdSet()) <= 2
    assert 0 < len(output) < len(particles)
    assert isinstance(output, SetOfParticlesFlex)
    assert output.getFlexInfo().getAttr("modelPath") == particles.getFlexInfo().getAttr("modelPath")
    for kept in output.iterItems():
        assert kept.getObjDict() == particles[kept.getObjId()].getObjDict()

    # What RELION would refine is what it would have been given before.
    rows = []
    for name, chosen in (("all", particles), ("kept", output)):
        writeSetOfParticles(chosen, str(tmp_path / f"{name}.star"), outputDir=str(tmp_path), alignType="Projection")
        lines = (tmp_path / f"{name}.star").read_text().splitlines()
        rows.append({tuple(line.split()) for line in lines if ".mrcs" in line})
    assert rows[1] < rows[0]
    assert len(rows[1]) == len(output)

    for name in ("outputParticles", "outputClasses"):
        assert f"{chain['deformations'].getObjId()}.outputModel" in sourcesOf(workflow, selection, name)
    assert any(f"{len(output)} of 300 particles" in line for line in selection.summary())
    checkClasses(selection, particles)


def checkClasses(selection, particles):
    places = coordinates(particles)
    sizes = []
    # Before the loop: a set that is iterated hands out one object for all of its items.
    centreOf = {cluster.getObjId(): cluster.getRepresentative().getZFlex() for cluster in selection.outputClasses}
    for cluster in selection.outputClasses.iterItems():
        representative = cluster.getRepresentative()
        assert Path(representative.getFileName()).exists()
        assert representative.getSamplingRate() == particles.getSamplingRate()
        # Of the two centres, that of its own class is nearest to each of its particles.
        centre = centreOf[cluster.getObjId()]
        for particle in cluster.iterItems():
            distances = [np.linalg.norm(places[particle.getObjId()] - other) for other in centreOf.values()]
            assert np.linalg.norm(places[particle.getObjId()] - centre) <= min(distances) + 1e-3
        sizes.append(len(cluster))
    assert sum(sizes) == len(selection.outputParticles)


def test_particles_are_taken_from_another_set_by_their_ids(workflow, chain, model):
    places = coordinates(chain["deformations"].outputParticles)
    selection = workflow.run(
        DynamightProtSelect,
        model | {"inputParticles": (chain["particles"], "outputParticles")},
        nClusters=2,
        keepClusters="2",
        numberOfThreads=1,
    )
    assert type(selection.outputParticles) is type(chain["particles"].outputParticles)
    kept = selection.outputParticles.getIdSet()
    others = set(places) - kept
    assert kept
    assert others
    # Clusters are numbered along the first motion.
    assert np.mean([places[i][0] for i in kept]) > np.mean([places[i][0] for i in others])
    (cluster,) = (cluster.getObjId() for cluster in selection.outputClasses)
    assert cluster == 2
    name = next(iter(kept))
    assert selection.outputParticles[name].getLocation() == chain["particles"].outputParticles[name].getLocation()


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({}, "--clusters 4 --seed 0"),
        ({"keepClusters": "1,3-4"}, "--clusters 4 --seed 0 --cluster 1 --cluster 3 --cluster 4"),
        ({"nClusters": 0, "minMotion": 1.0, "maxError": 2.5}, "--motion=1.0: --error=:2.5"),
        ({"nClusters": 0, "maxDisagreement": 1.0, "half": 2}, "--disagreement=:1.0 --half 2"),
        ({"nClusters": 0, "region": "1: -3 : 1.5\n 2: 0 :"}, "--along 1:-3:1.5 --along 2:0:"),
        ({"nClusters": 0, "near": "-1, 2", "nearDistance": 3.0, "complement": True}, "--near=-1,2:3.0 --complement"),
    ],
)
def test_the_form_of_a_selection_becomes_the_engines_options(workflow, model, parameters, options):
    protocol = workflow.new(DynamightProtSelect, model, **parameters)
    assert protocol.validate() == []
    assert " ".join(protocol._getSelectOptions()) == options


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"nClusters": 0}, "nothing to select by"),
        ({"nClusters": 301}, "has only 300 particles"),
        ({"keepClusters": "5"}, "there are 1 to 4"),
        ({"keepClusters": "second"}, "give numbers"),
        ({"minError": 2.0, "maxError": 1.0}, "the lower limit is above the upper"),
        ({"region": "1 -3 2"}, "is not a range"),
        ({"region": "4: 0 : 1"}, "motion 4 does not exist"),
        ({"region": "1: 2 : 1"}, "is empty"),
        ({"near": "7"}, "set both"),
        ({"near": "9999", "nearDistance": 1.0}, "no particle with id 9999"),
        ({"near": "here", "nearDistance": 1.0}, "neither a particle's id nor coordinates"),
    ],
)
def test_selections_that_cannot_be_made_are_refused_before_the_run(workflow, model, parameters, reason):
    (error,) = workflow.new(DynamightProtSelect, model, **parameters).validate()
    assert reason in error


# ------------------------------------------------------------------ displaced models


def writeAtoms(path, places=None):
    """Write some atoms, at (n, 3) places."""
    places = np.random.default_rng(1).normal(CENTRE, 20, (6, 3)) if places is None else places
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    chain = gemmi.Chain("A")
    for number, place in enumerate(places.astype(float).round(3), 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*place)
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure[0].add_chain(chain)
    structure.write_pdb(str(path))


def positionsOf(path):
    (found,) = gemmi.read_structure(str(path))
    return np.array([atom.pos.tolist() for chain in found for residue in chain for atom in residue])


def test_a_structure_is_moved_to_the_states_of_another_protocol(workflow, chain, model, states, tmp_path):
    writeAtoms(tmp_path / "atoms.pdb")
    atoms = workflow.run(
        ProtImportPdb, inputPdbData=ProtImportPdb.IMPORT_FROM_FILES, pdbFile=str(tmp_path / "atoms.pdb")
    )
    inputs = model | {"inputStructure": (atoms, "outputPdb"), "inputStates": (states, "outputStates")}
    moved = workflow.run(DynamightProtDisplaceModel, inputs, numberOfThreads=1)

    run = engineRun(chain)
    given = read_points(tmp_path / "atoms.pdb", run)
    displacer = Displacer(run, given.positions)
    assert len(moved.outputStructures) == 3
    for structure, state in zip(moved.outputStructures, states.outputStates, strict=True):
        np.testing.assert_allclose(structure.getZFlex(), state.getZFlex(), atol=1e-4)
        expected = displacer.at_state(structure.getZFlex()).numpy() + given.offset
        np.testing.assert_allclose(positionsOf(structure.getFileName()), expected, atol=2e-3)
        rms = np.sqrt(np.square(expected - positionsOf(tmp_path / "atoms.pdb")).sum(-1).mean())
        assert structure._dynDisplacementRms.get() == pytest.approx(rms, abs=2e-3)
    sources = (chain["deformations"], "outputModel"), (atoms, "outputPdb"), (states, "outputStates")
    assert sourcesOf(workflow, moved, "outputStructures") == {f"{p.getObjId()}.{output}" for p, output in sources}


def test_structures_and_states_that_do_not_fit_are_refused(workflow, chain, model, states, tmp_path):
    def errors(path, **inputs):
        protocol = workflow.new(DynamightProtDisplaceModel, model | inputs)
        structure = chain["deformations"].outputGaussians1.clone()
        structure.setFileName(str(path))
        protocol.inputStructure = Pointer(structure)
        return protocol._validate()

    assert "is missing" in errors(tmp_path / "gone.pdb")[0]
    (tmp_path / "atoms.xyz").write_text("")
    assert "PDB or mmCIF" in errors(tmp_path / "atoms.xyz")[0]
    writeAtoms(tmp_path / "atoms.pdb")
    others = states.outputStates
    assert errors(tmp_path / "atoms.pdb", inputStates=(states, "outputStates")) == []
    others.getFlexInfo().setAttr("modelPath", "Runs/of_another/run")
    try:
        assert "from another model" in errors(tmp_path / "atoms.pdb", inputStates=(states, "outputStates"))[0]
    finally:
        others.getFlexInfo().setAttr("modelPath", chain["deformations"].outputModel.getRunFolder())

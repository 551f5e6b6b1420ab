"""One project from micrographs to states, with the template that the plugin offers, and its provenance.

CTFFIND and RELION are stand-ins (tests/support/stub_programs.py): what is shown is that files, numbers and relations
are handed on.
"""

import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from pwem.objects import SetOfMicrographs
from pyworkflow.template import TemplateList

from dynamight_core.simulate.dataset import SimulateOptions, simulate
from tests.scipion.conftest import SMALL
from tests.support.plugin import BOX, PIXEL
from tests.support.stub_programs import stub_programs

ACROSS, DOWN, MARGIN = 5, 4, 8
LABELS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset")


class Session:
    """Micrographs that simulated particles were put on, their coordinates, CTFs and poses."""

    def __init__(self, folder):
        each = ACROSS * DOWN
        files = simulate(SimulateOptions(particles=300, box=BOX, pixel_size=PIXEL, snr=8.0, seed=3), folder / "images")
        rows, images = starfile.read(files.particles)["particles"], mrcfile.read(files.stack)
        # Particles of one micrograph have almost the same defocus.
        order = rows["rlnDefocusU"].to_numpy().argsort()
        self.maps = [str(path) for path in (files.consensus, *files.half_maps)]
        self.micrographs, self.picks = folder / "micrographs", folder / "picks"
        self.ctf, self.poses, self.images = {}, {}, {}
        for made in (self.micrographs, self.picks):
            made.mkdir()
        for start in range(0, len(order), each):
            name = f"mic{start // each + 1:02d}"
            some = rows.iloc[order[start : start + each]]
            self.ctf[name] = [*some[["rlnDefocusU", "rlnDefocusV"]].mean(), float(some["rlnDefocusAngle"].mean())]
            whole = np.zeros((DOWN * BOX + 2 * MARGIN, ACROSS * BOX + 2 * MARGIN), np.float32)
            places = []
            for number, (row, given) in enumerate(zip(order[start : start + each], some.itertuples(), strict=True)):
                x, y = (MARGIN + BOX // 2 + BOX * part for part in (number % ACROSS, number // ACROSS))
                half = BOX // 2
                whole[y - half : y + half, x - half : x + half] = images[row]
                places.append((x, y))
                self.poses[f"{name} {x} {y}"] = [float(getattr(given, label)) for label in LABELS]
                self.images[name, x, y] = images[row]
            with mrcfile.new(self.micrographs / f"{name}.mrc") as mrc:
                mrc.set_data(whole)
                mrc.voxel_size = PIXEL
            lines = "\n".join(f"{x} {y}" for x, y in places)
            head = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
            (self.picks / f"{name}.star").write_text(f"{head}{lines}\n")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session(tmp_path_factory.mktemp("session"))


@pytest.fixture
def programs(session, tmp_path, monkeypatch):
    """Put stand-ins where the plugins of RELION and cisTEM look for their programs."""
    from cistem import Plugin as Cistem
    from relion import Plugin as Relion

    truth = {"ctf": session.ctf, "labels": LABELS, "poses": session.poses, "maps": session.maps}
    homes = stub_programs(tmp_path / "programs", truth)
    monkeypatch.setenv("PATH", f"{homes['RELION_HOME']}/bin{os.pathsep}{os.environ['PATH']}")
    for name, home in homes.items():
        monkeypatch.setenv(name, home)
        monkeypatch.setitem((Relion if name == "RELION_HOME" else Cistem)._vars, name, home)


@pytest.fixture
def protocols(workflow, session, programs):
    """Return the protocols of the template, wired and with their files, by their ids in it."""
    offered = TemplateList()
    offered.addPluginTemplates("dynamight-from_micrographs")
    (template,) = offered.templates
    template.replaceEnvVariables()
    template.parseContent()
    given = {"folder": session.micrographs, "coordinates": session.picks, "map": session.maps[0], "dark": "false"}
    given |= {"pixel": PIXEL, "voxel": PIXEL, "box": BOX, "box_again": BOX, "gaussians": 200, "states": 2}
    for alias, value in given.items():
        template.setParamValue(alias, str(value))
    assert all(field.validate() is None for field in template.getParams().values())
    return workflow.project.loadProtocols(template.createTemplateFile())


def finish(workflow, protocol, **parameters):
    """Run a protocol of the template with some parameters changed."""
    for name, value in parameters.items():
        if hasattr(protocol, name):
            getattr(protocol, name).set(value)
    errors = protocol.validate()
    assert errors == [], errors
    workflow.launch(protocol)
    assert protocol.isFinished(), f"{protocol.getErrorMessage()}\n{workflow.log(protocol)}"


def origins(workflow, node):
    """Return the protocols' classes and outputs that lead to a node of the graph of sources."""
    found, waiting = set(), [node]
    while waiting:
        for parent in waiting.pop().getParents():
            if parent.getName() not in found and not parent.isRoot():
                found.add(parent.getName())
                waiting.append(parent)
    return found


def test_from_micrographs_to_states_in_one_project(workflow, session, protocols):
    micrographs, ctfs, picks, extraction, reference, refinement, deformations, map_, states, post = protocols.values()
    finish(workflow, micrographs)
    finish(workflow, ctfs, numberOfThreads=1)
    finish(workflow, picks)
    finish(workflow, extraction, doNormalize=False, saveFloat16=False, numberOfMpi=1)
    finish(workflow, reference)
    finish(workflow, refinement, doGpu=False, numberOfThreads=1)
    finish(workflow, deformations, **{**SMALL, "nGaussians": 200})
    finish(workflow, map_, numberOfThreads=1)
    finish(workflow, states, doMovie=False, useUnsupportedMotion=True, numberOfThreads=1)
    finish(workflow, post, mtf=None)

    # Each particle: from the micrograph that it was picked on, with the CTF that CTFFIND found there, to its motion.
    of_mic = {mic.getObjId(): Path(mic.getFileName()).stem for mic in micrographs.outputMicrographs.iterItems()}
    assert isinstance(micrographs.outputMicrographs, SetOfMicrographs) and len(of_mic) == 15
    found = deformations.outputParticles
    assert len(found) == len(session.poses) == 300
    for particle in found.iterItems():
        name, coordinate = of_mic[particle.getMicId()], particle.getCoordinate()
        pose = session.poses[f"{name} {coordinate.getX()} {coordinate.getY()}"]
        assert particle._rlnRandomSubset.get() == pose[-1]
        ctf = particle.getCTF()
        measured = [ctf.getDefocusU(), ctf.getDefocusV()]
        np.testing.assert_allclose(sorted(measured), sorted(session.ctf[name][:2]), atol=0.01)
        assert len(particle.getZFlex()) == SMALL["nMotions"]
    # What the engine was given are the pixels of the micrographs, in the poses of the refinement.
    rows = starfile.read(deformations._getExtraPath("particles.star"))["particles"]
    for row in rows.iloc[::37].itertuples():
        number, stack = row.rlnImageName.split("@")
        name = of_mic[found[row.rlnImageId].getMicId()]
        place = f"{name} {round(row.rlnCoordinateX)} {round(row.rlnCoordinateY)}"
        cut = session.images[name, round(row.rlnCoordinateX), round(row.rlnCoordinateY)]
        np.testing.assert_array_equal(mrcfile.read(stack)[int(number) - 1], cut)
        pose = [getattr(row, label) for label in LABELS[3:5]]
        np.testing.assert_allclose(pose, session.poses[place][3:5], atol=1e-3)

    # Coordinates in pixels of the particles, so that neighbours are not taken for the same molecule.
    optics = starfile.read(deformations._getExtraPath("particles.star"))["optics"]
    assert np.ravel(optics["rlnMicrographPixelSize"]) == pytest.approx(PIXEL)
    assert "rlnMicrographOriginalPixelSize" not in optics

    # And back, from the last state to the first micrograph, as Scipion's graph tells it.
    graph = workflow.project.getSourceGraph(refresh=True)
    before = origins(workflow, graph.getNode(f"{states.getObjId()}.outputStates"))
    chain = (deformations, "outputModel"), (refinement, "outputParticles"), (extraction, "outputParticles")
    chain = (*chain, (picks, "outputCoordinates"), (micrographs, "outputMicrographs"))
    assert {f"{protocol.getObjId()}.{output}" for protocol, output in chain} <= before
    sharpened = origins(workflow, graph.getNode(f"{post.getObjId()}.outputVolume"))
    assert f"{micrographs.getObjId()}.outputMicrographs" in sharpened
    assert json.loads(Path(deformations._getExtraPath("training.json")).read_text())

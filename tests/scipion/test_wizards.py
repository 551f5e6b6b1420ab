"""The wizards: found for their parameters, true to the engine, and what they write is what the protocols read."""

from itertools import pairwise

import mrcfile
import numpy as np
import pytest
import pyworkflow
import torch
from pyworkflow.gui import dialog
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_core.model.initialise import find_molecule
from dynamight_core.simulate.molecules import hinge_molecule
from dynamight_scipion.protocols import (
    DynamightProtDeformations,
    DynamightProtDisplaceModel,
    DynamightProtReconstruct,
    DynamightProtSelect,
    DynamightProtStates,
)
from dynamight_scipion.protocols.protocol_from_model import parsePath
from dynamight_scipion.viewers.results import Results
from dynamight_scipion.wizards import wizards
from dynamight_scipion.wizards.dialogs import pathText, regionText
from dynamight_scipion.wizards.preview import SmoothMap, fill, gaussiansOfMass, massOfVolume, spacing


class Form:
    """Stands for the form of a protocol: it keeps what a wizard writes."""

    root = None

    def __init__(self, protocol, parameter):
        self.protocol, self.wizParamName, self.written = protocol, parameter, {}

    def setVar(self, name, value):
        self.written[name] = value


@pytest.fixture
def use(monkeypatch):
    """Return a function that uses the wizard of a parameter; `choose` acts on the dialog's arguments for the user."""

    def use_wizard(protocol, parameter, dialogName=None, choose=lambda *arguments: None):
        if dialogName:

            class Chosen:
                def __init__(self, parent, *arguments):
                    self.value = choose(*arguments)

                def resultYes(self):
                    return self.value is not None

            monkeypatch.setattr(wizards, dialogName, Chosen)
        form = Form(protocol, parameter)
        wizardsOf(protocol)[parameter]().show(form)
        return form.written

    return use_wizard


@pytest.fixture
def warned(monkeypatch):
    """Return the warnings that were shown."""
    shown = []
    monkeypatch.setattr(dialog, "showWarning", lambda title, text, parent: shown.append(text))
    return shown


def wizardsOf(protocol):
    return pyworkflow.Config.getDomain().findWizards(protocol, DESKTOP_TKINTER)


@pytest.mark.parametrize(
    ("protocolClass", "expected"),
    [
        (DynamightProtDeformations, {"particleDiameter", "threshold", "nGaussians", "inputMask"}),
        (DynamightProtReconstruct, {"inputMask", "regionRadius", "particle"}),
        (DynamightProtStates, {"motion", "path", "firstParticle", "lastParticle"}),
        (DynamightProtDisplaceModel, {"motion", "path", "firstParticle", "lastParticle"}),
        (DynamightProtSelect, {"region", "near"}),
    ],
)
def test_parameters_have_their_wizards(protocolClass, expected):
    protocol = protocolClass()
    found = {name for name, wizard in wizardsOf(protocol).items() if wizard.__module__.startswith("dynamight_scipion")}
    assert found == expected
    assert found <= {name for name, _ in protocol.getDefinition().iterParams()}


@pytest.mark.parametrize("parameter", ["particleDiameter", "threshold", "nGaussians", "inputMask"])
def test_a_wizard_asks_for_the_input_that_it_needs(workflow, use, warned, parameter):
    assert use(workflow.new(DynamightProtDeformations), parameter) == {}
    assert len(warned) == 1


def test_wizards_of_a_model_ask_for_it(workflow, use, warned):
    for protocolClass, parameter in ((DynamightProtStates, "motion"), (DynamightProtSelect, "region")):
        assert use(workflow.new(protocolClass), parameter) == {}
    assert warned == ["Choose the model first."] * 2


# ------------------------------------------------------------------ the map


@pytest.fixture(scope="module")
def noisy_map():
    """A molecule and a speck in noise, (48, 48, 48) at 4 A."""
    positions = hinge_molecule(0).positions.numpy()
    voxels = np.round(positions[:, ::-1] / 4).astype(int) + 24
    volume = np.zeros((48, 48, 48), dtype=np.float32)
    np.add.at(volume, tuple(voxels.T), 1.0)
    volume[8, 8, 24] = 40.0
    return volume + np.random.default_rng(0).normal(0, 0.3, volume.shape).astype(np.float32)


def test_the_preview_shows_what_the_engine_takes_for_the_molecule(noisy_map):
    smooth = SmoothMap.of(noisy_map, 4.0)
    for threshold in (None, 0.5 * smooth.strongest, 1.2 * smooth.automatic):
        region = find_molecule(torch.from_numpy(noisy_map), 4.0, threshold)
        if threshold is None:
            assert smooth.automatic == pytest.approx(region.threshold, rel=1e-3)
        shown = smooth.findMolecule(region.threshold)
        assert region.mask.sum() > 100
        assert (shown != region.mask).mean() < 1e-4


def test_a_fine_map_is_previewed_on_a_coarser_grid_with_the_same_result():
    positions = hinge_molecule(0).positions.numpy()
    fine = np.zeros((96, 96, 96), dtype=np.float32)
    np.add.at(fine, tuple((np.round(positions[:, ::-1] / 2).astype(int) + 48).T), 1.0)
    fine += np.random.default_rng(0).normal(0, 0.1, fine.shape).astype(np.float32)
    region = find_molecule(torch.from_numpy(fine), 2.0)
    smooth = SmoothMap.of(fine, 2.0)
    assert (smooth.volume.shape, smooth.samplingRate) == ((48, 48, 48), 4.0)
    assert smooth.automatic == pytest.approx(region.threshold, rel=0.02)
    shown = smooth.findMolecule(region.threshold)
    assert (shown != region.mask[::2, ::2, ::2]).mean() < 1e-3
    assert shown.sum() * 4.0**3 == pytest.approx(region.mask.sum() * 2.0**3, rel=0.02)


def test_dots_lie_inside_and_there_are_as_many_as_gaussians(noisy_map):
    inside = SmoothMap.of(noisy_map, 4.0)
    mask = inside.findMolecule(inside.automatic)
    dots = fill(mask, 500)
    assert dots.shape == (500, 3)
    assert mask[tuple(np.round(dots).astype(int).T)].all()
    assert not len(fill(np.zeros_like(mask), 500))


def test_threshold_is_written_as_it_was_chosen(chain, use):
    seen = {}

    def choose(title, explanation, volume, centre, overlay, slider):
        seen.update(volume=volume, slider=slider, low=overlay(slider[3]), high=overlay(1e9))
        return 0.012345

    protocol = chain["deformations"]
    assert use(protocol, "threshold", "SlicesDialog", choose) == {"threshold": "0.01235"}
    assert seen["volume"].shape == (32, 32, 32)
    assert "automatic" in seen["low"].sentence
    assert len(seen["low"].dots) == protocol.nGaussians.get()
    assert "lower it" in seen["high"].sentence
    assert not len(seen["high"].dots)


def test_number_of_gaussians_follows_from_mass_and_volume(chain, use):
    # 110 kDa are 1,000 residues, and protein of 1.35 g/cm3 takes 1.23 A3 for each dalton.
    assert gaussiansOfMass(110, 2) == 2000
    assert massOfVolume(1.23e5) == pytest.approx(100)
    assert spacing(8000, 8) == pytest.approx(10)
    seen = []
    written = use(chain["deformations"], "nGaussians", "GaussiansDialog", lambda volumes: seen.append(volumes) or 1234)
    assert written == {"nGaussians": 1234}
    (volume,) = seen[0].values()
    # The hinge has 3,000 pseudo-atoms, five a residue: 66 kDa; smoothed, it is larger.
    assert 66 < massOfVolume(volume) < 400


def test_diameter_is_that_of_the_circle(chain, use, monkeypatch):
    asked = {}

    class Chosen:
        def __init__(self, root, provider, maskRadius, unit):
            asked.update(radius=maskRadius, first=provider.getObjects()[0])
            self.radiusSlider = None

        def resultYes(self):
            return True

        def getRadiusAngstroms(self, slider):
            return 70.0

    monkeypatch.setattr("pwem.wizards.wizard.MaskPreviewDialog", Chosen)
    assert use(chain["deformations"], "particleDiameter") == {"particleDiameter": 140}
    # 0.9 of a box of 32 pixels at 6 A, on the consensus map first
    assert asked["radius"] == pytest.approx(0.45 * 32 * 6)
    assert asked["first"].getFileName() == chain["volume"].outputVolume.getFileName()


def test_reach_is_shown_around_the_gaussians(chain, use):
    seen = {}

    def choose(title, explanation, volume, centre, overlay, slider):
        seen.update(overlay=overlay(12.0), volume=volume)
        return 12.5

    assert use(chain["reconstruction"], "regionRadius", "SlicesDialog", choose) == {"regionRadius": "12.5"}
    (distance, inner, _), (_, outer, _) = seen["overlay"].outlines
    assert (inner, outer) == (12.0, 24.0)
    assert seen["volume"][distance <= 6].mean() > 5 * abs(seen["volume"][distance > 30].mean())


def test_a_mask_is_shown_over_the_map_with_its_share(chain, use, workflow, warned):
    protocol = workflow.new(
        DynamightProtReconstruct,
        {"inputModel": (chain["deformations"], "outputModel"), "inputMask": (chain["reconstruction"], "outputMask")},
    )
    seen = []
    use(protocol, "inputMask", "SlicesDialog", lambda *arguments: seen.append(arguments[4](None)))
    assert warned == []
    share = float(seen[0].sentence.split(" %")[0])
    assert share > 90
    with mrcfile.open(chain["reconstruction"].outputMask.getFileName()) as mrc:
        np.testing.assert_allclose(seen[0].outlines[0][0], mrc.data, atol=1e-6)


# ------------------------------------------------------------------ motions


def test_a_motion_is_chosen_by_its_number(chain, use, workflow):
    protocol = workflow.new(DynamightProtStates, {"inputModel": (chain["deformations"], "outputModel")}, motion=9)
    seen = []
    written = use(protocol, "motion", "MotionDialog", lambda results, number: seen.append(number) or 2)
    assert written == {"motion": 2}
    assert seen == [3], "the last of three motions, where there is no ninth"


def test_a_picked_particle_is_one_of_the_model(chain, use, workflow):
    protocol = workflow.new(DynamightProtStates, {"inputModel": (chain["deformations"], "outputModel")})
    written = use(protocol, "firstParticle", "PlaneDialog", lambda results, purpose: int(results.particles.ids[7]))
    assert written["firstParticle"] in chain["deformations"].outputParticles.getIdSet()


def test_a_drawn_path_is_read_by_the_protocol(chain, workflow):
    model = chain["deformations"].outputModel
    assert parsePath(pathText([(-0.5, 0.25), (1.0, 0.0)], [2, 0]), model) == [[0.25, 0, -0.5], [0, 0, 1.0]]


def test_a_drawn_region_selects_the_particles_in_it(chain, workflow):
    places = Results(chain["deformations"].outputModel).particles.coordinates
    low, high = np.quantile(places[:, :2], 0.2, 0), np.quantile(places[:, :2], 0.9, 0)
    protocol = workflow.new(
        DynamightProtSelect,
        {"inputModel": (chain["deformations"], "outputModel")},
        region=regionText([1, 0], [(low[1], high[1]), (low[0], high[0])]),
    )
    assert protocol.validate() == []
    options = protocol._getSelectOptions()
    ranges = [option for word, option in pairwise(options) if word == "--along"]
    assert ranges == [f"{k + 1}:{low[k]:.3f}:{high[k]:.3f}" for k in (1, 0)]

"""What the wizards read from a form, which dialog they open, and what they write back."""

import os

import numpy as np
from pwem.constants import UNIT_ANGSTROM
from pwem.wizards.wizard import MaskRadiusWizard
from pyworkflow.gui import dialog
from pyworkflow.gui.tree import ListTreeProvider
from pyworkflow.wizard import Wizard
from scipy import ndimage

from dynamight_scipion import convert
from dynamight_scipion.protocols import (
    DynamightProtDeformations,
    DynamightProtDisplaceModel,
    DynamightProtReconstruct,
    DynamightProtSelect,
    DynamightProtStates,
)
from dynamight_scipion.viewers.figures import HALF_COLOURS
from dynamight_scipion.viewers.results import Results, readVolume

from .dialogs import PARTICLE, PATH, REGION, GaussiansDialog, MotionDialog, Overlay, PlaneDialog, SlicesDialog
from .preview import SmoothMap, fill, spacing

_INSIDE, _EDGE = HALF_COLOURS[2], HALF_COLOURS[1]


class _Missing(Exception):
    """An input that a wizard needs and the form does not have; the message asks for it."""


def _mapOnParticles(protocol):
    """Return the consensus map of a form [z, y, x] as the engine will get it, and its sampling rate (Å)."""
    particles, volume = protocol.inputParticles.get(), protocol.inputVolume.get()
    if particles is None or volume is None:
        raise _Missing("Choose the particles and the consensus map first.")
    return _onGrid(volume, particles.getXDim(), particles.getSamplingRate(), protocol, "consensus map")


def _onGrid(volume, box, samplingRate, protocol, name, isMask=False):
    """Return a volume [z, y, x] as a protocol would convert it, and its sampling rate."""
    folder = protocol.getProject().getTmpPath()
    path = os.path.join(folder, f"wizard_{'mask' if isMask else 'map'}.mrc")
    convert.writeVolume(volume, box, samplingRate, path, name, isMask=isMask)
    try:
        return readVolume(path), samplingRate
    finally:
        os.remove(path)


def _results(protocol):
    """Return the `Results` of the model in a form."""
    model = protocol.inputModel.get()
    if model is None:
        raise _Missing("Choose the model first.")
    if model.getMissingFiles():
        raise _Missing(f"Files of the model are missing, e.g. {model.getMissingFiles()[0]}: bring them back.")
    return Results(model)


def _centre(mask):
    """Return the voxel (z, y, x) in the middle of a mask."""
    return np.round(ndimage.center_of_mass(mask)).astype(int) if mask.any() else np.array(mask.shape) // 2


class _FormWizard(Wizard):
    """A wizard that says which input it needs where that is missing, or cannot be read."""

    def show(self, form, *params):
        """Open the dialog for the parameter whose button was clicked."""
        try:
            self._show(form, form.wizParamName)
        except (_Missing, convert.ConversionError) as error:
            dialog.showWarning("Wizard", str(error), form.root)


class DynamightDiameterWizard(MaskRadiusWizard):
    """Diameter of the particle: a circle on the consensus map and on particles."""

    _targets = [(DynamightProtDeformations, ["particleDiameter"])]

    def _getProvider(self, protocol):
        particles, volume = protocol.inputParticles.get(), protocol.inputVolume.get()
        if particles is None:
            return None
        return ListTreeProvider([*([volume] if volume is not None else []), *self._getParticles(particles, 20)])

    def show(self, form, *params):
        """Open pwem's dialog of a mask's radius."""
        protocol = form.protocol
        diameter = protocol.particleDiameter.get()
        if diameter is None and protocol.inputParticles.get() is not None:
            particles = protocol.inputParticles.get()
            diameter = 0.9 * particles.getXDim() * particles.getSamplingRate()
        MaskRadiusWizard.show(self, form, (diameter or 0) / 2, "particleDiameter", UNIT_ANGSTROM)

    def setVar(self, form, label, value):
        """Write the diameter of the circle whose radius (Å) was chosen."""
        form.setVar(label, 2 * value)


class DynamightThresholdWizard(_FormWizard):
    """Threshold of the map: where the Gaussians would go, on slices."""

    _targets = [(DynamightProtDeformations, ["threshold"])]

    def _show(self, form, name):
        protocol = form.protocol
        volume, samplingRate = _mapOnParticles(protocol)
        smooth = SmoothMap.of(volume, samplingRate)
        first = protocol.threshold.get()
        step = smooth.strongest / 200
        first = min(smooth.automatic if first is None else first, smooth.strongest)
        count = protocol.nGaussians.get()

        def overlay(threshold):
            inside = smooth.findMolecule(threshold)
            size = inside.sum() * smooth.samplingRate**3
            if not size:
                return Overlay("Nothing is above this threshold: lower it.")
            return Overlay(
                f"Threshold {threshold:.3g} (automatic: {smooth.automatic:.3g}): {count:,} Gaussians in "
                f"{size:,.0f} Å³, {spacing(size, count):.1f} Å apart.",
                [(inside, 0.5, _EDGE)],
                fill(inside, count),
            )

        shown = SlicesDialog(
            form.root,
            "Map threshold",
            "The map as the molecule is found in it, low-passed at 15 Å. Gaussians (dots) start inside the outline. "
            "Weak, flexible density should be inside, solvent outside. Leave the field of the form empty for the "
            "automatic value.",
            smooth.volume,
            _centre(smooth.findMolecule(first)),
            overlay,
            ("Threshold", step, smooth.strongest, first, step / 10),
        )
        if shown.resultYes():
            form.setVar(name, f"{shown.value:.4g}")


class DynamightGaussiansWizard(_FormWizard):
    """Number of Gaussians from the molecular mass, or the volume of the mask or the molecule."""

    _targets = [(DynamightProtDeformations, ["nGaussians"])]

    def _show(self, form, name):
        protocol = form.protocol
        volume, samplingRate = _mapOnParticles(protocol)
        smooth = SmoothMap.of(volume, samplingRate)
        threshold = protocol.threshold.get()
        inside = smooth.findMolecule(smooth.automatic if threshold is None else threshold)
        if not inside.any():
            raise _Missing("Nothing of the map is above its threshold: lower this first.")
        volumes = {"the map above its threshold": inside.sum() * smooth.samplingRate**3}
        if protocol.inputMask.get() is not None:
            mask, _ = _onGrid(protocol.inputMask.get(), len(volume), samplingRate, protocol, "mask", isMask=True)
            volumes["the mask of allowed motion"] = (mask > 0.5).sum() * samplingRate**3
        shown = GaussiansDialog(form.root, volumes)
        if shown.resultYes():
            form.setVar(name, shown.value)


class DynamightMaskWizard(_FormWizard):
    """A mask over the map that it belongs to."""

    _targets = [(DynamightProtDeformations, ["inputMask"]), (DynamightProtReconstruct, ["inputMask"])]

    def _show(self, form, name):
        protocol = form.protocol
        given = protocol.inputMask.get()
        if given is None:
            raise _Missing("Choose a mask first: the wizard shows it over the map.")
        if isinstance(protocol, DynamightProtDeformations):
            volume, samplingRate = _mapOnParticles(protocol)
        else:
            model = _results(protocol).model
            volume, samplingRate = readVolume(model.getConsensusMap()), model.getSamplingRate()
        mask, _ = _onGrid(given, len(volume), samplingRate, protocol, "mask", isMask=True)
        smooth = SmoothMap.of(volume, samplingRate)
        # The smooth map may have larger voxels: those of the mask at their places.
        places = np.argwhere(smooth.findMolecule(smooth.automatic)) * smooth.samplingRate / samplingRate
        inside = mask[tuple(np.minimum(places.round().astype(int), len(mask) - 1).T)]
        share = 100 * inside.mean() if len(inside) else 0.0
        sentence = f"{share:.0f} % of the molecule lies in the mask."
        # A soft edge holds at least a layer of voxels around what is inside.
        if ((mask > 0.01) & (mask < 0.99)).sum() < (mask >= 0.99).sum() ** (2 / 3):
            sentence += " Its edge is hard: give it a soft one, some Å wide."
        SlicesDialog(
            form.root,
            "Mask",
            "The mask over the consensus map: where it is 1 (inner line) and where it begins (outer line).",
            volume,
            _centre(mask > 0.5),
            lambda _: Overlay(sentence, [(mask, 0.99, _INSIDE), (mask, 0.01, _EDGE)]),
        )


class DynamightReachWizard(_FormWizard):
    """How far from the Gaussians the map moves with them, on slices."""

    _targets = [(DynamightProtReconstruct, ["regionRadius"])]

    def _show(self, form, name):
        results = _results(form.protocol)
        model = results.model
        volume, samplingRate = readVolume(model.getConsensusMap()), model.getSamplingRate()
        places = np.stack([results.points[axis] for axis in "zyx"], -1)
        voxels = np.round(places / samplingRate).astype(int) + len(volume) // 2
        empty = np.ones(volume.shape, dtype=bool)
        empty[tuple(voxels[((voxels >= 0) & (voxels < len(volume))).all(1)].T)] = False
        distance = ndimage.distance_transform_edt(empty, sampling=samplingRate)

        def overlay(reach):
            inside = 100 * (distance <= reach).mean()
            return Overlay(
                f"{reach:g} Å: {inside:.0f} % of the box moves with the molecule (inner line); what lies between the "
                "lines moves less and less.",
                [(distance, reach, _INSIDE), (distance, 2 * reach, _EDGE)],
            )

        first = min(max(form.protocol.regionRadius.get() or 10.0, 2), 40)
        shown = SlicesDialog(
            form.root,
            "Reach of the motion",
            "Density within this distance of the Gaussians is moved with them. It should hold all that belongs to the "
            "molecule.",
            volume,
            _centre(distance <= samplingRate),
            overlay,
            ("Reach (Å)", 2, 40, first, 0.5),
        )
        if shown.resultYes():
            form.setVar(name, f"{shown.value:g}")


class DynamightMotionWizard(_FormWizard):
    """Choice of a principal motion."""

    _targets = [(DynamightProtStates, ["motion"]), (DynamightProtDisplaceModel, ["motion"])]

    def _show(self, form, name):
        results = _results(form.protocol)
        first = min(max(form.protocol.motion.get() or 1, 1), len(results.shares))
        shown = MotionDialog(form.root, results, first)
        if shown.resultYes():
            form.setVar(name, shown.value)


class DynamightPlaneWizard(_FormWizard):
    """A particle, a path or a region, picked among the particles along two motions."""

    _PURPOSES = {
        "firstParticle": PARTICLE,
        "lastParticle": PARTICLE,
        "particle": PARTICLE,
        "near": PARTICLE,
        "path": PATH,
        "region": REGION,
    }
    _targets = [
        (DynamightProtStates, ["firstParticle", "lastParticle", "path"]),
        (DynamightProtDisplaceModel, ["firstParticle", "lastParticle", "path"]),
        (DynamightProtReconstruct, ["particle"]),
        (DynamightProtSelect, ["region", "near"]),
    ]

    def _show(self, form, name):
        shown = PlaneDialog(form.root, _results(form.protocol), self._PURPOSES[name])
        if shown.resultYes():
            form.setVar(name, shown.value)

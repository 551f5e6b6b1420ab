"""Wizards: what they read from a form, the dialog that they open, and what they write to the form."""

from __future__ import annotations

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
    """An input that a wizard needs is missing; the message asks for it."""


def _mapOnParticles(protocol):
    """Return the consensus map of a form [z, y, x], converted for the engine, and its sampling rate (Å)."""
    particles, volume = protocol.inputParticles.get(), protocol.inputVolume.get()
    if particles is None or volume is None:
        raise _Missing("Choose the particles and the consensus map first.")
    return _onGrid(volume, particles.getXDim(), particles.getSamplingRate(), protocol, "consensus map")


def _onGrid(volume, box, samplingRate, protocol, name, isMask=False):
    """Return a volume [z, y, x], converted as by a protocol, and its sampling rate (Å)."""
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
        raise _Missing(f"Files of the model are missing, e.g. {model.getMissingFiles()[0]}: restore them.")
    return Results(model)


def _centre(mask):
    """Return the voxel (z, y, x) at the centre of a mask."""
    return np.round(ndimage.center_of_mass(mask)).astype(int) if mask.any() else np.array(mask.shape) // 2


class _FormWizard(Wizard):
    """A wizard that writes the choice to the form, or shows a warning if an input is missing or cannot be read."""

    # How the form shows the chosen value; as it is if None.
    _digits: str | None = None

    def show(self, form, *params):
        """Open the dialog of the parameter whose button was clicked."""
        try:
            shown = self._open(form, form.wizParamName)
        except (_Missing, convert.ConversionError) as error:
            dialog.showWarning("Wizard", str(error), form.root)
            return
        if shown.resultYes():
            form.setVar(form.wizParamName, format(shown.value, self._digits) if self._digits else shown.value)


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
        """Write the diameter for the chosen radius (Å)."""
        form.setVar(label, 2 * value)


class DynamightThresholdWizard(_FormWizard):
    """Threshold of the map: where Gaussians will be placed, on slices."""

    _targets = [(DynamightProtDeformations, ["threshold"])]
    _digits = ".4g"

    def _open(self, form, name):
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
                return Overlay("No density exceeds this threshold: lower it.")
            return Overlay(
                f"Threshold {threshold:.3g} (automatic: {smooth.automatic:.3g}): {count:,} Gaussians in "
                f"{size:,.0f} Å³, {spacing(size, count):.1f} Å apart.",
                ((inside, 0.5, _EDGE),),
                fill(inside, count),
            )

        return SlicesDialog(
            form.root,
            "Map threshold",
            "The map, low-pass filtered at 15 Å to find the molecule. Gaussians (dots) are initialised inside the "
            "outline. Choose a threshold that includes weak, flexible density and excludes solvent. For the automatic "
            "value, leave the field of the form empty.",
            smooth.volume,
            _centre(smooth.findMolecule(first)),
            overlay,
            ("Threshold", step, smooth.strongest, first, step / 10),
        )


class DynamightGaussiansWizard(_FormWizard):
    """Number of Gaussians, from the molecular mass or the volume of mask or molecule."""

    _targets = [(DynamightProtDeformations, ["nGaussians"])]

    def _open(self, form, name):
        protocol = form.protocol
        volume, samplingRate = _mapOnParticles(protocol)
        smooth = SmoothMap.of(volume, samplingRate)
        threshold = protocol.threshold.get()
        inside = smooth.findMolecule(smooth.automatic if threshold is None else threshold)
        if not inside.any():
            raise _Missing("No density exceeds the map threshold: lower it first.")
        volumes = {"the map above the threshold": inside.sum() * smooth.samplingRate**3}
        if protocol.inputMask.get() is not None:
            mask, _ = _onGrid(protocol.inputMask.get(), len(volume), samplingRate, protocol, "mask", isMask=True)
            volumes["the mask of the flexible region"] = (mask > 0.5).sum() * samplingRate**3
        return GaussiansDialog(form.root, volumes)


class DynamightMaskWizard(_FormWizard):
    """A mask over its map."""

    _targets = [(DynamightProtDeformations, ["inputMask"]), (DynamightProtReconstruct, ["inputMask"])]

    def _open(self, form, name):
        protocol = form.protocol
        source = protocol.inputMask.get()
        if source is None:
            raise _Missing("Choose a mask first.")
        if isinstance(protocol, DynamightProtDeformations):
            volume, samplingRate = _mapOnParticles(protocol)
        else:
            model = _results(protocol).model
            volume, samplingRate = readVolume(model.getConsensusMap()), model.getSamplingRate()
        mask, _ = _onGrid(source, len(volume), samplingRate, protocol, "mask", isMask=True)
        smooth = SmoothMap.of(volume, samplingRate)
        # Voxels of the mask at the positions of the filtered map's voxels, which may be larger.
        positions = np.argwhere(smooth.findMolecule(smooth.automatic)) * smooth.samplingRate / samplingRate
        inside = mask[tuple(np.minimum(positions.round().astype(int), len(mask) - 1).T)]
        percent = 100 * inside.mean() if len(inside) else 0.0
        sentence = f"{percent:.0f} % of the molecule is inside the mask."
        # A soft edge contains at least one layer of voxels around the inside.
        if ((mask > 0.01) & (mask < 0.99)).sum() < (mask >= 0.99).sum() ** (2 / 3):
            sentence += " The edge is hard: add a soft edge a few Å wide."
        return SlicesDialog(
            form.root,
            "Mask",
            "The mask over the consensus map. Inside the inner line it is 1; outside the outer line it is 0.",
            volume,
            _centre(mask > 0.5),
            lambda _: Overlay(sentence, ((mask, 0.99, _INSIDE), (mask, 0.01, _EDGE))),
        )


class DynamightReachWizard(_FormWizard):
    """Distance from the Gaussians that moves with them, on slices."""

    _targets = [(DynamightProtReconstruct, ["regionRadius"])]
    _digits = "g"

    def _open(self, form, name):
        results = _results(form.protocol)
        model = results.model
        volume, samplingRate = readVolume(model.getConsensusMap()), model.getSamplingRate()
        points = np.stack([results.points[axis] for axis in "zyx"], -1)
        voxels = np.round(points / samplingRate).astype(int) + len(volume) // 2
        empty = np.ones(volume.shape, dtype=bool)
        empty[tuple(voxels[((voxels >= 0) & (voxels < len(volume))).all(1)].T)] = False
        distance = ndimage.distance_transform_edt(empty, sampling=samplingRate)

        def overlay(reach):
            inside = 100 * (distance <= reach).mean()
            return Overlay(
                f"{reach:g} Å: {inside:.0f} % of the box moves with the molecule (inner line). Between the lines, "
                "motion decreases to zero.",
                ((distance, reach, _INSIDE), (distance, 2 * reach, _EDGE)),
            )

        first = min(max(form.protocol.regionRadius.get() or 10.0, 2), 40)
        return SlicesDialog(
            form.root,
            "Distance from Gaussians that moves",
            "Density within this distance of the Gaussians moves with them. Include the whole molecule.",
            volume,
            _centre(distance <= samplingRate),
            overlay,
            ("Distance (Å)", 2, 40, first, 0.5),
        )


class DynamightMotionWizard(_FormWizard):
    """Choice of a principal motion."""

    _targets = [(DynamightProtStates, ["motion"]), (DynamightProtDisplaceModel, ["motion"])]

    def _open(self, form, name):
        results = _results(form.protocol)
        first = min(max(form.protocol.motion.get() or 1, 1), len(results.shares))
        return MotionDialog(form.root, results, first)


class DynamightPlaneWizard(_FormWizard):
    """A particle, a path or a region, chosen in a plot of particles along two motions."""

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

    def _open(self, form, name):
        return PlaneDialog(form.root, _results(form.protocol), self._PURPOSES[name])

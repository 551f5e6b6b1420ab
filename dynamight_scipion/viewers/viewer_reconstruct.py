"""Viewer of a reconstruction: FSC, and the map before and after."""

from __future__ import annotations

import os

import numpy as np
import pyworkflow.protocol.params as params

from dynamight_scipion.protocols import DynamightProtReconstruct
from dynamight_scipion.protocols.protocol_reconstruct import REGION, RIGID, readResolution

from .chimera import beforeAndAfter
from .figures import HALF_COLOURS, Layer, drawFsc, greyLayers
from .forms import ResultsViewer, view
from .results import readVolume
from .windows import figureView, slicesView

AFTER, BEFORE = HALF_COLOURS[1], HALF_COLOURS[2]
# Ends of the names of the curves in the protocol's set, and how they are drawn.
_STYLES: dict[str, dict] = {
    "corrected for the mask": {"linewidth": 1.8},
    "masked": {"linewidth": 1.0, "linestyle": "--"},
    "unmasked": {"linewidth": 1.0, "linestyle": ":"},
    "phase-randomised": {"linewidth": 1.0, "linestyle": "-.", "alpha": 0.6},
    "conservative": {"linewidth": 1.4, "alpha": 0.5},
}
CORRECTED = "corrected for the mask"
LOCAL_RESOLUTION = "local_resolution.mrc"


class DynamightReconstructViewer(ResultsViewer):
    """The map with motion corrected, beside the map of the same particles without deformation."""

    _label = "map before and after"
    _targets = [DynamightProtReconstruct]

    def _findMissing(self, obj):
        return None if hasattr(obj, "outputVolume") else "There is no map yet: wait until the protocol has finished."

    # ------------------------------------------------------------------ form

    def _defineParams(self, form):
        form.addSection(label="Results")
        self.addViews(form, "resolution", label=self._describeResolution())
        group = form.addGroup("Fourier shell correlation")
        group.addParam(
            "allCurves",
            params.BooleanParam,
            default=False,
            label="All curves?",
            help="No: only the curves of the molecule and of regions that are corrected for the mask by phase "
            "randomisation; they give the resolution. Yes: also masked, unmasked, phase-randomised and conservative.",
        )
        self.addViews(group, "fsc")
        group = form.addGroup("Maps")
        compared = (
            f"{self._describeBefore()} and the map with motion corrected, in the same grey scale, and their "
            "difference. Red: density gained; blue: density lost."
        )
        self.addViews(group, "slices", help=compared)
        if hasattr(self.protocol, "outputLocalResolution"):
            self.addViews(group, "localResolution")
        self.addViews(group, "chimera")

    def _describeResolution(self):
        """Return the resolution in words, beside that without deformation if there are such maps."""
        found = f"Resolution {readResolution(self.protocol._getMapPath('fsc.star')):.2f} Å"
        if not hasattr(self.protocol, "outputRigid"):
            return found
        return f"{found}, without deformation {readResolution(self.protocol._getMapPath(RIGID, 'fsc.star')):.2f} Å"

    def _describeBefore(self):
        return "The map without deformation" if hasattr(self.protocol, "outputRigid") else "The consensus map"

    def _getBefore(self):
        """Return the path of the map that the corrected one is compared with."""
        if hasattr(self.protocol, "outputRigid"):
            return self.protocol.outputRigid.getFileName()
        return self.protocol.inputModel.get().getConsensusMap()

    # ------------------------------------------------------------------ views

    @view(
        "Resolution",
        "Where the FSC between the half-maps, corrected for the mask, falls below 0.143.",
        important=True,
    )
    def _showResolution(self):
        return self._describe("Resolution")

    @view("FSC of the half-maps", "With motion corrected and, if the protocol made these maps, without deformation.")
    def _showFsc(self):
        curves = []
        for item in self.protocol.outputFSCs.iterItems():
            # Items of a set are one object, filled again and again.
            curve = item.clone()
            which, kind = curve.getObjLabel().split(", ", 1)
            isRegion = kind.startswith(REGION)
            if kind == CORRECTED or isRegion or self.allCurves:
                style: dict = {"color": AFTER if which == "motion corrected" else BEFORE}
                if isRegion:
                    # The dashes of a region are as long as its number.
                    style.update(linewidth=1.4, linestyle=(0, (1 + 3 * int(kind[len(REGION) :]), 2)))
                else:
                    # Runs of earlier versions have other labels.
                    style.update(_STYLES.get(kind, {}))
                curves.append((curve.getObjLabel(), *curve.getData(), style))
        return figureView("Fourier shell correlation", (7.5, 5), drawFsc, curves)

    @view("Slices before and after")
    def _showSlices(self):
        before, after = readVolume(self._getBefore()), readVolume(self.protocol.outputVolume.getFileName())
        layers = greyLayers({self._describeBefore().replace("The ", "", 1): before, "map with motion corrected": after})
        limit = max(abs(after - before).max() * 0.7, 1e-12)
        layers.append(Layer("after minus before", after - before, "coolwarm", (-limit, limit)))
        return slicesView("Before and after", layers, self.protocol.outputVolume.getSamplingRate())

    def _getLocalResolutions(self):
        """Return the paths of the local resolution of both maps, the one before first; only one without maps before."""
        paths = [self.protocol._getMapPath(RIGID, LOCAL_RESOLUTION), self.protocol.outputLocalResolution.getFileName()]
        # Runs of earlier versions, and runs without maps before, have one.
        return paths if os.path.exists(paths[0]) else paths[1:]

    def _readLocalResolutions(self):
        """Return the local resolutions in Å, not a number outside the mask, and the range of all."""
        outside = readVolume(self.protocol.outputMask.getFileName()) < 0.5
        volumes = [np.where(outside, np.nan, readVolume(path)) for path in self._getLocalResolutions()]
        return volumes, tuple(np.nanquantile(np.stack(volumes), [0.01, 0.99]))

    @view(
        "Local resolution in slices",
        "In Å, inside the mask: without deformation (if the protocol made that map) and with motion corrected, on one "
        "scale.",
    )
    def _showLocalResolution(self):
        layers = greyLayers({"map with motion corrected": readVolume(self.protocol.outputVolume.getFileName())})
        volumes, limits = self._readLocalResolutions()
        names = ("local resolution before", "local resolution after")[-len(volumes) :]
        layers += [Layer(n, volume, "viridis_r", limits, "Å") for n, volume in zip(names, volumes)]
        return slicesView("Local resolution", layers, self.protocol.outputVolume.getSamplingRate())

    @view(
        "Both maps in ChimeraX",
        "Both maps coloured by their local resolution on one scale, if it was written. One at a time: switch with the "
        "eyes in the model panel. The session's script is kept in the protocol's folder.",
    )
    def _showChimera(self):
        maps = self._getBefore(), self.protocol.outputVolume.getFileName()
        if hasattr(self.protocol, "outputLocalResolution"):
            commands = beforeAndAfter(*maps, self._getLocalResolutions(), self._readLocalResolutions()[1])
        else:
            commands = beforeAndAfter(*maps)
        return self._openChimera("before_and_after.cxc", commands)

"""Viewers of states: as a movie of maps, and as moved atomic models."""

import os
from typing import Any

import numpy as np
import pyworkflow.protocol.params as params
from pwem.objects import SetOfAtomStructFlex, SetOfVolumesFlex
from pwem.viewers import EmProtocolViewer
from pyworkflow.protocol import Protocol
from pyworkflow.viewer import DESKTOP_TKINTER

from dynamight_scipion.objects import FLEX_PROGRAM
from dynamight_scipion.protocols import DynamightProtDisplaceModel, DynamightProtStates

from .chimera import chimeraView, morphedModels, volumeSeries
from .figures import drawDisplacements, greyLayers
from .pages import BrowserView
from .results import readVolume
from .windows import figureView, movieView, slicesView


class _StatesViewer(EmProtocolViewer):
    """What opens from a protocol or from the set of states that it made."""

    _environments = [DESKTOP_TKINTER]
    # Name of the protocol's output
    _output = ""

    def __init__(self, **kwargs):
        EmProtocolViewer.__init__(self, **kwargs)
        self._parentWindow = kwargs.get("parent")

    @classmethod
    def can_handle_this_instance(cls, instance):
        """Whether an object is of this plugin: flexible sets can be of any."""
        return isinstance(instance, Protocol) or instance.getFlexInfo().getProgName() == FLEX_PROGRAM

    def visualize(self, obj, **args):
        """Open the window for the protocol or its output."""
        protocol = obj if isinstance(obj, Protocol) else self._project.getProtocol(obj.getObjParentId())
        self._states: Any = getattr(obj, self._output, None) if isinstance(obj, Protocol) else obj
        if self._states is None:
            self.infoMessage("There are no states yet: wait until the protocol is done.", "No results").show()
            return
        args.setdefault("windows", self._parentWindow)
        super().visualize(protocol, **args)

    def _getFiles(self):
        return [state.getFileName() for state in self._states.iterItems()]

    def _getNames(self):
        """Return the number of each state and its coordinates along the first motions."""
        names = []
        for number, state in enumerate(self._states.iterItems(), 1):
            # No minus sign for what is rounded to nothing
            place = ", ".join(f"{value:.2f}".replace("-0.00", "0.00") for value in state.getZFlex()[:3])
            names.append(f"state {number} at {place} Å")
        return names


class DynamightStatesViewer(_StatesViewer):
    """States of the molecule as maps: a movie, slices, and a series in ChimeraX."""

    _label = "states as a movie"
    _targets = [DynamightProtStates, SetOfVolumesFlex]
    _output = "outputStates"

    def _defineParams(self, form):
        form.addSection(label="States")
        form.addParam(
            "movie",
            params.LabelParam,
            important=True,
            label="Movie",
            help="Projections of the maps along z, y and x, one after the other, with their coordinates along the "
            "first motions (Å rms). Pause and move the slider to look at one state.",
        )
        if self._hasMovie():
            form.addParam(
                "movieFile",
                params.LabelParam,
                label="Movie in the browser",
                help="Open the movie file for talks and papers: MP4, or GIF if the engine's environment cannot write "
                "MP4.",
            )
        form.addParam(
            "slices",
            params.LabelParam,
            label="Slices of the first and the last",
            help="Both ends of the path and the state in the middle, side by side.",
        )
        form.addParam(
            "chimera",
            params.LabelParam,
            label="Series in ChimeraX",
            help="Play the maps as surfaces, back and forth. The session's script is kept in the protocol's folder.",
        )

    def _getVisualizeDict(self):
        return {
            "movie": self._showMovie,
            "movieFile": self._showMovieFile,
            "slices": self._showSlices,
            "chimera": self._showChimera,
        }

    def _hasMovie(self):
        return hasattr(self._states, "_dynMovie") and os.path.exists(self._states._dynMovie.get())

    def _showMovieFile(self, _):
        return [BrowserView(self._states._dynMovie.get())]

    def _showMovie(self, _):
        return [movieView("States", self._getNames(), [readVolume(path) for path in self._getFiles()])]

    def _showSlices(self, _):
        names, files = self._getNames(), self._getFiles()
        chosen = sorted({0, len(files) // 2, len(files) - 1})
        layers = greyLayers({names[number]: readVolume(files[number]) for number in chosen})
        return [slicesView("States", layers, self._states.getSamplingRate())]

    def _showChimera(self, _):
        return [chimeraView(self.protocol._getExtraPath("states.cxc"), volumeSeries(self._getFiles()), self._tkRoot)]


class DynamightDisplacedModelsViewer(_StatesViewer):
    """An atomic model in several states: how far its atoms move, and a morph in ChimeraX."""

    _label = "displaced atomic model"
    _targets = [DynamightProtDisplaceModel, SetOfAtomStructFlex]
    _output = "outputStructures"

    def _defineParams(self, form):
        form.addSection(label="Structures")
        distances = [state._dynDisplacementRms.get() for state in self._states.iterItems()]
        form.addParam(
            "overview",
            params.LabelParam,
            important=True,
            label=f"{len(distances)} states, moved by {min(distances):.1f} to {max(distances):.1f} Å rms",
            help="Displacement of the atoms in each state, rms over the structure.",
        )
        form.addParam(
            "displacements",
            params.LabelParam,
            label="Displacement of the atoms",
            help="Displacement of each atom in each state, in the order of the file.",
        )
        form.addParam(
            "chimera",
            params.LabelParam,
            label="Morph in ChimeraX",
            help="Morph the structure through the states, in the consensus map. The session's script is kept in the "
            "protocol's folder.",
        )

    def _getVisualizeDict(self):
        return {"overview": self._showOverview, "displacements": self._showDisplacements, "chimera": self._showChimera}

    def _showOverview(self, _):
        return [self.infoMessage("\n\n".join(self.protocol.summary()), "Structures")]

    def _showDisplacements(self, _):
        with np.load(self.protocol._getPositionsPath()) as found:
            distances = np.linalg.norm(found["positions"] - found["points"], axis=-1)
        return [figureView("Displacement", (9, 5), drawDisplacements, distances, self._getNames())]

    def _showChimera(self, _):
        consensus = self.protocol.inputModel.get().getConsensusMap()
        return [
            chimeraView(
                self.protocol._getExtraPath("structures.cxc"), morphedModels(self._getFiles(), consensus), self._tkRoot
            )
        ]

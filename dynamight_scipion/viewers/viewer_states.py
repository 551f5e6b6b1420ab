"""Viewers of states: as a movie of maps, and as moved atomic models."""

import os
from typing import Any

import numpy as np
from pwem.objects import SetOfAtomStructFlex, SetOfVolumesFlex
from pyworkflow.protocol import Protocol

from dynamight_scipion.protocols import DynamightProtDisplaceModel, DynamightProtStates

from .chimera import morphedModels, volumeSeries
from .figures import drawDeviations, drawDisplacements, greyLayers
from .forms import ResultsViewer, view
from .pages import BrowserView
from .results import readTable, readVolume
from .windows import figureView, movieView, slicesView


class _StatesViewer(ResultsViewer):
    """What opens from a protocol or from the set of states that it made."""

    # Name of the protocol's output
    _output = ""

    def _findMissing(self, obj):
        self._states: Any = getattr(obj, self._output, None) if isinstance(obj, Protocol) else obj
        return None if self._states is not None else "There are no states yet: wait until the protocol is done."

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
        hasFile = hasattr(self._states, "_dynMovie") and os.path.exists(self._states._dynMovie.get())
        hasDeviations = os.path.exists(self._getDeviationsPath())
        self.addViews(form, "movie", *["movieFile"] * hasFile, "slices", *["deviations"] * hasDeviations, "chimera")

    def _getDeviationsPath(self):
        return os.path.join(os.path.dirname(self._getFiles()[0]), "deviations.csv")

    @view(
        "Movie",
        "Projections of the maps along z, y and x, one after the other, with their coordinates along the first motions "
        "(Å rms). Pause and move the slider to look at one state.",
        important=True,
    )
    def _showMovie(self):
        return movieView("States", self._getNames(), [readVolume(path) for path in self._getFiles()])

    @view(
        "Movie in the browser",
        "Open the movie file for talks and papers: MP4, or GIF if the engine's environment cannot write MP4.",
    )
    def _showMovieFile(self):
        return BrowserView(self._states._dynMovie.get())

    @view("Slices of the first and the last", "Both ends of the path and the state in the middle, side by side.")
    def _showSlices(self):
        names, files = self._getNames(), self._getFiles()
        chosen = sorted({0, len(files) // 2, len(files) - 1})
        layers = greyLayers({names[number]: readVolume(files[number]) for number in chosen})
        return slicesView("States", layers, self._states.getSamplingRate())

    @view(
        "Deviation between states, by region",
        "Rms deviation (Å) of the molecule and of its rigid-body domains between each two states, without "
        "superposition. The table is beside the maps: deviations.csv.",
    )
    def _showDeviations(self):
        return figureView("Deviation between states", (9, 4.6), drawDeviations, readTable(self._getDeviationsPath()))

    @view(
        "Series in ChimeraX",
        "Play the maps as surfaces, back and forth. The session's script is kept in the protocol's folder.",
    )
    def _showChimera(self):
        return self._openChimera("states.cxc", volumeSeries(self._getFiles()))


class DynamightDisplacedModelsViewer(_StatesViewer):
    """An atomic model in several states: how far its atoms move, and a morph in ChimeraX."""

    _label = "displaced atomic model"
    _targets = [DynamightProtDisplaceModel, SetOfAtomStructFlex]
    _output = "outputStructures"

    def _defineParams(self, form):
        form.addSection(label="Structures")
        distances = [state._dynDisplacementRms.get() for state in self._states.iterItems()]
        moved = f"{len(distances)} states, moved by {min(distances):.1f} to {max(distances):.1f} Å rms"
        self.addViews(form, "overview", label=moved)
        self.addViews(form, "displacements", "chimera")

    @view("States", "Displacement of the atoms in each state, rms over the structure.", important=True)
    def _showOverview(self):
        return self._describe("Structures")

    @view("Displacement of the atoms", "Displacement of each atom in each state, in the order of the file.")
    def _showDisplacements(self):
        distances = np.linalg.norm(self.protocol.loadShifts(), axis=-1)
        return figureView("Displacement", (9, 5), drawDisplacements, distances, self._getNames())

    @view(
        "Morph in ChimeraX",
        "Morph the structure through the states, in the consensus map. The session's script is kept in the protocol's "
        "folder.",
    )
    def _showChimera(self):
        commands = morphedModels(self._getFiles(), self.protocol.getReferenceMap())
        return self._openChimera("structures.cxc", commands)

"""What is shown beside the model: a map of the run, or the state's map from the images of the particles near it."""

import threading

import numpy as np
import torch

from dynamight_core.analysis.explorer.answer import Answer
from dynamight_core.analysis.overview import MapPart, map_paths
from dynamight_core.analysis.states import state_coordinates
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.reconstruction.local_filter import locally_filtered
from dynamight_core.reconstruction.local_states import LocalStates
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run


class Beside:
    """Maps that come from images, to compare the model with.

    Parameters
    ----------
    run
        finished and summarised.
    reporter
        takes the progress of reconstructions.
    """

    def __init__(self, run: Run, reporter: Reporter):
        self._run, self._reporter = run, reporter
        self._states: LocalStates | None = None
        self._reconstructing = threading.Lock()

    def map_beside(self, name: str) -> Answer:
        """Return one of the maps of `overview.map_paths`, around the molecule.

        Values: where the bytes are, see `MapPart.place`. Array: density (d, h, w) uint8 [z, y, x].
        """
        paths = map_paths(self._run)
        if name not in paths:
            raise InputError(f"there is no map '{name}'; reconstruct the run, or choose one of {', '.join(paths)}")
        points = (self._run.motions.points + self._run.motions.mean).numpy()
        return _answer(MapPart.around(read_map(paths[name]), points), {})

    def local_state(self, at: list[float]) -> Answer:
        """Return the map of the particles near coordinates (A rms), filtered by its local FSC.

        Values: as of `map_beside`, with the effective number of particles in the moving part. Images are read once.
        """
        coordinates = state_coordinates(self._run, at)
        with self._reconstructing:
            if self._states is None:
                self._states = LocalStates(self._run, self._reporter)
            state = self._states.reconstruct(coordinates)
            self._reporter.progress("", 0, 0)
        volume = locally_filtered(*state.half_maps, self._run.particles.pixel_size).numpy()
        motions = self._run.motions
        points = (
            motions.points
            + motions.mean
            + torch.tensordot(torch.from_numpy(coordinates).float(), motions.components, 1)
        )
        part = MapPart.around((volume, self._run.particles.pixel_size), points.numpy())
        return _answer(part, {"particles": state.row()["effective_particles"]})


def _answer(part: MapPart, values: dict[str, float]) -> Answer:
    density = part.quantised(part.top)
    # Such maps have one colour.
    still = np.zeros((1, 1, 1), dtype=np.uint8)
    return Answer(part.place() | values, {"density": density, "displacement": still})

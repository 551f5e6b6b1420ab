"""The same run in napari: density, Gaussians, arrows and particles as layers.

The molecule lies at the origin, in A. To its right, in the plane z = 0, are the particles along two principal motions.
A click on a particle, or on any place among them, shows the conformation there in all layers. Paths and regions that
are drawn among the particles are saved with the key S: as states with a movie, and as a STAR file of the particles
inside.
"""

import os
from itertools import count

import numpy as np

from dynamight_core.analysis.explorer.address import has_screen
from dynamight_core.analysis.explorer.saving import Saver
from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.analysis.molecule import spread_out
from dynamight_core.errors import InputError

# Maximum number of particles drawn, sampled at random, and the number of arrows.
_MAX_POINTS, _ARROWS = 100_000, 300
# Distance between molecule and particles, as a fraction of the box.
_GAP = 0.1
# States of a movie along a drawn path.
_STATES = 20


class NapariView:
    """Layers of a run, which follow the conformation that is shown.

    Parameters
    ----------
    explorer
        of the run; its atomic model and tables are shown too.

    Raises
    ------
    InputError
        if napari is not installed.
    """

    def __init__(self, explorer: Explorer):
        try:
            from napari import layers
        except ImportError as error:
            raise InputError(
                "--viewer napari needs the package napari; install dynamight-core[napari], or omit --viewer to use the "
                "browser"
            ) from error
        self._explorer = explorer
        self._molecule = explorer.molecule().arrays
        mean = explorer.coordinates.mean(0)
        volume, spacing = self._volume(mean)
        motion = np.linalg.norm(self._molecule["motions"][0], axis=1)
        self._error = np.asarray(explorer.run.summary["point_error"])
        self.volume = layers.Image(
            volume,
            name="density",
            scale=[spacing] * 3,
            translate=[-(len(volume) // 2) * spacing] * 3,
            rendering="iso",
            iso_threshold=0.2,
            colormap="gray",
            blending="translucent",
        )
        self.gaussians = layers.Points(
            self._places(mean),
            name="Gaussians",
            size=2.0,
            opacity=0.6,
            face_color="motion",
            border_width=0,
            features={"motion": motion, "error": self._error},
            face_colormap="viridis",
        )
        self.chosen = spread_out(self._molecule["rest"], _ARROWS)
        self.arrows = layers.Vectors(
            self._arrow_vectors(mean),
            name="motion 1, one standard deviation",
            edge_width=0.8,
            vector_style="arrow",
            features={"motion": motion[self.chosen], "error": self._error[self.chosen]},
            edge_color="orange",
        )
        self.layers = [self.volume, self.gaussians, self.arrows]
        self.trace = None
        if "trace" in self._molecule:
            self.trace = layers.Points(
                self._places(mean, "trace", "trace_motions"),
                name="atomic model",
                size=2.5,
                face_color="cyan",
                border_width=0,
            )
            self.layers.append(self.trace)
        self.rows, places, features = self._particles()
        low, high = places.min(0), places.max(0)
        # Both axes have the same scale; the longer one is as long as the molecule's box.
        extent = explorer.run.box * explorer.run.pixel_size
        scale = extent / max(float((high - low).max()), 1e-6)
        offset = [0.0, -scale * (low[1] + high[1]) / 2, (0.5 + _GAP) * extent - scale * low[2]]
        self.particles = layers.Points(
            places,
            name="particles along motions 1 and 2",
            size=extent / 150 / scale,
            face_color="error",
            features=features,
            face_colormap="magma",
            border_width=0,
            scale=[1, scale, scale],
            translate=offset,
        )
        self.particles.mouse_drag_callbacks.append(self._clicked)
        # Drawn in the coordinates of the particles, in napari's view in two dimensions.
        self.drawings = layers.Shapes(
            ndim=3,
            name="paths and regions (S saves them)",
            scale=self.particles.scale,
            translate=self.particles.translate,
            edge_color="cyan",
            edge_width=0.1 / scale,
            face_color="transparent",
        )
        self.drawings.bind_key("s", self._save)
        # Kind and corners of what was saved
        self._saved: set[tuple[str, bytes]] = set()
        self.layers += [self.particles, self.drawings]

    def show(self, coordinates: np.ndarray) -> None:
        """Show the conformation at (K,) coordinates, A rms, in all layers."""
        self.volume.data = self._volume(coordinates)[0]
        self.gaussians.data = self._places(coordinates)
        self.arrows.data = self._arrow_vectors(coordinates)
        if self.trace is not None:
            self.trace.data = self._places(coordinates, "trace", "trace_motions")

    def _clicked(self, layer, event) -> None:
        """Show the particle that was clicked, or the conformation of the place in the plane."""
        index = layer.get_value(
            event.position, view_direction=event.view_direction, dims_displayed=event.dims_displayed, world=True
        )
        if index is not None:
            self.show(self._explorer.coordinates[self.rows[index]])
        elif len(event.dims_displayed) == 2:
            # In three dimensions a click is on a line of places.
            self.show(self._at(np.array(layer.world_to_data(event.position))))

    def _at(self, place: np.ndarray) -> np.ndarray:
        """Return the (K,) coordinates (A rms) of a place (z, y, x) among the particles; of other motions the mean."""
        coordinates: np.ndarray = self._explorer.coordinates.mean(0)
        coordinates[: min(2, len(coordinates))] = place[2:0:-1][: len(coordinates)]
        return coordinates

    def _save(self, layer) -> None:
        """Save each path as states with a movie, and each region as a STAR file, that was not saved before."""
        for shape, kind in zip(layer.data, layer.shape_type, strict=True):
            key = kind, np.asarray(shape).tobytes()
            if key in self._saved:
                continue
            try:
                files = self._save_shape(shape, kind)
            except InputError as error:
                layer.help = str(error)
                print(error)
                return
            self._saved.add(key)
            layer.help = f"saved: {files[0]}"
            print(f"Saved: {', '.join(files)}.")

    def _save_shape(self, shape: np.ndarray, kind: str) -> list[str]:
        """Save a drawing of (p, 3) corners; return the names of its files in RUN/analysis."""
        saver, places = self._explorer.saver, [self._at(corner) for corner in shape]
        texts = [",".join(f"{value:.6g}" for value in place) for place in places]
        if kind in ("path", "line"):
            name = _free_name(saver, "states", "napari_path")
            return list(saver.save_states({"through": texts, "n_states": _STATES}, name).values["files"])
        if kind == "ellipse":
            raise InputError("an ellipse cannot be saved; draw a polygon, a rectangle or a lasso around particles")
        polygon = ":".join(["1,2", *(",".join(f"{value:.6g}" for value in corner[2:0:-1]) for corner in shape)])
        name = _free_name(saver, "selections", "napari_region", ".star")
        return list(saver.save_selection({"polygon": polygon}, name).values["files"])

    def _volume(self, coordinates: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the (b, b, b) density at coordinates, divided by its maximum, and its voxel size (A)."""
        models = self._explorer.models("both")
        volume = models.volume(coordinates)
        return volume / volume.max(), models.pixel_size

    def _places(self, coordinates: np.ndarray, rest: str = "rest", motions: str = "motions") -> np.ndarray:
        """Return (m, 3) positions at coordinates, A, in napari's order z, y, x."""
        return (self._molecule[rest] + np.tensordot(coordinates, self._molecule[motions], 1))[:, ::-1]

    def _arrow_vectors(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the (a, 2, 3) starts and shifts of arrows by one standard deviation of the first motion, z, y, x."""
        shift = self._molecule["motions"][0] * self._explorer.coordinates[:, 0].std()
        return np.stack([self._places(coordinates), shift[:, ::-1]], 1)[self.chosen]

    def _particles(self):
        """Return (s,) rows of the particles that are drawn, their places (s, 3) in A rms, and their features."""
        explorer = self._explorer
        n = len(explorer.coordinates)
        rows = np.sort(np.random.default_rng(0).permutation(n)[:_MAX_POINTS])
        places = np.zeros((len(rows), 3))
        places[:, 2] = explorer.coordinates[rows, 0]
        if explorer.coordinates.shape[1] > 1:
            places[:, 1] = explorer.coordinates[rows, 1]
        table = explorer.table
        features = {
            "particle": rows + 1,
            "half": explorer.halves[rows],
            "validation": explorer.validation[rows],
            "motion": table["dynMotionRms"].to_numpy()[rows],
            "error": table["dynMotionError"].to_numpy()[rows],
        }
        features |= {name: values.to_numpy()[rows] for name, values in explorer.annotations().items()}
        return rows, places, features


def _free_name(saver: Saver, kind: str, stem: str, suffix: str = "") -> str:
    """Return the first of STEM1, STEM2, ... that is no file of RUN/analysis/KIND."""
    names = (f"{stem}{number}" for number in count(1))
    return next(name for name in names if not saver.exists(kind, f"{name}{suffix}"))


def view_in_napari(explorer: Explorer) -> None:
    """Show a run in napari until its window is closed.

    Raises
    ------
    InputError
        if napari is not installed, or there is no screen.
    """
    view = NapariView(explorer)
    # Without a screen, Qt would end the program with an unhelpful message.
    if not has_screen() and "QT_QPA_PLATFORM" not in os.environ:
        raise InputError("napari needs a screen, but none was found; omit --viewer to use the browser")
    import napari

    viewer = napari.Viewer(title=f"DynaMight: {explorer.run.path.resolve().name}", ndisplay=3)
    for layer in view.layers:
        viewer.add_layer(layer)
    viewer.reset_view()
    napari.run()

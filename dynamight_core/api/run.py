"""A finished run as NumPy arrays and pandas tables."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import starfile
import torch
from numpy.typing import ArrayLike, NDArray

from dynamight_core.analysis.arguments import check_motion
from dynamight_core.analysis.displace import Displacer, read_points
from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.analysis.select import select_particles, write_rows
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.analysis.states import state_coordinates
from dynamight_core.api.arguments import PathLike, dataclasses_of, python_words, spelled
from dynamight_core.api.maps import Maps, Volume
from dynamight_core.errors import InputError
from dynamight_core.files import header_origin
from dynamight_core.judging.conclusion import conclude, require_motion
from dynamight_core.judging.errors import displacement_errors
from dynamight_core.options.analyse import HALVES, STATE_METHODS, SelectOptions
from dynamight_core.reconstruction.local_filter import locally_filtered
from dynamight_core.reconstruction.local_states import LocalState, LocalStates
from dynamight_core.reporter import PRINT, QUIET
from dynamight_core.run import Run as StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats: TypeAlias = NDArray[np.floating[Any]]
# Particles that a plot shows, about, and the free energy up to which it is coloured, kT.
_DRAWN, _HIGH = 20_000, 6.0


class Run:
    """A run whose training has finished.

    `dynamight_core.open_run` opens one. What later stages add is read from disk each time it is asked for.

    Parameters
    ----------
    path
        folder of the run.

    Raises
    ------
    InputError
        if it holds no finished run.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        self.reload()

    def reload(self) -> None:
        """Read the run again, after another program has added to it."""
        # The engine's own view of the run, on torch tensors.
        self.stored = StoredRun(self.path)
        self._renderers: dict[tuple[str, bool], StateModels | PushedMap] = {}
        self._local: LocalStates | None = None
        self._local_state: tuple[Floats, LocalState] | None = None

    def __len__(self) -> int:
        return len(self.stored.halves)

    @property
    def particles(self) -> pd.DataFrame:
        """Table of the n particles, in the order of the input: its columns, and those of ``docs/python.md``."""
        return self.stored.table.copy()

    @property
    def coordinates(self) -> Floats:
        """(n, K) coordinates along the principal motions, A rms."""
        return self.stored.motions.coordinates.numpy().copy()

    @property
    def latents(self) -> Floats:
        """(n, d) latent of each particle under its own half's decoder. Those of the two halves are not comparable."""
        return self.stored.own_latents().numpy().copy()

    @property
    def halves(self) -> NDArray[np.int64]:
        """(n,) half-set of each particle, 1 or 2."""
        return self.stored.halves.numpy().copy()

    @property
    def points(self) -> Floats:
        """(m, 3) points that are spread over the molecule, A."""
        return self.stored.motions.points.numpy().copy()

    @property
    def summary(self) -> dict[str, Any]:
        """Verdict with its numbers, motion and errors (A rms), sizes and warnings: RUN/analysis/summary.json."""
        return self.stored.summary

    @property
    def conclusion(self) -> list[str]:
        """The conclusion of all that is known of the run, line by line: title, motion, certainty, map and advice."""
        return conclude(self.stored).lines

    @property
    def verdict(self) -> str:
        """Whether the motion is supported, after all that is known: "supported", "not supported" or "undecided"."""
        return conclude(self.stored).motion

    def displacement_errors(self, points: ArrayLike | PathLike, particles: ArrayLike | None = None) -> Floats:
        """Return the uncertainty (standard error) of what `displacements` returns, for each point and particle.

        Parameters
        ----------
        points
            (m, 3) A; or the path of a ``.npy``, ``.pdb`` or ``.cif`` file, as for ``dynamight displace``.
        particles
            b rows of `particles` from 0, or an (n,) mask; all if None.

        Returns
        -------
        ndarray
            (b, m) float32, A. Of a region: the root of the mean square over its points.

        Raises
        ------
        InputError
            if points or particles cannot be used.
        """
        positions, rows = self._positions(points), self._rows(particles)
        return displacement_errors(self.stored, positions, torch.from_numpy(rows)).numpy()

    def displacements(self, points: ArrayLike | PathLike, particles: ArrayLike | None = None) -> Floats:
        """Return how far points move in each particle, by the decoder of the particle's half-set.

        Parameters
        ----------
        points
            (m, 3) A; or the path of a ``.npy``, ``.pdb`` or ``.cif`` file, as for ``dynamight displace``.
        particles
            b rows of `particles` from 0, or an (n,) mask; all if None.

        Returns
        -------
        ndarray
            (b, m, 3) float32, A. 1,000 points in 10,000 particles take 120 MB.

        Raises
        ------
        InputError
            if points or particles cannot be used.
        """
        positions, rows = self._positions(points), self._rows(particles)
        moved = np.empty((len(rows), len(positions), 3), np.float32)
        done = 0
        for chunk in Displacer(self.stored, positions).chunks(rows):
            moved[done : done + len(chunk)] = (chunk - positions).numpy()
            done += len(chunk)
        return moved

    def volume(
        self, coordinates: ArrayLike, half: str | int = "both", full: bool = False, method: str = "model"
    ) -> Volume:
        """Return the map of the molecule at coordinates along the principal motions.

        Parameters
        ----------
        coordinates
            up to K numbers, A rms; those omitted are zero. A single number is along motion 1.
        half
            whose Gaussian model: 1, 2, or "both" for the average.
        full
            whether to deform the reconstructed map, at its resolution, instead of rendering the Gaussians.
        method
            "model", or "local" to reconstruct the state from the particles near it: an unfiltered half-map for `half` 1
            or 2, or their mean filtered by their local FSC. The images are read once.

        Raises
        ------
        InputError
            if there are more coordinates than motions, with `full` no reconstruction, or `method` cannot be used.
        """
        if method not in STATE_METHODS:
            raise InputError(f"method is {method!r}; use one of {', '.join(STATE_METHODS)}")
        origin = tuple(header_origin(self.stored.config.inputs.map).tolist())
        if method == "local":
            return Volume(self._local_values(coordinates, str(half), full), self.stored.particles.pixel_size, origin)
        if full:
            self._need_maps("volume(full=True)")
        with python_words():
            renderer = self._renderers.get((str(half), full))
            if renderer is None:
                kind = PushedMap if full else StateModels
                renderer = self._renderers[str(half), full] = kind(self.stored, str(half))
            values = renderer.volume(state_coordinates(self.stored, coordinates))
        return Volume(np.asarray(values, np.float32), renderer.pixel_size, origin)

    def _local_values(self, coordinates: ArrayLike, half: str, full: bool) -> Floats:
        """Return the values of `volume` for a state that is reconstructed from particles."""
        if full:
            raise InputError("full deforms one map to all states; omit it with method='local'")
        if half not in HALVES:
            raise InputError(f"half is {half!r}; use one of {', '.join(HALVES)}")
        with python_words():
            centre = state_coordinates(self.stored, coordinates)
            if self._local is None:
                self._local = LocalStates(self.stored, QUIET)
            if self._local_state is None or not np.array_equal(centre, self._local_state[0]):
                self._local_state = centre, self._local.reconstruct(centre)
        pair = self._local_state[1].half_maps
        if half != "both":
            return pair[int(half) - 1].numpy().copy()
        return locally_filtered(*pair, self.stored.particles.pixel_size).numpy()

    @property
    def maps(self) -> Maps:
        """Maps of the reconstruction.

        Raises
        ------
        InputError
            before `dynamight_core.reconstruct`.
        """
        folder = self._need_maps("maps")
        rigid = folder / "rigid"
        return Maps.in_folder(folder, Maps.in_folder(rigid) if (rigid / "map.mrc").exists() else None)

    @property
    def fsc(self) -> pd.DataFrame:
        """FSC of the half-maps by shell, a row each: the columns of RELION's postprocess.star and ``docs/python.md``.

        Raises
        ------
        InputError
            before `dynamight_core.reconstruct`.
        """
        return self._fsc_blocks("fsc")["fsc"]

    @property
    def resolution(self) -> float:
        """Resolution of the reconstruction at FSC 0.143, A.

        Raises
        ------
        InputError
            before `dynamight_core.reconstruct`.
        """
        return float(self._fsc_blocks("resolution")["general"]["rlnFinalResolution"])

    def select(self, **options: Any) -> NDArray[np.bool_]:
        """Return which particles fulfil all conditions: an (n,) mask.

        Parameters
        ----------
        options
            fields of `SelectOptions`. Ranges are pairs in which None is open, ``error=(None, 3)``; ``along`` is
            (motion, low, high) or a list of these; ``near`` is (coordinates, distance); ``polygon`` is
            (motions, corner, corner, corner, ...). The text of the command line does as well.

        Raises
        ------
        InputError
            if a condition cannot be used.
        """
        values = {name: spelled(value) for name, value in options.items()}
        for name in ("along", "cluster"):
            if name in values and not isinstance(values[name], list):
                values[name] = [values[name]]
        with python_words():
            (chosen,) = dataclasses_of(values, SelectOptions)
            kept: NDArray[np.bool_] = select_particles(self.stored, chosen)[0]
        return kept

    def write_star(self, path: PathLike, particles: ArrayLike, use_unsupported_motion: bool = False) -> Path:
        """Write some particles, with all columns of the input and of `particles`, as a STAR file.

        Parameters
        ----------
        path
            of the STAR file.
        particles
            rows of `particles` from 0, or an (n,) mask, such as `select` returns.
        use_unsupported_motion
            whether to write them although the conclusion of the run is that its motion is not supported, or undecided.

        Raises
        ------
        InputError
            if there are none, or the motion is not supported and its use was not allowed.
        """
        with python_words():
            require_motion(self.stored, use_unsupported_motion, PRINT)
        rows = self._rows(particles)
        if not len(rows):
            raise InputError("particles holds no particle; widen the selection")
        return write_rows(self.stored, Path(path), rows)

    def plot_landscape(self, x: int = 1, y: int = 2) -> "Figure":
        """Draw the particles' free energy (kT) over two principal motions; low where many particles are.

        Parameters
        ----------
        x, y
            motions of the axes, from 1.

        Raises
        ------
        InputError
            if the run has no such motion.
        """
        # Here, since few programs that import this module draw.
        import matplotlib.pyplot as plt

        coordinates = self.coordinates
        for motion in (x, y):
            check_motion(motion, coordinates.shape[1])
        figure, ax = plt.subplots(figsize=(6.0, 4.8), layout="constrained")
        # Jupyter would show it twice, and pyplot keep it for ever.
        plt.close(figure)
        across, up = coordinates[:, x - 1], coordinates[:, y - 1]
        landscape = plane_landscape(across, up)
        # White where counting says little.
        known = (landscape.relative_error < 1) & (landscape.free_energy < _HIGH)
        energy = np.where(known, landscape.free_energy, np.nan)
        image = ax.pcolormesh(landscape.x_edges, landscape.y_edges, energy.T, cmap="viridis_r", rasterized=True)
        step = max(1, len(self) // _DRAWN)
        ax.scatter(across[::step], up[::step], s=3, c="black", alpha=0.3, linewidths=0, rasterized=True)
        ax.set(xlabel=f"motion {x} (Å rms)", ylabel=f"motion {y} (Å rms)")
        figure.colorbar(image, ax=ax, label="free energy (kT)")
        return figure

    def __repr__(self) -> str:
        summary, stages = self.summary, self._stages()
        model, halves = summary["model"], [int((self.halves == half).sum()) for half in (1, 2)]
        maps = f"{self.resolution:.1f} A (FSC 0.143)" if self.has_maps else "none yet"
        lines = {
            "particles": f"{len(self):,}: half 1 {halves[0]:,}, half 2 {halves[1]:,}, "
            f"held out {int(self.stored.validation.sum()):,}",
            "images": f"{model['box']} pixels of {model['pixel_size']:.4g} A",
            "model": f"{model['gaussians']:,} Gaussians a half, {model['latents']} latents, {model['motions']} motions",
            "motion": f"{summary['motion_between_particles_rms']:.2f} A rms between particles, uncertainty "
            f"{summary['error_rms']:.2f} A rms",
            "verdict": self.verdict,
            "maps": maps,
            "done": ", ".join(stages),
            "next": self._next(stages),
        }
        return "\n".join([f"Run {self.path}", *(f"  {name:<10} {text}" for name, text in lines.items())])

    def _stages(self) -> list[str]:
        """Return which of the three stages have been run."""
        report = (self.path / "analysis" / "report.html").exists()
        return ["train", *["reconstruct"] * self.has_maps, *["analyse"] * report]

    def _next(self, stages: Sequence[str]) -> str:
        """Return what a user does next, as Python."""
        if "reconstruct" not in stages:
            return "dm.reconstruct(run)"
        if "analyse" not in stages:
            return "dm.analyse(run)"
        if self.verdict == "not supported":
            return "run.maps.map, the map without deformation; do not interpret the motion"
        return "run.plot_landscape(), run.volume([2.0]), run.select(along=(1, 0, None))"

    @property
    def has_maps(self) -> bool:
        """Whether the run has a reconstruction."""
        return (self.path / "reconstruction" / "map.mrc").exists()

    def _need_maps(self, what: str) -> Path:
        """Return the folder of the reconstruction, which `what` of this run comes from."""
        if not self.has_maps:
            raise InputError(f"{what} needs a reconstruction, and {self.path} has none; run dm.reconstruct(run) first")
        return self.path / "reconstruction"

    def _fsc_blocks(self, what: str) -> dict[str, Any]:
        blocks: dict[str, Any] = starfile.read(self._need_maps(what) / "fsc.star", always_dict=True)
        return blocks

    def _positions(self, points: ArrayLike | PathLike) -> torch.Tensor:
        """Return (m, 3) points of the consensus frame, A."""
        if isinstance(points, (str, os.PathLike)):
            with python_words():
                return read_points(Path(points), self.stored).positions
        positions = np.asarray(points, dtype=np.float32)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise InputError(f"points have shape {positions.shape}; give (points, 3) coordinates x, y, z in A")
        if not np.isfinite(positions).all():
            raise InputError("points hold NaN or infinite values; give finite coordinates in A")
        return torch.from_numpy(positions)

    def _rows(self, particles: ArrayLike | None) -> NDArray[np.int64]:
        """Return the rows, from 0, of particles that are given by rows or by a mask."""
        n = len(self)
        rows = np.arange(n) if particles is None else np.atleast_1d(np.asarray(particles))
        if rows.dtype == bool and rows.shape == (n,):
            return np.flatnonzero(rows)
        rows = rows.astype(np.int64) if not rows.size else rows
        if rows.dtype.kind not in "iu" or rows.ndim != 1 or (rows.size and not (0 <= rows.min() <= rows.max() < n)):
            raise InputError(
                f"particles are neither rows of run.particles nor a mask; give whole numbers from 0 to {n - 1}, or {n} "
                "truth values"
            )
        return rows.astype(np.int64)

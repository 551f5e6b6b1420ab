"""Shaded surfaces of a film, rendered by VTK without a screen, in a program of its own.

VTK ends the program where it finds no graphics library, and needs the main thread on some systems. `render_surfaces`
therefore starts this module as a program, sends it one density after the other, and receives the pictures.
"""

import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError

Array = NDArray[Any]

# Width and height of a picture, pixels
SIZE = (1920, 1080)
# Colours of displacement: parts at rest are grey.
MOTION_COLOURS = ("#9fadb6", "#7aaab8", "#3f9f9a", "#6db65c", "#d9c832", "#f08a2c")
# Pieces of a surface with less than this fraction of the vertices of the largest are dust.
_DUST = 0.05
# Neighbouring Gaussians whose displacement a vertex takes.
_NEIGHBOURS = 6


@dataclass(frozen=True)
class Scene:
    """What all pictures of a film share.

    Parameters
    ----------
    view
        (3, 3) directions in space that point right, up and to the viewer.
    centre
        (3,) point in the middle of the picture, A.
    height
        of the picture, A.
    level
        of the surface, in units of the densities.
    displacements
        (m,) of the Gaussians, A.
    top
        displacement at the end of the colour scale, A.
    """

    view: Array
    centre: Array
    height: float
    level: float
    displacements: Array
    top: float


@dataclass(frozen=True)
class Density:
    """The density of one picture.

    Parameters
    ----------
    volume
        [z, y, x].
    corner
        (x, y, z) of the first voxel, A.
    spacing
        of the voxels, A.
    positions
        (m, 3) of the Gaussians, A.
    """

    volume: Array
    corner: Array
    spacing: float
    positions: Array


def can_render() -> bool:
    """Return whether the package that renders surfaces is installed."""
    return find_spec("pyvista") is not None


def render_surfaces(scene: Scene, densities: Iterable[Density]) -> Iterator[Array]:
    """Yield a (height, width, 4) uint8 picture of each density, with a transparent background.

    Raises
    ------
    InputError
        if this machine cannot render without a screen.
    """
    program = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert program.stdin is not None and program.stdout is not None
    shape = (SIZE[1], SIZE[0], 4)
    try:
        pickle.dump(scene, program.stdin)
        for density in densities:
            pickle.dump(density, program.stdin)
            program.stdin.flush()
            picture = program.stdout.read(int(np.prod(shape)))
            if len(picture) < np.prod(shape):
                raise BrokenPipeError
            yield np.frombuffer(picture, dtype=np.uint8).reshape(shape)
    except BrokenPipeError as error:
        raise InputError(
            "surfaces cannot be rendered on this machine; install the system's libegl1 or libosmesa6"
        ) from error
    finally:
        program.kill()
        program.communicate()


def colours_of(values: Array) -> Array:
    """Return (..., 3) uint8 colours of (...,) values from 0 to 1 on the scale of displacement."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in MOTION_COLOURS])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, channel) for channel in stops.T], -1).round().astype(np.uint8)


def surface_of(scene: Scene, density: Density) -> Any:
    """Return the surface of a density without dust, smoothed, as pyvista's mesh with colours `rgb`."""
    import pyvista

    grid = pyvista.ImageData(
        dimensions=density.volume.shape[::-1], spacing=(density.spacing,) * 3, origin=density.corner
    )
    grid["density"] = density.volume.ravel()
    surface = grid.contour([scene.level], scalars="density")
    if not surface.n_points:
        return surface
    surface = surface.connectivity("all")
    pieces = surface.point_data["RegionId"]
    large = np.bincount(pieces) >= _DUST * np.bincount(pieces).max()
    faces = surface.regular_faces
    surface = pyvista.PolyData.from_regular_faces(surface.points, faces[large[pieces[faces[:, 0]]]]).clean()
    surface = surface.smooth_taubin(n_iter=20, pass_band=0.08).compute_normals(auto_orient_normals=True)
    distance, nearest = cKDTree(density.positions).query(surface.points, k=min(_NEIGHBOURS, len(density.positions)))
    weight = 1 / (np.atleast_2d(distance.T).T + 1.0)
    values = scene.displacements[np.atleast_2d(nearest.T).T]
    surface["rgb"] = colours_of((weight * values).sum(1) / weight.sum(1) / max(scene.top, 1e-6))
    return surface


def _draw(plotter: Any, scene: Scene, density: Density) -> Array:
    """Return the (height, width, 4) picture of a density."""
    plotter.clear_actors()
    surface = surface_of(scene, density)
    if surface.n_points:
        plotter.add_mesh(surface, scalars="rgb", rgb=True, smooth_shading=True, ambient=0.3, diffuse=0.85, specular=0.1)
    _, up, viewer = scene.view
    camera = plotter.camera
    camera.focal_point = scene.centre
    camera.position = scene.centre + 4 * scene.height * viewer
    camera.up = up
    camera.parallel_scale = scene.height / 2
    plotter.reset_camera_clipping_range()
    plotter.render()
    return np.ascontiguousarray(plotter.screenshot(None, return_img=True, transparent_background=True))


def _serve() -> None:
    """Read a scene and densities from standard input, and write pictures to standard output."""
    import pyvista

    plotter: Any = pyvista.Plotter(off_screen=True, window_size=list(SIZE), lighting="light kit")
    plotter.enable_parallel_projection()
    plotter.enable_anti_aliasing("ssaa")
    scene = pickle.load(sys.stdin.buffer)
    while True:
        try:
            density = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        sys.stdout.buffer.write(_draw(plotter, scene, density).tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()

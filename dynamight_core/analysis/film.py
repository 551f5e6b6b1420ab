"""Film of a molecule along states: which conformations it shows, from where, and its frames."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynamight_core.analysis.explorer.shapes import contour_level, crop_to_density, first_view
from dynamight_core.analysis.surfaces import SIZE, Density, Scene, colours_of, render_surfaces
from dynamight_core.imaging.geometry import to_points

# Size of the picture over that of the molecule.
_ROOM = 1.2
# Weight of the shape of the molecule beside its motion, where the view is chosen.
_SHAPE = 0.2
# Of the pictures: size of letters, distance from the edges, and size of the colour scale, pixels.
_LETTERS, _EDGE, _SCALE = 34, 48, (360, 20)
# Letters are legible on white and, where the background is transparent, on any slide.
_INK, _INK_ON_ANY, _ALARM = (34, 40, 46, 255), (125, 134, 142, 255), (200, 70, 50, 255)


def largest_displacements(positions: np.ndarray) -> np.ndarray:
    """Return the (m,) largest distance of each point from its place in the first of (f, m, 3) conformations, A."""
    return np.asarray(np.linalg.norm(positions - positions[0], axis=-1).max(0))


class Film:
    """Frames of a molecule in f conformations.

    Parameters
    ----------
    positions
        (f, m, 3) of the same Gaussians in each conformation, A.
    volume
        returns the [z, y, x] cubic density of a conformation, by its number.
    pixel_size
        of these densities, A.
    captions
        f texts below the pictures; none without a caption.
    warning
        text that every picture bears, caption or not; "" for none.
    transparent
        whether the background stays transparent, so that letters need another colour.
    """

    def __init__(
        self,
        positions: np.ndarray,
        volume: Callable[[int], np.ndarray],
        pixel_size: float,
        captions: list[str],
        warning: str = "",
        transparent: bool = False,
    ):
        self._positions, self._volume, self._pixel_size = positions, volume, pixel_size
        self._captions, self._warning = captions, warning
        self._ink = _INK_ON_ANY if transparent else _INK
        self.displacements = largest_displacements(positions)

    def __len__(self) -> int:
        return len(self._positions)

    def frames(self) -> Iterator[Image.Image]:
        """Yield a picture of each conformation, with a transparent background.

        Raises
        ------
        InputError
            if this machine cannot render without a screen.
        """
        middle = self._volume(len(self) // 2)
        top = float(middle.max())
        scene = self._scene(middle, contour_level(middle, top) * top)
        densities = (self._density(number) for number in range(len(self)))
        for number, picture in enumerate(render_surfaces(scene, densities)):
            yield self._with_words(Image.fromarray(picture), number, scene.top)

    def _scene(self, middle: np.ndarray, level: float) -> Scene:
        """Return view, frame and colours for a surface level, from the density of the middle conformation."""
        first, half = self._positions[0], len(self) // 2
        farthest = self._positions[np.linalg.norm(self._positions - self._positions[0], axis=-1).sum(1).argmax()]
        moved, shape = farthest - first, first - first.mean(0)
        # Along the direction that the motion uses least; of several, the one in which the molecule is thin.
        weight = _SHAPE * np.linalg.norm(moved) / np.linalg.norm(shape)
        view = first_view(first, np.concatenate([moved, weight * shape]))
        # What moves is in front.
        view = view if (shape @ view[2]) @ self.displacements >= 0 else view * np.array([[-1], [1], [-1]])
        inside = np.argwhere(middle > level)[:, ::-1].astype(float)
        surface = to_points(inside, len(middle), self._pixel_size) @ view[:2].T
        seen, now = self._positions @ view[:2].T, self._positions[half] @ view[:2].T
        # The surface goes beyond the Gaussians in all conformations as in the middle one.
        low = seen.min((0, 1)) + np.minimum(surface.min(0) - now.min(0), 0)
        high = seen.max((0, 1)) + np.maximum(surface.max(0) - now.max(0), 0)
        width, height = high - low
        centre = np.array([*(low + high) / 2, (self._positions @ view[2]).mean()]) @ view
        # The best twentieth of the scale is for few Gaussians.
        top = float(np.quantile(self.displacements, 0.98))
        height = _ROOM * max(height, width * SIZE[1] / SIZE[0])
        return Scene(view, centre, float(height), level, self.displacements, top)

    def _density(self, number: int) -> Density:
        volume = self._volume(number)
        part = crop_to_density(volume)
        first = np.array([axis.start for axis in part[::-1]], dtype=float)
        corner = to_points(first, len(volume), self._pixel_size)
        return Density(
            np.ascontiguousarray(volume[part], dtype=np.float32), corner, self._pixel_size, self._positions[number]
        )

    def _with_words(self, picture: Image.Image, number: int, top: float) -> Image.Image:
        """Draw caption, colour scale and warning."""
        draw = ImageDraw.Draw(picture)
        font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _LETTERS)
        low = SIZE[1] - _EDGE
        if self._captions:
            draw.text((_EDGE, low), self._captions[number], self._ink, font, "ls")
            scale = Image.fromarray(np.tile(colours_of(np.linspace(0, 1, _SCALE[0])), (_SCALE[1], 1, 1)))
            left = SIZE[0] - _EDGE - 3 * _LETTERS - _SCALE[0]
            picture.paste(scale, (left, low - _SCALE[1]))
            draw.text((left - 12, low), "0", self._ink, font, "rs")
            draw.text((left + _SCALE[0] + 12, low), f"{top:.2g} Å", self._ink, font, "ls")
            draw.text((left, low - _SCALE[1] - 14), "displacement", self._ink, font, "ls")
        if self._warning:
            draw.text((_EDGE, _EDGE), self._warning, _ALARM, font, "lt")
        return picture

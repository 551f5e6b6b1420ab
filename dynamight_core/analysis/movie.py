"""A movie of maps along a path, as GIF and MP4."""

from pathlib import Path

import numpy as np

from dynamight_core.files import atomic_path
from dynamight_core.reporter import PRINT, Reporter

# Frames a second, and how often an MP4 goes along the states and back.
_FRAME_RATE, _MP4_TURNS = 8, 3


def write_movie(
    stem: Path, projections: np.ndarray, labels: list[str], pixel_size: float, reporter: Reporter = PRINT
) -> list[Path]:
    """Write a movie that runs along the states and back, as GIF and, where the package imageio-ffmpeg is, as MP4.

    Parameters
    ----------
    stem
        path of the files, without suffix.
    projections
        (s, 3, box, box) sums of each state along z, y and x.
    labels
        s titles.
    pixel_size
        A.
    reporter
        takes lines for the user.

    Returns
    -------
    list
        the files.
    """
    from PIL import Image

    frames = _frames(projections, labels, pixel_size)
    frames += frames[-2:0:-1]
    movies = [stem.with_suffix(".gif")]
    pictures = [Image.fromarray(frame) for frame in frames]
    with atomic_path(movies[0]) as path:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / _FRAME_RATE, loop=0)
    try:
        import imageio_ffmpeg

        # Raises RuntimeError where the package came without its program, and there is none on the machine.
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        reporter.say("Note: without the package imageio-ffmpeg the movie is written as GIF alone.")
        return movies
    movies.append(stem.with_suffix(".mp4"))
    height, width = frames[0].shape[:2]
    with atomic_path(movies[1]) as path:
        # Players that do not repeat by themselves show a motion once only: a few turns of it.
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=_FRAME_RATE, macro_block_size=2)
        writer.send(None)
        for frame in frames * _MP4_TURNS + frames[:1]:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return movies


def _frames(projections: np.ndarray, labels: list[str], pixel_size: float) -> list[np.ndarray]:
    """Return the (height, width, 3) uint8 pictures of a movie, both sides even."""
    # A figure without pyplot: nothing is left in a caller's session, and no window system is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box = projections.shape[-1]
    # Pixel box // 2 lies at 0, the others to both sides.
    first = (-(box // 2) - 0.5) * pixel_size
    place = {"origin": "lower", "extent": (first, first + box * pixel_size) * 2}
    window = min(box // 2, _window_pixels(projections)) * pixel_size
    views = [("x", "y"), ("x", "z"), ("y", "z")]
    top = projections.max((0, 2, 3))
    levels = 0.2 * top
    middle = projections[len(projections) // 2]
    frames = []
    for number, state in enumerate(projections):
        figure = Figure(figsize=(9.0, 3.3), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for i, (axis, (across, up)) in enumerate(zip(figure.subplots(1, 3), views, strict=True)):
            axis.imshow(state[i], cmap="gray_r", vmin=0, vmax=top[i], interpolation="bilinear", **place)
            axis.contour(middle[i], [levels[i]], colors="tab:blue", linewidths=0.8, **place)
            axis.contour(state[i], [levels[i]], colors="tab:red", linewidths=1.2, **place)
            axis.set(xlim=(-window, window), ylim=(-window, window))
            axis.set(xlabel=f"{across} (Å)", ylabel=f"{up} (Å)")
        figure.suptitle(f"{labels[number].replace('_', ' ')}   (red; blue: the middle state)", fontsize=10)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def projections_of(volume: np.ndarray) -> np.ndarray:
    """Return the (3, box, box) sums of a [z, y, x] volume along z, y and x, density alone."""
    positive = np.clip(volume, 0, None)
    return np.stack([positive.sum(axis) for axis in range(3)]).astype(np.float32)


def _window_pixels(projections: np.ndarray) -> int:
    """Return half the side, in pixels, of the centred square that holds all density."""
    shown = (projections > 0.03 * projections.max()).any((0, 1))
    return int(np.abs(np.argwhere(shown) - projections.shape[-1] // 2).max(initial=0)) + 3

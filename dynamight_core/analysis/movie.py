"""Movie of maps along a path, as GIF and MP4."""

from pathlib import Path

import numpy as np

from dynamight_core.files import atomic_path
from dynamight_core.reporter import PRINT, Reporter

# Frames per second, and how often an MP4 repeats the path.
_FRAME_RATE, _MP4_REPEATS = 8, 3


def write_movie(
    stem: Path, projections: np.ndarray, labels: list[str], pixel_size: float, reporter: Reporter = PRINT
) -> list[Path]:
    """Write a movie along the states and back, as GIF and, if the package imageio-ffmpeg is installed, as MP4.

    Parameters
    ----------
    stem
        path of the files, without suffix.
    projections
        (s, 3, box, box) projections of each state along z, y and x.
    labels
        titles of the s states.
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

        # Raises RuntimeError if there is no ffmpeg, neither in the package nor on the machine.
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        reporter.note("the package imageio-ffmpeg is not installed; the movie is written as GIF only")
        return movies
    movies.append(stem.with_suffix(".mp4"))
    height, width = frames[0].shape[:2]
    with atomic_path(movies[1]) as path:
        # Some players do not loop, so the file repeats the path.
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=_FRAME_RATE, macro_block_size=2)
        writer.send(None)
        for frame in frames * _MP4_REPEATS + frames[:1]:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return movies


def _frames(projections: np.ndarray, labels: list[str], pixel_size: float) -> list[np.ndarray]:
    """Return the (height, width, 3) uint8 frames of a movie, with even sides."""
    # Without pyplot: it would keep the figures, and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box = projections.shape[-1]
    # The centre of pixel box // 2 is at 0.
    first = (-(box // 2) - 0.5) * pixel_size
    extent = (first, first + box * pixel_size) * 2
    window = min(box // 2, _window_pixels(projections)) * pixel_size
    views = [("x", "y"), ("x", "z"), ("y", "z")]
    top = projections.max((0, 2, 3))
    levels = 0.2 * top
    middle = projections[len(projections) // 2]
    frames = []
    for number, state in enumerate(projections):
        figure = Figure(figsize=(9.0, 3.3), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for i, (axis, (x, y)) in enumerate(zip(figure.subplots(1, 3, squeeze=False)[0], views, strict=True)):
            axis.imshow(
                state[i], cmap="gray_r", vmin=0, vmax=top[i], interpolation="bilinear", origin="lower", extent=extent
            )
            for volume, colour, width in ((middle, "tab:blue", 0.8), (state, "tab:red", 1.2)):
                axis.contour(volume[i], [levels[i]], colors=colour, linewidths=width, origin="lower", extent=extent)
            axis.set(xlim=(-window, window), ylim=(-window, window))
            axis.set(xlabel=f"{x} (Å)", ylabel=f"{y} (Å)")
        figure.suptitle(f"{labels[number].replace('_', ' ')}   (red; blue: middle state)", fontsize=10)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def projections_of(volume: np.ndarray) -> np.ndarray:
    """Return the (3, box, box) projections of the positive density of a [z, y, x] volume along z, y and x."""
    positive = np.clip(volume, 0, None)
    return np.stack([positive.sum(axis) for axis in range(3)]).astype(np.float32)


def _window_pixels(projections: np.ndarray) -> int:
    """Return half the side, in pixels, of the centred square that contains all density."""
    shown = (projections > 0.03 * projections.max()).any((0, 1))
    return int(np.abs(np.argwhere(shown) - projections.shape[-1] // 2).max(initial=0)) + 3

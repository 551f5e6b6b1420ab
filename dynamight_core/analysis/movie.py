"""Movie files: forwards and backwards, as GIF and MP4; and frames that show projections."""

from pathlib import Path

import numpy as np
from PIL import Image

from dynamight_core.files import atomic_path
from dynamight_core.reporter import PRINT, Reporter

# Seconds from one end of the path to the other; limits of frames per second; how often an MP4 repeats the path.
_SECONDS, _MIN_RATE, _MAX_RATE, _MP4_REPEATS = 2.0, 6.0, 25.0, 3
# A GIF has no more pixels across and frames per second than this: it compresses little.
_GIF_WIDTH, _GIF_RATE = 960, 12.5
# Index of the background in the palette of a GIF
_BACKGROUND = 255


def write_movie(
    stem: Path, frames: list[Image.Image], transparent: bool = False, reporter: Reporter = PRINT
) -> list[Path]:
    """Write a movie through the frames and back, as GIF and, if the package imageio-ffmpeg is installed, as MP4.

    Parameters
    ----------
    stem
        path of the files, without suffix.
    frames
        pictures of even width and height, in the order of the path.
    transparent
        whether the background of the GIF is transparent, and a PNG with soft transparency is written as well, if the
        frames are (RGBA). MP4 has no transparency: its background is white.
    reporter
        takes lines for the user.

    Returns
    -------
    list
        the files.
    """
    transparent = transparent and frames[0].mode == "RGBA"
    rate = float(np.clip(len(frames) / _SECONDS, _MIN_RATE, _MAX_RATE))
    frames = [*frames, *frames[-2:0:-1]]
    movies = [_write_gif(stem.with_suffix(".gif"), frames, rate, transparent)]
    if transparent:
        movies.append(_write_png(stem.with_suffix(".png"), frames, rate))
    try:
        import imageio_ffmpeg

        # Raises RuntimeError if there is no ffmpeg, neither in the package nor on the machine.
        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        reporter.note("the package imageio-ffmpeg is not installed; there is no MP4")
        return movies
    movies.append(stem.with_suffix(".mp4"))
    with atomic_path(movies[-1]) as path:
        writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, fps=rate, macro_block_size=2, quality=7)
        writer.send(None)
        # Some players do not loop, so the file repeats the path.
        for frame in frames * _MP4_REPEATS + frames[:1]:
            writer.send(np.asarray(_on_white(frame)).tobytes())
        writer.close()
    return movies


def _on_white(frame: Image.Image) -> Image.Image:
    if frame.mode == "RGB":
        return frame
    return Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")


def _thinned(frames: list[Image.Image], rate: float) -> tuple[list[Image.Image], float]:
    """Return fewer and smaller frames, and milliseconds for each."""
    step = int(np.ceil(rate / _GIF_RATE))
    width = min(_GIF_WIDTH, frames[0].width)
    size = (width, round(frames[0].height * width / frames[0].width))
    return [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames[::step]], 1000 * step / rate


def _write_gif(target: Path, frames: list[Image.Image], rate: float, transparent: bool) -> Path:
    """Write frames with one palette, so that nothing flickers."""
    small, duration = _thinned(frames, rate)
    plain = [_on_white(frame) for frame in small]
    pixels = np.concatenate([np.asarray(frame).reshape(-1, 3) for frame in plain[:: max(1, len(plain) // 8)]])
    # The colours of the molecule alone: there is more background than anything else.
    inked = pixels[(pixels < 255).any(1)]
    sample = inked if len(inked) else pixels[:1]
    palette = Image.fromarray(sample[None]).quantize(255, Image.Quantize.MEDIANCUT, kmeans=1)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in plain]
    for picture, frame, shown in zip(pictures, small, plain, strict=True):
        # The last colour is the background.
        colours = (picture.getpalette() or [])[: 3 * _BACKGROUND]
        picture.putpalette([*colours, *[0] * (3 * _BACKGROUND - len(colours)), 255, 255, 255])
        covered = np.asarray(frame)[..., 3] >= 128 if transparent else (np.asarray(shown) < 255).any(-1)
        picture.paste(_BACKGROUND, mask=Image.fromarray(~covered))
    more = {"transparency": _BACKGROUND, "disposal": 2} if transparent else {}
    with atomic_path(target) as path:
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=False, **more
        )
    return target


def _write_png(target: Path, frames: list[Image.Image], rate: float) -> Path:
    small, duration = _thinned(frames, rate)
    with atomic_path(target) as path:
        small[0].save(path, save_all=True, append_images=small[1:], duration=duration, loop=0)
    return target


def projection_frames(projections: np.ndarray, labels: list[str], pixel_size: float) -> list[Image.Image]:
    """Return frames with even sides that show each state from three sides.

    Parameters
    ----------
    projections
        (s, 3, box, box) projections of each state along z, y and x.
    labels
        titles of the s states.
    pixel_size
        A.
    """
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
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


def projections_of(volume: np.ndarray) -> np.ndarray:
    """Return the (3, box, box) projections of the positive density of a [z, y, x] volume along z, y and x."""
    positive = np.clip(volume, 0, None)
    return np.stack([positive.sum(axis) for axis in range(3)]).astype(np.float32)


def _window_pixels(projections: np.ndarray) -> int:
    """Return half the side, in pixels, of the centred square that contains all density."""
    shown = (projections > 0.03 * projections.max()).any((0, 1))
    return int(np.abs(np.argwhere(shown) - projections.shape[-1] // 2).max(initial=0)) + 3

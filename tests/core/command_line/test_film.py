"""The film of a molecule: what is drawn, from where, and the files it becomes."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from dynamight_core.analysis import surfaces
from dynamight_core.analysis.film import Film
from dynamight_core.analysis.movie import write_movie
from dynamight_core.analysis.surfaces import SIZE, Density, Scene, colours_of, surface_of
from dynamight_core.files import read_map
from dynamight_core.imaging.geometry import grid_points, to_points
from dynamight_core.reporter import QUIET, Reporter
from tests.support.command_line import dynamight

needs_pyvista = pytest.mark.skipif(find_spec("pyvista") is None, reason="the package pyvista is not installed")
BOX, PIXEL = 32, 4.0


def blob(*centres):
    """Return a density with a ball of 10 A at each centre (x, y, z)."""
    grid = grid_points(to_points(np.arange(float(BOX)), BOX, PIXEL))
    parts = [np.exp(-((grid - np.array(centre)) ** 2).sum(1) / 200) for centre in centres]
    return np.sum(parts, 0).reshape((BOX,) * 3).astype(np.float32)


# Two balls, of which the second goes along z
CENTRES = np.array([[[-25.0, 0, 0], [25.0, 0, z]] for z in (-15.0, 0, 15)])


def film(captions=(), warning=""):
    """Return a film of the two balls, with Gaussians at their centres and surfaces."""
    around = 12 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    positions = (CENTRES[:, :, None] + around).reshape(len(CENTRES), -1, 3)
    return Film(positions, lambda number: blob(*CENTRES[number]), PIXEL, list(captions), warning)


@needs_pyvista
def test_the_surface_is_the_density_at_its_place_without_dust():
    volume = blob((-25, 0, 0), (25, 0, 10))
    # One voxel of noise, far away
    volume[2, 2, 2] = 2.0
    positions = np.array([[-25.0, 0, 0], [25.0, 0, 10.0]])
    scene = Scene(np.eye(3), np.zeros(3), 100.0, 0.5, np.array([0.0, 30.0]), 30.0)
    surface = surface_of(scene, Density(volume, np.full(3, -BOX // 2 * PIXEL), PIXEL, positions))
    expected = np.array([[-36.8, -11.8, -11.8], [36.8, 11.8, 21.8]])
    assert np.abs(np.array(surface.bounds).reshape(3, 2).T - expected).max() < 0.75 * PIXEL
    # What is at rest is grey, what moves is orange; each vertex is nearer to one of the two.
    left = surface.points[:, 0] < 0
    redness = surface["rgb"][:, 0].astype(int) - surface["rgb"][:, 2]
    assert redness[left].max() < redness[~left].min()


@needs_pyvista
def test_the_film_shows_all_of_the_motion_from_the_side_that_it_does_not_use():
    frames = list(film().frames())
    assert [frame.size for frame in frames] == [SIZE] * 3
    heights, inside = [], []
    for frame in frames:
        pixels = np.asarray(frame).astype(int)
        molecule = pixels[..., 3] > 128
        inside.append(not (molecule[[0, -1]].any() or molecule[:, [0, -1]].any()))
        orange = molecule & (pixels[..., 0] - pixels[..., 2] > 60)
        heights.append(np.argwhere(orange)[:, 0].mean())
    assert all(inside)
    # The moving ball goes across the picture: by more than its radius each time.
    assert abs(heights[2] - heights[0]) > 200
    assert (heights[2] - heights[1]) * (heights[1] - heights[0]) > 0


@needs_pyvista
def test_motion_that_is_not_supported_is_named_in_every_picture():
    plain, warned = (next(film(warning=warning).frames()) for warning in ("", "No motion found: this may be noise"))
    different = (np.asarray(warned) != np.asarray(plain)).any(-1)
    assert different[:120].sum() > 1000
    assert not different[120:].any()


def test_a_machine_that_cannot_render_gets_projections_and_a_word(moving, monkeypatch, tmp_path):
    monkeypatch.setattr(surfaces, "can_render", lambda: True)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    code, text = dynamight("states", moving, "--n-states", "2", "--out", tmp_path / "states")
    assert code == 0, text
    assert "the movie shows projections" in text
    with Image.open(tmp_path / "states" / "movie.gif") as movie:
        assert movie.n_frames == 2


def test_colours_go_from_grey_to_orange():
    first, *_, last = colours_of(np.linspace(0, 1, 7)).astype(int)
    assert np.ptp(first) < 30
    assert last[0] - last[2] > 150


def test_a_transparent_movie_has_no_background(tmp_path):
    frame = Image.new("RGBA", (64, 36))
    frame.paste((200, 40, 40, 255), (10, 10, 30, 30))
    other = Image.new("RGBA", (64, 36))
    files = write_movie(tmp_path / "movie", [frame, other], True, QUIET)
    assert [path.name for path in files] == ["movie.gif", "movie.png", "movie.mp4"]
    for path in files[:2]:
        with Image.open(path) as movie:
            assert movie.n_frames == 2
            pixels = np.asarray(movie.convert("RGBA"))
            assert pixels[0, 0, 3] == 0
            assert pixels[20, 20, 3] == 255


def test_the_background_of_a_movie_is_white(tmp_path):
    frames = [Image.new("RGBA", (64, 36)), Image.new("RGBA", (64, 36))]
    frames[0].paste((250, 250, 246, 255), (10, 10, 30, 30))
    with Image.open(write_movie(tmp_path / "movie", frames, reporter=QUIET)[0]) as movie:
        pixels = np.asarray(movie.convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    assert np.abs(pixels[20, 20].astype(int) - (250, 250, 246)).max() < 3


def test_chimerax_shows_the_states_beside_what_is_open(moving, tmp_path):
    out = tmp_path / "states"
    assert dynamight("states", moving, "--n-states", "3", "--no-movie", "--out", out)[0] == 0
    script, film = ((out / name).read_text() for name in ("states.cxc", "film.cxc"))
    for words in ("close session", "close all", "#1 "):
        assert words not in script + film
    for words in ("surface dust", "lighting soft", "color sample", "open arrows.bild"):
        assert words in script
    assert "movie record" in film
    # The map that colours them is in the same place, and zero away from the molecule.
    displacement, spacing = read_map(out / "displacement.mrc")
    volume, size = read_map(next(out.glob("motion1_state01*.mrc")))
    assert spacing * len(displacement) == pytest.approx(size * len(volume))
    assert displacement.max() > 0
    assert displacement[0].max() == 0


def test_without_the_package_for_mp4_the_movie_is_a_gif_and_a_word(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    said = []
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("white", "red")]
    assert write_movie(tmp_path / "movie", frames, reporter=Reporter(said.append)) == [tmp_path / "movie.gif"]
    assert [path.name for path in tmp_path.iterdir()] == ["movie.gif"]
    assert "imageio-ffmpeg" in said[0]

"""Relatives: which particles show the same, by their images, names, tubes, tilts and places."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.particles.metadata import read_particles
from dynamight_core.particles.relatives import default_distance, find_relatives

N = 12


@pytest.fixture
def groups_of(particle_files):
    """Return the groups of relatives of particles with some columns, as sets of rows of two or more."""

    def groups(distance=0.0, copies=1, optics=None, **columns):
        particle_files.stack()
        names = [f"{i // copies + 1}@particles.mrcs" for i in range(N)]
        rows = particle_files.rows(rlnImageName=names, rlnOriginXAngst=["0"] * N, rlnOriginYAngst=["0"] * N)
        given = {} if optics is None else {"optics": particle_files.optics(**optics)}
        particles = read_particles(particle_files.star(rows | columns, **given))
        found = find_relatives(particles, distance).tolist()
        return {frozenset(i for i in range(N) if found[i] == g) for g in found if found.count(g) > 1}

    return groups


def test_particles_without_relatives_are_alone(groups_of):
    assert groups_of() == set()


def test_rows_of_one_image_are_relatives(groups_of):
    assert groups_of(copies=6) == {frozenset(range(6)), frozenset(range(6, 12))}


def test_images_made_from_one_original_are_relatives(groups_of):
    names = [f"{i % 4}@raw.mrcs" for i in range(8)] + [f"{i}@raw.mrcs" for i in range(8, 12)]
    assert groups_of(rlnImageOriginalName=names) == {frozenset({i, i + 4}) for i in range(4)}


def test_segments_of_a_tube_are_relatives_in_their_micrograph_alone(groups_of):
    # Five particles in each micrograph.
    found = groups_of(rlnHelicalTubeID=["1", "1", "2", "2", "2"] * 2 + ["1", "1"])
    assert found == {frozenset(rows) for rows in ({0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}, {10, 11})}


def test_picks_near_to_each_other_are_relatives(groups_of):
    # Pixels of 2 A: 30 A apart, but for the second and third; in the second micrograph, at the same places.
    x = ["0", "15", "20", "35", "50"] * 2 + ["0", "15"]
    places = {"rlnCoordinateX": x, "rlnCoordinateY": ["7"] * N}
    assert groups_of(12.0, **places) == {frozenset({1, 2}), frozenset({6, 7})}
    assert groups_of(9.0, **places) == set()
    assert groups_of(0.0, **places) == set()
    # A relative of a relative is one.
    assert frozenset(range(5)) in groups_of(31.0, **places)


def test_coordinates_are_in_pixels_of_the_micrograph_and_origins_count(groups_of):
    places = {"rlnCoordinateX": [str(20 * i) for i in range(N)], "rlnCoordinateY": ["7"] * N}
    assert groups_of(12.0, **places, optics={"rlnMicrographPixelSize": ["0.5"]}) != set()
    assert groups_of(9.0, **places, optics={"rlnMicrographPixelSize": ["0.5"]}) == set()
    # The second particle's centre is at 40 - 36 A.
    origins = ["0", "36"] + ["0"] * 10
    assert groups_of(9.0, **places, rlnOriginXAngst=origins) == {frozenset({0, 1})}


def test_coordinates_that_were_never_set_make_no_relatives(groups_of):
    assert groups_of(50.0, rlnCoordinateX=["0"] * N, rlnCoordinateY=["0"] * N) == set()


def test_the_distance_follows_from_the_diameter_or_the_box(particle_files):
    particle_files.stack()
    particles = read_particles(particle_files.star(particle_files.rows()))
    assert default_distance(particles, 100.0) == pytest.approx(30)
    assert default_distance(particles, None) == pytest.approx(0.3 * 0.9 * 32)


def test_time_grows_with_the_number_of_particles_alone(particle_files):
    particle_files.stack()
    particles = read_particles(particle_files.star(particle_files.rows()))
    seconds = []
    for n in (20_000, 100_000):
        generator = np.random.default_rng(0)
        # Every fourth pick is a duplicate; symmetry copies at one place would make many pairs.
        x, y = generator.uniform(0, 4000, (2, n)).round(1)
        x[1::4], y[1::4] = x[0::4] + 2, y[0::4]
        x[: n // 10], y[: n // 10] = 5.0, 5.0
        table = pd.DataFrame({"rlnMicrographName": [f"m{i // 200}" for i in range(n)]})
        table["rlnCoordinateX"], table["rlnCoordinateY"] = x.astype(str), y.astype(str)
        particles.table, particles.image_groups = table, torch.arange(n)
        particles.shifts = torch.zeros(n, 2)
        started = time.perf_counter()
        found = find_relatives(particles, 10.0)
        seconds.append(time.perf_counter() - started)
        assert (found[n // 10 + 1 :: 4][: n // 8] == found[n // 10 :: 4][: n // 8]).all()
    assert seconds[1] < 12 * seconds[0]

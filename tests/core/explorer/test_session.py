"""What the explorer shows: particles, densities, and the landscape of their coordinates."""

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.analysis.landscape import plane_landscape
from dynamight_core.analysis.overview import largest_part, overview
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.errors import InputError
from dynamight_core.files import write_map
from dynamight_core.judging.conclusion import conclude, counted_motions
from dynamight_core.options import ReconstructOptions
from dynamight_core.run import Run, record_stage


def test_a_conformation_on_the_page_is_the_map_that_states_writes(explorer):
    at = [2.0, 0.3]
    shown = explorer.state(at)
    full = StateModels(explorer.run).volume([*at, 0.0])
    assert len(full) == 64
    first = np.round(np.array(shown.values["first"]) / shown.values["spacing"] + 32).astype(int)[::-1]
    crop = tuple(slice(a, a + n) for a, n in zip(first, shown.arrays["density"].shape, strict=True))
    levels = shown.values["top"] / 255
    np.testing.assert_allclose(shown.arrays["density"] * levels, full[crop].clip(0), atol=0.51 * levels)
    # Nothing of the molecule is left out.
    assert full[crop].clip(0).sum() > 0.97 * full.clip(0).sum()
    rms = torch.tensordot(torch.tensor([*at, 0.0]), explorer.run.motions.components, 1).square().sum(-1).mean().sqrt()
    assert shown.values["displacement_rms"] == pytest.approx(float(rms), rel=1e-4)


def test_the_map_of_a_selection_is_the_mean_of_the_maps_of_its_particles(explorer):
    coordinates = explorer.coordinates
    order = coordinates[:, 0].argsort()
    corner = (coordinates[order[-4], 0] + coordinates[order[-3], 0]) / 2
    found = explorer.selection(f"1,2:{corner},-99:99,-99:99,99:{corner},99")
    assert found.values["particles"] == 3
    assert sum(found.values["halves"]) == 3
    models = StateModels(explorer.run)
    mean = np.mean([models.volume(coordinates[row]) for row in order[-3:]], 0)
    np.testing.assert_allclose(models.volume(coordinates[order[-3:]]), mean, atol=1e-5 * mean.max())


def test_points_and_colours_belong_together(explorer):
    points, colours = explorer.points([1, 2]), explorer.colours("dynMotion1")
    low, high = np.array(points.values["low"]), np.array(points.values["high"])
    places = low + points.arrays["places"] / 65535 * (high - low)
    inner = (colours.arrays["levels"] > 0) & (colours.arrays["levels"] < 254)
    span = colours.values["high"] - colours.values["low"]
    values = colours.values["low"] + colours.arrays["levels"] / 254 * span
    np.testing.assert_allclose(places[inner, 0], values[inner], atol=span / 254)
    validation = explorer.points([1, 2], "validation")
    assert len(validation.arrays["places"]) == validation.values["particles"] == len(explorer.coordinates) // 10


def test_the_landscape_counts_particles_and_knows_the_error_of_its_free_energy():
    # Many draws of one distribution: the scatter of the free energy is what a single draw predicts.
    rng = np.random.default_rng(0)
    energies, errors = [], []
    for _ in range(60):
        found = plane_landscape(*rng.normal(size=(2, 3000)), bins=24)
        assert found.counts.sum() <= 3000
        middle = np.searchsorted(found.x_edges, 0.0) - 1, np.searchsorted(found.y_edges, 1.0) - 1
        energies.append(-np.log(found.density[middle]))
        errors.append(found.relative_error[middle])
    assert np.std(energies) == pytest.approx(np.mean(errors), rel=0.35)
    steps = np.diff(found.x_edges)[0] * np.diff(found.y_edges)[0]
    assert found.density.sum() * steps == pytest.approx(3000, rel=0.02)


def test_a_filter_keeps_the_particles_whose_column_is_in_the_range(explorer):
    error = explorer.table["dynMotionError"].to_numpy(dtype=float)
    low, high = np.quantile(error, [0.2, 0.6])
    where = f"dynMotionError:{low}:{high}"
    kept = (error >= low) & (error <= high)
    assert explorer.points([1, 2], "all", where).values["particles"] == kept.sum()
    assert len(explorer.colours("dynHalf", "all", where).arrays["levels"]) == kept.sum()
    found = explorer.selection("1,2:-99,-99:99,-99:99,99:-99,99", "half-set 1", where=where)
    assert found.values["particles"] == (kept & (explorer.halves == 1)).sum()
    extent = explorer.extent("dynMotionError").values
    assert (extent["low"], extent["high"], extent["own"]) == (error.min(), error.max(), True)
    with pytest.raises(InputError, match="does not hold numbers"):
        explorer.extent("rlnImageName")


def test_a_filter_is_saved_by_a_command_that_selects_the_same(explorer):
    error = explorer.table["dynMotionError"].to_numpy(dtype=float)
    limit = float(np.quantile(error, 0.5))
    options = {"where": [f"dynMotionError:0:{limit}"], "polygon": "1,1:-99,-99:99,-99:99,99:-99,99"}
    saved = explorer.saver.save_selection(options, "sure").values
    assert saved["particles"] == (error <= limit).sum()
    assert f"--where=dynMotionError:0:{limit}" in saved["commands"][0]


def test_without_a_motion_along_y_particles_stand_under_their_histogram(explorer):
    x = explorer.coordinates[:, 0]
    points = explorer.points([1, 0])
    assert points.values["low"][0] == pytest.approx(x.min())
    counts, _ = np.histogram(x, 60, density=True)
    assert 0 <= points.values["low"][1] <= points.values["high"][1] <= counts.max()
    # A square on the diagonal is the range that a lasso there means.
    found = explorer.selection("1,1:0.5,0.5:2,0.5:2,2:0.5,2")
    assert found.values["particles"] == ((x > 0.5) & (x < 2)).sum()


def test_the_distribution_along_a_motion_is_a_density(explorer):
    found = explorer.distribution(1).arrays
    step = found["coordinate"][1] - found["coordinate"][0]
    assert found["density"].sum() * step == pytest.approx(1, abs=1e-3)


def test_the_first_screen_has_the_motions_that_count_and_the_map_around_the_molecule(explorer):
    shown = explorer.overview()
    values, arrays = shown.values, shown.arrays
    assert [played["number"] for played in values["motions"]] == counted_motions(explorer.run)
    grid = arrays["density"].shape
    assert arrays["shifts"].shape == (len(values["motions"]), *(-(-n // 2) for n in grid), 3)
    # The displacement at the voxel nearest to a point is about that of the point.
    surface, points = values["surface"], arrays["points"]
    motion = explorer.run.motions.components[values["motions"][0]["number"] - 1].numpy()
    voxels = np.rint((points - surface["first"]) / surface["spacing"] / 2).astype(int)
    shifts = (2.0 * arrays["shifts"][0] / 65535 - 1) * surface["reach"]
    at = shifts[tuple(voxels[:, ::-1].clip(0, np.array(shifts.shape[:3]) - 1).T)]
    assert np.sum(at * motion) / np.sum(motion**2) == pytest.approx(1, abs=0.15)


def test_the_pairs_of_motions_count_the_particles_of_their_planes(explorer):
    found = explorer.pairs([1, 3, 2], "half-set 2").arrays
    ends, own = found["ends"], explorer.coordinates[explorer.halves == 2]
    x, y = own[:, 0], own[:, 2]
    bins = found["alone"].shape[1]
    expected, *_ = np.histogram2d(x, y, bins, [ends[0], ends[1]])
    # Ends are rounded to single precision: a particle at the border of a bin may be in the next one.
    assert np.abs(found["pairs"][0, 1] - expected).sum() <= 4
    np.testing.assert_array_equal(found["pairs"][1, 0], found["pairs"][0, 1].T)
    assert 0.98 * len(own) < found["alone"][2].sum() <= len(own)


def test_particles_have_places_along_three_motions(explorer):
    found = explorer.points([2, 1, 3])
    low, high = np.array(found.values["low"]), np.array(found.values["high"])
    places = low + found.arrays["places"] / 65535 * (high - low)
    rows = explorer._order("all")
    np.testing.assert_allclose(places, explorer.coordinates[rows][:, [1, 0, 2]], atol=(high - low).max() / 60000)


def test_a_region_of_the_umap_is_selected_by_the_command_that_is_shown(explorer, folder):
    with pytest.raises(InputError, match="has no UMAP; make it with dynamight analyse"):
        explorer.points([-1, -2])
    assert not explorer.about().values["umap"]
    plane = np.random.default_rng(0).normal(size=(len(explorer.coordinates), 2))
    pd.DataFrame(plane, columns=["umap_1", "umap_2"]).to_csv(folder / "analysis" / "embedding.csv", index=False)
    assert explorer.about().values["umap"]
    right = "umap:0,-9:9,-9:9,9:0,9"
    assert explorer.selection(right).values["particles"] == (plane[:, 0] > 0).sum()
    saved = explorer.saver.save_selection({"polygon": right}, "right").values
    assert saved["particles"] == (plane[:, 0] > 0).sum() and f"--polygon={right}" in saved["commands"][0]
    near = explorer.nearest([-1, -2], plane[7].tolist()).values
    assert near["row"] == 8


def test_a_map_beside_the_model_lies_on_it(explorer):
    found = explorer.beside.map_beside("consensus")
    first, spacing = np.array(found.values["first"]), found.values["spacing"]
    density = found.arrays["density"]
    points = (explorer.run.motions.points + explorer.run.motions.mean).numpy()
    voxels = np.rint((points - first) / spacing).astype(int)[:, ::-1]
    inside = density[tuple(voxels.T)]
    assert (inside > 255 * found.values["level"]).mean() > 0.8
    with pytest.raises(InputError, match="there is no map 'after'; reconstruct the run"):
        explorer.beside.map_beside("after")


def test_a_map_without_correction_shows_no_gain(explorer, folder):
    run = explorer.run
    volume = explorer.models("both").volume(explorer.coordinates.mean(0))
    for name in ("map.mrc", "rigid/map.mrc"):
        write_map(folder / "reconstruction" / name, volume, run.pixel_size)
    for used in (True, False):
        record_stage(run, "reconstruct", ReconstructOptions(), motion_used=used)
        now = Run(folder)
        shown = overview(now, conclude(now)).values
        assert (shown["gain"] is not None) == used
        # The hinge has one domain that moves.
        assert shown["parts"] == 1


def test_pictures_of_the_gain_show_the_part_that_moves_most():
    rng = np.random.default_rng(0)
    left, right = rng.normal(-30, 3, (200, 3)), rng.normal(30, 3, (100, 3))
    motion = np.r_[np.full(200, 1.0), np.full(100, 2.0)]
    shown, parts = largest_part(np.concatenate([left, right]), motion)
    assert parts == 2 and shown.mean() == pytest.approx(30, abs=1)

"""The Python API: one import, options checked by name, and a run as arrays and tables."""

import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch

import dynamight_core as dm
from dynamight_core.analysis.displace import Displacer
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.analysis.states import state_coordinates


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A copy of a small trained run, which the tests reconstruct and analyse."""
    return shutil.copytree(trained[1].path, tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def run(folder):
    return dm.open_run(folder)


@pytest.fixture(scope="module")
def reconstructed(run):
    """The run with maps of two steps of work, and what the API returned."""
    return run, dm.reconstruct(run, method="wbp", reporter=dm.QUIET)


@pytest.fixture
def untouched(trained, tmp_path):
    return dm.Run(shutil.copytree(trained[1].path, tmp_path / "untouched"))


def test_the_import_loads_no_library():
    heavy = "torch numpy pandas scipy matplotlib yaml mrcfile"
    code = f"import sys, dynamight_core; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_lists_and_holds_what_it_offers():
    assert set(dm.__all__) <= set(dir(dm))
    assert all(getattr(dm, name) is not None for name in dm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dm.trian  # noqa: B018


def test_arrays_follow_the_rows_of_the_particles(run, trained):
    stored, table = trained[1], run.particles
    assert len(run) == len(table) == len(stored.halves)
    assert np.allclose(run.coordinates, table.filter(regex=r"^dynMotion\d").to_numpy(), atol=1e-4)
    assert np.allclose(run.latents, table.filter(like="dynLatent").to_numpy(), atol=1e-4)
    assert np.array_equal(run.halves, table.dynHalf)
    for half in (1, 2):
        own = run.halves == half
        assert np.array_equal(run.latents[own], stored.latents[half - 1][torch.from_numpy(own)].numpy())


def test_what_a_caller_changes_is_a_copy(run):
    run.coordinates[:] = run.latents[:] = run.points[:] = 99
    table = run.particles
    table["dynHalf"] = 7
    assert run.coordinates.max() < 99 and run.latents.max() < 99 and run.points.max() < 99
    assert set(run.particles.dynHalf) == {1, 2}


def test_displacements_are_those_of_each_particles_own_half(run, trained):
    points, rows = run.points[:5], [3, 0, 598]
    found = run.displacements(points, rows)
    assert found.shape == (3, 5, 3) and found.dtype == np.float32
    for number, row in enumerate(rows):
        half = int(run.halves[row]) - 1
        evaluate = trained[1].models[half].consensus_evaluator(torch.from_numpy(points))
        with torch.no_grad():
            expected = evaluate(trained[1].latents[half][row : row + 1])[0]
        assert np.allclose(found[number], expected.numpy(), atol=1e-4)


def test_particles_are_rows_or_a_mask(run):
    mask = run.particles.dynMotion1 > run.particles.dynMotion1.quantile(0.98)
    assert np.array_equal(
        run.displacements(run.points[:3], mask), run.displacements(run.points[:3], np.flatnonzero(mask))
    )
    assert run.displacements(run.points[:3], []).shape == (0, 3, 3)
    for wrong in ([600], [-1], [0.5], mask[:-1], [[1]]):
        with pytest.raises(dm.InputError, match="whole numbers from 0 to 599, or 600 truth values"):
            run.displacements(run.points[:3], wrong)


def test_points_may_be_a_file(run, tmp_path):
    np.save(tmp_path / "points.npy", run.points[:4])
    assert np.array_equal(run.displacements(tmp_path / "points.npy", [0]), run.displacements(run.points[:4], [0]))
    for wrong, reason in (([1, 2, 3], r"shape \(3,\)"), ([[1, 2, np.nan]], "NaN")):
        with pytest.raises(dm.InputError, match=reason):
            run.displacements(wrong)


def test_a_volume_from_particles_is_the_mean_of_half_maps_that_resemble_the_model(trained):
    run = dm.open_run(trained[1].path)
    both, first, second = (run.volume([2.0], half, method="local") for half in ("both", 1, 2))
    model = run.volume([2.0])
    assert both.values.shape == model.values.shape and both.pixel_size == pytest.approx(model.pixel_size)
    assert not np.array_equal(first.values, second.values)
    assert np.corrcoef(both.values.ravel(), model.values.ravel())[0, 1] > 0.8
    with pytest.raises(dm.InputError, match="use one of model, local"):
        run.volume([2.0], method="near")
    with pytest.raises(dm.InputError, match="omit it"):
        run.volume([2.0], full=True, method="local")


def expected_volume(run, coordinates, half="both"):
    return StateModels(run, half).volume(state_coordinates(run, coordinates)).astype(np.float32)


def test_a_volume_is_the_state_at_its_coordinates(run, trained, hinge_set, tmp_path):
    volume = run.volume([2.0, -1.0])
    assert np.array_equal(np.asarray(volume), expected_volume(trained[1], [2.0, -1.0]))
    assert volume.pixel_size == 6.0 and repr(volume) == "Volume(32 x 32 x 32 voxels of 6 A)"
    assert np.array_equal(run.volume(2.0, half=1).values, expected_volume(trained[1], [2.0], "1"))
    volume.write(tmp_path / "state.mrc")
    again = dm.Volume.read(tmp_path / "state.mrc")
    assert np.array_equal(again.values, volume.values) and again.origin == volume.origin
    with mrcfile.open(hinge_set.consensus) as consensus:
        assert volume.origin == tuple(consensus.header.origin.tolist())


def test_more_coordinates_than_motions_are_refused(run):
    with pytest.raises(dm.InputError, match="a state has 9 coordinates, but the run"):
        run.volume(np.zeros(9))
    with pytest.raises(dm.InputError, match="a state has 9 coordinates, but the run"):
        Displacer(run.stored, torch.zeros(1, 3)).at_state(np.zeros(9))


def test_one_coordinate_is_along_the_first_motion_alone(run):
    displacer = Displacer(run.stored, torch.from_numpy(run.points[:4]))
    assert torch.equal(displacer.at_state([3]), displacer.at_state([3.0] + [0.0] * (run.coordinates.shape[1] - 1)))


@pytest.mark.parametrize("what", ["maps", "fsc", "resolution"])
def test_before_a_reconstruction_it_is_said_what_to_run(untouched, what):
    with pytest.raises(dm.InputError, match=rf"{what} needs a reconstruction.*run dm.reconstruct\(run\) first"):
        getattr(untouched, what)
    with pytest.raises(dm.InputError, match=r"run dm.reconstruct\(run\) first"):
        untouched.volume([1.0], full=True)


def test_a_reconstruction_is_returned_and_found_again(reconstructed):
    run, maps = reconstructed
    assert maps == run.maps == dm.open_run(run.path).maps
    assert maps.read().values.shape == (32, 32, 32) and maps.rigid.map.parent.name == "rigid"
    assert np.array_equal(maps.read("half1").values, mrcfile.read(maps.half1))
    fsc = run.fsc
    assert list(fsc.rlnSpectralIndex) == list(range(17))
    assert run.resolution == starfile.read(run.path / "reconstruction" / "fsc.star")["general"]["rlnFinalResolution"]
    with pytest.raises(dm.InputError, match=r"there is no map 'half'; did you mean half. or half."):
        maps.read("half")
    with pytest.raises(dm.InputError, match="has a reconstruction already; give overwrite to replace it"):
        dm.reconstruct(run, reporter=dm.QUIET)


def test_the_reconstruction_moves_along_with_full(reconstructed):
    run, maps = reconstructed
    still, moved = run.volume(np.zeros(1), full=True), run.volume([4.0], full=True)
    reference = maps.read().values
    assert (
        np.corrcoef(still.values.ravel(), reference.ravel())[0, 1]
        > np.corrcoef(moved.values.ravel(), reference.ravel())[0, 1]
    )


def test_stages_by_path_and_by_object_keep_one_record(untouched):
    dm.reconstruct(untouched.path, method="wbp", rigid=False, reporter=dm.QUIET)
    report = dm.analyse(untouched, embedding="pca", reporter=dm.QUIET)
    assert report == untouched.path / "analysis" / "report.html" and report.exists()
    assert {"reconstruct", "analyse"} <= set(dm.Run(untouched.path).stored.config.stages)
    assert untouched.maps.rigid is None


def test_a_selection_is_a_mask_and_a_star_file(run, tmp_path):
    mask = run.select(along=(1, 0, None), error=(None, 100.0))
    assert mask.dtype == bool and np.array_equal(mask, run.coordinates[:, 0] >= 0)
    assert np.array_equal(mask, run.select(along=["1:0:"], error=":100"))
    near = run.select(near=([0.0, 0.0], 1.5))
    assert np.array_equal(near, np.linalg.norm(run.coordinates, axis=1) <= 1.5)
    square = run.select(polygon=((1, 2), (0, -9), (9, -9), (9, 9), (0, 9)))
    assert np.array_equal(square, (run.coordinates[:, 0] > 0) & (np.abs(run.coordinates[:, :2]) < 9).all(1))
    assert np.array_equal(run.select(clusters=2, cluster=1), run.select(clusters=2, cluster=[1]))
    path = run.write_star(tmp_path / "subset.star", mask)
    written = starfile.read(path)
    assert set(written) == {"optics", "particles"} and len(written["particles"]) == mask.sum()
    pd.testing.assert_series_equal(
        written["particles"].dynMotion1, run.particles.dynMotion1[mask], check_index=False, rtol=1e-6
    )
    with pytest.raises(dm.InputError, match="no particle; widen the selection"):
        run.write_star(tmp_path / "none.star", [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_gausians": 500}, "there is no option 'n_gausians'; did you mean n_gaussians?"),
        ({"zzz": 1}, "there is no option 'zzz'; choose from atomic_model, batch_size"),
        ({"stiffness": -1.0}, "^stiffness is -1"),
        ({"working_box": 17}, "^working_box is 17; give an even number"),
    ],
)
def test_options_are_checked_and_named_as_in_python(hinge_set, tmp_path, options, sentence):
    with pytest.raises(dm.InputError, match=sentence):
        dm.train(hinge_set.particles, tmp_path / "run", map=hinge_set.consensus, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_is_the_run_that_the_command_line_makes(hinge_set, tmp_path):
    lines = []
    options = {"n_gaussians": 60, "epochs": np.int64(1), "warm_up_epochs": 0, "refits": 0, "n_latents": 2}
    run = dm.train(
        hinge_set.particles, tmp_path / "run", map=hinge_set.consensus, reporter=dm.Reporter(lines.append), **options
    )
    assert run.coordinates.shape[0] == 600 and run.latents.shape == (600, 2)
    assert run.verdict in ("supported", "not supported", "undecided")
    assert any("Held-out images" in line for line in lines)
    with pytest.raises(dm.InputError, match="use resume to continue it, or overwrite to replace it"):
        dm.train(hinge_set.particles, tmp_path / "run", map=hinge_set.consensus, **options)


def test_the_repr_says_what_is_there_and_what_comes_next(untouched, reconstructed):
    text = repr(untouched)
    assert "600: half 1 300, half 2 300" in text and untouched.verdict in text and "dm.reconstruct(run)" in text
    text = repr(reconstructed[0])
    assert f"{reconstructed[0].resolution:.1f} A" in text and "train, reconstruct\n" in text
    assert "next       dm.analyse(run)" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(dm.InputError, match="contains no run"):
        dm.open_run(tmp_path)


def test_the_landscape_has_the_motions_asked_for(run, tmp_path):
    import matplotlib.pyplot as plt

    figure = run.plot_landscape(1, 3)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("motion 1 (Å rms)", "motion 3 (Å rms)")
    drawn = axes.collections[-1].get_offsets()
    assert np.allclose(np.asarray(drawn), run.coordinates[:, [0, 2]])
    assert plt.get_fignums() == []
    figure.savefig(tmp_path / "landscape.png")
    with pytest.raises(dm.InputError, match="motion 9 is not in this run"):
        run.plot_landscape(1, 9)

"""States of a run whose motion is known: clusters, the ridge, maps at full resolution, files for ChimeraX."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import starfile
import torch

from dynamight_core.analysis.clusters import (
    cluster_coordinates,
    density_ridge,
    mixture_criterion,
    shortest_order,
    write_clusters,
)
from dynamight_core.analysis.domain_files import write_domains
from dynamight_core.analysis.domains import find_domains
from dynamight_core.analysis.exports import motion_maps
from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.analysis.states import states_of_clusters
from dynamight_core.errors import InputError
from dynamight_core.files import read_map, write_map
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from tests.support.command_line import dynamight


@pytest.fixture
def folder(drawn_run, tmp_path):
    return shutil.copytree(drawn_run, tmp_path / "run")


def groups(n=600, seed=0):
    """Return coordinates of three groups of unequal shape, (n, 2), and which is which."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    centres = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 4.0]])
    widths = np.array([[0.5, 1.5], [1.0, 0.3], [0.6, 0.6]])
    return centres[which] + rng.normal(size=(n, 2)) * widths[which], which


def test_the_criterion_chooses_as_many_normal_distributions_as_there_are():
    coordinates, which = groups()
    assert mixture_criterion(coordinates)["bic"].argmin() == 2
    labels, centres = cluster_coordinates(coordinates, 0, mixture=True)
    assert len(centres) == 3
    assert (np.diff(centres[:, 0]) > 0).all()
    # Numbered along the first motion: groups 1, 2, 0.
    assert np.mean(labels == np.array([2, 0, 1])[which]) > 0.98
    assert len(cluster_coordinates(np.random.default_rng(1).normal(size=(500, 3)), 0, mixture=True)[1]) == 1


def test_both_kinds_of_clusters_are_numbered_alike():
    coordinates, _ = groups()
    kmeans, mixture = (cluster_coordinates(coordinates, 3, mixture=mixture)[0] for mixture in (False, True))
    assert np.mean(kmeans == mixture) > 0.95


def test_the_way_through_centres_takes_the_nearest_one_next():
    centres = np.array([[0.0, 0.0], [1.0, 5.0], [2.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(shortest_order(centres), [0, 2, 3, 1])


def test_the_ridge_follows_a_curved_valley():
    rng = np.random.default_rng(2)
    x = rng.uniform(-4, 4, 4000)
    # Thin along a parabola, and a broad haze on one side that the mean would follow.
    y = 0.3 * x**2 + rng.normal(0, 0.2, 4000) + (rng.random(4000) < 0.2) * rng.uniform(2, 6, 4000)
    ridge = density_ridge(np.stack([x, y], 1))
    # At its very ends there is nothing on one side.
    np.testing.assert_allclose(ridge[1:-1, 1], 0.3 * ridge[1:-1, 0] ** 2, atol=0.25)
    assert np.abs([y[np.abs(x - a) < 0.3].mean() - 0.3 * a**2 for a in ridge[:, 0]]).mean() > 0.5


def test_clusters_of_a_run_are_written_with_counts_per_half(folder):
    run = Run(folder)
    written = write_clusters(run, reporter=QUIET)
    clusters, centres, criterion = (pd.read_csv(path) for path in written)
    assert len(clusters) == len(run.halves)
    for method, part in centres.groupby("method"):
        counts = clusters[method].value_counts().sort_index()
        assert (part.set_index("cluster")["particles"] == counts).all()
        assert (part["half_1"] + part["half_2"] == part["particles"]).all()
        assert len(part) == criterion["clusters"][criterion["bic"].argmin()]


def test_states_through_clusters_and_along_the_ridge_are_paths(folder):
    assert dynamight("states", folder, "--clusters", 3, "--mixture", "--tour", "--n-states", 5, "--no-maps")[0] == 0
    tour = pd.read_csv(folder / "analysis" / "states" / "clusters3_tour" / "states.csv")
    assert (np.diff(tour["motion1_A"]) > 0).all()
    assert dynamight("states", folder, "--ridge", "--n-states", 5, "--no-maps")[0] == 0
    ridge = pd.read_csv(folder / "analysis" / "states" / "ridge" / "states.csv")
    coordinates = Run(folder).motions.coordinates.numpy()
    low, high = np.quantile(coordinates[:, 0], [0.025, 0.975])
    np.testing.assert_allclose(ridge["motion1_A"].iloc[[0, -1]], [low, high], atol=0.01)
    for words, reason in (
        (["--ridge", "--at", "1"], "cannot be combined"),
        (["--tour"], "--tour needs --clusters"),
        (["--clusters", "1", "--tour"], "--clusters 1 gives only one; set --clusters to 2 or more, or omit --tour"),
        (["--clusters", "0"], "give a number from 1"),
        (["--full", "--latent", "0,0", "--half", "1"], "use --at"),
        (["--full"], "dynamight reconstruct"),
    ):
        code, text = dynamight("states", folder, *words)
        assert code == 2 and reason in text


def test_a_tour_of_the_only_cluster_found_names_what_was_given():
    coordinates = torch.from_numpy(np.random.default_rng(1).normal(size=(500, 3)))
    run = SimpleNamespace(motions=SimpleNamespace(coordinates=coordinates))
    with pytest.raises(InputError, match="--clusters 0 gives only one; set --clusters to 2 or more, or omit --tour"):
        states_of_clusters(run, 0, mixture=True, tour=5)


def test_particles_of_a_mixture_are_selected(folder):
    code, text = dynamight("select", folder, "--clusters", 2, "--mixture", "--cluster", 1)
    assert code == 0, text
    rows = starfile.read(folder / "analysis" / "selections" / "selection.star")["particles"]
    labels = cluster_coordinates(Run(folder).motions.coordinates.numpy().astype(float), 2, mixture=True)[0]
    assert len(rows) == (labels == 0).sum()
    assert (rows["dynCluster"] == 1).all()
    code, text = dynamight("select", folder, "--mixture", "--half", 1)
    assert code == 2 and "set the number of clusters" in text


def test_the_map_pushed_along_the_field_is_the_state(folder):
    # The reconstruction is the Gaussian model at rest, at its own place: pushed, it must be the model of the state.
    run = Run(folder)
    models = StateModels(run)
    rest = [
        -float(value)
        for value in torch.linalg.lstsq(
            run.motions.components.flatten(1).T, run.motions.mean.flatten()[:, None]
        ).solution[:, 0]
    ]
    write_map(folder / "reconstruction" / "map.mrc", models.volume(rest), run.pixel_size)
    pushed = PushedMap(run)
    for at in (3.0, -3.0):
        state = models.volume([at, 0, 0])
        moved = pushed.volume([at, 0, 0])
        before = np.corrcoef(read_map(folder / "reconstruction" / "map.mrc")[0].ravel(), state.ravel())[0, 1]
        after = np.corrcoef(moved.ravel(), state.ravel())[0, 1]
        assert 1 - after < 0.15 * (1 - before)
    # The solvent stays as it is, and with it its noise.
    corner = (slice(0, 6),) * 3
    np.testing.assert_allclose(moved[corner], read_map(folder / "reconstruction" / "map.mrc")[0][corner], atol=1e-6)


def test_deviations_between_states_are_those_of_their_regions(folder):
    run = Run(folder)
    assert dynamight("states", folder, "--n-states", 3, "--no-movie", "--out", folder / "out")[0] == 0
    states, table = (pd.read_csv(folder / "out" / f"{name}.csv") for name in ("states", "deviations"))
    whole = table[table["region"] == "molecule"].set_index(["first", "second"])
    assert len(whole) == 3
    for (first, second), row in whole.iterrows():
        # The mean square of a motion over the molecule is 1.
        places = states.set_index("state")["motion1_A"]
        assert row["deviation_A"] == pytest.approx(abs(places[first] - places[second]), rel=1e-2)
    labels = find_domains(run.motions).labels
    motion = run.motions.components[0].square().sum(1).numpy()
    span = states["motion1_A"].iloc[-1] - states["motion1_A"].iloc[0]
    ends = table[(table["first"] == states["state"].iloc[0]) & (table["second"] == states["state"].iloc[-1])]
    for number in range(labels.max() + 1):
        (found,) = ends[ends["region"] == f"domain{number + 1}"]["deviation_A"]
        assert found == pytest.approx(span * np.sqrt(motion[labels == number].mean()), rel=1e-2)


@pytest.mark.slow
def test_states_at_full_resolution_are_written_with_script_and_arrows(folder):
    run = Run(folder)
    write_map(folder / "reconstruction" / "map.mrc", StateModels(run).volume([0, 0, 0]), run.pixel_size, (1, 2, 3))
    out = folder / "out"
    code, text = dynamight("states", folder, "--full", "--n-states", 3, "--no-movie", "--out", out)
    assert code == 0, text
    table = pd.read_csv(out / "states.csv")
    script = (out / "states.cxc").read_text()
    assert f"open {' '.join(table['file'])} vseries true" in script
    arrows = pd.read_csv(out / "arrows.csv")
    span = table["motion1_A"].iloc[-1] - table["motion1_A"].iloc[0]
    shift = (span * run.motions.components[0]).norm(dim=1)
    assert arrows["shift_A"].max() <= float(shift.max()) + 0.01
    assert (out / "arrows.bild").read_text().count(".sphere") > 3
    # A second call leaves nothing of the first.
    assert dynamight("states", folder, "--full", "--at", "1", "--out", out)[0] == 0
    assert {path.name for path in out.iterdir()} == {"states.csv", "states.cxc", "state01.mrc"}


def test_amounts_and_directions_of_domains_are_those_of_their_points(folder):
    run = Run(folder)
    domains = find_domains(run.motions)
    write_domains(run, domains, reporter=QUIET)
    table = pd.read_csv(folder / "analysis" / "domains" / "particles.csv")
    motions = run.motions
    row = int(motions.coordinates[:, 0].argmax())
    shift = torch.tensordot(motions.coordinates[row] - motions.coordinates.mean(0), motions.components, 1)
    for name, mine in (("molecule", slice(None)), ("domain2", torch.tensor(domains.labels == 1))):
        assert table[f"{name}_motion_A"][row] == pytest.approx(
            float(shift[mine].square().sum(-1).mean().sqrt()), rel=1e-3
        )
        mean = table[[f"{name}_mean_{axis}_A" for axis in "xyz"]].iloc[row]
        np.testing.assert_allclose(mean, shift[mine].mean(0), atol=2e-3)


def test_bodies_are_what_relion_reads(folder):
    run = Run(folder)
    domains = find_domains(run.motions)
    write_domains(run, domains, reporter=QUIET)
    bodies = starfile.read(folder / "analysis" / "domains" / "bodies.star")
    assert list(bodies["rlnBodyRotateRelativeTo"]) == [2, 1]
    assert (bodies["rlnBodySigmaAngles"] >= 2).all() and (bodies["rlnBodySigmaOffsetAngst"] >= 1).all()
    for name in bodies["rlnBodyMaskName"]:
        mask, pixel_size = read_map(name)
        assert (len(mask), pixel_size) == (run.box, pytest.approx(run.pixel_size))
        assert mask.min() == 0 and mask.max() == 1
    write_domains(run, find_domains(run.motions, 1), reporter=QUIET)
    assert not (folder / "analysis" / "domains" / "bodies.star").exists()


def test_maps_of_motion_and_its_error_are_those_of_the_points(folder):
    run = Run(folder)
    motion, error = motion_maps(run, run.box, run.pixel_size)
    voxels = np.round(run.motions.points.numpy() / run.pixel_size).astype(int)[:, ::-1] + run.box // 2
    for volume, name in ((motion, "point_motion"), (error, "point_error")):
        expected = np.asarray(run.summary[name])
        found = volume[tuple(voxels.T)]
        assert np.corrcoef(found, expected)[0, 1] > 0.95
        assert np.median(np.abs(found - expected)) < 0.15 * expected.mean()
    assert motion[0, 0, 0] == error[0, 0, 0] == 0


def test_a_pushed_map_needs_a_map(folder):
    with pytest.raises(InputError, match="dynamight reconstruct"):
        PushedMap(Run(folder))

"""The frame of the maps: the densest conformation, with the errors of the coordinates taken out."""

import numpy as np
import pytest

from dynamight_core.analysis.pushed import PushedMap
from dynamight_core.analysis.state_maps import StateModels
from dynamight_core.errors import InputError
from dynamight_core.judging.distribution import densest_conformation, densest_point
from dynamight_core.reconstruction.deformation import chosen_conformation, half_conformation
from dynamight_core.reporter import QUIET, Reporter
from dynamight_core.run import Run


def measured(true, error, seed=0):
    """Return posterior means and variances of (n, K) coordinates that images show with an error."""
    rng = np.random.default_rng(seed)
    spread = true.var(0)
    weight = spread / (spread + error**2)
    means = weight * (true + error * rng.normal(size=true.shape))
    return means, np.broadcast_to(weight * error**2, true.shape).copy()


@pytest.mark.parametrize("error", [0.5, 3.0])
def test_the_densest_point_is_at_a_peak_and_not_between_two(error):
    rng = np.random.default_rng(1)
    peak = np.array([[-4.0, 1.0], [4.0, -1.0]])
    true = peak[(rng.random(3000) < 0.4).astype(int)] + 0.5 * rng.normal(size=(3000, 2)) * [1.0, 0.6]
    found, density = densest_point(*measured(true, np.array([error, 0.3])), np.zeros(2))
    assert np.linalg.norm(found - peak[0]) < 1.5
    assert density < 0.5


def test_the_centre_of_one_wide_peak_is_as_dense_as_any_other_place():
    rng = np.random.default_rng(2)
    for true in (rng.uniform(-5, 5, (2000, 1)), rng.normal(size=(2000, 2))):
        assert densest_point(*measured(true, 0.7), np.zeros(true.shape[1]))[1] > 0.6


def test_a_ring_is_empty_in_its_middle():
    angle = np.random.default_rng(3).uniform(0, 2 * np.pi, 3000)
    true = 8 * np.stack([np.cos(angle), np.sin(angle)], 1)
    found, density = densest_point(*measured(true, 2.0), np.zeros(2))
    assert 6.5 < np.linalg.norm(found) < 9.5 and density < 0.1


def test_maps_stay_in_the_consensus_frame_where_that_is_dense_and_say_so(drawn_run):
    lines, run = [], Run(drawn_run)
    assert chosen_conformation(run, "auto", False, Reporter(lines.append)) == "reference"
    assert lines[0].startswith("Frame of the maps: the consensus")
    assert chosen_conformation(run, "auto", True, QUIET) == "reference"
    assert chosen_conformation(run, "particle:3", False, QUIET) == "particle:3"


def test_maps_are_made_at_a_peak_if_the_consensus_is_between_two(drawn_run):
    run = Run(drawn_run)
    coordinates = run.motions.coordinates
    # Nobody is within one standard deviation of the middle.
    spread = coordinates[:, 0].std()
    coordinates[:, 0] = coordinates[:, 0].sign() * (2 * spread + 0.2 * coordinates[:, 0].abs())
    lines = []
    kind, _, numbers = chosen_conformation(run, "auto", False, Reporter(lines.append)).partition(":")
    first = float(numbers.split(",")[0])
    assert kind == "motions" and abs(first) > 1.8 * float(spread)
    assert first == pytest.approx(float(densest_conformation(run)[0][0]), abs=0.01)
    assert "densest conformation" in lines[0]


def test_a_conformation_at_coordinates_is_that_of_the_particles_there(drawn_run):
    run = Run(drawn_run)
    nearest = run.motions.coordinates[:, 0].argmax()
    own = int(run.halves[nearest])
    text = ",".join(f"{value:.4f}" for value in run.motions.coordinates[nearest])
    latent = half_conformation(run, own, f"motions:{text}", "cpu")
    distance = (run.latents[own - 1] - latent).norm(dim=1)
    assert int(distance.argmin()) in (run.motions.coordinates[:, 0].argsort()[-12:]).tolist()


def test_states_of_a_map_in_another_frame_are_those_of_the_consensus_map(drawn_run, tmp_path):
    run = Run(drawn_run)
    models = StateModels(run)
    frame, state = [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]
    path = tmp_path / "map.mrc"
    maps = {}
    for name, place in (("reference", [0.0, 0.0, 0.0]), ("motions:1", frame)):
        mean = np.linalg.lstsq(run.motions.components.flatten(1).T, -run.motions.mean.flatten(), rcond=None)[0]
        models.write(path, models.volume(mean if name == "reference" else place))
        run.config.stages["reconstruct"] = {"conformation": name}
        maps[name] = PushedMap(run, path=path).volume(state)
    right = models.volume(state)
    for volume in maps.values():
        assert np.corrcoef(volume.ravel(), right.ravel())[0, 1] > 0.98
    run.config.stages["reconstruct"] = {"conformation": "latent:0,0"}
    with pytest.raises(InputError, match="reconstruct again"):
        PushedMap(run, path=path)

"""States from the particles near them: the kernel, its choice, and the files."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.analysis.explorer.beside import Beside
from dynamight_core.errors import InputError
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.modes import find_modes
from dynamight_core.reconstruction.local import (
    MIN_PARTICLES,
    Candidates,
    LocalHalf,
    bandwidths_at,
    blend_weights,
    effective_number,
    kernel_weights,
)
from dynamight_core.reconstruction.local_filter import frequency_bands, locally_filtered
from dynamight_core.reporter import Reporter
from dynamight_core.simulate.measures import HingeField
from tests.support.command_line import dynamight
from tests.support.hinge_images import BOX, PIXEL


def test_a_kernel_counts_less_on_particles_whose_coordinates_are_uncertain():
    coordinates, centre = torch.tensor([[0.0], [0.0], [3.0], [3.0]]), torch.zeros(1)
    variances = torch.tensor([[0.01], [4.0], [0.01], [4.0]])
    at_place, vague, away, perhaps = kernel_weights(coordinates, variances, centre, 0.5).tolist()
    assert at_place == 1 and 0.2 < vague < 0.3
    # Far away, only the uncertain one may be near.
    assert away < 1e-6 < perhaps < vague
    # The density of a normal distribution of variance h^2 plus the particle's.
    assert vague == pytest.approx((0.26 / 4.25) ** 0.5)
    assert kernel_weights(coordinates, variances, centre, float("inf")).tolist() == [1] * 4


def test_bandwidths_grow_from_few_particles_to_all():
    generator = torch.Generator().manual_seed(0)
    coordinates = 5 * torch.randn(3000, 2, generator=generator)
    variances = torch.full((3000, 2), 0.1)
    found = bandwidths_at(coordinates, variances, torch.zeros(2))
    numbers = [effective_number(kernel_weights(coordinates, variances, torch.zeros(2), h)) for h in found]
    assert numbers[0] == pytest.approx(MIN_PARTICLES, rel=0.01) and numbers[-1] == 3000
    assert (np.diff(found) > 0).all() and all(1.9 < b / a < 2.1 for a, b in pairwise(numbers[:-1]))
    # Uncertainty alone may spread the weights farther than that.
    vague = bandwidths_at(coordinates, torch.full((3000, 2), 100.0), torch.zeros(2))
    assert len(vague) < len(found)


def test_the_state_moves_with_few_particles_and_rests_with_all(hinge):
    t, state = hinge.truth, 0.35
    data, rows = hinge.particles(), torch.arange(len(t))
    modes = find_modes(HingeField(t), t.angles, t.molecule.positions, PIXEL)
    # A field that knows half of the motion.
    half = modes.scaled(torch.full((len(modes),), 0.5))
    coordinates, variances = 10 * t.angles, torch.full((len(t), 1), 0.01)
    pair = []
    for number in (1, 2):
        own = LocalHalf(data, rows[t.half == number], half, coordinates, variances, t.molecule.positions, 10.0)
        pair.append(own.candidates(torch.tensor([10 * state]), [0.3, 1.0, float("inf")]))
    weights = blend_weights(*pair, PIXEL)
    assert torch.allclose(weights.sum((0, 1)), torch.ones(BOX, BOX, BOX), atol=1e-4)
    volume = sum((weights * each.volumes).sum((0, 1)) for each in pair) / 2
    everything, truth = sum(each.volumes[-1, 0] for each in pair) / 2, t.true_map(state)
    moved = torch.linalg.vector_norm(t.molecule.positions_at(torch.tensor([[state]]))[0] - t.molecule.positions, dim=1)
    assert float(moved.max()) > PIXEL
    gain = fourier_shell_correlation(volume, truth)[1:].mean() - fourier_shell_correlation(everything, truth)[1:].mean()
    assert float(gain) > 0.02
    # All particles at rest where nothing moves; few where something does.
    resting = t.domain_mask(0) > 0.9
    moving = pair[0].moving > 0.9
    assert float(weights[-1].sum(0)[resting & ~moving].mean()) > float(weights[-1].sum(0)[moving].mean()) + 0.3


def test_maps_without_motion_are_those_of_all_particles(hinge):
    noise = [torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    truth = hinge.truth.true_map()
    scale = float(truth.std())
    ones = torch.ones(BOX, BOX, BOX)
    pair = []
    for half in (0, 3):
        volumes = torch.stack([torch.stack([truth + scale * s * noise[half + k]] * 2) for k, s in enumerate((4, 2, 1))])
        pair.append(Candidates(volumes, [50.0, 200.0, 800.0], ones, ones))
    weights = blend_weights(*pair, PIXEL)
    inside = truth > 0.3 * float(truth.max())
    assert float(weights[-1].sum(0)[inside].mean()) > 0.9


def test_a_map_is_filtered_where_its_half_maps_disagree(hinge):
    generator = torch.Generator().manual_seed(0)
    truth, (first, second) = hinge.truth.true_map(), torch.randn(2, BOX, BOX, BOX, generator=generator)
    noise = 0.3 * float(truth.std())
    # Four times the noise in one half of the box.
    scale = noise * torch.where(torch.arange(BOX) < BOX // 2, 1.0, 4.0)
    pair = truth + scale * first, truth + scale * second
    volume, mean = locally_filtered(*pair, PIXEL), (pair[0] + pair[1]) / 2
    assert float((volume - truth).square().mean()) < 0.5 * float((mean - truth).square().mean())
    # Where there is no noise, nothing is lost; noise alone vanishes.
    assert torch.allclose(locally_filtered(truth, truth, PIXEL), truth, atol=0.02 * float(truth.max()))
    assert float(locally_filtered(first, second, PIXEL).std()) < 0.2
    assert torch.allclose(sum(frequency_bands(BOX, PIXEL)), torch.ones(BOX, BOX, BOX // 2 + 1))


def test_local_states_are_written_with_half_maps_and_what_was_chosen(trained, tmp_path):
    run = trained[1]
    out = tmp_path / "states"
    code, text = dynamight("states", run.path, "--method", "local", "--n-states", 2, "--no-movie", "--out", out)
    assert code == 0, text
    table = pd.read_csv(out / "states.csv")
    assert {"bandwidth_A", "effective_particles", "trust", "resolution_A", "moving_resolution_A"} <= set(table)
    assert table["trust"].between(0, 1).all()
    assert table["effective_particles"].between(0, 1.01 * len(run.halves)).all()
    files = {path.name for path in (out / table["folder"][0]).iterdir()}
    assert {"half1_unfil.mrc", "half2_unfil.mrc", "fsc.star", "mask.mrc", "local_resolution.mrc", "map.mrc"} <= files
    # Writing other states removes these.
    assert dynamight("states", run.path, "--at", "1", "--out", out)[0] == 0
    assert {path.name for path in out.iterdir()} == {"states.csv", "states.cxc", "state01.mrc"}


def test_the_explorer_shows_a_state_from_the_particles_near_it(trained):
    _, run = trained
    steps = []
    beside = Beside(run, Reporter(steps.append, lambda *step: steps.append(step)))
    at = run.motions.coordinates.quantile(0.9, dim=0).tolist()
    found = beside.local_state(at)
    assert MIN_PARTICLES <= found.values["particles"] <= len(run.halves)
    assert steps[0][0] == "preparing images" and steps[-1] == ("", 0, 0)
    # It lies where the model has the molecule in this state.
    positions = (run.motions.points + run.motions.displacement(torch.tensor([at]))[0]).numpy()
    voxels = np.rint((positions - found.values["first"]) / found.values["spacing"]).astype(int)[:, ::-1]
    density = found.arrays["density"]
    assert (density[tuple(voxels.T)] > 255 * found.values["level"]).mean() > 0.8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--latent", "0,0,0", "--half", "1"), "use --at instead of --latent"),
        (("--full",), "omit it with --method local"),
        (("--half", "1"), "--method local writes both half-maps"),
    ],
)
def test_options_of_other_methods_are_refused(trained, words, sentence):
    code, text = dynamight("states", trained[1].path, "--method", "local", *words)
    assert code == 2 and sentence in " ".join(text.split())


def test_a_run_without_support_has_no_local_states(drawn_run):
    from dynamight_core.reconstruction.local_states import LocalStates
    from dynamight_core.run import Run

    run = Run(drawn_run)
    run.summary["verdict"]["verdict"] = "not supported"
    with pytest.raises(InputError, match="motion is not supported"):
        LocalStates(run)

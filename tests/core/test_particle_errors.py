"""The uncertainty of one particle's displacement, at points and in regions, from what a run keeps of the particle."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import dynamight_core as dm
from dynamight_core.analysis.domain_files import write_domains, write_errors
from dynamight_core.analysis.domains import find_domains
from dynamight_core.analysis.explorer.session import Explorer
from dynamight_core.judging.errors import SYSTEMATIC, displacement_errors, motion_errors, region_errors
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run

ROWS = torch.tensor([0, 7, 120, 399])


@pytest.fixture(scope="module")
def run(drawn_run):
    return Run(drawn_run)


def test_errors_of_all_points_are_those_of_the_particle(run):
    points = run.motions.points
    with torch.no_grad():
        evaluators = [model.consensus_evaluator(points) for model in run.models]
    whole = motion_errors(evaluators, run.models, run.latents, run.covariances, run.halves)
    found = displacement_errors(run, points, ROWS, batch=3)
    assert torch.allclose(found.square().mean(1).sqrt(), whole.particle[ROWS], rtol=1e-4)


def test_the_error_at_a_point_is_disagreement_and_the_posterior_through_the_decoder(run):
    points = run.motions.points[::50]
    row = int(ROWS[1])
    half = int(run.halves[row]) - 1
    evaluators = [model.consensus_evaluator(points) for model in run.models]
    shifts = [evaluators[h](run.latents[h][row : row + 1])[0] for h in (0, 1)]
    jacobian = torch.autograd.functional.jacobian(
        lambda latent: evaluators[half](latent[None])[0], run.latents[half][row]
    )
    # J S J^T, its trace at each point.
    posterior = torch.einsum("mid,de,mie->m", jacobian, run.covariances[half][row], jacobian)
    expected = SYSTEMATIC * ((shifts[0] - shifts[1]).square().sum(1) / 2 + posterior).sqrt()
    found = displacement_errors(run, points, torch.tensor([row]))[0]
    # The engine takes whole steps of one standard deviation.
    assert torch.allclose(found, expected.detach(), rtol=0.1, atol=0.05)


def test_a_region_that_is_at_rest_is_known_better_than_one_that_swings(run, drawn_run, tmp_path):
    domains = find_domains(run.motions)
    labels, rows = torch.from_numpy(domains.labels), torch.arange(40)
    found = region_errors(run, labels, 2, rows)
    assert (found[:, 1] > 2 * found[:, 0]).float().mean() > 0.9
    every = displacement_errors(run, run.motions.points[labels == 1], rows).square().mean(1).sqrt()
    assert torch.allclose(found[:, 1], every, rtol=0.1)
    copied = Run(shutil.copytree(drawn_run, tmp_path / "run"))
    table = pd.read_csv(write_errors(copied, domains, QUIET))
    assert len(table) == len(run.halves)
    np.testing.assert_allclose(table["domain2_error_A"][:40], found[:, 1], rtol=1e-3)
    # They belong to these domains.
    write_domains(copied, domains, QUIET)
    assert not (copied.path / "analysis" / "domains" / "errors.csv").exists()


def test_python_and_the_explorer_give_the_errors_of_a_chosen_particle(run, drawn_run):
    points = run.motions.points
    expected = displacement_errors(run, points, ROWS).numpy()
    found = dm.open_run(drawn_run).displacement_errors(points.numpy(), ROWS.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    answer = Explorer(run, reporter=QUIET).uncertainty(int(ROWS[2]) + 1)
    np.testing.assert_allclose(answer.arrays["error_at"], expected[2], rtol=1e-5)
    assert answer.values["error"] == pytest.approx(np.sqrt((expected[2] ** 2).mean()), rel=1e-5)
    with pytest.raises(dm.InputError, match="particle 401 is not in this run"):
        Explorer(run, reporter=QUIET).uncertainty(401)

"""What analyse says of a motion whose truth is known: rigid domains, agreement of halves, arrows."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import rand_score

from dynamight_core.analysis.domain_files import write_domains
from dynamight_core.analysis.domains import _best_count, find_domains
from dynamight_core.analysis.exports import write_arrows
from dynamight_core.analysis.molecule import xyz_columns
from dynamight_core.errors import InputError
from dynamight_core.files import read_map
from dynamight_core.judging.agreement import halves_agreement
from dynamight_core.judging.distribution import corrected_distribution
from dynamight_core.judging.errors import SYSTEMATIC, coordinate_variances
from dynamight_core.model.motions import PrincipalMotions, principal_motions
from dynamight_core.model.partition import kabsch
from dynamight_core.reporter import QUIET
from dynamight_core.run import Run
from dynamight_core.simulate.molecules import hinge_molecule, two_hinge_molecule


def motions_of(molecule, angles, n_points=500):
    """Return the principal motions of particles whose domains turn by known (n, d) angles, and the points' domains."""
    chosen = torch.randperm(len(molecule), generator=torch.Generator().manual_seed(0))[:n_points]
    points, domains = molecule.positions[chosen], molecule.moving[chosen]

    def displacements(rows):
        return molecule.move(points, domains, angles[rows]) - points

    return principal_motions(displacements, len(angles), points, 6), domains


@pytest.mark.parametrize(("molecule", "n"), [(hinge_molecule, 2), (two_hinge_molecule, 3)])
def test_domains_and_their_angles_are_those_of_the_truth(molecule, n):
    molecule = molecule(0)
    angles = 0.2 * torch.randn(600, molecule.n_domains, generator=torch.Generator().manual_seed(1))
    motions, true = motions_of(molecule, angles)
    found = find_domains(motions)
    assert len(found) == n
    assert rand_score(true, found.labels) >= 0.95
    for domain in range(1, n):
        label = np.bincount(true[found.labels == domain]).argmax()
        expected = torch.rad2deg(angles[:, label - 1] - angles[:, label - 1].mean()).numpy()
        axis = molecule.axis_directions[label - 1].numpy()
        sign = np.sign(found.axes[domain] @ axis)
        assert abs(found.axes[domain] @ axis) > 0.98
        measured = sign * (found.angles[:, domain] - found.angles[:, domain].mean())
        assert np.corrcoef(measured, expected)[0, 1] > 0.99
        assert measured.std() == pytest.approx(expected.std(), rel=0.1)


@pytest.mark.parametrize(
    ("left", "count"),
    [
        # Fields that were learned: they bend over domains, and some show them better than others.
        ([1.30, 0.39, 0.24, 0.20], 2),
        ([1.44, 0.20, 0.11, 0.10], 2),
        ([1.06, 0.55, 0.39, 0.33], 2),
        ([1.25, 0.62, 0.33, 0.26], 2),
        ([3.86, 1.00, 0.77, 0.70], 2),
        ([0.81, 0.45, 0.13, 0.12], 3),
        ([1.30, 0.39, 0.15], 3),
        ([0.1], 1),
    ],
)
def test_as_many_domains_are_kept_as_halve_what_is_left(left, count):
    assert _best_count(left) == count


def test_a_body_that_moves_as_a_whole_is_one_domain():
    points = 30 * torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    angles = np.random.default_rng(3).normal(0, 0.1, 200)
    turned = torch.stack([points @ torch.tensor(Rotation.from_rotvec([0, 0, a]).as_matrix()).float().T for a in angles])
    motions = principal_motions(lambda rows: turned[rows] - points, 200, points, 4)
    found = find_domains(motions)
    assert len(found) == 1
    measured, expected = found.angles[:, 0] - found.angles[:, 0].mean(), np.degrees(angles - angles.mean())
    np.testing.assert_allclose(measured * np.sign(measured @ expected), expected, atol=0.3)


def test_a_domain_whose_field_is_flat_is_turned_about_its_joint():
    molecule = hinge_molecule(0)
    angles = 0.2 * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    chosen = torch.randperm(len(molecule), generator=torch.Generator().manual_seed(0))[:500]
    points, domains = molecule.positions[chosen], molecule.moving[chosen]
    moving = domains == 1

    def displacements(rows):
        shift = molecule.move(points, domains, angles[rows]) - points
        # Half of the turn within the domain is lost, as a smooth field loses it; its displacement stays.
        shift[:, moving] = 0.5 * shift[:, moving] + 0.5 * shift[:, moving].mean(1, keepdim=True)
        return shift

    found = find_domains(principal_motions(displacements, len(angles), points, 4), 2)
    assert rand_score(domains, found.labels) >= 0.95
    assert found.joints[0] is None
    axis, away = molecule.axis_directions[0], torch.tensor(found.joints[1]).float() - molecule.axis_points[0]
    assert (away - (away @ axis) * axis).norm() < 8.0
    measured, true = found.angles[:, 1], torch.rad2deg(angles[:, 0]).numpy()
    assert abs(np.corrcoef(measured, true)[0, 1]) > 0.99
    assert 0.75 < measured.std() / true.std() < 1.05


def test_a_domain_that_slides_has_no_joint():
    points = 20 * torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    upper = points[:, 2] > 0
    slide = 4 * torch.randn(300, generator=torch.Generator().manual_seed(3))

    def displacements(rows):
        return slide[rows, None, None] * torch.tensor([0.0, 0.0, 1.0]) * upper[:, None]

    found = find_domains(principal_motions(displacements, 300, points, 2), 2)
    assert found.joints == [None, None]
    assert found.angles[:, 1].std() < 0.5
    assert abs(np.corrcoef(found.shifts[:, 1, 2], slide)[0, 1]) > 0.99


@pytest.mark.parametrize("peaks", [False, True])
def test_the_distribution_behind_uncertain_coordinates_is_recovered(peaks):
    # Coordinates as inference gives them: means of posteriors under a normal prior of the right width.
    rng = np.random.default_rng(6)
    n = 2000
    true = rng.choice([-3.0, 3.0], n) + rng.normal(0, 0.6, n) if peaks else rng.uniform(-5, 5, n)
    noise = 1.5 * rng.uniform(0.7, 1.3, n)
    prior = true.var()
    means = (true + noise * rng.normal(size=n)) * prior / (prior + noise**2)
    found = corrected_distribution(means, prior * noise**2 / (prior + noise**2))
    ranks = (np.arange(n) + 0.5) / n
    assert np.abs(found.cumulative(np.sort(true)) - ranks).max() < 0.05
    assert found.spread == pytest.approx(true.std(), rel=0.05)
    # The density has that spread, which smoothing alone would not give it.
    weights = found.density / found.density.sum()
    variance = weights @ found.values**2 - (weights @ found.values) ** 2
    assert variance**0.5 == pytest.approx(found.spread, rel=1e-3)
    middle = np.abs(found.values).argmin()
    if peaks:
        # Between the peaks there is less than the coordinates show, and it is known how little.
        assert found.density[middle] < 0.4 * found.density.max()
    assert 0 < found.error[middle] < 0.2 * found.density.max()


def test_the_error_of_a_coordinate_is_its_posterior_and_what_halves_disagree_on(drawn_run):
    run = Run(drawn_run)
    rows = torch.arange(40)
    found = coordinate_variances(run, rows)[:, 0]
    motions = run.motions
    evaluators = [model.consensus_evaluator(motions.points) for model in run.models]
    with torch.no_grad():
        along = [
            torch.stack(
                [
                    ((evaluators[h](run.latents[half, rows] + step) * motions.components[0]).sum((1, 2)))
                    for step in (torch.zeros(2), torch.tensor([0.25, 0.0]), torch.tensor([0.0, 0.075]))
                ]
            )
            / len(motions.points)
            for h, half in ((0, 0), (1, 1))
        ]
    own = torch.where(run.halves[rows] == 1, *along)
    expected = (own[1:] - own[0]).square().sum(0) + (along[0][0] - along[1][0]).square() / 2
    np.testing.assert_allclose(found, SYSTEMATIC**2 * expected, rtol=0.05)


def test_rotations_are_found():
    rng = np.random.default_rng(4)
    true = Rotation.random(50, random_state=5)
    x = rng.normal(size=(20, 3))
    y = np.einsum("nij,mj->nmi", true.as_matrix(), x)
    rotations = kabsch(np.einsum("mi,nmj->nij", x, y))
    np.testing.assert_allclose(rotations, true.as_matrix(), atol=1e-9)


def test_more_domains_than_points_allow_are_refused():
    points = torch.randn(100, 3)
    motions = PrincipalMotions(points, torch.zeros(100, 3), torch.randn(1, 100, 3), torch.randn(50, 1), torch.ones(1))
    with pytest.raises(InputError, match="--domains is 6; give a number from 1 to 5"):
        find_domains(motions, 6)


def test_masks_cover_the_molecule_and_tables_have_a_row_for_every_particle(drawn_run, tmp_path):
    run = Run(shutil.copytree(drawn_run, tmp_path / "run"))
    found = find_domains(run.motions, 2)
    write_domains(run, found, reporter=QUIET)
    out = run.path / "analysis" / "domains"
    masks = [read_map(out / f"domain{k}_mask.mrc")[0] for k in (1, 2)]
    voxels = np.rint(run.motions.points.numpy() / run.pixel_size).astype(int)[:, ::-1] + run.box // 2
    for k, mask in enumerate(masks):
        assert mask.min() >= 0 and mask.max() == 1
        inside = mask[tuple(voxels.T)]
        assert (inside[found.labels == k] > 0.5).mean() > 0.97
    # Their cores do not overlap.
    assert not ((masks[0] > 0.999) & (masks[1] > 0.999)).any()
    assert len(pd.read_csv(out / "particles.csv")) == len(run.halves)
    summary = pd.read_csv(out / "domains.csv")
    assert summary["share_of_points"].sum() == pytest.approx(1)
    # The hinge's angle is drawn with a standard deviation of 0.2 radians, with an error of a quarter of it.
    assert summary["angle_std_deg"][1] == pytest.approx(np.degrees(0.2 * np.hypot(1, 0.25)), rel=0.15)


def test_halves_agree_as_their_errors_allow(drawn_run):
    table = halves_agreement(Run(drawn_run))
    # Each half's latent has an error of a quarter of its spread: a correlation of 1 / (1 + 1/16).
    assert table["correlation"][0] == pytest.approx(16 / 17, abs=0.06)
    assert (table["particles"] == 40).all()


def test_arrows_are_the_motion_and_spheres_its_error(drawn_run, tmp_path):
    run = Run(shutil.copytree(drawn_run, tmp_path / "run"))
    bild, csv = write_arrows(run, n=30, reporter=QUIET)
    table = pd.read_csv(csv)
    lines = bild.read_text().splitlines()
    arrows = np.array([line.split()[1:7] for line in lines if line.startswith(".arrow")], dtype=float)
    spheres = np.array([line.split()[1:] for line in lines if line.startswith(".sphere")], dtype=float)
    assert len(table) == 30 and len(arrows) == len(spheres) > 3
    np.testing.assert_allclose(arrows[:, 3:], spheres[:, :3])
    number = r" -?\d+(\.\d+)?"
    # As the BILD format of ChimeraX has them: two ends, radii of shaft and head, share of the shaft; centre and radius.
    directives = (
        rf"\.arrow({number}){{6}} 0\.4 1\.0 0\.7",
        rf"\.sphere({number}){{4}}",
        rf"\.color({number}){{3}}",
        rf"\.transparency{number}",
        r"\.comment .*",
    )
    assert all(any(re.fullmatch(directive, line) for directive in directives) for line in lines)
    sizes = np.linalg.norm(arrows[:, 3:] - arrows[:, :3], axis=1)
    shown = table[table["shift_A"] > 0.05 * table["shift_A"].max()]
    assert set(np.round(sizes, 1)) <= set(np.round(table["shift_A"], 1)) and len(sizes) >= len(shown) - 2
    std = float(run.motions.coordinates[:, 0].std())
    assert table["shift_A"].max() <= std * float(run.motions.components[0].norm(dim=1).max()) + 1e-3


def test_columns_of_points_and_of_many_points_hold_numbers():
    for values in (np.arange(3.0), np.arange(6.0).reshape(2, 3)):
        table = pd.DataFrame([xyz_columns("centre", values)] if values.ndim == 1 else xyz_columns("centre", values))
        assert list(table) == ["centre_x_A", "centre_y_A", "centre_z_A"]
        # A column of objects would be written with other digits.
        assert all(column.dtype.kind == "f" for _, column in table.items())
        np.testing.assert_array_equal(table.to_numpy().reshape(values.shape), values)

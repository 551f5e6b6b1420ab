"""The density around each voxel: corrected, of near particles or rigid, as the other half-set agrees."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from dynamight_core.imaging.modes import find_modes
from dynamight_core.reconstruction.competition import (
    Choice,
    Density,
    LocalCorrelation,
    Neighbourhood,
    compete,
    densities,
)
from dynamight_core.reconstruction.densities import density_sentence
from dynamight_core.reconstruction.half_map import HalfReconstruction
from dynamight_core.reconstruction.local_filter import frequency_bands
from dynamight_core.reconstruction.residual import motion_coherence
from dynamight_core.simulate.measures import HingeField
from tests.support.command_line import dynamight
from tests.support.hinge_images import BOX, PIXEL, noise


@pytest.fixture(scope="module")
def known(hinge):
    """Return the true modes, and the neighbourhood of the conformation at rest."""
    truth = hinge.truth
    modes = find_modes(HingeField(truth), truth.angles, truth.molecule.positions, PIXEL)
    spread = float(truth.angles.std())
    coordinates, variances = truth.angles / spread, torch.full((len(truth), 1), 0.01)
    return modes, Neighbourhood(coordinates, variances, torch.zeros(1), [0.4, 1.0, float("inf")])


def maps(hinge, modes, neighbourhood):
    """Return the maps of both half-sets, and the region of the molecule."""
    truth, found = hinge.truth, []
    region = (truth.domain_mask(0) + truth.domain_mask(1)).clamp(0, 1)
    for half in (1, 2):
        groups = neighbourhood.groups(torch.where(truth.half == half)[0])
        made = HalfReconstruction.of(hinge.particles(), torch.cat(groups), modes, region, groups=groups)
        found.append(neighbourhood.maps(groups, made.parts))
    return *found, region


def permuted(modes):
    """Return the modes with the deformations exchanged among particles."""
    order = torch.randperm(len(modes.coordinates), generator=torch.Generator().manual_seed(0))
    return replace(modes, coordinates=modes.coordinates[order])


def delivered(pair, weights, competing):
    return sum(
        weight * half[each.bandwidth, int(each.corrected)] / 2
        for half in pair
        for weight, each in zip(weights, competing, strict=True)
    )


def test_the_maps_of_all_particles_are_those_of_the_half_set(hinge, known):
    modes, neighbourhood = known
    rows = torch.where(hinge.truth.half == 1)[0]
    region = hinge.truth.domain_mask(1)
    groups = neighbourhood.groups(rows)
    assert torch.cat(groups).sort().values.equal(rows)
    made = HalfReconstruction.of(hinge.particles(), rows, modes, region, groups=groups)
    plain = HalfReconstruction.of(hinge.particles(), rows, modes, region)
    found = neighbourhood.maps(groups, made.parts)[-1]
    for corrected in (False, True):
        expected = plain.backprojected(0.3, corrected)
        assert torch.allclose(found[int(corrected)], expected, atol=1e-3 * float(expected.abs().max()))


def test_a_right_field_keeps_its_correction_where_something_moves(hinge, known):
    *pair, region = maps(hinge, *known)
    competing = densities(3, near=False)
    weights = compete(*pair, competing, region, PIXEL)
    assert torch.allclose(weights.sum(0), torch.ones(BOX, BOX, BOX), atol=1e-5)
    moving = hinge.truth.domain_mask(1)
    # Near the hinge, the moving domain hardly moves.
    assert float((weights[1] * moving).sum() / moving.sum()) > 0.4
    volume = delivered(pair, weights, competing)
    rigid, corrected = (delivered(pair, torch.ones(1, 1, 1, 1), [each]) for each in competing)
    best, least = hinge.mean_fsc(corrected, 1), hinge.mean_fsc(rigid, 1)
    assert best > least + 0.02
    assert hinge.mean_fsc(volume, 1) > best - 0.002


@pytest.mark.parametrize("right", [True, False])
def test_without_known_coordinates_a_right_field_corrects_and_a_wrong_one_does_not(hinge, known, right):
    modes, neighbourhood = known
    everything = replace(neighbourhood, bandwidths=[float("inf")])
    *pair, region = maps(hinge, modes if right else permuted(modes), everything)
    competing = densities(1)
    assert len(competing) == 2
    volume = delivered(pair, compete(*pair, competing, region, PIXEL), competing)
    rigid, corrected = (delivered(pair, torch.ones(1, 1, 1, 1), [each]) for each in competing)
    best = max(hinge.mean_fsc(each, 1) for each in (rigid, corrected))
    assert (hinge.mean_fsc(corrected, 1) > hinge.mean_fsc(rigid, 1)) == right
    assert hinge.mean_fsc(volume, 1) > best - 0.003


def test_a_wrong_field_leaves_the_rigid_density(hinge, known):
    modes, neighbourhood = known
    *pair, region = maps(hinge, permuted(modes), neighbourhood)
    competing = densities(3, near=False)
    weights = compete(*pair, competing, region, PIXEL)
    assert float((weights[0] * region).sum() / region.sum()) > 0.95
    rigid = delivered(pair, torch.ones(1, 1, 1, 1), competing[:1])
    assert hinge.mean_fsc(delivered(pair, weights, competing), 1) > hinge.mean_fsc(rigid, 1) - 0.003


def test_without_motion_the_map_is_the_rigid_one(hinge, known):
    modes, neighbourhood = known
    truth = hinge.truth
    still = modes.scaled(torch.zeros(len(modes)))
    # The coordinates of particles among which nothing moves say nothing either.
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(1))
    *pair, region = maps(hinge, still, replace(neighbourhood, coordinates=neighbourhood.coordinates[order]))
    assert torch.equal(pair[0][:, 0], pair[0][:, 1])
    weights = compete(*pair, densities(3), region, PIXEL)
    assert float((weights[0] * region).sum() / region.sum()) > 0.98


def test_of_equal_densities_the_rigid_one_is_used(hinge):
    truth = hinge.truth.true_map()
    scale = float(truth.std())
    for rigid, other in ((1.0, 1.0), (1.0, 2.0)):
        pair = []
        for seed in (0, 10):
            volumes = torch.stack([truth + s * scale * noise(BOX, seed + i) for i, s in enumerate((3, rigid, other))])
            pair.append(torch.stack([volumes[[0, 0]], volumes[[1, 2]]]))
        weights = compete(*pair, densities(2, near=False), torch.ones(BOX, BOX, BOX), PIXEL)
        # Noise decides one time in forty.
        assert float(weights[1].mean()) < 0.1


def test_the_error_of_a_local_correlation_is_that_of_its_independent_values():
    for band in frequency_bands(BOX, PIXEL)[1:]:
        local = LocalCorrelation(band, BOX, PIXEL)
        values = torch.stack(
            [local(*(local.part(torch.fft.rfftn(noise(BOX, seed + shift))) for shift in (0, 100))) for seed in range(6)]
        )
        assert float(values.std()) == pytest.approx(local.independent**-0.5, rel=0.3)


def test_residual_motion_of_a_blend_is_between_those_of_its_densities():
    generator = torch.Generator().manual_seed(0)
    sharp, blurred = torch.zeros(200, 40, 3), 6 * torch.randn(200, 40, 3, generator=generator)
    # A blur that is the same everywhere is a filter, which no FSC sees.
    blurred[:, 20:] = 0
    residuals, weights = torch.cat([sharp, blurred]), torch.ones(40)

    def coherence(of_sharp):
        shares = torch.cat([torch.full((200, 40), of_sharp), torch.full((200, 40), 1 - of_sharp)])
        return motion_coherence(residuals, weights, BOX, PIXEL, shares)

    alone, both, none = coherence(1 - 1e-6), coherence(0.5), coherence(0.0)
    assert torch.allclose(none, motion_coherence(blurred, weights, BOX, PIXEL), atol=1e-4)
    assert torch.allclose(alone, torch.ones_like(alone), atol=1e-3)
    assert (both[2:5] > none[2:5]).all() and (both[2:5] < alone[2:5]).all()


def test_densities_are_told_in_words(hinge, known):
    weights = torch.zeros(4, 2, 2, 2)
    weights[0], weights[1], weights[3] = 0.03, 0.37, 0.6
    competing = [*densities(3, near=False), Density(0, False, True), Density(0, True, True)]
    fractions = Choice(known[1], competing, weights).fractions(torch.ones(2, 2, 2))
    assert fractions["near"] == pytest.approx(0.6) and 100 < fractions["particles"] < len(hinge.truth)
    assert density_sentence({"region": "moving", **fractions}) == (
        "Density of moving: 60 % from particles near the conformation of the map, 37 % from all particles with motion "
        "corrected."
    )


def test_reconstruct_writes_which_density_each_region_has(trained, tmp_path):
    run = shutil.copytree(trained[1].path, tmp_path / "run")
    code, text = dynamight("reconstruct", run, "--overwrite", "--threads", "1")
    assert code == 0, text
    folder = run / "reconstruction"
    table = pd.read_csv(folder / "densities.csv")
    assert list(table["region"][:2]) == ["molecule", "moving"]
    assert np.allclose(table[["rigid", "corrected", "near"]].sum(axis=1), 1, atol=1e-3)
    assert "Density of the molecule: " in text and "In moving: " in text
    code, text = dynamight("reconstruct", run, "--overwrite", "--no-choose-density", "--no-rigid")
    assert code == 0 and "Density of" not in text
    assert not {"densities.csv", "motion_used.mrc"} & {path.name for path in folder.iterdir()}

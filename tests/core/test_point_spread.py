"""The map that Gaussians are refitted to while training, where views are even and where they are not."""

from dataclasses import replace

import torch

from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.training.inference import data_terms
from dynamight_core.training.point_spread import PointSpread
from dynamight_core.training.refit import deformed_map, refit_gaussians
from tests.support.known_motion import known_motion, untrained


def still(within):
    """Return a trainer without motion, its images of a molecule at rest, and the molecule's map."""
    model, data, _ = known_motion(
        300, noise=0.5, field=lambda positions: torch.zeros(2, *positions.shape), within=within
    )
    trainer = untrained(model, data, torch.arange(300))
    with torch.no_grad():
        return trainer, model.gaussians.render(model.box, model.pixel_size)


def likeness(trainer, molecule):
    """Return the smallest FSC of a trainer's map with the molecule, in shells where the molecule has detail."""
    found = deformed_map(trainer, torch.ones(molecule.shape, dtype=torch.bool).numpy())
    return float(fourier_shell_correlation(found, molecule)[1:6].min())


def test_the_map_is_the_molecule_also_where_views_are_uneven():
    even, uneven = likeness(*still(180.0)), likeness(*still(15.0))
    assert even > 0.98
    assert uneven > 0.9
    trainer, molecule = still(15.0)
    trainer.point_spread = replace(PointSpread.of(trainer.data, trainer.rows), kernel=None)
    assert likeness(trainer, molecule) < uneven - 0.1


def test_only_uneven_views_need_the_wide_kernel():
    for within, needed in ((180.0, False), (15.0, True)):
        trainer, _ = still(within)
        assert (PointSpread.of(trainer.data, trainer.rows).kernel is not None) == needed


def test_a_refit_explains_rare_views():
    misfits = []
    for divided in (True, False):
        trainer, _ = still(15.0)
        if divided:
            trainer.point_spread = replace(PointSpread.of(trainer.data, trainer.rows), kernel=None)
        refit_gaussians(trainer, 10.0, 0)
        rare = torch.arange(30)
        pixels = torch.ones(len(rare), trainer.model.box, trainer.model.box // 2 + 1, dtype=torch.bool)
        misfits.append(float(data_terms(trainer.model, trainer.data, rare, None, pixels).mean()))
    assert misfits[1] < misfits[0] - 5

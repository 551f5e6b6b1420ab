"""Measures, after a training, what decides between the causes of differences between particles."""

import math
from dataclasses import replace
from functools import partial

import torch

from dynamight_core.judging.causes import Evidence, gain_of
from dynamight_core.judging.composition import Composition, divide
from dynamight_core.judging.duplicates import find_duplicates
from dynamight_core.judging.explanations import (
    CONTENT,
    MOTION,
    POSE,
    Comparison,
    Explained,
    region_centres,
    static_model,
)
from dynamight_core.judging.transfer import check_transfer
from dynamight_core.judging.verdict import SIGMAS
from dynamight_core.model.motions import PrincipalMotions
from dynamight_core.parallel import side_by_side
from dynamight_core.reporter import QUIET
from dynamight_core.sampling import evenly
from dynamight_core.training.build import trainers_of
from dynamight_core.training.stage import Trained

# Particles of each half-set among which groups are looked for, and standard errors of a gain that is a reason to.
_SAMPLE, _HINT = 1000, 2.0


class Statics:
    """Trainers of both half-sets that know no motion, and models that explain images best without it.

    See `static_model`.
    """

    def __init__(self, trained: Trained):
        # Half-sets judge each other, also those of a joint model.
        prepared = replace(trained.prepared, options=replace(trained.options, halves="independent"))
        one, two = trainers_of((1, 2), prepared, trained.data, None, QUIET)
        self.trainers = one, two
        first, second = side_by_side(
            lambda half: static_model(trained.models[half], self.trainers[half]), (0, 1), trained.data.device
        )
        self.models = first, second


class Evidences:
    """The evidence of a finished training.

    Parameters
    ----------
    trained
        the training.
    statics
        of the training.
    halves, validation
        (n,) of the run.
    """

    def __init__(self, trained: Trained, statics: Statics, halves: torch.Tensor, validation: torch.Tensor):
        self._trained, self._statics, self._halves = trained, statics, halves
        data, centres = trained.data, region_centres(statics.models[0])

        def explain(half: int) -> tuple[Explained, Comparison]:
            mine = halves == half + 1
            explained = Explained(
                trained.models[half], statics.models[half], data, torch.where(mine & ~validation)[0], centres
            )
            return explained, explained.compare(
                torch.where(mine & validation)[0], trained.options.seed * 100 + half + 1
            )

        first, second = side_by_side(explain, (0, 1), data.device)
        self._explained, self._comparisons = (first[0], second[0]), (first[1], second[1])

    def gather(self, motions: PrincipalMotions, unseen: float) -> Evidence:
        """Return the evidence; `unseen` is the detection limit, A rms."""
        trained = self._trained
        particles, relatives = trained.prepared.particles, trained.prepared.relatives
        pose_error, pose_error_error = self._pose_error()
        compared = torch.cat([comparison.rows for comparison in self._comparisons])
        groups = relatives[compared]
        composition, molecules = self._composition(groups), torch.ones(len(compared), dtype=torch.bool)
        if composition is not None and composition.distinct and composition.empty:
            molecules = self.groups().groups[compared] == 1
        return Evidence(
            self._comparisons,
            groups,
            molecules,
            pose_error,
            pose_error_error,
            rigid_share(motions),
            composition,
            find_duplicates(particles, relatives, self._statics.models, trained.data, self._halves),
            check_transfer(self._statics.trainers, self._statics.models, particles.ctf),
            unseen,
            len(self._halves),
        )

    def groups(self) -> Composition:
        """Return the groups of all particles, in the order of their rows."""
        rows = self._rows()
        found = divide(self._explained, self._kinds, rows)
        groups = torch.empty_like(found.groups)
        groups[torch.cat(rows)] = found.groups
        found.groups = groups
        return found

    def _composition(self, groups: torch.Tensor) -> Composition | None:
        gain = partial(gain_of, self._comparisons, groups)
        both = MOTION, CONTENT
        # Where motion is real, occupancies are those of the moved molecule.
        self._kinds = both if gain(both, (CONTENT,)).exceeds(SIGMAS) else (CONTENT,)
        if not gain((CONTENT,), ()).exceeds(_HINT) and not gain(both, (MOTION,)).exceeds(_HINT):
            return None
        return divide(self._explained, self._kinds, [evenly(mine, _SAMPLE) for mine in self._rows()])

    def _rows(self) -> list[torch.Tensor]:
        """Return the particles of each half-set."""
        return [torch.where(self._halves == half)[0] for half in (1, 2)]

    def _pose_error(self) -> tuple[float, float]:
        """Return the rms error of orientations over both half-sets, degrees, and its standard error."""
        squares = [float(half.priors[POSE,].covariance[:3, :3].trace()) for half in self._explained]
        degrees = [math.degrees(math.sqrt(square)) for square in squares]
        mean = math.sqrt((degrees[0] ** 2 + degrees[1] ** 2) / 2)
        # Of the mean of two values: half their difference. At least what three angles of that many particles have.
        count = sum(half.prior_particles for half in self._explained)
        return mean, math.hypot(abs(degrees[0] - degrees[1]) / 2, mean / math.sqrt(6 * count))


def rigid_share(motions: PrincipalMotions) -> float:
    """Return the share of the displacements' variance that a rotation and translation of all points explains.

    To first order: rotations are small where they are errors.
    """
    points = motions.points - motions.points.mean(0)
    axes = torch.eye(3)
    shifts = axes[:, None].expand(-1, len(points), -1)
    rotations = torch.stack([torch.linalg.cross(axis.expand_as(points), points) for axis in axes])
    rigid = torch.linalg.qr(torch.cat([shifts, rotations]).flatten(1).T)[0]
    variances = motions.coordinates.var(0, unbiased=False)
    flat = motions.components.flatten(1)
    whole = float((variances * flat.square().sum(1)).sum())
    return float((variances * (flat @ rigid).square().sum(1)).sum()) / max(whole, 1e-12)

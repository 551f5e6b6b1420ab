"""Two groups of particles that differ in composition: found from the occupancies of regions of the molecule."""

from dataclasses import dataclass

import numpy as np
import torch

from dynamight_core.judging.explanations import CONTENT, Explained

# Difference of the Bayesian information criterion for two groups instead of one, and misassigned particles at most.
_EVIDENCE, _MAX_MIXED = 10.0, 0.1
# A region is missing where a group has less than this fraction of the other's density.
_MISSING = 0.5
# Of the differences of the regions' masses, the fraction that is left in their sum, and the fraction of the mass that
# group 2 lacks: if less, density has moved.
_NET, _LESS = 0.25, 0.02
# If regions with this fraction of the mass are missing, so is the molecule.
_ALL = 0.75


@dataclass
class Composition:
    """Two groups of n particles that differ in composition.

    Parameters
    ----------
    groups
        (n,) 1 for the particles with more mass, 2 for those with less.
    fraction
        of the particles in group 2.
    mixed
        expected fraction of particles in the wrong group.
    evidence
        difference of the Bayesian information criterion in favour of two groups.
    mass
        (2,) mass of each group, as a fraction of the mean.
    lost
        fraction of the molecule's mass, in regions that group 2 lacks.
    net
        difference of the groups' masses over the sum of the absolute differences of their regions' masses.
    """

    groups: torch.Tensor
    fraction: float
    mixed: float
    evidence: float
    mass: tuple[float, float]
    lost: float
    net: float

    @property
    def differs(self) -> bool:
        """Whether there is less of the molecule in group 2, instead of at another place."""
        return self.net > _NET and self.mass[1] < (1 - _LESS) * self.mass[0]

    @property
    def distinct(self) -> bool:
        """Whether there are two groups, and particles can be assigned to them."""
        return self.differs and self.evidence > _EVIDENCE and self.mixed < _MAX_MIXED

    @property
    def empty(self) -> bool:
        """Whether the images of group 2 lack the whole molecule."""
        return self.lost > _ALL


def divide(explained: tuple[Explained, Explained], kinds: tuple[str, ...], rows: list[torch.Tensor]) -> Composition:
    """Divide particles into two groups by their occupancies, along the direction in which these vary most.

    Parameters
    ----------
    explained
        of both half-sets, with the same regions.
    kinds
        of the explanation, which includes content.
    rows
        (n,) particles of each half-set; the groups are those of their concatenation.
    """
    parts = [half.part(kinds, CONTENT) for half in explained]
    covariances = [
        half.priors[kinds].covariance[part, part].double().cpu() for half, part in zip(explained, parts, strict=True)
    ]
    direction = torch.linalg.eigh(covariances[0] + covariances[1])[1][:, -1]
    occupancies = 1 + torch.cat(
        [
            half.infer(kinds, mine).latents[:, part].double().cpu()
            for half, part, mine in zip(explained, parts, rows, strict=True)
        ]
    )
    labels, mixed, evidence = _two_groups((occupancies @ direction).numpy())
    region_mass = explained[0].region_masses().double().cpu()
    means = torch.stack([occupancies[torch.from_numpy(labels == group)].mean(0) for group in (0, 1)])
    masses = means @ region_mass / (occupancies.mean(0) @ region_mass)
    less = int(masses.argmin())
    lost = float(region_mass[means[less] < _MISSING * means[1 - less]].sum() / region_mass.sum())
    groups = torch.from_numpy(np.where(labels == less, 2, 1))
    fraction = float((groups == 2).double().mean())
    changes = (means[1 - less] - means[less]) * region_mass
    net = float(changes.sum() / changes.abs().sum())
    return Composition(groups, fraction, mixed, evidence, (float(masses[1 - less]), float(masses[less])), lost, net)


def _two_groups(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return (n,) groups 0 and 1 of n values, the expected fraction of wrong ones, and the evidence for two groups."""
    from sklearn.mixture import GaussianMixture

    column = values[:, None]
    one, two = (GaussianMixture(n, n_init=3, random_state=0).fit(column) for n in (1, 2))
    probabilities = two.predict_proba(column)
    return probabilities.argmax(1), float(probabilities.min(1).mean()), float(one.bic(column) - two.bic(column))

"""Measures that compare results with the truth of a simulated data set."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from dynamight_core.image_series import ImageSeries, per_particle
from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.fourier import expand_shells, image_to_fourier, plane_multiplicity
from dynamight_core.simulate.truth import Truth


def mean_fsc(volume: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the mean over shells 1 to Nyquist of the FSC of two (box, box, box) maps inside a soft mask."""
    return float(fourier_shell_correlation(volume, truth, mask)[1:].mean())


def hinge_angle(
    displaced: torch.Tensor, reference: torch.Tensor, axis_point: torch.Tensor, axis_direction: torch.Tensor
) -> torch.Tensor:
    """Return the least-squares rotation about a known axis.

    Parameters
    ----------
    displaced
        (b, m, 3) A, points of the moving domain in b particles.
    reference
        (m, 3) A, the same points at angle 0.
    axis_point, axis_direction
        (3,) each, A and unit vector.

    Returns
    -------
    torch.Tensor
        (b,) radians, right-handed about the axis.
    """
    axis = axis_direction / axis_direction.norm()
    arm = reference - axis_point
    radial = arm - (arm @ axis)[:, None] * axis
    tangential = torch.linalg.cross(axis.expand_as(radial), radial)
    moved = displaced - axis_point
    return torch.atan2((moved * tangential).sum((-2, -1)), (moved * radial).sum((-2, -1)))


def knn_r2(latents: torch.Tensor, values: torch.Tensor, k: int = 10) -> float:
    """Return the R2 of values, (p,) or (p, v), predicted by the mean over the k nearest other latents (p, d)."""
    values = values.reshape(len(values), -1).double()
    # Without query points, a point is not its own neighbour.
    neighbours = NearestNeighbors(n_neighbors=k).fit(latents.float().numpy()).kneighbors(return_distance=False)
    predicted = values[torch.from_numpy(neighbours)].mean(1)
    return float(1 - (values - predicted).square().sum() / (values - values.mean(0)).square().sum())


def turn_slope(found: torch.Tensor, true: torch.Tensor, bins: int = 24) -> float:
    """Return the least-squares slope of (p,) angles on true ones, both in radians and known up to full turns.

    True angles are divided into bins of equally many particles. The mean directions of the found ones are continued
    from bin to bin, so that a full turn has a slope as well, and angles without relation to the truth have none.
    """
    order = true.argsort()
    means = []
    for rows in order.tensor_split(bins):
        direction = torch.polar(torch.ones(len(rows)), found[rows]).mean()
        means.append((float(true[rows].mean()), float(direction.angle())))
    x, y = np.array(means).T
    return float(np.polyfit(x, np.unwrap(y), 1)[0])


class HingeField:
    """The true deformation as a field whose latents are motions of the domains, in a form that `Molecule.move` takes.

    Parameters
    ----------
    truth
        of the data set.
    frame
        (domains, 6) motions of the conformation that is deformed; at rest if None.
    """

    def __init__(self, truth: Truth, frame: torch.Tensor | None = None):
        self.truth, self.frame = truth, frame

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from b motions to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        labels, rest = self.truth.at_rest(points, self.frame)
        return lambda motions: self.truth.molecule.move(rest, labels, motions) - points


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Pearson's correlation of two arrays of equal size."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@torch.no_grad()
def oracle_posteriors(
    images, truth: Truth, candidates: list[torch.Tensor], rows: torch.Tensor, sweeps: int = 4, memory: int = 2**28
) -> list[torch.Tensor]:
    """Find the probability of each candidate motion of each part, from the true structure, poses, CTF and noise.

    This is the limit for methods that learn them from the images. With several parts, the posterior is the best product
    of one distribution a part (mean field): each part is found beside the posterior mean images of the others, which
    are found in turn.

    Parameters
    ----------
    images
        (p, box, box) of the whole data set, an array or a memory map.
    truth
        of the data set.
    candidates
        for each part its (g, 6) motions of equal prior probability, as of `prior_motions`.
    rows
        (b,) particles.
    sweeps
        over the parts.
    memory
        bytes for images of the candidates.

    Returns
    -------
    list of torch.Tensor
        (b, g) probabilities for each part.
    """
    box, domains = truth.box, range(truth.molecule.n_domains)
    weight = plane_multiplicity(box) / (box**2 * expand_shells(truth.noise_power, box))
    batch = max(1, memory // (8 * box * (box // 2 + 1) * sum(map(len, candidates))))
    found: list[list[torch.Tensor]] = [[] for _ in domains]
    for chosen in rows.split(batch):
        transfer = truth.transfer(chosen)
        observed = image_to_fourier(torch.as_tensor(images[chosen.numpy()]).float()) * transfer.conj() * weight
        energy = transfer.abs().square() * weight
        rest = truth.project(chosen, domain=0)
        models = [_models(truth, chosen, domain, candidates[domain]) for domain in domains]
        powers = [torch.einsum("gbhw,bhw->bg", model.abs().square(), energy) for model in models]
        posteriors = [torch.full_like(power, 1 / power.shape[1]) for power in powers]
        for _ in range(sweeps if len(models) > 1 else 1):
            for domain in domains:
                means = [_mean(models[other], posteriors[other]) for other in domains if other != domain]
                residual = observed - energy * (rest + sum(means))
                fit = torch.einsum("gbhw,bhw->bg", models[domain].conj(), residual).real
                posteriors[domain] = torch.softmax((fit - 0.5 * powers[domain]).double(), 1).float()
        for domain in domains:
            found[domain].append(posteriors[domain])
    return [torch.cat(part) for part in found]


def _models(truth: Truth, rows: torch.Tensor, domain: int, candidates: torch.Tensor) -> torch.Tensor:
    """Return the (g, b, box, box//2+1) transforms of one moving domain (from 0) at its (g, 6) candidates."""
    motions = torch.zeros(len(rows), truth.molecule.n_domains, 6)
    models = []
    for candidate in candidates:
        motions[:, domain] = candidate
        models.append(truth.project(rows, motions, domain=domain + 1))
    return torch.stack(models)


def _mean(models: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """Return the (b, box, box//2+1) mean of (g, b, box, box//2+1) images under (b, g) probabilities."""
    return torch.einsum("gbhw,bg->bhw", models, posterior.to(models.dtype))


def prior_motions(truth: Truth, domain: int, n: int) -> torch.Tensor:
    """Return (n, 6) motions of one moving domain (from 0) of equal probability: those of every so many particles."""
    motions = truth.motions[:, domain]
    order = truth.angles[:, domain].argsort(stable=True)
    return motions[order[((torch.arange(n) + 0.5) * len(order) / n).long()]]


def oracle_angles(
    images, truth: Truth, motion_range: float, grid: int = 41
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Estimate the hinge angle of each particle from the true structure, poses, CTF, noise and uniform prior.

    Parameters
    ----------
    images
        (p, box, box) of the whole data set, an array or a memory map.
    truth
        with one moving domain.
    motion_range
        radians; the prior is uniform within +- this.
    grid
        number of angles at which the posterior is evaluated.

    Returns
    -------
    tuple
        (p,) posterior means in radians, (p,) posterior standard deviations, and the correlation of the means with
        the true angles.
    """
    # Midpoints of intervals with equal prior.
    angles = motion_range * ((torch.arange(grid) + 0.5) * 2 / grid - 1)
    candidates = truth.molecule.motions(angles)[:, 0]
    posterior = oracle_posteriors(images, truth, [candidates], torch.arange(len(truth)))[0]
    if truth.particle is not None:
        # The prior is uniform, so the likelihood of all images of a particle is the product of their posteriors.
        logarithm = per_particle(ImageSeries(truth.particle), posterior.double().clamp(min=1e-300).log())
        posterior = torch.softmax(logarithm, 1).float()
    mean = posterior @ angles
    deviation = (posterior @ angles.square() - mean.square()).clamp(min=0).sqrt()
    return mean, deviation, correlation(mean, truth.of_particles().angles)

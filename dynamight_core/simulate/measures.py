"""Measures that compare results with the truth of a simulated data set."""

from collections.abc import Callable

import torch
from sklearn.neighbors import NearestNeighbors

from dynamight_core.imaging.correlation import fourier_shell_correlation
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import expand_shells, image_to_fourier, plane_multiplicity, translation_phases
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


def knn_r2(latents: torch.Tensor, angles: torch.Tensor, k: int = 10) -> float:
    """Return the R2 of angles (p,) predicted by the mean over the k nearest other latents (p, d)."""
    angles = angles.flatten().double()
    # Without query points, a point is not its own neighbour.
    neighbours = NearestNeighbors(n_neighbors=k).fit(latents.float().numpy()).kneighbors(return_distance=False)
    predicted = angles[torch.from_numpy(neighbours)].mean(1)
    return float(1 - (angles - predicted).square().sum() / (angles - angles.mean()).square().sum())


class HingeField:
    """The true deformation as a field whose latents are the angles of the moving domains, (n, domains) radians."""

    def __init__(self, truth: Truth):
        self.truth = truth

    def evaluator(self, points: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function from (b, domains) angles to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        labels = self.truth.domains(points)
        return lambda angles: self.truth.molecule.move(points, labels, angles) - points


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Pearson's correlation of two arrays of equal size."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@torch.no_grad()
def oracle_angles(
    images, truth: Truth, motion_range: float, grid: int = 41, batch_size: int = 20
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Estimate the hinge angle of each image from the true structure, poses, CTF, noise and uniform prior.

    This is the limit for methods that learn them from the images.

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
    batch_size
        particles at a time.

    Returns
    -------
    tuple
        (p,) posterior means in radians, (p,) posterior standard deviations, and the correlation of the means with
        the true angles.
    """
    # Midpoints of intervals with equal prior.
    angles = motion_range * ((torch.arange(grid) + 0.5) * 2 / grid - 1)
    box = truth.box
    weight = plane_multiplicity(box) / (box**2 * expand_shells(truth.noise_power, box))
    means, deviations = [], []
    for chosen in torch.arange(len(truth)).split(batch_size):
        transfer = evaluate_ctf(truth.ctf[chosen], box, truth.pixel_size)
        transfer = transfer * translation_phases(-truth.origins[chosen] / truth.pixel_size, box)
        observed = image_to_fourier(torch.as_tensor(images[chosen.numpy()]).float()) * transfer.conj() * weight
        energy = transfer.abs().square() * weight
        rest = truth.project(chosen, domain=0)
        likelihood = []
        for angle in angles:
            model = rest + truth.project(chosen, angle.expand(len(chosen)), domain=1)
            fit = (model.conj() * observed).real.sum((-2, -1)) - 0.5 * (model.abs().square() * energy).sum((-2, -1))
            likelihood.append(fit)
        posterior = torch.softmax(torch.stack(likelihood, 1).double(), 1).float()
        mean = posterior @ angles
        means.append(mean)
        deviations.append((posterior @ angles.square() - mean.square()).clamp(min=0).sqrt())
    found = torch.cat(means)
    return found, torch.cat(deviations), correlation(found, truth.angles)

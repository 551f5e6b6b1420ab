"""Measures against the truth of a simulated data set, shared by the benchmarks."""

import torch
from sklearn.neighbors import NearestNeighbors

from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import (
    expand_shells,
    image_to_fourier,
    plane_multiplicity,
    shell_sums,
    translation_phases,
    volume_to_fourier,
)
from dynamight_core.simulate.truth import Truth


def fsc(map1, map2, mask=None):
    """Return the (box//2+1,) Fourier shell correlation of two (box, box, box) maps, shells 0 ... box//2.

    Shells are one Fourier voxel wide (radius rounded), and every voxel of the full transform counts once.
    torch-fourier-shell-correlation is not used: its shells overlap (each voxel is shared linearly by two shells) and
    it counts the plane kx = 0 twice, so its curve is a smoothed one.
    """
    map1, map2 = torch.as_tensor(map1), torch.as_tensor(map2)
    if mask is not None:
        map1, map2 = map1 * torch.as_tensor(mask), map2 * torch.as_tensor(mask)
    box = map1.shape[-1]
    a, b = volume_to_fourier(map1.float()), volume_to_fourier(map2.float())
    cross = shell_sums((a * b.conj()).real, box, 3)
    power = shell_sums(a.abs().square(), box, 3) * shell_sums(b.abs().square(), box, 3)
    return cross / power.sqrt().clamp(min=1e-30)


def mean_fsc(volume, truth, mask):
    """Return the mean over shells 1 ... Nyquist of the FSC of two maps inside a soft mask."""
    return float(fsc(volume, truth, mask)[1:].mean())


def fsc_resolution(curve, pixel_size, threshold=0.143):
    """Return the resolution (A) at which an FSC curve first falls below `threshold`, interpolated linearly."""
    box = 2 * (len(curve) - 1)
    below = (torch.as_tensor(curve) < threshold).nonzero()
    if not len(below):
        return 2 * pixel_size
    last = int(below[0])
    if last == 0:
        return float("inf")
    high, low = float(curve[last - 1]), float(curve[last])
    shell = last - 1 + (high - threshold) / (high - low)
    return box * pixel_size / shell if shell else float("inf")


def hinge_angle(displaced, reference, axis_point, axis_direction, weights=None):
    """Return the least-squares rotation about a known axis.

    Parameters
    ----------
    displaced
        (b, m, 3) A, points of the moving domain in b particles.
    reference
        (m, 3) A, where they are at angle 0.
    axis_point, axis_direction
        (3,) each.
    weights
        (m,) of the points; equal if left out.

    Returns
    -------
    torch.Tensor
        (b,) radians, right-handed about the axis.
    """
    axis = axis_direction / axis_direction.norm()
    arm = reference - axis_point
    radial = arm - (arm @ axis)[:, None] * axis
    tangential = torch.linalg.cross(axis.expand_as(radial), radial)
    if weights is not None:
        radial, tangential = radial * weights[:, None], tangential * weights[:, None]
    moved = displaced - axis_point
    return torch.atan2((moved * tangential).sum((-2, -1)), (moved * radial).sum((-2, -1)))


def knn_r2(latents, angles, k=10):
    """Return the R2 of angles (p,) predicted by the mean of the k nearest other latents (p, d)."""
    latents, angles = torch.as_tensor(latents).float().numpy(), torch.as_tensor(angles).flatten().double()
    # The neighbours of a fitted point leave out the point itself.
    neighbours = NearestNeighbors(n_neighbors=k).fit(latents).kneighbors(return_distance=False)
    predicted = angles[torch.from_numpy(neighbours)].mean(1)
    return float(1 - (angles - predicted).square().sum() / (angles - angles.mean()).square().sum())


def displacement_errors(predicted, true, labels):
    """Return the rms error (A) of (b, m, 3) displacements for each value of the (m,) labels, as a dictionary."""
    squared = (predicted - true).square().sum(-1)
    return {int(label): float(squared[:, labels == label].mean().sqrt()) for label in labels.unique()}


class HingeField:
    """The true deformation as a field whose latents are the angles of the moving domains, (n, domains) radians."""

    def __init__(self, truth: Truth):
        self.truth = truth

    def evaluator(self, points):
        """Return the map from (b, domains) angles to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        labels = self.truth.domains(points)
        return lambda angles: self.truth.molecule.move(points, labels, angles) - points


def correlation(a, b):
    """Return Pearson's correlation of two arrays of equal size."""
    return float(torch.corrcoef(torch.stack([torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()]))[0, 1])


@torch.no_grad()
def oracle_angles(images, truth: Truth, motion_range, grid=41, indices=None, batch_size=20):
    """Estimate the hinge angle of each image knowing structure, poses, CTF, noise and that angles are uniform.

    Parameters
    ----------
    images
        (p, box, box) of the whole data set, or anything that indexes like it.
    truth
        with one moving domain.
    motion_range
        radians; the prior is uniform within +- this.
    grid
        number of angles at which the posterior is evaluated.
    indices
        of the particles; all if left out.

    Returns
    -------
    tuple
        (b,) posterior means in radians, (b,) posterior standard deviations, and the correlation of the means with
        the true angles.
    """
    indices = torch.arange(len(truth)) if indices is None else torch.as_tensor(indices)
    # Midpoints: every grid angle stands for an interval of equal prior.
    angles = motion_range * ((torch.arange(grid) + 0.5) * 2 / grid - 1)
    box = truth.box
    weight = plane_multiplicity(box) / (box**2 * expand_shells(truth.noise_power, box))
    means, deviations = [], []
    for chosen in indices.split(batch_size):
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
    means = torch.cat(means)
    return means, torch.cat(deviations), correlation(means, truth.angles[indices])

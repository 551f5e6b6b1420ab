"""Residual motion, which the deformations do not correct, and its effect on the FSC.

Residual motion blurs both half-maps equally, so their FSC does not see it. Consider points with independent
scattering. If point x is missed by e_i in particle i, the map shows the structure times

    b(k, x) = mean_i exp(2 pi i k . e_i(x)),

and in a shell the blurred structure correlates with the sharp one by

    rho = sum b / sqrt(sum 1 sum |b|^2),

with sums over points and directions. A map that correlates with its noise-free limit by C_ref = sqrt(2 FSC / (1 +
FSC)) (Rosenthal and Henderson 2003) correlates with the truth by rho C_ref. The FSC with that C_ref includes residual
motion.

The e_i are drawn at random: the deformation used for particle i, minus a conformation from the posterior of its latent,
plus the disagreement of the decoders, both errors multiplied by the factor of `judging.errors`. Without deformation,
e_i is the motion itself.
"""

import torch

from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.imaging.modes import Modes
from dynamight_core.model.half import ConsensusField
from dynamight_core.run import Run

# Samples: particles of a half-set, points of the molecule, directions of a shell on one hemisphere.
_PARTICLES, _POINTS, _DIRECTIONS = 200, 300, 24
# Points at a time.
_CHUNK = 50


@torch.no_grad()
def residual_motion(
    run: Run,
    half: int,
    modes: Modes | None,
    points: torch.Tensor,
    seed: int = 0,
    chances: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the (p, m, 3) residual motion (A) of some particles of a half-set, drawn once each.

    Parameters
    ----------
    run
        finished and summarised.
    half
        1 or 2.
    modes
        the deformations used for the map, in the consensus frame; None if there were none.
    points
        (m, 3) in the consensus frame, A.
    seed
        of the choice of particles and of the draws.
    chances
        (n_half,) weights of the half-set's particles in the map; equal if None.
    """
    generator = torch.Generator().manual_seed(2 * seed + half)
    rows = torch.where(run.halves == half)[0]
    if chances is None:
        rows = rows[torch.randperm(len(rows), generator=generator)[:_PARTICLES]]
    else:
        rows = rows[torch.multinomial(chances, _PARTICLES, replacement=True, generator=generator)]
    device = run.models[half - 1].latent_mean.device
    own, other = (ConsensusField(run.models[h - 1]).evaluator(points.to(device)) for h in (half, 3 - half))
    means, covariances = run.latents[half - 1][rows], run.covariances[half - 1][rows]
    noise = torch.randn(*means.shape, 1, generator=generator)
    drawn = means + (torch.linalg.cholesky(covariances) @ noise)[..., 0]
    used = torch.zeros(len(rows), *points.shape, device=device)
    if modes is not None and len(modes):
        used = modes.field.evaluator(points.to(device))(modes.coordinates[rows.to(modes.coordinates.device)])
    shift = own(means.to(device))
    # The error of one decoder is the difference of two over sqrt(2). A difference shared by all particles is one of the
    # frames of the half-sets, which the FSC of the half-maps sees.
    disagreement = (shift - other(run.latents[2 - half][rows].to(device))) / 2**0.5
    error = shift - own(drawn.to(device)) + disagreement - disagreement.mean(0)
    # Summaries of early versions have no factor.
    error = run.summary.get("error_factor", 1.0) * error
    return (used - shift + error).cpu()


def motion_coherence(
    residuals: torch.Tensor, weights: torch.Tensor, box: int, pixel_size: float, shares: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the (box//2+1,) correlation rho of a structure with itself blurred by residual motion.

    Parameters
    ----------
    residuals
        (p, m, 3) A, of p particles at m points.
    weights
        (m,) amplitude of each point.
    box, pixel_size
        of the map.
    shares
        (p, m) how much each particle counts at each point; equal if None.
    """
    directions = _hemisphere(_DIRECTIONS)
    if shares is None:
        shares = torch.ones(residuals.shape[:2])
    shares = shares / shares.sum(0)
    # One over the effective number of draws.
    single = shares.square().sum(0)[:, None]
    power = weights.square() / weights.square().sum()
    # Motion shared by all particles shifts a point in the map, but does not blur it.
    residuals = residuals - (shares[..., None] * residuals).sum(0)
    n_shells = box // 2 + 1
    linear, squared = torch.zeros(n_shells), torch.zeros(n_shells)
    step = 2 * torch.pi / (box * pixel_size)
    parts = (residuals.split(_CHUNK, 1), power.split(_CHUNK), shares.split(_CHUNK, 1), single.split(_CHUNK))
    for part, weight, share, alone in zip(*parts, strict=True):
        angle = step * (part @ directions.T)
        factor = torch.polar(torch.ones_like(angle), angle)
        phase = torch.ones_like(factor)
        for shell in range(n_shells):
            mean = (share[..., None] * phase).sum(0)
            # Without the variance of the mean of the draws.
            intensity = (mean.abs().square() - alone) / (1 - alone)
            linear[shell] += (weight[:, None] * mean.real).sum() / len(directions)
            squared[shell] += (weight[:, None] * intensity).sum() / len(directions)
            phase *= factor
    # By Cauchy and Schwarz squared >= linear^2, but not always with few draws.
    linear = linear.clamp(min=0)
    return linear / torch.maximum(squared, linear.square()).clamp(min=1e-12).sqrt()


def include_residual_motion(fsc: torch.Tensor, coherence: torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) FSC that includes residual motion.

    Parameters
    ----------
    fsc
        of the half-maps.
    coherence
        rho, from `motion_coherence`.
    """
    fsc = fsc.cpu()
    # C_ref^2 = 2 F / (1 + F); solved for F.
    squared = coherence.square() * 2 * fsc.clamp(min=0) / (1 + fsc.clamp(min=0))
    return torch.where(fsc > 0, squared / (2 - squared), fsc)


def conservative_fsc(fsc: torch.Tensor, error: torch.Tensor, coherence: torch.Tensor | None) -> torch.Tensor:
    """Return the (box//2+1,) FSC minus one standard error, including residual motion if it is known.

    A small mask contains few independent Fourier voxels, so that random error in the FSC can add shells to the
    resolution.

    Parameters
    ----------
    fsc
        of the half-maps.
    error
        its standard error (`HalfMapFsc.standard_error`).
    coherence
        rho, from `motion_coherence`; None if the residual motion is not known.
    """
    lower = (fsc - error).cpu()
    return lower if coherence is None else include_residual_motion(lower, coherence)


def points_in_mask(
    run: Run, mask: torch.Tensor, pixel_size: float, gaussians: list[torch.Tensor] | None = None, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a sample of both half-sets' Gaussians in a mask.

    Returns
    -------
    tuple
        (m, 3) A in the consensus frame, (m,) weights, and the (m, 3) voxels where they are in the map.

    Parameters
    ----------
    run
        finished.
    mask
        (box, box, box), 0 to 1.
    pixel_size
        A.
    gaussians
        (m, 3) of each half-set in the frame of the mask, A; the consensus frame if None.
    seed
        of the sample, which is empty if the mask holds no Gaussian.
    """
    points = torch.cat([model.consensus_positions.detach().cpu() for model in run.models])
    amplitudes = torch.cat([model.gaussians.masses(pixel_size).sum(0).detach().cpu() for model in run.models])
    placed = points if gaussians is None else torch.cat([positions.cpu() for positions in gaussians])
    voxels = nearest_voxels(placed.numpy(), mask.shape[-1], pixel_size)
    inside = inside_box(voxels, mask.shape[-1])
    weights = torch.zeros(len(points))
    weights[inside] = mask[tuple(voxels[inside].T)] * amplitudes[inside].clamp(min=0)
    chosen = torch.where(weights > 0)[0]
    generator = torch.Generator().manual_seed(seed)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:_POINTS]]
    return points[chosen], weights[chosen], torch.from_numpy(voxels)[chosen]


def _hemisphere(n: int) -> torch.Tensor:
    """Return (n, 3) unit vectors, evenly spread over a hemisphere (Fibonacci spiral)."""
    index = torch.arange(n) + 0.5
    z = 1 - index / n
    angle = torch.pi * (1 + 5**0.5) * index
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), z], 1)

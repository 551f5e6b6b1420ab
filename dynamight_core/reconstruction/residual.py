"""Motion that was not undone, and what it takes from the correlation of a map with the truth.

Both half-maps are blurred by what their deformations leave. Their noise is independent but their blur is alike, so that
the FSC of half-maps counts the noise and not the blur. Take the structure for points whose scattering is independent
of each other. A point x that is missed by e_i in particle i is seen in the mean over particles as the structure times

    b(k, x) = mean_i exp(2 pi i k . e_i(x)),

and in a shell the blurred structure B t correlates with the structure t by

    rho = sum b / sqrt(sum 1 sum |b|^2),

sums over points and directions. With the correlation of the mean map and its own noise-free limit, C_ref = sqrt(2
FSC / (1 + FSC)) (Rosenthal and Henderson 2003), the map correlates with the truth by rho C_ref. The FSC that
half-maps would have if they saw the blur is the one whose C_ref is that.

The errors e_i are not known but their distribution is: what was used to deform particle i, less a conformation
drawn from the posterior of its latent, and the disagreement of the two halves' decoders, both raised by the factor by
which error estimates are (`analysis.errors`). Without deformation e_i is the motion itself.
"""

import torch

from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.model.half import ConsensusField
from dynamight_core.reconstruction.modes import Modes
from dynamight_core.run import Run

# Particles of a half and points of the molecule that stand for all; directions of a shell, of one hemisphere.
_PARTICLES, _POINTS, _DIRECTIONS = 200, 300, 24
# Points at a time.
_CHUNK = 50


@torch.no_grad()
def residual_motion(run: Run, half: int, modes: Modes | None, points: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return (p, m, 3) A: by how much some particles of a half are missed by their deformations, drawn once each.

    Parameters
    ----------
    run
        finished and summarised.
    half
        1 or 2.
    modes
        the deformations that the map was made with, in the consensus frame; None if there were none.
    points
        (m, 3) consensus frame, A.
    seed
        of the choice of particles and of the draws.
    """
    generator = torch.Generator().manual_seed(2 * seed + half)
    rows = torch.where(run.halves == half)[0]
    rows = rows[torch.randperm(len(rows), generator=generator)[:_PARTICLES]]
    own, other = (
        ConsensusField(run.models[h - 1]).evaluator(points.to(run.models[h - 1].latent_mean)) for h in (half, 3 - half)
    )
    means, covariances = run.latents[half - 1][rows], run.covariances[half - 1][rows]
    noise = torch.randn(*means.shape, 1, generator=generator)
    drawn = means + (torch.linalg.cholesky(covariances) @ noise)[..., 0]
    device = run.models[half - 1].latent_mean.device
    used = torch.zeros(len(rows), *points.shape, device=device)
    if modes is not None and len(modes):
        used = modes.field.evaluator(points.to(device))(modes.coordinates[rows.to(modes.coordinates.device)])
    shift = own(means.to(device))
    # Two decoders err apart: one by the difference over sqrt(2). What differs in all particles alike is between the
    # halves' frames, which the half-maps' FSC sees.
    apart = (shift - other(run.latents[2 - half][rows].to(device))) / 2**0.5
    # Runs that were summarised before errors were raised have no factor.
    error = run.summary.get("error_factor", 1.0) * (shift - own(drawn.to(device)) + apart - apart.mean(0))
    return (used - shift + error).cpu()


def motion_coherence(residuals: torch.Tensor, weights: torch.Tensor, box: int, pixel_size: float) -> torch.Tensor:
    """Return the (box//2+1,) correlation rho, shell by shell, of a structure with itself blurred by residual motion.

    Parameters
    ----------
    residuals
        (p, m, 3) A, of p particles at m points.
    weights
        (m,) amplitude with which each point counts.
    box, pixel_size
        of the map.
    """
    n, directions = len(residuals), _hemisphere(_DIRECTIONS)
    power = weights.square() / weights.square().sum()
    # A point that is missed alike in all particles is in another place of the map, and sharp there.
    residuals = residuals - residuals.mean(0)
    n_shells = box // 2 + 1
    linear, squared = torch.zeros(n_shells), torch.zeros(n_shells)
    step = 2 * torch.pi / (box * pixel_size)
    for part, share in zip(residuals.split(_CHUNK, 1), power.split(_CHUNK), strict=True):
        angle = step * (part @ directions.T)
        turn = torch.polar(torch.ones_like(angle), angle)
        phase = torch.ones_like(turn)
        for shell in range(n_shells):
            seen = phase.mean(0)
            # The mean of n draws has the variance of one over n on top.
            intensity = (n * seen.abs().square() - 1) / (n - 1)
            linear[shell] += (share[:, None] * seen.real).sum() / len(directions)
            squared[shell] += (share[:, None] * intensity).sum() / len(directions)
            phase *= turn
    # By Cauchy and Schwarz squared >= linear^2; few draws may say otherwise.
    linear = linear.clamp(min=0)
    return linear / torch.maximum(squared, linear.square()).clamp(min=1e-12).sqrt()


def count_residual_motion(fsc: torch.Tensor, coherence: torch.Tensor) -> torch.Tensor:
    """Return the (box//2+1,) FSC that half-maps would have if they saw their residual motion.

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


def cautious_fsc(fsc: torch.Tensor, error: torch.Tensor, coherence: torch.Tensor | None) -> torch.Tensor:
    """Return the (box//2+1,) FSC that half-maps have at least: less one standard error, residual motion counted.

    A small mask holds few independent Fourier voxels, and what the FSC strays by chance may pass for shells of
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
    less = (fsc - error).cpu()
    return less if coherence is None else count_residual_motion(less, coherence)


def points_in_mask(run: Run, mask: torch.Tensor, pixel_size: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some Gaussians of both halves inside a mask, (m, 3) A in the consensus frame, and their weights (m,).

    Parameters
    ----------
    run
        finished.
    mask
        (box, box, box), 0 to 1.
    pixel_size
        A.
    seed
        of their choice.

    Returns
    -------
    tuple
        empty where the mask holds none.
    """
    points = torch.cat([model.consensus_positions.detach().cpu() for model in run.models])
    amplitudes = torch.cat([model.gaussians.masses(pixel_size).sum(0).detach().cpu() for model in run.models])
    voxels = nearest_voxels(points.numpy(), mask.shape[-1], pixel_size)
    inside = inside_box(voxels, mask.shape[-1])
    weights = torch.zeros(len(points))
    weights[inside] = mask[tuple(voxels[inside].T)] * amplitudes[inside].clamp(min=0)
    chosen = torch.where(weights > 0)[0]
    generator = torch.Generator().manual_seed(seed)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:_POINTS]]
    return points[chosen], weights[chosen]


def _hemisphere(n: int) -> torch.Tensor:
    """Return (n, 3) unit vectors, evenly over a hemisphere (Fibonacci's spiral)."""
    index = torch.arange(n) + 0.5
    z = 1 - index / n
    angle = torch.pi * (1 + 5**0.5) * index
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), z], 1)

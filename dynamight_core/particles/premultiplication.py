"""Whether images were multiplied by their CTF, by what they look like."""

import numpy as np
import torch

from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import image_to_fourier, shell_means
from dynamight_core.particles.images import ImageReader

# Fourier shells that are looked at, as shares of Nyquist: noise where there is little signal.
_SHELLS = (0.5, 0.95)
# Least variance of the squared CTF over images in these shells; with less, nothing can be told.
_LEAST_VARIANCE = 0.01
# Shares of the power that is there where the CTF is zero: below the first, images were multiplied by it; above the
# second, they were not.
MULTIPLIED, NOT_MULTIPLIED = 0.2, 0.6


@torch.no_grad()
def power_at_ctf_zeros(reader: ImageReader, seed: int, n: int = 200) -> float | None:
    """Return the power of images where their CTF is zero, as a share of their mean power.

    The noise of an image is there whatever the CTF is, 1 if there is nothing but noise; that of an image multiplied by
    its CTF is 0 where the CTF is. In each shell the power is fitted by a straight line in the squared CTF.

    Parameters
    ----------
    reader
        of the particles.
    seed
        of the choice of images.
    n
        images that are looked at, at most.

    Returns
    -------
    float
        or None where the CTFs are too alike to tell.
    """
    particles = reader.particles
    box = particles.box
    chosen = np.sort(np.random.default_rng(seed).permutation(len(particles))[:n])
    shells = slice(int(_SHELLS[0] * box / 2), max(int(_SHELLS[1] * box / 2), int(_SHELLS[0] * box / 2) + 1))
    power, ctf = [], []
    for rows in np.array_split(chosen, -(-len(chosen) // 50)):
        images = reader.read(rows)
        images = images - images.mean((1, 2), keepdim=True)
        power.append(shell_means(image_to_fourier(images).abs().square(), box)[:, shells].double())
        transfer = evaluate_ctf(particles.ctf[rows], box, particles.pixel_size)
        ctf.append(shell_means(transfer.abs().square(), box)[:, shells].double())
    power, ctf = torch.cat(power), torch.cat(ctf)
    # Grey scales differ from image to image, and power from shell to shell.
    power = power / power.mean(1, keepdim=True)
    power = power / power.mean(0)
    centred = ctf - ctf.mean(0)
    variance = centred.square().mean()
    if variance < _LEAST_VARIANCE:
        return None
    slope = (centred * power).mean() / variance
    return float(1 - slope * ctf.mean())

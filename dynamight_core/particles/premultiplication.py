"""Detects from the images whether they were multiplied by their CTF."""

import numpy as np
import torch

from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import image_to_fourier, shell_means
from dynamight_core.particles.images import ImageReader

# Fourier shells in which the power is measured, as fractions of Nyquist: mostly noise, little signal.
_SHELLS = (0.5, 0.95)
# With less variance of the squared CTF over images in these shells the test is undecided.
_MIN_VARIANCE = 0.01
# Fraction of the power that remains at zeros of the CTF: below the first, images were multiplied by it; above the
# second, they were not.
MULTIPLIED, NOT_MULTIPLIED = 0.2, 0.6


@torch.no_grad()
def power_at_ctf_zeros(reader: ImageReader, seed: int, n: int = 200) -> float | None:
    """Return the power of images at zeros of their CTF, as a fraction of their mean power.

    The noise of an image does not depend on the CTF: the fraction is 1 for pure noise. In an image multiplied by its
    CTF the noise vanishes with it. In each shell a straight line in the squared CTF is fitted to the power.

    Parameters
    ----------
    reader
        of the particles.
    seed
        of the random choice of images.
    n
        largest number of images to measure.

    Returns
    -------
    float
        None if the CTFs are too similar to decide.
    """
    particles = reader.particles
    box = particles.box
    chosen = np.sort(np.random.default_rng(seed).permutation(particles.n_images)[:n])
    shells = slice(int(_SHELLS[0] * box / 2), max(int(_SHELLS[1] * box / 2), int(_SHELLS[0] * box / 2) + 1))
    powers, squared_ctfs = [], []
    for rows in np.array_split(chosen, -(-len(chosen) // 50)):
        images = reader.read(rows)
        images = images - images.mean((1, 2), keepdim=True)
        powers.append(shell_means(image_to_fourier(images).abs().square(), box)[:, shells].double())
        transfer = evaluate_ctf(particles.ctf[rows], box, particles.pixel_size)
        squared_ctfs.append(shell_means(transfer.abs().square(), box)[:, shells].double())
    power, ctf = torch.cat(powers), torch.cat(squared_ctfs)
    # Grey scales differ between images, and power between shells.
    power = power / power.mean(1, keepdim=True)
    power = power / power.mean(0)
    centred = ctf - ctf.mean(0)
    variance = centred.square().mean()
    if variance < _MIN_VARIANCE:
        return None
    slope = (centred * power).mean() / variance
    return float(1 - slope * ctf.mean())

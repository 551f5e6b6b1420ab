"""Positions as sines and cosines, which networks of positions read."""

import torch


def positional_encoding(positions: torch.Tensor, extent: float, n_frequencies: int, shortest: float) -> torch.Tensor:
    """Return sines and cosines of positions at geometrically spaced wavelengths.

    Parameters
    ----------
    positions
        (..., 3) A.
    extent
        longest wavelength, A.
    n_frequencies
        wavelengths per axis.
    shortest
        shortest wavelength, A.

    Returns
    -------
    torch.Tensor
        (..., 6 * n_frequencies).
    """
    steps = torch.linspace(0, 1, n_frequencies, device=positions.device)
    wavelengths = extent * (shortest / extent) ** steps
    angles = (positions[..., None] * (2 * torch.pi / wavelengths)).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)

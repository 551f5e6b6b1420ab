"""Decoders: latent and position to displacement.

A decoder has two calls: ``displacements(latents, positions)`` gives every particle's displacement of every
point, and it is differentiable in both; ``evaluator(positions)`` returns a function of latents alone for points
that stay, which a decoder may make cheaper.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn


def positional_encoding(positions: torch.Tensor, extent: float, n_frequencies: int, shortest: float):
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


class BasisDecoder(nn.Module):
    """Displacement as a sum of learned fields: delta(z, x) = sum_k w_k(z) phi_k(x).

    The fields phi come from a small network of the encoded position and are evaluated once for a set of points;
    a particle then costs one combination of `n_fields` terms, the coefficients w from a small network of its
    latent.

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box; the longest wavelength of the encoding.
    n_fields
        number of basis fields.
    shortest
        A, shortest wavelength of the encoding: the scale below which neighbours move together.
    """

    kind = "basis"

    def __init__(self, n_latents, extent, n_fields=32, hidden=64, n_frequencies=6, shortest=24.0):
        super().__init__()
        self.extent, self.n_frequencies, self.shortest, self.n_fields = extent, n_frequencies, shortest, n_fields
        self.fields = nn.Sequential(
            nn.Linear(6 * n_frequencies + 3, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(),
            nn.Linear(hidden, 3 * n_fields),
        )  # fmt: skip
        self.network = nn.Sequential(
            nn.Linear(n_latents, hidden), nn.ELU(), nn.Linear(hidden, n_fields, bias=False)
        )
        # Coefficients of the reference conformation, where nothing is displaced.
        self.register_buffer("rest", torch.zeros(n_fields))
        # No motion at the start, but a gradient: the fields are zero, the coefficients are not.
        nn.init.zeros_(self.fields[-1].weight)
        nn.init.zeros_(self.fields[-1].bias)

    def coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (b, n_fields) coefficients w of (b, d) latents."""
        return self.network(latents) - self.rest

    @torch.no_grad()
    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved by the mean displacement of (b, d) latents: those are at rest now."""
        self.rest += self.coefficients(latents).mean(0)

    def basis(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (n_fields, n, 3) basis fields (A) at (n, 3) positions (A)."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, self.shortest)
        # The coordinates themselves: rotations and other linear fields need no wave.
        code = torch.cat([positions * (4 / self.extent), code], -1)
        return self.fields(code).reshape(len(positions), self.n_fields, 3).transpose(0, 1)

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def evaluator(self, positions: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) positions."""
        basis = self.basis(positions).reshape(self.n_fields, -1)
        return lambda latents: (self.coefficients(latents) @ basis).reshape(len(latents), -1, 3)


class CoordinateDecoder(nn.Module):
    """The paper's coordinate network: encoded position and latent to displacement.

    Positional encoding with 10 frequencies an axis, wavelengths D/2 (2/D)^(k/9) ..., concatenated with the latent;
    8 layers of 32, ELU, no biases, last layer zero (paper, Methods).

    Parameters
    ----------
    n_latents
        dimensions of the latent space.
    extent
        A, size of the box.
    box
        pixels; the shortest wavelength is two pixels.
    """

    kind = "coordinate"

    def __init__(self, n_latents: int, extent: float, box: int, n_layers: int = 8, hidden: int = 32):
        super().__init__()
        self.extent, self.box, self.n_frequencies = extent, box, 10
        sizes = [6 * self.n_frequencies + n_latents, *[hidden] * (n_layers - 1)]
        layers = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, bias=False), nn.ELU()]
        layers.append(nn.Linear(hidden, 3, bias=False))
        nn.init.zeros_(layers[-1].weight)
        self.layers = nn.Sequential(*layers)
        # Displacements come out in A, of the order of a pixel for outputs of order one.
        self.unit = extent / box

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def absorb(self, latents: torch.Tensor) -> None:
        """Leave it to training to follow a reference that moved, as the paper does."""

    def evaluator(self, positions: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) or (b, n, 3) positions."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, 2 * self.extent / self.box)
        first = self.layers[0].weight
        # The first layer is linear in [code, latent]: its position part is shared by all particles.
        position_part = code @ first[:, : code.shape[-1]].T

        def evaluate(latents: torch.Tensor) -> torch.Tensor:
            hidden = position_part + (latents @ first[:, code.shape[-1] :].T)[:, None]
            return self.layers[1:](hidden) * self.unit

        return evaluate


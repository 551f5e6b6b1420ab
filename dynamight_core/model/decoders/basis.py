"""The default decoder: a sum of learned fields."""

from itertools import pairwise
from typing import Self

import torch
from torch import nn

from dynamight_core.imaging.geometry import Evaluator, LinearEvaluator
from dynamight_core.model.decoders.base import Decoder, DecoderInputs
from dynamight_core.model.decoders.encoding import positional_encoding


class BasisDecoder(Decoder):
    """Displacement as a sum of learned fields: delta(z, x) = sum_k w_k(z) phi_k(x).

    The fields phi come from a small network of the encoded position and are evaluated once for a set of points;
    a particle then costs one combination of `n_fields` terms, the coefficients w from a small network of its
    latent.

    Parameters
    ----------
    n_latents
        dimensions d of the latent space.
    extent
        A, width of the box; the longest wavelength of the encoding.
    n_fields
        number of basis fields.
    hidden
        width of the networks' layers.
    n_frequencies
        wavelengths per axis of the encoding.
    shortest
        A, shortest wavelength of the encoding: the scale below which neighbours move together.
    n_layers
        linear layers of the network of the fields.
    """

    can_become_rigid = True

    def __init__(
        self,
        n_latents: int,
        extent: float,
        n_fields: int = 32,
        hidden: int = 64,
        n_frequencies: int = 6,
        shortest: float = 24.0,
        n_layers: int = 3,
    ):
        super().__init__()
        self.extent, self.n_frequencies, self.shortest, self.n_fields = extent, n_frequencies, shortest, n_fields
        sizes = [6 * n_frequencies + 3, *[hidden] * (n_layers - 1)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ELU()]
        self.fields = nn.Sequential(*layers, last := nn.Linear(hidden, 3 * n_fields))
        self.network = nn.Sequential(nn.Linear(n_latents, hidden), nn.ELU(), nn.Linear(hidden, n_fields, bias=False))
        # Coefficients of the reference conformation, where nothing is displaced.
        self.rest = nn.Buffer(torch.zeros(n_fields))
        # No motion at the start, but a gradient: the fields are zero, the coefficients are not.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @classmethod
    def build(cls, inputs: DecoderInputs) -> Self:
        """Return the decoder of the chosen size, of the default size if none is chosen."""
        sizes = inputs.networks
        hidden, layers = sizes.decoder_width or 64, sizes.decoder_layers or 3
        return cls(inputs.n_latents, inputs.extent, hidden=hidden, n_layers=layers)

    def coefficients(self, latents: torch.Tensor) -> torch.Tensor:
        """Return (b, n_fields) coefficients w of (b, d) latents."""
        coefficients: torch.Tensor = self.network(latents) - self.rest
        return coefficients

    @torch.no_grad()
    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved by the mean displacement of (b, d) latents: those are at rest now."""
        self.rest.add_(self.coefficients(latents).mean(0))

    def basis(self, positions: torch.Tensor) -> torch.Tensor:
        """Return (n_fields, n, 3) basis fields (A) at (n, 3) positions (A)."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, self.shortest)
        # The coordinates themselves: rotations and other linear fields need no wave.
        code = torch.cat([positions * (4 / self.extent), code], -1)
        fields: torch.Tensor = self.fields(code)
        return fields.reshape(len(positions), self.n_fields, 3).transpose(0, 1)

    def evaluator(self, positions: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) positions."""
        return LinearEvaluator(self.coefficients, self.basis(positions))

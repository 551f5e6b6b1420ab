"""The paper's decoder: a network of position and latent."""

from itertools import pairwise
from typing import Self

import torch
from torch import nn

from dynamight_core.imaging.geometry import Evaluator
from dynamight_core.model.decoders.base import Decoder, DecoderInputs
from dynamight_core.model.decoders.encoding import positional_encoding


class CoordinateDecoder(Decoder):
    """The paper's coordinate network: encoded position and latent to displacement.

    Positional encoding with 10 frequencies an axis, wavelengths D/2 (2/D)^(k/9) ..., concatenated with the latent;
    8 layers, ELU (paper, Methods) of 32 neurons without biases, last layer zero (published program).

    Parameters
    ----------
    n_latents
        dimensions d of the latent space.
    extent
        A, width of the box.
    box
        pixels; the shortest wavelength is two pixels.
    n_layers
        linear layers.
    hidden
        width of the layers between.
    unit
        of the output, A; a pixel if None.
    """

    seconds_per_gaussian = 1.6e-6
    bytes_per_gaussian = 3000

    def __init__(
        self, n_latents: int, extent: float, box: int, n_layers: int = 8, hidden: int = 32, unit: float | None = None
    ):
        super().__init__()
        self.extent, self.box, self.n_frequencies = extent, box, 10
        sizes = [6 * self.n_frequencies + n_latents, *[hidden] * (n_layers - 1)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, bias=False), nn.ELU()]
        last = nn.Linear(hidden, 3, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last)
        # Displacements come out in A, of the order of a pixel for outputs of order one.
        self.unit = extent / box if unit is None else unit

    @classmethod
    def build(cls, inputs: DecoderInputs) -> Self:
        """Return the network of the chosen size, of the paper's if none is chosen."""
        sizes = inputs.networks
        unit = inputs.extent if sizes.box_units else None
        layers, width = sizes.decoder_layers or 8, sizes.decoder_width or 32
        return cls(inputs.n_latents, inputs.extent, inputs.box, layers, width, unit)

    def evaluator(self, positions: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, n, 3) displacements of fixed (n, 3) or (b, n, 3) positions."""
        code = positional_encoding(positions, self.extent, self.n_frequencies, 2 * self.extent / self.box)
        first = self.layers[0].get_parameter("weight")
        # The first layer is linear in [code, latent]: its position part is the same for all particles.
        position_part = code @ first[:, : code.shape[-1]].T

        def evaluate(latents: torch.Tensor) -> torch.Tensor:
            hidden = position_part + (latents @ first[:, code.shape[-1] :].T)[:, None]
            displacements: torch.Tensor = self.layers[1:](hidden) * self.unit
            return displacements

        return evaluate

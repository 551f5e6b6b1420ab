"""What a decoder is, and what it is built from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from dynamight_core.errors import InputError
from dynamight_core.imaging.geometry import Evaluator
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.regions import Regions
from dynamight_core.options import InputOptions, TrainOptions


@dataclass(frozen=True)
class Networks:
    """Sizes of encoder and decoder, and the unit of the decoder's output.

    Parameters
    ----------
    encoder_width
        neurons of the encoder's first layer.
    encoder_pooling
        pixels along each axis over which the encoder's input is averaged.
    decoder_layers, decoder_width
        linear layers of the decoder and neurons in each; the decoder's own if None.
    box_units
        whether a decoder that has a choice displaces in widths of the box.
    """

    encoder_width: int = 256
    encoder_pooling: int = 2
    decoder_layers: int | None = None
    decoder_width: int | None = None
    box_units: bool = False


DEFAULT_NETWORKS = Networks()


@dataclass(frozen=True)
class DecoderInputs:
    """What a decoder is built from.

    Parameters
    ----------
    n_latents
        dimensions d of the latent space.
    box
        of the training images, pixels.
    pixel_size
        of the training images, A.
    bodies
        of the molecule where ``--bodies`` gave their masks, else None.
    networks
        sizes.
    """

    n_latents: int
    box: int
    pixel_size: float
    bodies: RigidBodies | None = None
    networks: Networks = DEFAULT_NETWORKS

    @property
    def extent(self) -> float:
        """Width of the box, A."""
        return self.box * self.pixel_size


class Decoder(nn.Module, ABC):
    """Latent and position to displacement.

    A new decoder derives from this class, implements `build` and `evaluator`, and overrides what else differs. Its
    weights and buffers are saved with the model by their names. It is chosen by its name in `dynamight_core.registry`
    or in an entry point of the group ``dynamight_core.decoders``: ``dynamight train --decoder NAME``.

    Positions and displacements are in A, in the frame of the half's reference, whose origin is the centre of the box.
    """

    seconds_per_gaussian: ClassVar[float] = 7e-8
    """Training time for each particle, epoch and Gaussian, measured on two cores of a server processor at box 64."""
    bytes_per_gaussian: ClassVar[float] = 160
    """Memory for each particle of a batch and Gaussian while a step runs, gradients included."""
    restrains_distances: ClassVar[bool] = True
    """Whether distances between Gaussians are restrained (R_d and rigidity). False where they are kept or must change
    by construction."""
    has_sizes: ClassVar[bool] = True
    """Whether it consists of layers whose number and width can be chosen."""
    can_become_rigid: ClassVar[bool] = False
    """Whether training may replace it by rigid bodies that explain the images better."""
    has_prior: ClassVar[bool] = False
    """Whether `prior_energy` is a term of the loss."""
    moves_reference: ClassVar[bool] = False
    """Whether the consensus frame is reached by moving the reference itself, not by a shift of each Gaussian: needed
    where points move as rigid parts, since the way back must be rigid too."""

    @classmethod
    def check(cls, inputs: InputOptions, options: TrainOptions) -> None:
        """Refuse options that this decoder cannot be used with.

        Raises
        ------
        InputError
            with one sentence on what contradicts what.
        """
        if not cls.has_sizes and (options.decoder_layers or options.decoder_width):
            raise InputError(f"--decoder {options.decoder} has no layers; omit --decoder-layers and --decoder-width")

    @classmethod
    @abstractmethod
    def build(cls, inputs: DecoderInputs) -> Self:
        """Return an untrained decoder that displaces nothing; weights come from torch's global generator."""

    @classmethod
    def saved_bodies(cls, state: Mapping[str, torch.Tensor]) -> RigidBodies | None:
        """Return the `DecoderInputs.bodies` that a trained decoder was built from, or None where it needs none.

        Parameters
        ----------
        state
            the decoder's own weights and buffers by name.
        """
        return None

    @abstractmethod
    def evaluator(self, positions: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, n, 3) displacements (A) of fixed (n, 3) positions (A).

        Work that does not depend on the latent is done here, once. Differentiable in latents and positions.
        """

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) positions (A) under (b, d) latents."""
        return self.evaluator(positions)(latents)

    def prior_energy(self, latents: torch.Tensor) -> torch.Tensor:
        """Return minus the log-probability of the motions of (b, d) latents, averaged over particles: a scalar.

        Asked for where `has_prior`.
        """
        raise NotImplementedError

    def linear_basis(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return (k, n, 3) small motions (A) of (n, 3) positions (A) that linear motions are sums of.

        None where any smooth motion is possible.
        """
        return None

    def regions(self, positions: torch.Tensor) -> Regions | None:
        """Return the regions of (n, 3) positions (A) that move as rigid bodies; None where any deformation is possible.

        They define the reference, which then stays where they are.
        """
        return None

    def absorb(self, latents: torch.Tensor) -> None:
        """Follow a reference that moved by the mean displacement of (b, d) latents, which are at rest from now on.

        By default training is left to follow, as the paper does.
        """

    def built_from(self, bodies: RigidBodies | None) -> bool:
        """Return whether this decoder would have been built from these bodies."""
        return True

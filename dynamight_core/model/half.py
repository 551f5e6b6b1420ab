"""The model of one half-set: Gaussians, encoder, decoder, the latents' prior and the noise."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from scipy.cluster.vq import kmeans2
from scipy.fft import next_fast_len
from scipy.spatial import cKDTree
from torch import nn

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.imaging.fourier import crop_fourier, expand_shells, plane_multiplicity, shells
from dynamight_core.imaging.geometry import Evaluator, Field, LinearEvaluator, interpolate, scaled, shifted
from dynamight_core.imaging.projector import LinearPoints, Projector
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.decoders.base import DEFAULT_NETWORKS, Decoder, DecoderInputs, Networks
from dynamight_core.model.encoder import Encoder
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.registry import DECODERS

# Gaussians narrower than this many pixels are spread on a finer grid. At the limit, bilinear spreading errs by
# some per cent of the image's norm, at frequencies where the noise is many times stronger.
_MIN_WIDTH = 0.6
# Low frequencies are projected on a grid of this many pixels per pixel of their own box, if the model's is finer. The
# bilinear kernel's aliasing is then at most 1 % where they end: their signal is strong.
_LOW_OVERSAMPLING = 5
# Where the most central particle is farther from the mean than this fraction of the mean square, none is near it.
_HOLLOW = 0.25
# Starting points of an inference beside the mean.
_CENTRES = 8


LatentProjection = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class HalfModel(nn.Module):
    """All that is learned from one half-set.

    Parameters
    ----------
    gaussians
        in their reference conformation.
    box, pixel_size
        of the images it was trained on, pixels and A.
    n_latents
        dimensions of the latent space.
    decoder
        name in `registry.DECODERS`.
    particle_diameter
        A, of the encoder's mask.
    motion_mask
        (m, m, m) factor on the displacement over the extent of the box, or None: motion allowed everywhere.
    bodies
        that the decoder is built from, if any.
    networks
        sizes of encoder and decoder.
    """

    decoder: Decoder
    motion_mask: torch.Tensor | None

    def __init__(
        self,
        gaussians: GaussianModel,
        box: int,
        pixel_size: float,
        n_latents: int,
        decoder: str,
        particle_diameter: float,
        motion_mask: torch.Tensor | None = None,
        bodies: RigidBodies | None = None,
        networks: Networks = DEFAULT_NETWORKS,
    ):
        super().__init__()
        self.box, self.pixel_size, self.n_latents = box, pixel_size, n_latents
        self.particle_diameter = particle_diameter
        self.gaussians, self.networks = gaussians, networks
        mask_radius = particle_diameter / 2 / pixel_size
        self.encoder = Encoder(box, n_latents, mask_radius, networks.encoder_width, networks.encoder_pooling)
        self.set_decoder(decoder, bodies)
        width = float(gaussians.widths.detach().min())
        self.projector = Projector(box, pixel_size, 1 if width > _MIN_WIDTH * pixel_size else 2)
        self.latent_mean = nn.Buffer(torch.zeros(n_latents))
        self.latent_covariance = nn.Buffer(torch.eye(n_latents))
        # Where the latents of the training particles cluster; known once training has ended.
        self.latent_centres = nn.Buffer(torch.zeros(_CENTRES, n_latents))
        # Filter of the images where motion is learned and latents are inferred, A; 0 is none.
        self.resolution = nn.Buffer(torch.zeros(()))
        # Weight of regularisation as a fraction of the options': what does not freeze the motions that images show.
        self.regularisation_share = nn.Buffer(torch.ones(()))
        self.noise_power = nn.Buffer(torch.full((box // 2 + 1,), float(box**2)))
        # Displacement of each Gaussian from the consensus frame to the reference, A; known once training has ended.
        self.reference_shift = nn.Buffer(torch.zeros_like(gaussians.positions.detach()))
        self.register_buffer("motion_mask", motion_mask)

    def set_decoder(self, name: str, bodies: RigidBodies | None = None) -> None:
        """Replace the decoder by an untrained one.

        Parameters
        ----------
        name
            in `registry.DECODERS`.
        bodies
            that it is built from, if any.
        """
        inputs = DecoderInputs(self.n_latents, self.box, self.pixel_size, bodies, self.networks)
        self.decoder_name, self.decoder = name, DECODERS.load(name).build(inputs).to(self.gaussians.positions.device)

    def restore(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Set weights and buffers to those of a model of the same half, whose decoder may be another.

        Parameters
        ----------
        name
            of its decoder.
        state
            its `state_dict`.
        """
        if name != self.decoder_name:
            self.set_decoder(name, DECODERS.load(name).saved_bodies(_part(state, "decoder.")))
        self.load_state_dict(state)

    def project(
        self,
        matrices: torch.Tensor,
        transfer: torch.Tensor,
        positions: torch.Tensor | None = None,
        occupancies: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (b, box, box//2+1) model images, CTF applied; of a smaller box, their low frequencies.

        Parameters
        ----------
        matrices
            (b, 3, 3) projection matrices.
        transfer
            (b, box, box//2+1) CTF of each image, whose box decides that of the result.
        positions
            (b, n, 3) A; the reference if None.
        occupancies
            (b, n) factors on the mass of each Gaussian; 1 if None.
        """
        projector = self._projector(transfer.shape[-2])
        return self.gaussians.project(projector, matrices, positions, transfer, occupancies, self.pixel_size)

    def deformed_projection(self) -> LatentProjection:
        """Return the function from (b, d) latents, matrices and transfer functions to model images, as of `project`.

        For many images without gradients: with fields that are linear in a few coefficients, it is faster on a CPU.
        """
        rest = self.gaussians.positions.detach()
        evaluate = self.evaluator(rest)
        if not isinstance(evaluate, LinearEvaluator) or rest.device.type != "cpu" or len(self.gaussians.widths) > 1:
            return lambda latents, matrices, transfer: self.project(matrices, transfer, rest + evaluate(latents))
        moved = LinearPoints((rest + evaluate.offset).T.contiguous(), evaluate.basis.transpose(1, 2).contiguous())
        (masses,) = self.gaussians.masses(self.pixel_size).detach()

        def project(latents: torch.Tensor, matrices: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
            projector = self._projector(transfer.shape[-2])
            (width,) = self.gaussians.filters(projector.box, projector.pixel_size)
            return projector.project_moved(moved, evaluate.coefficients(latents), masses, matrices, transfer * width)

        return project

    def _projector(self, size: int) -> Projector:
        """Return the projector of the frequencies in a box of `size` pixels over the extent of the images."""
        if size == self.box:
            return self.projector
        grid = min(self.projector.grid_size, _fast_even(_LOW_OVERSAMPLING * size))
        return Projector(size, self.box * self.pixel_size / size, grid / size)

    def frequency_weights(self, resolution: float | None = None) -> torch.Tensor:
        """Return (box, box//2+1) weights that make a sum of |residual|^2 minus twice the log-likelihood.

        One over the noise power, twice for columns that stand for two, zero at the origin and beyond Nyquist. The
        low-pass filter ends at `resolution` (A), the model's own if None; 0 is no filter. Detail carries no information
        on motions larger than itself. The filter has no soft edge: with weights between 0 and 1, images would have less
        noise than the likelihood expects, and weak motion would be lost.
        """
        device = self.noise_power.device
        radius = shells(self.box, 2, device)
        inside = (radius > 0) & (radius < self.box // 2)
        weights = expand_shells(1 / self.noise_power, self.box) * plane_multiplicity(self.box, device) * inside
        filtered_at = self.resolution if resolution is None else resolution
        seen: torch.Tensor = weights * (radius * filtered_at <= self.box * self.pixel_size)
        return seen

    def seen_weights(self, resolution: float | None = None) -> torch.Tensor:
        """Return `frequency_weights` of the smallest even box that holds all within the filter, (size, size//2+1).

        Images are compared there, by `Batch.within`: nothing is lost, and there are fewer pixels.
        """
        filtered_at = float(self.resolution) if resolution is None else resolution
        size = self.box
        if filtered_at:
            size = min(size, 2 * (int(self.box * self.pixel_size / filtered_at + 1e-3) + 1))
        return crop_fourier(self.frequency_weights(resolution), size)

    def evaluator(self, positions: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, n, 3) displacements (A) of (n, 3) reference positions (A)."""
        displacement = self.decoder.evaluator(positions)
        if self.motion_mask is None:
            return displacement
        factor = interpolate(self.motion_mask[None], positions, self.box * self.pixel_size, "zeros")
        return scaled(displacement, factor)

    @property
    def consensus_positions(self) -> torch.Tensor:
        """(n, 3) where the Gaussians lie in the frame of the consensus map, A."""
        return self.gaussians.positions.detach() - self.reference_shift

    def consensus_to_reference(self, points: torch.Tensor) -> torch.Tensor:
        """Return where (p, 3) points (A) of the consensus frame lie in the reference frame, (p, 3) A.

        They shift by the mean shift of the nearest Gaussians, weighted by the inverse of their distance.
        """
        if not self.reference_shift.any():
            return points
        tree = cKDTree(self.consensus_positions.cpu().numpy())
        distance, nearest = tree.query(points.cpu().numpy(), k=min(8, len(self.gaussians)))
        weight = torch.from_numpy(1 / (distance + 1.0)).to(points)
        weight = weight / weight.sum(1, keepdim=True)
        shift = self.reference_shift[torch.from_numpy(nearest).to(points.device)]
        return points + (shift * weight[..., None]).sum(1)

    def set_latent_centres(self, latents: torch.Tensor) -> None:
        """Keep the centres of clusters of this half's (n, d) latents."""
        centres = latents.cpu().unique(dim=0)
        if len(centres) > _CENTRES:
            centres = torch.from_numpy(kmeans2(centres.numpy(), _CENTRES, minit="++", seed=0)[0])
        self.latent_centres.copy_(self.latent_mean.expand_as(self.latent_centres))
        self.latent_centres[: len(centres)] = centres.to(self.latent_centres)

    def latent_starts(self, n: int) -> list[torch.Tensor]:
        """Return (n, d) latents to start an inference from: the mean, and the centres of what was found before.

        A large motion has several fits to one image: the nearest one to the mean need not be the best.
        """
        return [start.expand(n, -1) for start in (self.latent_mean, *self.latent_centres)]

    @torch.no_grad()
    def central_latents(self, latents: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return the latents of the most central of (n, d) particles, and whether their mean is near any particle.

        The mean of points on an arc lies inside the arc; the particles nearest to it lie on the arc. On a circle all
        are as near: the most central one stands for those around it, but another half-set may have another one.
        """
        sample = latents[torch.linspace(0, len(latents) - 1, min(len(latents), 1000)).long().unique()]
        shifts = torch.cat([self.displacements(part) for part in sample.split(64)])
        distances = (shifts - shifts.mean(0)).square().sum((1, 2))
        common = bool(distances.min() <= _HOLLOW * distances.mean())
        if not common:
            distances = (shifts - shifts[distances.argmin()]).square().sum((1, 2))
        return sample[distances.argsort()[: max(1, len(shifts) // 20)]], common

    @torch.no_grad()
    def set_consensus_frame(self, central: torch.Tensor) -> None:
        """Set the consensus frame to the mean conformation of (n, d) latents.

        The consensus map shows the mean of the particles. The reference may lie elsewhere: positions and field can
        exchange a constant displacement while they are trained, differently in each half.
        """
        if self.decoder.moves_reference:
            middle = central.mean(0, keepdim=True)
            self.gaussians.positions.add_(self.displacements(middle)[0])
            self.decoder.absorb(middle)
            return
        self.reference_shift.copy_(-self.displacements(central).mean(0))

    def consensus_evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, p, 3) displacements (A) of (p, 3) points of the consensus frame."""
        return ConsensusField(self).evaluator(points)

    def displacements(self, latents: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return (b, n, 3) displacements (A) of (n, 3) `positions`, the Gaussians' own if None."""
        return self.evaluator(self.gaussians.positions if positions is None else positions)(latents)

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, atomically."""
        metadata = {
            "box": str(self.box),
            "pixel_size": repr(self.pixel_size),
            "n_latents": str(self.n_latents),
            "decoder": self.decoder_name,
            "particle_diameter": repr(self.particle_diameter),
            "oversampling": str(self.projector.oversampling),
            "networks": json.dumps(asdict(self.networks)),
        }
        with atomic_path(path) as temporary:
            state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
            safetensors.torch.save_file(state, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            if the file is missing, cannot be read, or is of another version, or its decoder is not installed.
        """
        try:
            with safetensors.safe_open(path, "pt", device="cpu") as file:
                metadata = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:  # Libraries have many exceptions for damaged files.
            raise InputError(f"{path} is missing or damaged ({error}); train the run again") from error
        try:
            n, n_classes = state["gaussians.composition"].shape
            gaussians = GaussianModel(torch.zeros(n, 3), 1.0, 1.0, n_classes, edges=state.get("gaussians.edges"))
            decoder = DECODERS.load(metadata["decoder"])
            model = cls(
                gaussians,
                int(metadata["box"]),
                float(metadata["pixel_size"]),
                int(metadata["n_latents"]),
                metadata["decoder"],
                float(metadata["particle_diameter"]),
                state.get("motion_mask"),
                decoder.saved_bodies(_part(state, "decoder.")),
                # Older models have the default sizes.
                Networks(**json.loads(metadata.get("networks", "{}"))),
            )
            model.load_state_dict(state)
            model.projector = Projector(model.box, model.pixel_size, int(metadata["oversampling"]))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} was written by another version of dynamight; train the run again") from error
        return model.to(device).eval()


class ConsensusField:
    """A deformation field of a half's reference frame, on points of the consensus frame.

    A point x of the consensus lies at x_ref in the half's reference, where the field is defined, and at
    x_ref + delta(z, x_ref) in a particle. Its displacement goes from x to there.

    Parameters
    ----------
    model
        of the half, which relates the two frames.
    field
        on its reference frame; the model's own if None.
    """

    def __init__(self, model: HalfModel, field: Field | None = None):
        self.model, self.field = model, model if field is None else field

    def evaluator(self, points: torch.Tensor) -> Evaluator:
        """Return the map from (b, d) latents to (b, m, 3) displacements (A) of fixed (m, 3) points (A)."""
        reference = self.model.consensus_to_reference(points)
        return shifted(self.field.evaluator(reference), reference - points)


def _fast_even(size: float) -> int:
    """Return the smallest even number from `size` on whose Fourier transform is fast."""
    return 2 * int(next_fast_len(math.ceil(size / 2)))


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a part of the model by its own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

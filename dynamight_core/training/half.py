"""Training of one half-set: the losses and the kinds of epoch."""

import math
from dataclasses import dataclass

import torch
from roma import rotvec_to_rotmat
from torch import nn

from dynamight_core.imaging.fourier import shell_means, translation_phases
from dynamight_core.model.graph import (
    LongEdges,
    NeighbourGraph,
    deformation_regularity,
    edge_lengths,
    repulsion,
    rigidity,
)
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import Batch, TrainingImages
from dynamight_core.training.inference import infer_latents

# Regularisation looks at so many particles of a batch: its gradient needs no more.
REGULARISED = 32
# An epoch has at least so many batches.
_LEAST_BATCHES = 8
# Particles whose residual gives the noise spectrum.
_NOISE_PARTICLES = 512
# The magnitude of displacement is rounded off below this, A.
_MAGNITUDE_EDGE = 0.1


@dataclass
class EpochSums:
    """Means over an epoch, for metrics.jsonl."""

    data: float = 0.0
    kl: float = 0.0
    regularity: float = 0.0
    repulsion: float = 0.0
    motion: float = 0.0


class HalfTrainer:
    """Trains the model of one half-set on its training particles.

    Parameters
    ----------
    model
        with Gaussians fitted to the start map.
    data
        images of all particles.
    rows
        (n,) training particles of this half.
    encoder_only_rows
        validation particles that train the encoder alone (the paper's way); usually empty.
    options
        of training.
    half
        1 or 2; seeds differ by it.
    """

    def __init__(
        self,
        model: HalfModel,
        data: TrainingImages,
        rows: torch.Tensor,
        options: TrainOptions,
        half: int,
        encoder_only_rows: torch.Tensor | None = None,
    ):
        self.model, self.data, self.rows, self.options, self.half = model, data, rows, options, half
        self.encoder_only_rows = rows[:0] if encoder_only_rows is None else encoder_only_rows
        n, d = len(rows), options.n_latents
        self.slot = torch.full((len(data),), -1, dtype=torch.long)
        self.slot[rows] = torch.arange(n)
        self.latents = torch.zeros(n, d, device=data.device)
        self.covariances = torch.eye(d, device=data.device).repeat(n, 1, 1)
        # On top of the given pose: rotation vectors in radians, shifts in A.
        self.rotations = nn.Parameter(torch.zeros(n, 3, device=data.device))
        self.shifts = nn.Parameter(torch.zeros(n, 2, device=data.device))
        self.regularise(float(model.regularisation_share))
        if options.motion_resolution is not None:
            model.resolution.fill_(options.motion_resolution)
        # Whether the networks have been trained: before, displacements are those of no motion.
        self.started = False
        self.graph = NeighbourGraph.of(model.gaussians)
        self.long_edges: LongEdges | None = None
        # Few particles must not mean few steps of the optimiser.
        self.batch_size = min(options.batch_size, max(1, -(-n // _LEAST_BATCHES)))
        # Transform of the undeformed point spread function, once it is needed.
        self.point_spread = None
        self.optimizers = {
            "gaussians": self._gaussian_optimizer(),
            "encoder": torch.optim.Adam(model.encoder.parameters(), lr=options.encoder_learning_rate),
            "decoder": torch.optim.Adam(model.decoder.parameters(), lr=options.learning_rate),
            # No momentum: it would move particles that are not in the batch.
            "poses": torch.optim.Adam(
                [{"params": [self.rotations], "lr": 5e-4}, {"params": [self.shifts], "lr": 0.03}], betas=(0.0, 0.99)
            ),
        }

    @property
    def pose_changes(self) -> torch.Tensor:
        """(n, 5) rotation vectors (radians) and shifts (A) on top of the given poses."""
        return torch.cat([self.rotations, self.shifts], 1)

    def generator(self) -> torch.Generator:
        """Return a generator of random numbers that differs by seed and half, anew."""
        return torch.Generator().manual_seed(self.options.seed * 10 + self.half)

    def regularise(self, share: float) -> None:
        """Let regularisation weigh `share` of what the options say, here and in runs that start from this one."""
        self.model.regularisation_share.fill_(share)
        self.rigidity = self.options.rigidity * share
        # The paper's lambda is found as training goes.
        self.stiffness = self.options.stiffness * (share if self.options.regularisation == "fixed" else 1)

    def _gaussian_optimizer(self) -> torch.optim.Optimizer:
        gaussians, options = self.model.gaussians, self.options
        if gaussians.fixed:
            return torch.optim.Adam([gaussians.log_widths, gaussians.log_amplitudes], lr=5e-3, betas=(0.9, 0.99))
        return torch.optim.Adam(
            [
                {"params": [gaussians.positions], "lr": options.gaussian_learning_rate},
                {"params": [gaussians.log_widths, gaussians.log_amplitudes], "lr": 5e-3},
                {"params": [gaussians.relative_amplitudes], "lr": 5e-3 * options.gaussian_amplitudes},
                {"params": [gaussians.composition], "lr": 1e-2 * (options.width_classes > 1)},
            ],
            betas=(0.9, 0.99),
        )

    def reset_gaussian_optimizer(self) -> None:
        """Forget the momentum of Gaussians that have been replaced."""
        self.optimizers["gaussians"] = self._gaussian_optimizer()

    def warm_up_epoch(self, epoch: int) -> EpochSums:
        """Fit the Gaussians to the images without deformation."""
        return self._gaussian_epoch(epoch, lambda rows: None)

    def reference_epoch(self, epoch: int) -> EpochSums:
        """Move only the Gaussians, encoder and decoder fixed (paper, Methods: reference update), unfiltered."""
        latents = self.current_latents(self.rows)
        with torch.no_grad():
            evaluate = self.model.evaluator(self.model.gaussians.positions)

        def shift(rows):
            with torch.no_grad():
                return evaluate(latents[self.slot[rows]])

        return self._gaussian_epoch(epoch, shift)

    def _gaussian_epoch(self, epoch, displacement) -> EpochSums:
        weights = self.model.frequency_weights(resolution=0)
        sums = EpochSums()
        for rows in self._batches(epoch)[0]:
            batch = self.data.batch(rows)
            shift = displacement(rows)
            positions = None if shift is None else self.model.gaussians.positions + shift
            loss = self._data_loss(batch, positions, weights)
            self._step(loss, "gaussians")
            sums.data += loss.item() * len(rows) / len(self.rows)
        return sums

    def encoder_epoch(self, epoch: int, sparse: float) -> EpochSums:
        """Train encoder, decoder and Gaussians together (paper, Eq. 4 and Methods)."""
        weights = self.model.frequency_weights()
        batches, generator = self._batches(epoch)
        sums = EpochSums()
        for rows in batches:
            batch = self.data.batch(rows)
            mean, log_variance = self.model.encoder(batch.images)
            log_variance = log_variance.clamp(-8, 4)
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
            latents = mean + self._noise_like(mean, generator) * (0.5 * log_variance).exp()
            data, regularity = self._deformed_losses(batch, latents, weights, sparse, sums)
            self._step(data + self.options.kl_weight * kl + regularity, "encoder", "decoder", "gaussians", "poses")
            sums.kl += kl.item() * len(rows) / len(self.rows)
        self._train_encoder_only(generator, weights)
        return sums

    def refinement_epoch(self, epoch: int, sparse: float) -> EpochSums:
        """Train decoder and Gaussians with latents drawn from each particle's posterior.

        The encoder follows the inferred latents, so that it keeps giving good starting points.
        """
        weights = self.model.frequency_weights()
        batches, generator = self._batches(epoch)
        spread = torch.linalg.cholesky(self.covariances)
        sums = EpochSums()
        for rows in batches:
            batch = self.data.batch(rows)
            slot = self.slot[rows]
            modes = self.latents[slot]
            noise = (spread[slot] @ self._noise_like(modes, generator)[..., None])[..., 0]
            data, regularity = self._deformed_losses(batch, modes + noise, weights, sparse, sums)
            guess, _ = self.model.encoder(batch.images)
            follow = (guess - modes).square().mean()
            self._step(data + regularity + follow, "encoder", "decoder", "gaussians", "poses")
        self._train_encoder_only(generator, weights)
        return sums

    def infer(self, steps: int = 2, restart: bool = False) -> float:
        """Infer the training particles' latents, then their prior; return the mean energy.

        Parameters
        ----------
        steps
            Gauss-Newton steps.
        restart
            from the encoder, whose means also give the first prior, instead of from the last inference.
        """
        if restart:
            self.latents = self.encode(self.rows)
            self._set_prior(self.latents, 1e-3 * torch.eye(self.options.n_latents, device=self.data.device))
        posterior = infer_latents(self.model, self.posed_data(), self.rows, [self.latents], steps)
        self.latents, self.covariances = posterior.latents, posterior.covariances
        self._set_prior(self.latents, self.covariances.mean(0))
        return float(posterior.energies.mean())

    def _set_prior(self, latents: torch.Tensor, width: torch.Tensor) -> None:
        """Set the prior to the mean and covariance of the latents, their posterior width included."""
        self.model.latent_mean.copy_(latents.mean(0))
        self.model.latent_covariance.copy_(torch.cov(latents.T).reshape(width.shape) + width)

    @torch.no_grad()
    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the encoder's (n, d) latent means of (n,) rows."""
        return torch.cat([self.model.encoder(self.data.images(part))[0] for part in rows.split(512)])

    def current_latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (n, d) latents: the inferred ones once there are any, else the encoder's."""
        if self.latents.any():
            return self.latents[self.slot[rows]]
        return self.encode(rows)

    @torch.no_grad()
    def estimate_noise(self, deformed: bool) -> None:
        """Set the noise spectrum Sigma to the shell-averaged error power of a subset of the training particles."""
        generator = torch.Generator().manual_seed(self.options.seed)
        chosen = self.rows[torch.randperm(len(self.rows), generator=generator)[:_NOISE_PARTICLES]]
        power = 0
        for rows in chosen.split(128):
            batch = self.data.batch(rows)
            positions = None
            if deformed:
                shift = self.model.displacements(self.current_latents(rows))
                positions = self.model.gaussians.positions + shift
            residual = self._project(batch, positions) - batch.transforms
            power = power + shell_means(residual.abs().square(), self.model.box).sum(0)
        self.model.noise_power.copy_(power / len(chosen))

    @torch.no_grad()
    def rebuild_graph(self) -> None:
        """Rebuild the neighbour graph, and once there is motion the long edges, from the reference."""
        positions = self.model.gaussians.positions
        self.graph = NeighbourGraph.of(self.model.gaussians)
        if self.started and self.options.rigidity > 0 and self.options.decoder != "bodies":
            few = self.rows[:: max(1, len(self.rows) // REGULARISED)]
            displaced = positions + self.model.displacements(self.current_latents(few))
            self.long_edges = LongEdges.build(positions, displaced, self.generator())

    def balance_regularisation(self, epoch: int) -> None:
        """Set the paper's lambda: the ratio of gradient norms of data and regularisation times `regularisation_ratio`.

        Norms are with respect to the decoder, over two batches. Nothing changes where the terms have no gradient.
        """
        weights = self.model.frequency_weights()
        parameters = list(self.model.decoder.parameters())
        batches, _ = self._batches(epoch)
        norms = torch.zeros(2)
        for rows in batches[:2]:
            batch = self.data.batch(rows)
            positions = self.model.gaussians.positions + self.model.displacements(self.current_latents(rows))
            lengths = edge_lengths(self.graph.edges, positions)
            terms = (
                self._data_loss(batch, positions, weights),
                deformation_regularity(self.graph, lengths) + self._repulsion(lengths),
            )
            for i, term in enumerate(terms):
                gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
                norms[i] += math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
        if norms[1] > 0:
            self.stiffness = self.options.regularisation_ratio * float(norms[0] / norms[1])

    def _deformed_losses(self, batch: Batch, latents, weights, sparse, sums: EpochSums):
        """Return data loss and weighted regularisation of a batch under (b, d) latents; add to `sums`."""
        gaussians = self.model.gaussians
        displacement = self.model.displacements(latents)
        positions = gaussians.positions + displacement
        data = self._data_loss(batch, positions, weights)
        few = positions[:REGULARISED]
        lengths = edge_lengths(self.graph.edges, few)
        regularity, repelled = deformation_regularity(self.graph, lengths), self._repulsion(lengths)
        if self.options.decoder == "bodies":
            # Distances inside bodies stay, and between them they must change.
            regularity = self.model.decoder.joint_energy(latents)
            loss = regularity + self.stiffness * repelled
        else:
            loss = self.stiffness * (regularity + repelled)
        if self.long_edges is not None:
            loss = loss + self.rigidity * rigidity(self.long_edges, few)
        if sparse > 0:
            loss = loss + sparse * (displacement.square().sum(-1) + _MAGNITUDE_EDGE**2).sqrt().mean()
        share = len(batch) / len(self.rows)
        sums.data += data.item() * share
        sums.regularity += regularity.item() * share
        sums.repulsion += repelled.item() * share
        sums.motion += displacement.detach().square().sum(-1).mean().sqrt().item() * share
        return data, loss

    def _repulsion(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return R_r; zero for an atomic model, whose Gaussians are where atoms are (paper, Methods)."""
        return lengths.new_zeros(()) if self.model.gaussians.fixed else repulsion(self.graph, lengths)

    def _data_loss(self, batch: Batch, positions, weights) -> torch.Tensor:
        """Return the mean over particles of minus the log-likelihood, 1/2 sum |g - y|^2 / Sigma (paper, Eq. 4)."""
        residual = self._project(batch, positions) - batch.transforms
        return 0.5 * ((residual.real.square() + residual.imag.square()) * weights).sum((-2, -1)).mean()

    def _project(self, batch: Batch, positions) -> torch.Tensor:
        if not self.options.refine_poses:
            return self.model.project(batch.matrices, batch.transfer, positions)
        matrices, phases = _apply_pose_changes(batch, self.pose_changes[self.slot[batch.rows]], self.data)
        return self.model.project(matrices, batch.transfer * phases, positions)

    def posed_data(self):
        """Return the images with the refined poses."""
        return _PosedImages(self) if self.options.refine_poses else self.data

    def _train_encoder_only(self, generator, weights) -> None:
        """Let validation particles train the encoder through the fixed decoder (the paper's way)."""
        if not len(self.encoder_only_rows):
            return
        order = torch.randperm(len(self.encoder_only_rows), generator=generator)
        for rows in self.encoder_only_rows[order].split(self.batch_size):
            batch = self.data.batch(rows)
            mean, log_variance = self.model.encoder(batch.images)
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
            latents = mean + self._noise_like(mean, generator) * (0.5 * log_variance.clamp(-8, 4)).exp()
            positions = self.model.gaussians.positions + self.model.displacements(latents)
            image = self.model.project(batch.matrices, batch.transfer, positions) - batch.transforms
            data = 0.5 * (image.abs().square() * weights).sum((-2, -1)).mean()
            self._step(data + self.options.kl_weight * kl, "encoder")

    def _step(self, loss: torch.Tensor, *names: str) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for name in names:
            if name != "poses" or self.options.refine_poses:
                self.optimizers[name].step()
        with torch.no_grad():
            self.model.gaussians.relative_amplitudes.clamp_(min=0)

    def _batches(self, epoch: int) -> tuple[list[torch.Tensor], torch.Generator]:
        """Return this epoch's batches and generator: the same for the same seed, half and epoch."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch * 10 + self.half)
        order = torch.randperm(len(self.rows), generator=generator)
        return list(self.rows[order].split(self.batch_size)), generator

    @staticmethod
    def _noise_like(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like)


class _PosedImages:
    """Training images whose matrices and transfer functions carry the refined poses."""

    def __init__(self, trainer: HalfTrainer):
        self._trainer = trainer

    def batch(self, rows: torch.Tensor) -> Batch:
        trainer = self._trainer
        batch = trainer.data.batch(rows)
        changes = trainer.pose_changes.detach()[trainer.slot[rows]]
        matrices, phases = _apply_pose_changes(batch, changes, trainer.data)
        return Batch(rows, batch.images, batch.transforms, batch.transfer * phases, matrices)


def _apply_pose_changes(batch: Batch, changes: torch.Tensor, data: TrainingImages):
    """Return (b, 3, 3) matrices turned by (b, 5) changes and the phases of their shifts."""
    return rotvec_to_rotmat(changes[:, :3]) @ batch.matrices, translation_phases(
        changes[:, 3:] / data.pixel_size, data.box
    )

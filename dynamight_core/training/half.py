"""Training of one half-set: its state, and what is estimated from it."""

from functools import cached_property

import torch

from dynamight_core.groups import current_group
from dynamight_core.imaging.fourier import shell_means
from dynamight_core.model.graph import LongEdges, NeighbourGraph
from dynamight_core.model.half import HalfModel
from dynamight_core.options import TrainOptions
from dynamight_core.training.data import Batch, Batches, TrainingImages, changed_poses
from dynamight_core.training.inference import LatentPosterior, encode, infer_latents
from dynamight_core.training.latent_prior import most_likely_prior
from dynamight_core.training.point_spread import PointSpread

# Restraints are computed on this many particles of a batch, or on fewer with more Gaussians than this: their gradient
# needs no more.
_RESTRAINED, _FEW_RESTRAINED, _GAUSSIANS = 32, 8, 2000
# Restraints change only the shape of weak motion: they may weigh this many times what would freeze it otherwise.
_SHAPE = 3.0
# Minimum number of batches in an epoch.
_MIN_BATCHES = 8
# Minimum number of particles in a batch, however many images each has: they have conformations of their own.
_MIN_PARTICLES = 8
# Particles up to which the weight of regularisation is the options'; with more, it falls with their number.
_PRIOR_PARTICLES = 900
# Limits of the encoder's log-variance.
LOG_VARIANCES = -8.0, 4.0
# Images whose residual gives the noise spectrum.
_NOISE_PARTICLES = 512


class HalfTrainer:
    """State of the training of one half-set.

    Processes that train the half-set together have equal trainers. Those methods that go through particles divide them
    among the `current_group`, and all processes call them; a loss is the part of it that a process computes.

    Parameters
    ----------
    model
        with Gaussians fitted to the start map.
    data
        images of all particles.
    rows
        (n,) training particles of this half.
    options
        of training.
    half
        1 or 2; seeds differ by it.
    held_out
        (v,) validation particles of this half, which train no decoder.
    encoded
        (e,) particles that train the encoder alone; none if None.
    """

    def __init__(
        self,
        model: HalfModel,
        data: TrainingImages,
        rows: torch.Tensor,
        options: TrainOptions,
        half: int,
        held_out: torch.Tensor | None = None,
        encoded: torch.Tensor | None = None,
    ):
        self.model, self.data, self.rows, self.options, self.half = model, data, rows, options, half
        self.held_out, self.encoded = (rows[:0] if part is None else part for part in (held_out, encoded))
        n, d = len(rows), options.n_latents
        self.slot = torch.full((len(data),), -1, dtype=torch.long)
        self.slot[rows] = torch.arange(n)
        self.latents = torch.zeros(n, d, device=data.device)
        self.covariances = torch.eye(d, device=data.device).repeat(n, 1, 1)
        # On top of the given pose: rotation vectors in radians, shifts in A.
        self.rotations = torch.zeros(n, 3, device=data.device)
        self.shifts = torch.zeros(n, 2, device=data.device)
        # The paper's lambda is found as training goes; until there is motion, there is nothing to find it from.
        self.stiffness = 0.0
        self.scale_regularisation(float(model.regularisation_share))
        if options.motion_resolution is not None:
            model.resolution.fill_(options.motion_resolution)
        # (box, box//2+1) one over the noise power in which the loss is compared between epochs; see `convergence`.
        self.fixed_weights: torch.Tensor | None = None
        # Whether the networks have been trained: before, displacements are those of no motion.
        self.started = False
        # Whether the field was started again to follow a large motion.
        self.followed = False
        self.restrained = max(_FEW_RESTRAINED, min(_RESTRAINED, _RESTRAINED * _GAUSSIANS // len(model.gaussians)))
        self.graph = NeighbourGraph.of(model.gaussians)
        self.long_edges: LongEdges | None = None
        # Few particles must not mean few steps of the optimiser.
        together = options.batch_size if data.series is None else max(_MIN_PARTICLES, data.at_once(options.batch_size))
        self.batch_size = min(together, max(1, -(-n // _MIN_BATCHES)))
        self.optimizers = {
            "gaussians": self.gaussian_optimizer(),
            "encoder": torch.optim.Adam(model.encoder.parameters(), lr=options.encoder_learning_rate),
            "decoder": self._decoder_optimizer(),
        }

    @property
    def pose_changes(self) -> torch.Tensor:
        """(n, 5) rotation vectors (radians) and shifts (A) on top of the given poses."""
        return torch.cat([self.rotations, self.shifts], 1)

    def generator(self) -> torch.Generator:
        """Return a new generator of random numbers, seeded by the options' seed and the half."""
        return torch.Generator().manual_seed(self.options.seed * 10 + self.half)

    def scale_regularisation(self, fraction: float) -> None:
        """Weight regularisation by a fraction of the options' weights, here and in runs that start from this one."""
        self.model.regularisation_share.fill_(fraction)
        # As it is stored, so that a resumed run has the same. All particles share the fields: their prior does not
        # grow with the number of particles.
        share = float(self.model.regularisation_share)
        fraction = min(1.0, _SHAPE * share) * min(1.0, _PRIOR_PARTICLES / len(self.rows))
        self.rigidity = self.options.rigidity * fraction
        if self.options.regularisation == "fixed":
            self.stiffness = self.options.stiffness * fraction

    @property
    def name(self) -> str:
        """Whose training it is, in messages."""
        return "Both half-sets" if self.options.halves == "joint" else f"Half-set {self.half}"

    def set_decoder_rate(self, factor: float) -> None:
        """Multiply the options' learning rate of the decoder by a factor."""
        self.optimizers["decoder"].param_groups[0]["lr"] = self.options.learning_rate * factor

    def gaussian_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of the Gaussians without momentum."""
        gaussians, options = self.model.gaussians, self.options
        rate, length = options.width_learning_rate, self.data.box * self.data.pixel_size if options.box_units else 1.0
        if gaussians.fixed:
            return torch.optim.Adam([gaussians.log_widths, gaussians.log_amplitudes], lr=rate, betas=(0.9, 0.99))
        return torch.optim.Adam(
            [
                {"params": [gaussians.positions], "lr": options.gaussian_learning_rate * length},
                {"params": [gaussians.log_widths, gaussians.log_amplitudes], "lr": rate},
                {"params": [gaussians.relative_amplitudes], "lr": rate * options.gaussian_amplitudes},
                {"params": [gaussians.composition], "lr": 1e-2 * (options.width_classes > 1)},
            ],
            betas=(0.9, 0.99),
        )

    def _decoder_optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        return torch.optim.Adam(
            self.model.decoder.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def restart_optimizers(self) -> None:
        """Forget the momentum of Gaussians and decoder that have been replaced."""
        self.optimizers["gaussians"] = self.gaussian_optimizer()
        self.optimizers["decoder"] = self._decoder_optimizer()

    def batches(self, epoch: int) -> tuple[list[torch.Tensor], torch.Generator]:
        """Return the rows of each batch of an epoch, and its generator: the same for the same seed, half and epoch."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch * 10 + self.half)
        order = torch.randperm(len(self.rows), generator=generator)
        return list(self.rows[order].split(self.batch_size)), generator

    def project(self, batch: Batch, positions: torch.Tensor | None) -> torch.Tensor:
        """Return the (b, box, box//2+1) model images of a batch in its refined poses, at the batch's frequencies.

        Parameters
        ----------
        batch
            of training particles, or of any where poses are not refined.
        positions
            (p, n, 3) of its particles, A; the reference if None.
        """
        if positions is not None:
            positions = batch.per_image(positions)
        if not self.options.refine_poses:
            return self.model.project(batch.matrices, batch.transfer, positions)
        changes, extent = self.pose_changes[self.slot[batch.rows]], self.data.box * self.data.pixel_size
        matrices, transfer = changed_poses(changes, batch.matrices, batch.transfer, extent)
        return self.model.project(matrices, transfer, positions)

    def step(self, loss: torch.Tensor, *names: str) -> None:
        """Descend the gradient of a loss, summed over the group, with the named optimisers."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        trained = [p for name in names for part in self.optimizers[name].param_groups for p in part["params"]]
        current_group().sum_(*(p.grad for p in trained if p.grad is not None))
        for name in names:
            self.optimizers[name].step()
        with torch.no_grad():
            self.model.gaussians.relative_amplitudes.clamp_(min=0)

    @torch.no_grad()
    def agree(self) -> None:
        """Give all processes of the group the model of the first one: what each computes by itself may differ."""
        current_group().same_(*self.model.state_dict().values())

    def infer(self, steps: int = 2, restart: bool = False, others: int = 0) -> float:
        """Infer the training particles' latents, then their prior; return the mean energy.

        Parameters
        ----------
        steps
            Gauss-Newton steps.
        restart
            from the encoder, whose means also give the first prior, instead of from the last inference.
        others
            number of other particles' latents to start from as well: a large motion has several fits to one image.
        """
        if restart:
            self.latents = self.encode(self.rows)
            self._set_prior(self.latents, 1e-3 * torch.eye(self.options.n_latents, device=self.data.device))
        starts = [self.latents, *(start.expand(len(self.rows), -1) for start in self.some_latents(others))]
        posterior = infer_latents(self.model, self.posed_data(), self.rows, starts, steps, every=restart)
        self.latents, self.covariances = self.fit_prior(posterior)
        return float(posterior.energies.mean())

    def some_latents(self, number: int) -> torch.Tensor:
        """Return (m, d) latents of about `number` of the training particles."""
        return self.latents[:: max(1, len(self.latents) // number)] if number else self.latents[:0]

    def fit_prior(self, posterior: LatentPosterior) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the prior to the most likely one; return the (n, d) latents and (n, d, d) covariances under it."""
        model = self.model
        prior = most_likely_prior(posterior, model.latent_mean, model.latent_covariance)
        model.latent_mean.copy_(prior.mean)
        model.latent_covariance.copy_(prior.covariance)
        return prior.latents.float(), prior.covariances.float()

    def _set_prior(self, latents: torch.Tensor, width: torch.Tensor) -> None:
        """Set the prior to the mean and covariance of the latents, their posterior width included."""
        self.model.latent_mean.copy_(latents.mean(0))
        self.model.latent_covariance.copy_(torch.cov(latents.T).reshape(width.shape) + width)

    @torch.no_grad()
    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the encoder's (n, d) latent means of (n,) rows."""
        group = current_group()
        return group.gather(encode(self.model, self.data, group.shard(rows))[0])

    @torch.no_grad()
    def encode_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoder's (n, d) means and (n, d, d) covariances of all particles."""
        group = current_group()
        own = encode(self.model, self.data, group.shard(torch.arange(len(self.data))))
        means, log_variances = map(group.gather, own)
        return means, torch.diag_embed(log_variances.clamp(*LOG_VARIANCES).exp())

    @torch.no_grad()
    def current_latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (n, d) latents of (n,) training rows: the inferred ones once there are any, else the encoder's.

        The rows may be those of this process alone.
        """
        if self.latents.any():
            return self.latents[self.slot[rows]]
        return encode(self.model, self.data, rows)[0]

    @torch.no_grad()
    def estimate_noise(self, deformed: bool) -> None:
        """Set the noise spectrum Sigma to the shell-averaged error power of a subset of the training particles."""
        generator = torch.Generator().manual_seed(self.options.seed)
        chosen = self.rows[torch.randperm(len(self.rows), generator=generator)[: self.data.at_once(_NOISE_PARTICLES)]]
        group, power = current_group(), torch.zeros(self.model.box // 2 + 1, device=self.data.device)
        for rows in group.split(chosen, self.data.at_once(128)):
            batch = self.data.batch(rows)
            positions = None
            if deformed:
                positions = self.model.gaussians.positions + self.model.displacements(self.current_latents(rows))
            residual = self.project(batch, positions) - batch.transforms
            power = power + shell_means(residual.abs().square(), self.model.box).sum(0)
        group.sum_(power)
        power = power / len(self.data.images_of(chosen))
        # Frequencies without noise are there in some images; the others must not be taken for less noisy.
        self.model.noise_power.copy_(power if self.data.noise is None else power / self.data.noise.to(power))

    @torch.no_grad()
    def rebuild_graph(self) -> None:
        """Rebuild the neighbour graph, and once there is motion the long edges, from the reference."""
        positions = self.model.gaussians.positions
        self.graph = NeighbourGraph.of(self.model.gaussians)
        # Not those of a field that rigid bodies have replaced.
        self.long_edges = None
        if self.started and self.options.rigidity > 0 and self.model.decoder.restrains_distances:
            subset = self.rows[:: max(1, len(self.rows) // _RESTRAINED)]
            displaced = positions + self.model.displacements(self.current_latents(subset))
            self.long_edges = LongEdges.build(positions, displaced, self.generator())

    @cached_property
    def point_spread(self) -> PointSpread:
        """The point spread of the training particles, in their given poses."""
        return PointSpread.of(self.data, self.rows)

    @property
    def views_are_uneven(self) -> bool:
        """Whether directions have so different numbers of views that a map cannot be had by division."""
        return self.point_spread.kernel is not None

    def posed_data(self) -> Batches:
        """Return the images with the refined poses."""
        if not self.options.refine_poses:
            return self.data
        changes = torch.zeros(len(self.data), 5, device=self.data.device)
        changes[self.rows] = self.pose_changes
        return self.data.posed(changes)

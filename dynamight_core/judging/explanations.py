"""What can differ between particles: motion, poses and content, which compete to explain held-out pixels.

A deformation field can imitate an error of the pose (a rotation of the whole molecule), or a part that is missing (its
density moves away). Each of the three is therefore fitted to the same images in its own terms, alone and together with
the motion: parameters of a particle are inferred from a random half of its Fourier pixels, and judged on the other
half. Priors are normal, with the most likely mean and covariance over training particles, so that what particles do
not have costs nothing.
"""

from dataclasses import dataclass

import torch

from dynamight_core.groups import current_group
from dynamight_core.model.half import HalfModel
from dynamight_core.model.regions import Regions
from dynamight_core.sampling import evenly
from dynamight_core.training.data import Batch, TrainingImages, changed_poses
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.inference import (
    LatentPosterior,
    Projection,
    data_terms,
    infer_latents,
    infer_parameters,
    on_pixels,
    random_pixels,
)
from dynamight_core.training.latent_prior import most_likely_prior
from dynamight_core.training.poses import POSE_WIDTHS
from dynamight_core.training.schedule import Epoch

MOTION, POSE, CONTENT = "motion", "pose", "content"
# What is compared; the first is the molecule at rest.
EXPLANATIONS: tuple[tuple[str, ...], ...] = (
    (),
    (MOTION,),
    (POSE,),
    (CONTENT,),
    (MOTION, POSE),
    (MOTION, CONTENT),
)
# Standard deviation of occupancies that the search for their prior starts from.
_OCCUPANCY = 0.4
# Regions of the molecule whose occupancies differ, each by itself.
_REGIONS = 12
# Rounds of the search for a prior.
_ROUNDS = 2
# Part of a prior's first variance that always remains.
_FLOOR = 1e-6
# Epochs and particles that a model without motion is fitted with.
_STATIC_EPOCHS, _STATIC_PARTICLES = 8, 2000
# Particles of each half-set that priors are found from, and that are compared.
_PRIOR_PARTICLES, _COMPARED = 250, 500
# Particles that priors are found from at least, however many images each has.
_MIN_PRIOR_PARTICLES = 60
_BATCH = 64


@dataclass
class Prior:
    """Normal distribution of d parameters: (d,) mean and (d, d) covariance."""

    mean: torch.Tensor
    covariance: torch.Tensor


@dataclass
class Comparison:
    """How well explanations predict held-out pixels of v particles.

    Parameters
    ----------
    rows
        (v,) rows of the particles.
    misfits
        (v,) minus log-likelihood on held-out pixels by explanation, nats.
    """

    rows: torch.Tensor
    misfits: dict[tuple[str, ...], torch.Tensor]

    def gain(self, better: tuple[str, ...], than: tuple[str, ...] = ()) -> torch.Tensor:
        """Return (v,) how much better one explanation predicts than another, nats."""
        return self.misfits[than] - self.misfits[better]


class Explained:
    """A half-set's models of what differs between particles.

    Parameters
    ----------
    model
        of the half-set, trained: explains motion.
    static
        the same molecule without motion, from which poses and content differ.
    data
        images.
    rows
        (n,) training particles, from some of which priors are found.
    centres
        (R, 3) A of the regions whose occupancies differ, the same for both half-sets.
    """

    def __init__(
        self,
        model: HalfModel,
        static: HalfModel,
        data: TrainingImages,
        rows: torch.Tensor,
        centres: torch.Tensor,
    ):
        self.model, self.static, self.data = model, static, data
        self._memberships = {
            moves: Regions.around((model if moves else static).consensus_positions, centres).weights
            for moves in (False, True)
        }
        like, number = model.latent_mean, len(centres)
        size = torch.tensor(POSE_WIDTHS).to(like)
        wide = _OCCUPANCY**2 * (torch.eye(number) + torch.ones(number, number)).to(like)
        alone = {
            MOTION: Prior(model.latent_mean, model.latent_covariance),
            POSE: Prior(torch.zeros(5).to(like), torch.diag(size.square())),
            CONTENT: Prior(torch.zeros(number).to(like), wide),
        }
        self._dimensions = {kind: len(prior.mean) for kind, prior in alone.items()}
        # What each explanation without motion starts from.
        self._still = {kinds: static for kinds in EXPLANATIONS if MOTION not in kinds}
        sample = evenly(rows, max(_MIN_PRIOR_PARTICLES, data.at_once(_PRIOR_PARTICLES)))
        self.prior_particles = len(sample)
        self.priors: dict[tuple[str, ...], Prior] = {(MOTION,): alone[MOTION]}
        for kinds in EXPLANATIONS[2:]:
            means, covariances = [alone[kind].mean for kind in kinds], [alone[kind].covariance for kind in kinds]
            wide_prior = Prior(torch.cat(means), torch.block_diag(*covariances))
            self.priors[kinds] = self._find_prior(kinds, wide_prior, sample)
        if static is not model:
            self._choose_reference((POSE,), alone[POSE], sample)

    def _choose_reference(self, kinds: tuple[str, ...], prior: Prior, rows: torch.Tensor) -> None:
        """Explain (n,) training particles by the trained molecule at rest if that is better, because it is sharper.

        A molecule that never moved is blurred by errors of poses: not all that a deformation gains over it is from
        motion.
        """
        pixels = random_pixels(len(rows), self.model.box, torch.Generator().manual_seed(0))

        def unexplained() -> float:
            return float(self.misfit(kinds, rows, self.infer(kinds, rows, None, pixels).latents, ~pixels).mean())

        before, first = unexplained(), self.priors[kinds]
        self._still[kinds] = self.model
        self.priors[kinds] = self._find_prior(kinds, prior, rows)
        if unexplained() > before:
            self._still[kinds], self.priors[kinds] = self.static, first

    def _find_prior(self, kinds: tuple[str, ...], prior: Prior, rows: torch.Tensor) -> Prior:
        """Return the most likely prior of (n,) particles, starting from a wide one."""
        start = None
        for _ in range(_ROUNDS):
            self.priors[kinds] = prior
            found = most_likely_prior(self.infer(kinds, rows, start), prior.mean, prior.covariance)
            # A little wider than nothing, so that it can be inverted.
            floor = _FLOOR * prior.covariance.diagonal().double()
            prior = Prior(found.mean.to(prior.mean), (found.covariance + torch.diag(floor)).to(prior.covariance))
            start = found.latents.to(prior.mean)
        return prior

    def region_masses(self) -> torch.Tensor:
        """Return the (R,) mass of each region, map units times voxels."""
        masses = self.static.gaussians.masses(self.static.pixel_size).sum(0)
        return (masses @ self._memberships[False]).detach()

    def part(self, kinds: tuple[str, ...], kind: str) -> slice:
        """Return which parameters of an explanation are of one kind."""
        first = sum(self._dimensions[other] for other in kinds[: kinds.index(kind)])
        return slice(first, first + self._dimensions[kind])

    def projection(self, kinds: tuple[str, ...], batch: Batch) -> Projection:
        """Return the function from parameters, images of the batch and transfer functions to model images."""
        moves = MOTION in kinds
        model = self.model if moves else self._still[kinds]
        rest = model.gaussians.positions if moves else model.consensus_positions
        displaced, frames = model.evaluator(rest) if moves else None, batch.frames

        def project(parameters: torch.Tensor, which: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
            positions = rest.expand(len(which), -1, -1)
            if displaced is not None:
                positions = rest + displaced(parameters[:, self.part(kinds, MOTION)])
            matrices, occupancies = batch.matrices[which], None
            if POSE in kinds:
                change, extent = parameters[:, self.part(kinds, POSE)], model.box * model.pixel_size
                at = None if frames is None else frames[which]
                matrices, transfer = changed_poses(change, matrices, transfer, extent, at)
            if CONTENT in kinds:
                occupancies = 1 + parameters[:, self.part(kinds, CONTENT)] @ self._memberships[moves].T
            return model.project(matrices, transfer, positions, occupancies)

        return project

    @torch.no_grad()
    def infer(
        self,
        kinds: tuple[str, ...],
        rows: torch.Tensor,
        start: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
    ) -> LatentPosterior:
        """Infer the parameters of (n,) particles.

        Parameters
        ----------
        start
            (n, d) parameters; the mean of the prior if None.
        pixels
            (n, box, box//2+1) bool, Fourier pixels that are used; all if None.
        """
        prior = self.priors[kinds]
        mean = prior.mean.expand(len(rows), -1)
        starts = [mean] if start is None else [mean, start]
        return infer_parameters(
            self.model,
            lambda batch, chosen: self.projection(kinds, batch),
            (prior.mean, prior.covariance),
            self.data,
            rows,
            starts,
            pixels,
        )

    @torch.no_grad()
    def misfit(self, kinds: tuple[str, ...], rows: torch.Tensor, parameters, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n,) minus log-likelihoods of images on some of their Fourier pixels, nats."""
        weights, group = self.model.seen_weights(), current_group()
        terms = [weights.new_empty(0)]
        for chosen in group.split(torch.arange(len(rows)), self.data.at_once(_BATCH)):
            batch = self.data.batch(rows[chosen]).within(weights)
            which = torch.arange(len(batch.transforms), device=batch.transforms.device)
            mine, used = batch.per_image(parameters[chosen]), on_pixels(weights, batch.per_image(pixels[chosen]))
            residual = self.projection(kinds, batch)(mine, which, batch.transfer) - batch.transforms
            terms.append(batch.per_particle(0.5 * (residual.abs().square() * used).sum((-2, -1))))
        return group.gather(torch.cat(terms)).cpu()

    def compare(self, rows: torch.Tensor, seed: int) -> Comparison:
        """Compare all explanations on (n,) particles that trained nothing."""
        rows = evenly(rows, _COMPARED)
        pixels = random_pixels(len(rows), self.model.box, torch.Generator().manual_seed(seed))
        starts = self.model.latent_starts(len(rows))
        found = {
            (): torch.zeros(len(rows), 0),
            (MOTION,): infer_latents(self.model, self.data, rows, starts, steps=6, pixels=pixels).latents,
        }
        for kinds in EXPLANATIONS[2:]:
            # Motion together with another difference starts from the motion alone.
            start = None
            if MOTION in kinds:
                start = self.priors[kinds].mean.repeat(len(rows), 1)
                start[:, self.part(kinds, MOTION)] = found[MOTION,]
            found[kinds] = self.infer(kinds, rows, start, pixels).latents
        return Comparison(rows, {kinds: self.misfit(kinds, rows, found[kinds], ~pixels) for kinds in EXPLANATIONS})


def region_centres(model: HalfModel) -> torch.Tensor:
    """Return the (R, 3) centres (A) of regions of a molecule whose occupancies may differ between particles."""
    return Regions.build(model.consensus_positions, _REGIONS, 0).centres


def static_model(trained: HalfModel, trainer: HalfTrainer) -> HalfModel:
    """Return the model of a half-set that explains its held-out images best without motion, in the consensus frame.

    The trained one at rest, or one that never moved: a wrong motion distorts the molecule, and a right one makes it
    sharper than the images show it.

    Parameters
    ----------
    trained
        the half-set's model after training.
    trainer
        of the same half-set, with a model at the start of its training; it is changed.
    """
    trainer.rows = evenly(trainer.rows, trainer.data.at_once(_STATIC_PARTICLES))
    for number in range(1, _STATIC_EPOCHS + 1):
        run_epoch(trainer, Epoch("warm-up"), number)
    fresh = trainer.model.eval()
    fresh.resolution.copy_(trained.resolution)
    fresh.noise_power.copy_(trained.noise_power)
    rows = evenly(trainer.held_out, _COMPARED)
    everything = torch.ones(len(rows), fresh.box, fresh.box // 2 + 1, dtype=torch.bool)
    misfits = [data_terms(model, trainer.data, rows, None, everything).mean() for model in (trained, fresh)]
    return trained if misfits[0] < misfits[1] else fresh

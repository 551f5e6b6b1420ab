"""Linear motions: a first-order estimate from the images, which training is initialised with.

The score of a particle is the gradient of the log-likelihood of its images with respect to the coefficients c of a
field that moves the reference, sum_m c_m B_m(x). To first order it is H c + noise of covariance H, where H is the mean
information of an image. Over particles, the scores have the covariance H + H C H, where C is that of the coefficients.
Principal components of the whitened scores H^-1/2 g with more variance than noise are motions, and the projections of a
particle are its coordinates along them. H and the reach of noise are measured on scores of simulated noise. The size of
a motion is corrected for the noise that added to it (Baik, Ben Arous & Peche, Annals of Probability 2005).

The functions B_m are the motions of parts of the molecule that move by themselves (`dynamight_core.training.parts`), or
if there are none, shifts of overlapping regions of the whole molecule.

First order holds for motions that are smaller than the visible detail. The images are therefore low-pass filtered, at
the resolution at which they show the motions best: with finer detail, large motions look like noise; with coarser
detail, there is little to see.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.cluster.vq import kmeans2

from dynamight_core.groups import current_group, exchange
from dynamight_core.image_series import at_once, images_of
from dynamight_core.imaging.fourier import crop_fourier, expand_shells, image_to_fourier
from dynamight_core.model.graph import LongEdges, NeighbourGraph, deformation_regularity, edge_lengths, rigidity
from dynamight_core.options import TrainOptions
from dynamight_core.parallel import check_stopped, side_by_side
from dynamight_core.training.data import Batch
from dynamight_core.training.decoder_fit import fit_prior
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.parts import MAX_CANDIDATES, MAX_OVERLAP, Parts, moving_parts

# Regions of the molecule that move each by itself; three functions each.
_REGIONS = 30
# Low-pass filters that are tried, A; 0 is none. The best is chosen on this many particles at most.
RESOLUTIONS = (0.0, 10.0, 14.0, 20.0, 28.0, 40.0)
_MAX_CHOOSING = 10_000
# The next finer filter than that of the largest gain is used if motions gain at least this fraction with it.
_FINER = 0.8
# Scores of noise for each of its two uses, at least.
_MIN_NOISE = 2000
# Variance of a motion over the largest that simulated noise has, which itself fluctuates by some per cent.
_MARGIN = 1.1
# Directions with less information than this fraction of the largest are not used.
_SEEN = 1e-4
# Adam's steps and step size that bring a decoder to the motions.
_FIT_STEPS, _FIT_RATE = 300, 5e-3
# Gaussians of each step.
_FIT_POINTS = 1000
# Regularisation may cost these motions, which are ragged, at most this many times what they gain; in training it
# freezes them where it costs more (chosen on seed 10 of a hinge and of two small domains).
_BEARABLE = 6.0


@dataclass
class LinearMotions:
    """K motions to first order.

    Parameters
    ----------
    fields
        (K, n, 3) displacement of the Gaussians per unit of a latent, A.
    latents
        (particles, K) posterior means; their prior is a standard normal distribution.
    gain
        of the log-likelihood of an image by them, nats.
    resolution
        low-pass filter at which they were found, A; 0 is none.
    basis
        (p, n, 3) functions that the fields are combined from, A.
    spheres
        (m, 4) centre and radius of the parts that move by themselves, A.
    """

    fields: torch.Tensor
    latents: torch.Tensor
    gain: float
    resolution: float
    basis: torch.Tensor
    spheres: torch.Tensor

    @property
    def places(self) -> "LinearMotions":
        """Where and with which filter motions were found, and nothing else: what passes between half-sets."""
        return LinearMotions(self.fields[:0], self.latents[:0], 0.0, self.resolution, self.basis[:0], self.spheres)


def linear_starts(trainers: Sequence[HalfTrainer]) -> None:
    """Initialise the half-sets from linear motions.

    A part that moves by itself in one half-set is looked for in the other. Only where it is, as a sphere, passes
    between them: with few places to try, noise reaches less far than in a scan of the whole molecule.
    """
    device = trainers[0].data.device

    def find(trainer: HalfTrainer) -> LinearMotions:
        trainer.estimate_noise(False)
        return linear_motions(trainer, trainer.options.n_latents)

    found = side_by_side(find, trainers, device)
    mine = zip(trainers, found, strict=True)
    places = exchange({trainer.half: motions.places for trainer, motions in mine}, device)

    def start(index: int) -> None:
        trainer, motions = trainers[index], found[index]
        for half, other in places.items():
            if half != trainer.half:
                motions = also_at(trainer, motions, other, trainer.options.n_latents)
        initialise(trainer, motions)

    side_by_side(start, range(len(trainers)), device)


def linear_motions(trainer: HalfTrainer, max_motions: int) -> LinearMotions:
    """Find the motions of a half's training particles to first order.

    At the resolution of the options, or where they gain most; unfiltered where no motion is found.
    """
    seed, subset = trainer.options.seed, _subset(trainer)
    positions = trainer.model.gaussians.positions.detach()
    basis = trainer.model.decoder.linear_basis(positions)
    motions = None
    if basis is None:
        everywhere = Parts.everywhere(positions, seed)
        motions = _motions_of_parts(trainer, subset, everywhere, _resolutions(trainer), max_motions)
        basis = _smooth_basis(positions, seed) if motions is None else motions.basis
    if motions is None:
        motions = _strongest(trainer, subset, basis, _resolutions(trainer), max_motions)
    return _of_all_particles(trainer, motions, max_motions)


def also_at(trainer: HalfTrainer, motions: LinearMotions, other: LinearMotions, max_motions: int) -> LinearMotions:
    """Look for motion of a half where the other half found it, with the filters of either.

    Parameters
    ----------
    motions
        of the half; returned unless more is found, and it gains more.
    other
        motions of the other half, whose places are looked at.
    max_motions
        as of `linear_motions`.
    """
    positions, before = trainer.model.gaussians.positions.detach(), len(motions.spheres)
    parts = Parts(positions, torch.cat([motions.spheres, other.spheres]))
    if (parts.overlaps[before:, :before] > MAX_OVERLAP).any(1).all():
        return motions
    # And at the next coarser filters. Where nothing was found, a filter says nothing.
    finest = {each.resolution for each in (motions, other) if len(each.spheres)}
    tried = _resolutions(trainer)
    resolutions = [each for before, each in zip(tried[:1] + tried, tried, strict=False) if {before, each} & finest]
    more = _motions_of_parts(trainer, _subset(trainer), parts, resolutions, max_motions)
    if more is None or len(more.spheres) <= before:
        return motions
    more = _of_all_particles(trainer, more, max_motions)
    return more if more.gain > motions.gain else motions


def noise_draws(n: int) -> int:
    """Return how many noise images each of n particles gives for each of the two uses of their scores."""
    return -(-_MIN_NOISE // max(1, n))


def scores_memory(n: int) -> int:
    """Return the bytes that the scores of all parts take in a scan of n particles, with all filters."""
    chosen = min(n, _MAX_CHOOSING)
    return 4 * len(RESOLUTIONS) * (1 + 2 * noise_draws(chosen)) * chosen * MAX_CANDIDATES * 6


def _subset(trainer: HalfTrainer) -> torch.Tensor:
    """Return the (n,) training particles that resolution and moving parts are chosen on."""
    return trainer.rows[:: -(-len(trainer.rows) // _MAX_CHOOSING)]


def _resolutions(trainer: HalfTrainer) -> tuple[float, ...]:
    """Return the low-pass filters that are tried, A: that of the options, or several if it is left to the data."""
    given = trainer.options.motion_resolution
    return RESOLUTIONS if given is None else (given,)


def _of_all_particles(trainer: HalfTrainer, motions: LinearMotions, max_motions: int) -> LinearMotions:
    """Return the motions of all training particles along the functions of motions that were found in `_subset`."""
    if len(motions.latents) == len(trainer.rows):
        return motions
    # What is not found in some may be found in all.
    resolutions = [motions.resolution] if len(motions.fields) else _resolutions(trainer)
    of_all = _strongest(trainer, trainer.rows, motions.basis, resolutions, max_motions)
    return replace(of_all, spheres=motions.spheres)


def _motions_of_parts(
    trainer: HalfTrainer, rows: torch.Tensor, parts: Parts, resolutions: Sequence[float], max_motions: int
) -> LinearMotions | None:
    """Return the motions of the parts that move, at the resolution at which they gain most; None if no part moves."""
    found = []
    for resolution, scores in zip(resolutions, _scores(trainer, rows, parts.along, resolutions), strict=True):
        moving = current_group().agreed(moving_parts(*scores, parts.overlaps))
        if moving:
            basis = torch.cat([parts.fields(part) for part in moving])
            images, noise, null = (part[:, moving].flatten(1) for part in scores)
            motions = _principal_components(images, noise, null, basis, max_motions)
            found.append(LinearMotions(*motions, resolution, basis, parts.spheres[moving]))
    if not found:
        return None
    # In the order of detail.
    gains = [motions.gain for motions in found]
    best = gains.index(max(gains))
    chosen = found[best - 1 if best and gains[best - 1] > _FINER * gains[best] else best]
    return current_group().agreed(chosen, trainer.data.device)


def _strongest(
    trainer: HalfTrainer, rows: torch.Tensor, basis: torch.Tensor, resolutions: Sequence[float], max_motions: int
) -> LinearMotions:
    """Return the motions of (n,) particles at the resolution at which they gain most."""
    flat = basis.flatten(1).T
    tried = [
        LinearMotions(*_principal_components(*scores, basis, max_motions), resolution, basis, basis.new_zeros(0, 4))
        for scores, resolution in zip(
            _scores(trainer, rows, lambda forces: forces.flatten(1) @ flat, resolutions), resolutions, strict=True
        )
    ]
    return current_group().agreed(max(tried, key=lambda motions: motions.gain), trainer.data.device)


def _principal_components(
    scores: torch.Tensor, noise: torch.Tensor, null: torch.Tensor, basis: torch.Tensor, max_motions: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return fields, latents and gain of the motions in the (n, p) scores of images.

    Parameters
    ----------
    scores
        (n, p) of images, with a mean of 0.
    noise, null
        (k n, p) each, of simulated noise: for H, and to find how far noise reaches in n images.
    basis
        (p, n, 3).
    """
    values, vectors = torch.linalg.eigh(noise.double().T @ noise.double() / len(noise))
    seen = values > _SEEN * values[-1]
    whiten = vectors[:, seen] / values[seen].sqrt()
    white, null = scores.double() @ whiten, null.double() @ whiten
    n, p = white.shape
    variances, axes = torch.linalg.eigh(white.T @ white / n)
    edge = _MARGIN * max(float(torch.linalg.eigvalsh(part.T @ part / n)[-1]) for part in null.split(n))
    kept = torch.arange(p, device=axes.device).flip(0)[:max_motions]
    # Below the second bound a motion cannot be distinguished from noise, whatever the noise happened to be.
    kept = kept[variances[kept] > max(edge, (1 + (p / n) ** 0.5) ** 2)]
    above = variances[kept] - 1 - p / n
    # Ratio of signal to noise in variance.
    strengths = (above + (above**2 - 4 * p / n).clamp(min=0).sqrt()) / 2
    directions = whiten @ axes[:, kept]
    # A direction and its opposite are the same motion: rounding would decide.
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    fields = torch.einsum("pk,pnc->knc", signs * directions * strengths.sqrt(), basis.double())
    latents = signs * (white @ axes[:, kept]) * strengths.sqrt() / (1 + strengths)
    # The divergence of normal distributions of variance 1 + strength and 1.
    gain = float(0.5 * (strengths - strengths.log1p()).sum())
    return fields.float(), latents.float(), gain


def initialise(trainer: HalfTrainer, motions: LinearMotions) -> None:
    """Initialise decoder, latents, low-pass filter and weight of regularisation of a half from linear motions."""
    model, options = trainer.model, trainer.options
    n_motions = len(motions.fields)
    trainer.latents = torch.zeros(len(trainer.rows), options.n_latents, device=trainer.data.device)
    trainer.latents[:, :n_motions] = motions.latents
    model.latent_mean.zero_()
    model.latent_covariance.copy_(torch.eye(options.n_latents))
    model.resolution.fill_(motions.resolution)
    trainer.started = True
    if not n_motions:
        return
    trainer.scale_regularisation(_bearable_fraction(trainer, motions))
    generator = trainer.generator()
    positions = model.gaussians.positions.detach()
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=_FIT_RATE)
    power = motions.fields.square().mean()
    for _ in range(_FIT_STEPS):
        check_stopped()
        latents = torch.randn(32, options.n_latents, generator=generator).to(positions)
        some = torch.randperm(len(positions), generator=generator)[:_FIT_POINTS].to(positions.device)
        wanted = torch.einsum("bk,knc->bnc", latents[:, :n_motions], motions.fields[:, some])
        loss = (model.decoder.displacements(latents, positions[some]) - wanted).square().mean() / power
        loss = loss + fit_prior(model.decoder, latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _bearable_fraction(trainer: HalfTrainer, motions: LinearMotions) -> float:
    """Return the fraction of the options' regularisation that does not freeze motions.

    Where the signal is weak, a motion's gain in likelihood grows with the square of the signal, but its cost in
    regularisation is the same for all images: with fixed weights, noise would decide what may move. The cost is taken
    with the default weights, since others express how much regularisation the user wants.
    """
    options, default = trainer.options, TrainOptions()
    if not trainer.model.decoder.restrains_distances or options.regularisation != "fixed":
        return 1.0
    positions = trainer.model.gaussians.positions.detach()
    subset = motions.latents[:: max(1, len(motions.latents) // trainer.restrained)]
    displaced = positions + torch.einsum("bk,knc->bnc", subset, motions.fields)
    # Not the trainer's graph, which was built before the warm-up moved the Gaussians.
    graph = NeighbourGraph.of(trainer.model.gaussians)
    long_edges = LongEdges.build(positions, displaced, trainer.generator())
    cost = default.stiffness * deformation_regularity(graph, edge_lengths(graph.edges, displaced))
    cost = cost + default.rigidity * rigidity(long_edges, displaced)
    return min(1.0, _BEARABLE * motions.gain / max(float(cost), 1e-12))


def _smooth_basis(positions: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (3 * regions, n, 3) fields: each moves one region along one axis, its neighbours in part."""
    regions = max(1, min(_REGIONS, len(positions) // 5))
    centres = torch.from_numpy(kmeans2(positions.cpu().numpy(), regions, minit="++", seed=seed)[0]).to(positions)
    spacing = torch.cdist(centres, centres).topk(2, largest=False).values[:, 1].mean()
    weight = torch.softmax(-torch.cdist(positions, centres).square() / (2 * (0.7 * spacing) ** 2), 1)
    axes = torch.eye(3).to(positions)
    return torch.einsum("nr,ac->ranc", weight, axes).reshape(-1, len(positions), 3)


def _scores(
    trainer: HalfTrainer,
    rows: torch.Tensor,
    along: Callable[[torch.Tensor], torch.Tensor],
    resolutions: Sequence[float],
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return the scores of images, with a mean of 0, and of two sets of noise images, at each resolution.

    Parameters
    ----------
    rows
        (n,) particles.
    along
        from (b, n, 3) forces on the Gaussians to their components along the functions, (b, ...).
    """
    model, data = trainer.model, trainer.posed_data()
    generator = trainer.generator()
    amplitude = expand_shells(model.noise_power.sqrt(), model.box) / model.box
    weights = [model.seen_weights(resolution) for resolution in resolutions]
    draws, of_image = noise_draws(len(rows)), noise_draws(len(images_of(data.series, rows)))
    group, parts = current_group(), torch.arange(len(rows)).split(at_once(data.series, 128))
    own = group.shard(torch.arange(len(parts))).tolist()
    first, last = (int(parts[own[0]][0]), int(parts[own[-1]][-1]) + 1) if own else (0, 0)
    # Of images, and of the noise images, (1 + 2 draws, n, ...): reserved at once, or what is reserved in between for a
    # moment would leave holes in the memory.
    found: list[torch.Tensor] = []
    for part, chosen in enumerate(parts):
        check_stopped()
        # A process without particles computes some and keeps none.
        if part not in (own or [0]):
            # The same noise, however many processes share the particles.
            for _ in range(2 * of_image):
                torch.randn(len(images_of(data.series, rows[chosen])), model.box, model.box, generator=generator)
            continue
        batch = data.batch(rows[chosen])
        positions = model.gaussians.positions.detach().repeat(len(batch.transforms), 1, 1).requires_grad_()
        summed = _Summed(batch, draws, of_image, part)
        noise = []
        for _ in range(2 * of_image):
            white = torch.randn(len(batch.transforms), model.box, model.box, generator=generator).to(amplitude)
            noise.append(image_to_fourier(white) * amplitude)
        for number, weight in enumerate(weights):
            seen = batch.within(weight)
            image = model.project(seen.matrices, seen.transfer, positions)
            residuals = [seen.transforms - image.detach(), *(crop_fourier(each, len(weight)) for each in noise)]
            for kind, residual in enumerate(residuals):
                products = image.real * residual.real + image.imag * residual.imag
                # Its gradient is that of the log-likelihood of an image with this residual.
                (forces,) = torch.autograd.grad((products * weight).sum(), positions, retain_graph=True)
                for to, values in summed.of_particles(kind, along(forces)):
                    if number == len(found):
                        found.append(values.new_empty(1 + 2 * draws, last - first, *values.shape[1:]))
                    if own:
                        found[number][to, chosen - first] = values
    # Views, where one process has all particles.
    found = [group.gather(each.transpose(0, 1)).transpose(0, 1) for each in found]
    for each in found:
        each[0] -= each[0].mean(0)
    return [(each[0], each[1 : 1 + draws].flatten(0, 1), each[1 + draws :].flatten(0, 1)) for each in found]


class _Summed:
    """Scores of particles, from those of their images.

    With several images of a particle, a few noise images of each give many draws for the particle: the sum of their
    scores with random signs is one.

    Parameters
    ----------
    batch
        of particles.
    draws, of_image
        noise scores of each particle, and noise images of each image, for each of the two uses.
    seed
        of the signs.
    """

    def __init__(self, batch: Batch, draws: int, of_image: int, seed: int):
        self._batch, self._draws, self._of_image = batch, draws, of_image
        generator, size = torch.Generator().manual_seed(seed), (2 * draws, len(batch.transforms))
        self._signs = None if batch.series is None else 2.0 * torch.randint(2, size, generator=generator) - 1

    def of_particles(self, kind: int, values: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield kinds of scores of particles, (p, ...), from (b, ...) of images: 0 of data, from 1 on of noise."""
        if self._signs is None:
            yield kind, values
        elif kind == 0:
            yield 0, self._batch.per_particle(values)
        else:
            use, first = divmod(kind - 1, self._of_image)
            for draw in range(use * self._draws + first, (use + 1) * self._draws, self._of_image):
                signs = self._signs[draw].to(values).reshape(-1, *[1] * (values.ndim - 1))
                yield 1 + draw, self._batch.per_particle(signs * values)

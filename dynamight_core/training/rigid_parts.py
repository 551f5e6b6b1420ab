"""Rigid parts: the field of a half is replaced by rigid bodies, where these explain images as well.

Images of a small or noisy part tell its shift, but little of the rotation that belongs to it. A free field must learn
displacements everywhere, and the noise of many images hides what the rotation adds. Yet it tells apart which regions
move together. The molecule is divided by it, as domains are found after training, and the decoder becomes that of
rigid bodies (`BodiesDecoder`), which has some numbers for each part, and only these. Both are trained for some epochs,
and training goes on with the bodies unless held-out images are better explained by the field.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from dynamight_core.groups import current_group
from dynamight_core.imaging.geometry import mask_points
from dynamight_core.model.bodies import RigidBodies
from dynamight_core.model.initialise import find_molecule
from dynamight_core.model.partition import MIN_FRACTION, connected_parts, divisions
from dynamight_core.sampling import evenly
from dynamight_core.training.decoder_fit import fit_decoder
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.large_motion import LARGE
from dynamight_core.training.nodes import MIN_PARTICLES, particle_conformations
from dynamight_core.training.trial import adopt, agreed_on, held_out_gain, train_trial, trial_of

# Conformations and Gaussians that the molecule is divided by.
_CONFORMATIONS, _POINTS = 24, 3000
# Divisions have at most this many parts. The last one explains at least the first fraction of the remaining motion
# (rms), those before it the second: where several parts move alike, one alone explains little.
_MAX_PARTS, _MIN_REDUCTION, _MIN_STEP = 7, 0.25, 0.05
# Rigid parts are tried if they leave at most this fraction of the motion (rms).
_MAX_UNEXPLAINED = 0.6
# Rigid bodies have much fewer parameters than the field: they are taken unless held-out images are explained worse by
# more than this part of a standard error.
_SIGMAS = -0.5


@dataclass(frozen=True)
class TriedParts:
    """What came of rigid parts.

    Parameters
    ----------
    number
        of parts that the field divides the molecule into.
    unexplained
        fraction of the field's motion (rms) that they leave.
    gain, gain_error
        by which held-out pixels of a held-out image are better explained by rigid bodies, nats; None if not tried.
    taken
        whether training goes on with them.
    """

    number: int
    unexplained: float
    gain: float | None = None
    gain_error: float | None = None
    taken: bool = False

    @property
    def sentence(self) -> str:
        """What came of it, for the user."""
        if self.gain is None:
            return f"{self.number} rigid parts would leave {100 * self.unexplained:.0f} % of the motion; not tried."
        change = f"change the log-likelihood of held-out pixels by {self.gain:.2f} +- {self.gain_error:.2f} nats"
        outcome = "training continues with them" if self.taken else "training continues without them"
        return f"{self.number} rigid parts {change}; {outcome}."


def try_rigid_parts(trainer: HalfTrainer, number: int, last: bool = True) -> TriedParts | None:
    """Let a half's training go on with rigid bodies in the place of its field, where these explain as much.

    Parameters
    ----------
    trainer
        with inferred latents; unchanged unless rigid bodies are taken.
    number
        of the epoch, for random numbers.
    last
        whether this is the last time. Before, large motions are left to be followed first.

    Returns
    -------
    TriedParts or None
        None if nothing moves, a large motion is to be followed first, there are too few particles, or the decoder or a
        mask says already what may move.
    """
    if not trainer.model.decoder.can_become_rigid or trainer.model.motion_mask is not None:
        return None
    if not trainer.latents.any() or len(trainer.held_out) < 2 or len(trainer.rows) < MIN_PARTICLES:
        return None
    shapes, largest = particle_conformations(trainer)
    if largest > LARGE and trainer.options.large_motions and not last:
        return None
    labels, unexplained = current_group().agreed(_division(trainer, shapes))
    found = TriedParts(int(labels.max()) + 1, unexplained)
    if found.number < 2 or unexplained > _MAX_UNEXPLAINED:
        return found
    kept, tried = trial_of(trainer), _with_bodies(trainer, labels)
    for trial in (kept, tried):
        train_trial(trial, number)
    # Detail beyond the filter of training adds noise: these motions are small.
    gain, error = held_out_gain(kept, tried, number, float(kept.model.resolution))
    taken = agreed_on(gain, error, _SIGMAS)
    if taken:
        adopt(trainer, tried)
    return TriedParts(found.number, unexplained, gain, error, taken)


@torch.no_grad()
def _division(trainer: HalfTrainer, conformations: torch.Tensor) -> tuple[np.ndarray, float]:
    """Return the (n,) rigid part of each Gaussian, and the fraction of the motion (rms) that rigid parts leave.

    `conformations` are those of the training particles, (n, d).
    """
    model, positions = trainer.model, trainer.model.gaussians.positions.detach()
    shapes = conformations.double().numpy(force=True)
    centres = kmeans2(shapes, min(_CONFORMATIONS, len(shapes)), minit="++", seed=trainer.options.seed)[0]
    chosen = torch.from_numpy(cKDTree(shapes).query(centres)[1])
    points = evenly(positions, _POINTS)
    displaced = points + model.displacements(trainer.latents[chosen.to(positions.device)], points)
    rest = displaced.mean(0)
    found, residuals = divisions(
        rest.double().numpy(force=True),
        displaced.double().numpy(force=True),
        _MAX_PARTS,
        _MIN_STEP,
        seed=trainer.options.seed,
    )
    reductions = 1 - np.array(residuals[1:]) / np.maximum(residuals[:-1], 1e-12)
    explaining = np.flatnonzero(reductions >= _MIN_REDUCTION)
    if not len(explaining):
        return np.zeros(len(positions), dtype=int), 1.0
    best = int(explaining[-1]) + 1
    places = points.double().numpy(force=True)
    pieces = connected_parts(places, found[best])
    # What is too small to be a body goes with what is nearest to it.
    large = (np.bincount(pieces) >= MIN_FRACTION * len(places))[pieces]
    nearest = cKDTree(places[large]).query(positions.double().numpy(force=True))[1]
    labels = np.unique(pieces[large][nearest], return_inverse=True)[1]
    return labels, residuals[best] / max(residuals[0], 1e-12)


def _with_bodies(trainer: HalfTrainer, labels: np.ndarray) -> HalfTrainer:
    """Return a trial whose decoder moves (n,) labelled Gaussians as rigid bodies, brought to the field's motion."""
    trial = trial_of(trainer)
    model, before = trial.model, trainer.model
    middle = trainer.latents.mean(0, keepdim=True)
    with torch.no_grad():
        at_rest = before.displacements(middle)[0]
        model.gaussians.positions.add_(at_rest)
        density = model.gaussians.render(model.box, model.pixel_size).cpu()
    molecule = find_molecule(density, model.pixel_size).mask
    tree = cKDTree(model.gaussians.positions.detach().numpy(force=True))
    parts = labels[tree.query(mask_points(molecule, model.pixel_size))[1]]
    masks = []
    for part in range(int(labels.max()) + 1):
        mask = np.zeros(molecule.shape, dtype=np.float32)
        mask[molecule] = parts == part
        masks.append(mask)
    model.set_decoder("bodies", RigidBodies.from_masks(masks, model.pixel_size, molecule))
    model.decoder.absorb(middle)

    def wanted(particles: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        displaced = before.displacements(trainer.latents[particles], before.gaussians.positions.detach()[chosen])
        return displaced - at_rest[chosen]

    fit_decoder(trial, wanted)
    trial.infer(steps=2)
    return trial

"""Large motions: a half's field is started again from maps of neighbours in latent space.

Gradients of images reach as far as a detail of the image is wide. Where a part turns by more, the decoder learns to
carry it around without turning it, and stays there; but the latents that it comes to tell where each particle is on the
way. So the particles around places in latent space are summed, undeformed, and the molecule is followed from place to
place: regions that rotate and shift are fitted to each place's particles, from the fit at its neighbour on. Steps are
small, and a rotation costs nothing, since restraints are on distances. The decoder is brought to what is found, and
training goes on from it, if particles that trained nothing are better explained.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from dynamight_core.imaging.map_likelihood import MapLikelihood, likelihood_box, solved_map
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.graph import LongEdges, NeighbourGraph, deformation_regularity, edge_lengths, rigidity
from dynamight_core.model.regions import Placement, Regions
from dynamight_core.parallel import check_stopped
from dynamight_core.training.decoder_fit import fit_decoder
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.nodes import MIN_PARTICLES, Nodes, node_likelihoods, particle_conformations, particle_sums
from dynamight_core.training.refit import place_gaussians
from dynamight_core.training.trial import STARTS, adopt, agreed_on, held_out_gain, train_trial, trial_of

# A region that moves by more than this, rms over particles, may turn unnoticed, A.
LARGE = 12.0
# Low-pass filters of nodes' particles, and of the map that the Gaussians are placed in, A.
_RESOLUTION, _PLACING = 16.0, 15.0
# Regions that rotate and shift, and parts of some regions each, which do so first.
_REGIONS, _PARTS = 40, 4
# Steps of the parts, then of parts and regions; step sizes of rotations (radians) and shifts (A).
_STEPS, _TURN, _SHIFT = 30, 0.03, 0.6
# Weights of restraints, as those of training.
_STIFFNESS, _RIGIDITY = 30.0, 10.0
# Standard errors by which held-out images must be better explained. Either field would do where they say little.
_SIGMAS = 1.0


@dataclass(frozen=True)
class FollowedMotion:
    """What came of a search for large motions.

    Parameters
    ----------
    largest
        rms displacement of the region that moves most before it, A.
    gain, gain_error
        by which held-out pixels of a held-out image are better explained by the new field, nats; None if none was
        fitted.
    taken
        whether training goes on from the new field.
    """

    largest: float
    gain: float | None = None
    gain_error: float | None = None
    taken: bool = False

    @property
    def sentence(self) -> str:
        """What came of it, for the user."""
        if self.largest < LARGE:
            return f"no large motion to follow (at most {self.largest:.0f} A rms)."
        if self.gain is None:
            return f"a large motion ({self.largest:.0f} A rms) was not followed: particles are too few or too noisy."
        change = f"changes the log-likelihood of held-out pixels by {self.gain:.2f} +- {self.gain_error:.2f} nats"
        outcome = "training continues from it" if self.taken else "training continues without it"
        return f"following a large motion ({self.largest:.0f} A rms) through latent space {change}; {outcome}."


def follow_large_motion(trainer: HalfTrainer, number: int) -> FollowedMotion:
    """Start the field of a half again from maps of neighbours in latent space, where that explains more.

    Parameters
    ----------
    trainer
        with inferred latents; unchanged except for these, unless the new field is taken.
    number
        of the epoch, for random numbers.
    """
    _, largest = particle_conformations(trainer)
    if largest < LARGE or len(trainer.held_out) < 2 or len(trainer.rows) < MIN_PARTICLES:
        return FollowedMotion(largest)
    # An image can fit far from where its latent was found, the more so the better the field is.
    trainer.infer(steps=2, others=STARTS)
    nodes = Nodes.choose(trainer, particle_conformations(trainer)[0])
    followed, kept = trial_of(trainer), trial_of(trainer)
    if not _restart(followed, nodes, number):
        return FollowedMotion(largest)
    # The new Gaussians come from few particles, and the new field from few nodes; the old ones get the same epochs.
    for trial in (followed, kept):
        train_trial(trial, number)
    gain, error = held_out_gain(kept, followed, number)
    taken = agreed_on(gain, error, _SIGMAS)
    if taken:
        trainer.followed = True
        adopt(trainer, followed)
    return FollowedMotion(largest, gain, error, taken)


def _restart(trainer: HalfTrainer, nodes: Nodes, number: int) -> bool:
    """Replace a half's Gaussians and field by what the nodes' particles show.

    Return whether they show a molecule: around the densest node, particles may be too few or too noisy.
    """
    model = trainer.model
    with torch.no_grad():
        before = model.gaussians.positions + model.displacements(nodes.latents)
    likelihoods = node_likelihoods(trainer, nodes, _RESOLUTION)
    bodies = model.decoder.regions(model.gaussians.positions.detach())
    if bodies is None and trainer.views_are_uneven:
        # A map of few particles would be smeared: the old Gaussians, where the old field carries them, are better.
        root = nodes.densest()
        with torch.no_grad():
            model.gaussians.positions.copy_(before[root])
    elif bodies is None:
        # The consensus map is blurred by the motion. The Gaussians are placed in a conformation that particles have.
        root = nodes.densest()
        sums = particle_sums(trainer, nodes.nearest[root])
        try:
            place_gaussians(model, solved_map(sums).cpu(), _PLACING, trainer.options.seed * 1000 + number)
        except ValueError:
            return False
    molecule = _Molecule(copy.deepcopy(model.gaussians).requires_grad_(False), model.box, model.pixel_size)
    positions = molecule.gaussians.positions
    transform = molecule.transform(positions)
    if bodies is not None:
        root = int(torch.stack([likelihood.energy(transform) for likelihood in likelihoods]).argmin())
    scale = float(np.log(max(likelihoods[root].best_scale(transform), 1e-3)))
    for gaussians in (model.gaussians, molecule.gaussians):
        gaussians.log_amplitudes.data += scale
    # The old Gaussians near each new one say how it moved with the old field.
    nearest = torch.from_numpy(cKDTree(before[root].numpy(force=True)).query(positions.numpy(force=True))[1])
    carried = before[:, nearest] - before[root, nearest]
    follower = _Follower(molecule, bodies, carried, likelihoods, trainer.generator())
    displacements = follower.follow(root, nodes.walk(root)) - positions

    def wanted(particles: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        at, weights = nodes.memberships(particles)
        return torch.einsum("bk,bknc->bnc", weights, displacements[:, chosen][at])

    fit_decoder(trainer, wanted)
    return True


class _Molecule:
    """Gaussians as a `MapLikelihood` sees them."""

    def __init__(self, gaussians: GaussianModel, box: int, pixel_size: float):
        self.gaussians = gaussians
        self._box = likelihood_box(box, pixel_size, _RESOLUTION)
        self._pixel_size = box * pixel_size / self._box
        # Amplitudes are densities: with larger voxels the same sum needs less.
        self._unit = (self._pixel_size / pixel_size) ** 3

    def transform(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the transform of the Gaussians at (n, 3) positions, A."""
        return self._unit * self.gaussians.transform(self._box, self._pixel_size, positions)


class _Follower:
    """Follows a molecule from node to node.

    Parameters
    ----------
    molecule
        at the root.
    regions
        of its Gaussians that move as rigid bodies; any if None.
    carried
        (N, n, 3) by which the old field displaced the Gaussians from the root to each node, A.
    likelihoods
        of the N nodes.
    generator
        of random edges.
    """

    def __init__(
        self,
        molecule: _Molecule,
        regions: Regions | None,
        carried: torch.Tensor,
        likelihoods: list[MapLikelihood],
        generator: torch.Generator,
    ):
        self._molecule, self._likelihoods = molecule, likelihoods
        positions = molecule.gaussians.positions
        self._regions = Regions.build(positions, _REGIONS, 0) if regions is None else regions
        shares = self._regions.weights / self._regions.weights.sum(0).clamp(min=1e-6)
        # (N, R, 3)
        self._carried = torch.einsum("nr,knc->krc", shares, carried)
        paths = self._carried.transpose(0, 1).flatten(1)
        # Regions that the old field carries along alike.
        number = min(_PARTS, len(paths))
        labels = kmeans2(paths.cpu().numpy().astype(float), number, minit="++", seed=0)[1]
        self._parts = torch.from_numpy(labels).long().to(positions.device)
        self._graph = NeighbourGraph.build(positions)
        self._long_edges = LongEdges.build(positions, positions + carried, generator)

    def follow(self, root: int, walk: list[tuple[int, int]]) -> torch.Tensor:
        """Return the (N, n, 3) Gaussians at all nodes, A, from the root on along pairs of a node and its parent."""
        placements = {root: self._fitted(self._regions.at_rest(), root)}
        parents = dict(walk)
        for node, parent in walk:
            here = placements[parent]
            starts = [here, here.shifted(self._carried[node] - self._carried[parent])]
            if parent in parents:
                starts.append(here.repeated(placements[parents[parent]]))
            with torch.no_grad():
                energies = [float(self._energy(start, node)) for start in starts]
            placements[node] = self._fitted(starts[int(np.argmin(energies))], node)
        nodes = range(len(self._likelihoods))
        return torch.stack([self._regions.move(placements[node]) for node in nodes])

    def _energy(self, placement: Placement, node: int) -> torch.Tensor:
        """Return minus the log-likelihood of a node's particles under a placement, and its restraints."""
        positions = self._regions.move(placement)
        data = self._likelihoods[node].energy(self._molecule.transform(positions))
        restraint = deformation_regularity(self._graph, edge_lengths(self._graph.edges, positions[None]))
        return data + _STIFFNESS * restraint + _RIGIDITY * rigidity(self._long_edges, positions[None])

    def _fitted(self, start: Placement, node: int) -> Placement:
        """Return the placement at a node by gradient descent: first of parts, then of regions as well."""
        # Rotations and shifts of parts, then of regions.
        numbers = (int(self._parts.max()) + 1, len(self._regions))
        moves = [start.positions.new_zeros(n, 3).requires_grad_() for n in numbers for _ in range(2)]
        alone = torch.arange(len(self._regions), device=self._parts.device)

        def placed() -> Placement:
            part_turns, part_shifts, turns, shifts = moves
            return start.turned(self._parts, part_turns, part_shifts).turned(alone, turns, shifts)

        rates = [_TURN, _SHIFT], [_TURN / 3, _SHIFT / 3, _TURN / 2, _SHIFT / 3]
        for stage in rates:
            groups = [{"params": [move], "lr": rate} for move, rate in zip(moves, stage, strict=False)]
            optimizer = torch.optim.Adam(groups, betas=(0.8, 0.95))
            for _ in range(_STEPS):
                check_stopped()
                energy = self._energy(placed(), node)
                optimizer.zero_grad()
                energy.backward()
                optimizer.step()
        return placed().detach()

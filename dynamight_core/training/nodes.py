"""Nodes: places in latent space, and the likelihood of the particles around each.

Particles near each other in latent space have nearly one conformation. Together they show it as a map that no
deformation was needed for, even where the deformations that the latents came from are wrong.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from dynamight_core.groups import current_group
from dynamight_core.imaging.fourier import expand_shells, shells
from dynamight_core.imaging.map_likelihood import MapLikelihood
from dynamight_core.imaging.slices import SliceSums
from dynamight_core.model.regions import Regions
from dynamight_core.training.half import HalfTrainer

# Particles per node, most nodes, and fewest particles that motion can be followed with.
_PER_NODE, _MAX_NODES, MIN_PARTICLES = 75, 40, 300
# Regions whose displacements tell particles apart.
_REGIONS = 40
# Particles whose mean latent is a node's own.
_CENTRAL = 20
_BATCH = 64


@dataclass(frozen=True)
class Nodes:
    """N nodes of a half's n training particles.

    Parameters
    ----------
    conformations
        (n, d) of particles: displacements of regions, scaled so that distances are rms displacements, A.
    centres
        (N, d) of nodes.
    nearest
        (N, k) particles of each, as indices into the trainer's rows; each particle is in about two nodes.
    latents
        (N, n_latents) at the centres.
    """

    conformations: torch.Tensor
    centres: torch.Tensor
    nearest: torch.Tensor
    latents: torch.Tensor

    @classmethod
    def choose(cls, trainer: HalfTrainer, conformations: torch.Tensor) -> "Nodes":
        """Choose nodes among (n, d) conformations of the training particles."""
        number = min(_MAX_NODES, len(conformations) // _PER_NODE)
        points = conformations.cpu().numpy().astype(float)
        found = kmeans2(points, number, minit="++", seed=trainer.options.seed * 10 + trainer.half)[0]
        centres = torch.from_numpy(found).to(conformations)
        distances = torch.cdist(centres, conformations)
        nearest = distances.topk(2 * len(conformations) // number, largest=False).indices
        return cls(conformations, centres, nearest, trainer.latents[nearest[:, :_CENTRAL]].mean(1))

    def __len__(self) -> int:
        return len(self.centres)

    def densest(self) -> int:
        """Return the node whose particles lie closest together."""
        radii = [
            torch.cdist(centre[None], self.conformations[near]).max()
            for centre, near in zip(self.centres, self.nearest, strict=True)
        ]
        return int(torch.stack(radii).argmin())

    def walk(self, root: int) -> list[tuple[int, int]]:
        """Return (node, parent) of all nodes but the root, parents first: the minimum spanning tree."""
        distances = torch.cdist(self.centres, self.centres).cpu().numpy().astype(float)
        # Of two nodes at one place, neither must be unreachable: zero means no edge.
        tree = minimum_spanning_tree(np.maximum(distances, 1e-6))
        order, parents = breadth_first_order(tree, root, directed=False)
        return [(int(node), int(parents[node])) for node in order[1:]]

    def memberships(self, particles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (b, 3) nearest nodes of (b,) particles, and their weights, which add up to 1."""
        between = torch.cdist(self.centres, self.centres).topk(2, largest=False).values[:, 1].median()
        distances, nodes = torch.cdist(self.conformations[particles], self.centres).topk(3, largest=False)
        weights = torch.softmax(-distances.square() / (2 * (0.6 * between.clamp(min=1e-6)) ** 2), 1)
        return nodes, weights


@torch.no_grad()
def particle_conformations(trainer: HalfTrainer) -> tuple[torch.Tensor, float]:
    """Return the (n, d) conformations of the training particles, and the largest rms displacement of a region, A."""
    model = trainer.model
    regions = Regions.build(model.gaussians.positions.detach(), _REGIONS, trainer.options.seed)
    evaluate = model.evaluator(regions.centres)
    displaced = torch.cat([evaluate(latents) for latents in trainer.latents.split(256)])
    displaced = displaced - displaced.mean(0)
    largest = float(displaced.square().sum(-1).mean(0).max().sqrt())
    return (displaced * regions.weights.mean(0).sqrt()[:, None]).flatten(1), largest


@torch.no_grad()
def particle_sums(trainer: HalfTrainer, particles: torch.Tensor) -> SliceSums:
    """Return the sums of slices of (k,) training particles, undeformed and weighted by the noise."""
    model, data = trainer.model, trainer.posed_data()
    inside = shells(model.box, 2, trainer.data.device) <= model.box // 2
    weights = inside / expand_shells(model.noise_power, model.box)
    sums, group = SliceSums(model.box, trainer.data.device), current_group()
    for rows in group.split(trainer.rows[particles.cpu()], trainer.data.at_once(_BATCH)):
        batch = data.batch(rows)
        transforms, power = batch.transforms * batch.transfer.conj(), batch.transfer.abs().square()
        sums.add(batch.matrices[:, :2], transforms * weights, power * weights)
    group.sum_(sums.sums)
    return sums


def node_likelihoods(trainer: HalfTrainer, nodes: Nodes, resolution: float) -> list[MapLikelihood]:
    """Return the likelihood of the particles around each node, low-pass filtered at `resolution` (A)."""
    return [
        MapLikelihood.of(particle_sums(trainer, near), len(near), trainer.model.pixel_size, resolution)
        for near in nodes.nearest
    ]

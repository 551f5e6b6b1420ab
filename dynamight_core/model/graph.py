"""The neighbour graph of the Gaussians and the distances that regularisation keeps."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.model.gaussians import GaussianModel

# Long edges: their number per Gaussian, their largest length (A), and how near a drawn point their end must be (A).
_LONG_EDGES, _REACH, _NEARBY = 4, 25.0, 5.0
# A long edge has half its weight when its mean-square change is this times the median one.
_GIVES_WAY = 0.3


@dataclass(frozen=True)
class NeighbourGraph:
    """Edges between Gaussians closer than 1.5 c_mean.

    Parameters
    ----------
    edges
        (e, 2) indices, each pair once.
    distances
        (e,) lengths in the reference, A.
    mean_spacing
        c_mean (A): mean distance of a Gaussian to its two nearest neighbours.
    """

    edges: torch.Tensor
    distances: torch.Tensor
    mean_spacing: float

    @classmethod
    def build(cls, positions: torch.Tensor, factor: float = 1.5) -> "NeighbourGraph":
        """Build the graph of (n, 3) positions (A); edges are shorter than `factor` times c_mean."""
        tree, spacing = _spacing(positions)
        pairs = tree.query_pairs(factor * spacing, output_type="ndarray").astype(np.int64)
        return cls._between(positions, torch.from_numpy(pairs).to(positions.device), spacing)

    @classmethod
    def of(cls, gaussians: GaussianModel) -> "NeighbourGraph":
        """Return the graph of a model: its own edges if it is an atomic one, those between neighbours otherwise."""
        if gaussians.edges is None:
            return cls.build(gaussians.positions)
        return cls._between(gaussians.positions, gaussians.edges, _spacing(gaussians.positions)[1])

    @classmethod
    def _between(cls, positions: torch.Tensor, edges: torch.Tensor, spacing: float) -> "NeighbourGraph":
        lengths = (positions.detach()[edges[:, 0]] - positions.detach()[edges[:, 1]]).norm(dim=-1)
        return cls(edges, lengths, spacing)


def _spacing(positions: torch.Tensor) -> tuple[cKDTree, float]:
    """Return the tree of (n, 3) positions and the mean distance to the two nearest neighbours, A."""
    points = positions.detach().cpu().numpy()
    tree = cKDTree(points)
    return tree, float(tree.query(points, k=3)[0][:, 1:].mean())


@dataclass(frozen=True)
class LongEdges:
    """Edges across domains of the molecule, which keep their lengths where they do so already.

    A domain that bends hardly changes the edges of the neighbour graph, but those that reach across it. Where the
    molecule has a hinge, long edges must give way: each is weighted by how little it changes, as in a fit that is
    robust against outliers, with the weight of a logarithmic penalty.

    Parameters
    ----------
    edges
        (e, 2) indices.
    distances
        (e,) lengths in the reference, A.
    weights
        (e,) of mean 1.
    """

    edges: torch.Tensor
    distances: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def build(cls, positions: torch.Tensor, displaced: torch.Tensor, generator: torch.Generator) -> "LongEdges":
        """Draw edges of the (n, 3) reference and weight them by their lengths in (b, n, 3) conformations, A."""
        points = positions.detach().cpu()
        tree = cKDTree(points.numpy())
        start = torch.arange(len(points)).repeat(_LONG_EDGES)
        # Random points within reach, evenly in the volume, and the Gaussians there.
        direction = torch.nn.functional.normalize(torch.randn(len(start), 3, generator=generator), dim=1)
        radius = _REACH * torch.rand(len(start), 1, generator=generator) ** (1 / 3)
        distance, end = tree.query((points[start] + radius * direction).numpy())
        end = torch.from_numpy(end)
        kept = (torch.from_numpy(distance) < _NEARBY) & (end != start)
        edges = torch.stack([start[kept], end[kept]], 1).to(positions.device)
        distances = edge_lengths(edges, positions.detach()[None])[0]
        change = (edge_lengths(edges, displaced) - distances).square().mean(0)
        weights = 1 / (1 + change / (_GIVES_WAY * change.median()).clamp(min=1e-12))
        return cls(edges, distances, weights / weights.mean())


def rigidity(long_edges: LongEdges, displaced: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean over long edges of (distance before - distance after)^2, A^2, for (b, n, 3) A."""
    change = edge_lengths(long_edges.edges, displaced) - long_edges.distances
    return (change.square() * long_edges.weights).mean()


def edge_lengths(edges: torch.Tensor, displaced: torch.Tensor) -> torch.Tensor:
    """Return (b, e) lengths (A) of (e, 2) edges between (b, n, 3) deformed positions (A)."""
    start = displaced.index_select(1, edges[:, 0])
    end = displaced.index_select(1, edges[:, 1])
    return ((end - start).square().sum(-1) + 1e-8).sqrt()


def deformation_regularity(graph: NeighbourGraph, lengths: torch.Tensor) -> torch.Tensor:
    """Return R_d (paper, Eq. 5), A^2: the mean over edges of (distance before - distance after)^2.

    Parameters
    ----------
    lengths
        (b, e) distances after, A: `edge_lengths` of the graph's edges.
    """
    return (lengths - graph.distances).square().mean()


def repulsion(graph: NeighbourGraph, lengths: torch.Tensor) -> torch.Tensor:
    """Return R_r, A^2: the mean over edges of relu(c_mean - distance after)^2; `lengths` as above."""
    return torch.relu(graph.mean_spacing - lengths).square().mean()

"""The neighbour graph of the Gaussians and the distances that regularisation keeps."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree


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
        points = positions.detach().cpu().numpy()
        tree = cKDTree(points)
        spacing = float(tree.query(points, k=3)[0][:, 1:].mean())
        pairs = tree.query_pairs(factor * spacing, output_type="ndarray").astype(np.int64)
        edges = torch.from_numpy(pairs).to(positions.device)
        lengths = (positions.detach()[edges[:, 0]] - positions.detach()[edges[:, 1]]).norm(dim=-1)
        return cls(edges, lengths, spacing)


def edge_lengths(graph: NeighbourGraph, displaced: torch.Tensor) -> torch.Tensor:
    """Return (b, e) lengths (A) of the edges between (b, n, 3) deformed positions (A)."""
    start = displaced.index_select(1, graph.edges[:, 0])
    end = displaced.index_select(1, graph.edges[:, 1])
    return ((end - start).square().sum(-1) + 1e-8).sqrt()


def deformation_regularity(graph: NeighbourGraph, lengths: torch.Tensor) -> torch.Tensor:
    """Return R_d (paper, Eq. 5), A^2: the mean over edges of (distance before - distance after)^2.

    Parameters
    ----------
    lengths
        (b, e) distances after, A, as `edge_lengths` gives them.
    """
    return (lengths - graph.distances).square().mean()


def repulsion(graph: NeighbourGraph, lengths: torch.Tensor) -> torch.Tensor:
    """Return R_r, A^2: the mean over edges of relu(c_mean - distance after)^2; `lengths` as above."""
    return torch.relu(graph.mean_spacing - lengths).square().mean()

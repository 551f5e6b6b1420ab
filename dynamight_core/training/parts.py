"""A scan of the molecule for parts that move as rigid bodies, to first order.

Principal components of the whole molecule look for motion along p = 90 directions. In n images they find what exceeds
sqrt(p / n) times the noise (Baik, Ben Arous & Peche, Annals of Probability 2005). The motion of a small domain in a
large molecule is below that. But a rigid body has only three shifts and three rotations, so parts of many places and
sizes are tried one by one, with p = 6 each. The motion of a part that was found is removed from the scores before the
next part is looked for. How far noise reaches, over all parts, is measured on scores of simulated noise.
"""

import torch
from scipy.cluster.vq import kmeans2

from dynamight_core.imaging.compiled import in_threads, shares, sum_forces

# Number of places of parts, and radii of parts in units of the molecule's radius.
_PLACES = 60
_RADII = (0.2, 0.3, 0.43, 0.6, 0.8)
MAX_CANDIDATES = _PLACES * len(_RADII)
# Gaussians in one cube of this size, in units of the molecule's radius, have the same weight in each part: sums over
# cubes serve all parts.
_CELL = 0.15
# Width of a part's soft edge in units of its radius.
_EDGE = 0.5
# Smallest number of Gaussians in a part, and largest fraction of all Gaussians.
_MIN_GAUSSIANS, _MAX_FRACTION = 12, 0.6
# A motion must have this many times the largest variance of simulated noise, which itself fluctuates by some per cent.
_MARGIN = 1.05
_MAX_PARTS, MAX_OVERLAP = 6, 0.5
# Parts whose scores are in double precision at a time.
_AT_ONCE = 16


class Parts:
    """Candidates: soft spheres in the molecule, with three shifts and three rotations about the centre of each.

    Parameters
    ----------
    positions
        (n, 3) Gaussians, A.
    spheres
        (m, 4) centre and radius of each, A. Those with too few or too many Gaussians are omitted.
    """

    def __init__(self, positions: torch.Tensor, spheres: torch.Tensor):
        self.positions = positions
        self._cells, middles = _cells(positions)
        depth = ((torch.cdist(spheres[:, :3], middles) / spheres[:, 3:] - 1) / _EDGE + 0.5).clamp(0, 1)
        of_cells = 0.5 + 0.5 * torch.cos(torch.pi * depth)
        weights = of_cells[:, self._cells]
        sizes = weights.sum(1)
        kept = (sizes >= _MIN_GAUSSIANS) & (sizes <= _MAX_FRACTION * len(positions))
        self.weights, self.spheres, self._of_cells = weights[kept], spheres[kept], of_cells[kept]
        total = self.weights.sum(1, keepdim=True)
        self.centres = self.weights @ positions / total
        spread = self.weights @ positions.square() / total - self.centres.square()
        self.radii = spread.sum(1, keepdim=True).clamp(min=1e-6).sqrt()

    @classmethod
    def everywhere(cls, positions: torch.Tensor, seed: int) -> "Parts":
        """Return candidates of several sizes at places all over the molecule."""
        radius = _radius(positions)
        count = max(1, min(_PLACES, len(positions) // 5))
        places = torch.from_numpy(kmeans2(positions.cpu().numpy(), count, minit="++", seed=seed)[0]).to(positions)
        radii = radius * places.new_tensor(_RADII)
        spheres = torch.cat([places.repeat_interleave(len(radii), 0), radii.repeat(len(places))[:, None]], 1)
        return cls(positions, spheres)

    @property
    def overlaps(self) -> torch.Tensor:
        """(parts, parts) correlation of the weights of two parts, 0 to 1."""
        unit = self.weights / self.weights.norm(dim=1, keepdim=True)
        return unit @ unit.T

    def __len__(self) -> int:
        return len(self.weights)

    def along(self, forces: torch.Tensor) -> torch.Tensor:
        """Return the (b, parts, 6) components of (b, n, 3) forces on the Gaussians along the motions of each part."""
        cells = forces.new_zeros(len(forces), self._of_cells.shape[1], 6)
        if forces.device.type == "cpu":
            arguments = (each.contiguous().numpy() for each in (self.positions, forces, self._cells, cells))
            in_threads(sum_forces, shares(len(forces), torch.get_num_threads()), *arguments)
        else:
            torques = torch.linalg.cross(self.positions.expand_as(forces), forces)
            cells.index_add_(1, self._cells, torch.cat([forces, torques], 2))
        sums = torch.einsum("pn,bnk->bpk", self._of_cells, cells)
        shifts, torques = sums.split(3, 2)
        rotations = torques - torch.linalg.cross(self.centres.expand_as(shifts), shifts)
        return torch.cat([shifts, rotations / self.radii], 2)

    def fields(self, part: int) -> torch.Tensor:
        """Return the (6, n, 3) displacements of the motions of a part, each of about 1 A."""
        arms = (self.positions - self.centres[part]) / self.radii[part]
        axes = torch.eye(3).to(arms)[:, None].expand(3, len(arms), 3)
        rotations = torch.linalg.cross(axes, arms.expand_as(axes))
        return torch.cat([axes, rotations]) * self.weights[part][:, None]


def _radius(positions: torch.Tensor) -> float:
    """Return the radius (A) of a homogeneous sphere with the radius of gyration of (n, 3) Gaussians."""
    return float((5 / 3 * (positions - positions.mean(0)).square().sum(1).mean()).sqrt())


def _cells(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cell of each of (n, 3) Gaussians, (n,), and the (cells, 3) centres of the Gaussians in each, A."""
    cubes = (positions / (_CELL * _radius(positions))).round()
    cells = cubes.unique(dim=0, return_inverse=True)[1]
    sums = positions.new_zeros(int(cells.max()) + 1, 3).index_add_(0, cells, positions)
    return cells, sums / cells.bincount()[:, None]


def moving_parts(scores: torch.Tensor, noise: torch.Tensor, null: torch.Tensor, overlaps: torch.Tensor) -> list[int]:
    """Return the parts that move, the most certain first.

    Parameters
    ----------
    scores
        (n, parts, 6) of images, with a mean of 0.
    noise, null
        (k n, parts, 6) each, of simulated noise: to whiten the scores, and to find how far noise reaches in n images.
    overlaps
        (parts, parts) as in `Parts`; parts that are found overlap little.
    """
    scores, noise, null = (
        part.transpose(0, 1).clone(memory_format=torch.contiguous_format) for part in (scores, noise, null)
    )
    n = scores.shape[1]
    found: list[int] = []
    while len(found) < _MAX_PARTS and len(scores):
        values, vectors = torch.linalg.eigh(_products(noise))
        whiten = vectors / values.clamp(min=1e-9 * float(values.max())).sqrt()[:, None]
        variances, axes = _variances(scores, whiten)
        reach = max(float(_variances(part, whiten)[0].max()) for part in null.split(n, 1))
        free = (overlaps[found] <= MAX_OVERLAP).all(0)
        best = int((variances[:, -1] * free).argmax())
        if float(variances[best, -1]) <= _MARGIN * reach:
            break
        found.append(best)
        # This motion also adds to the scores of other parts: by as much as its noise is shared with them.
        axis = (whiten[best] @ axes[best, :, -1])[:, None]
        own = noise[best].double() @ axis
        shared = torch.cat([own[:, 0] @ each.double() for each in noise.split(1)]) / own.square().sum()
        for part in (scores, noise, null):
            amounts = (part[best].double() @ axis).float()
            for each, direction in zip(part, shared.float(), strict=True):
                each -= amounts * direction
    return found


def _variances(scores: torch.Tensor, whiten: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (p, 6) variances of (p, n, 6) scores along their principal axes, ascending, and the axes.

    In the units of the noise, by the (p, 6, 6) matrices that whiten it.
    """
    variances, axes = torch.linalg.eigh(whiten.transpose(1, 2) @ _products(scores) @ whiten)
    return variances, axes


def _products(scores: torch.Tensor) -> torch.Tensor:
    """Return the (p, 6, 6) mean products of (p, n, 6) scores, float64; a few parts at a time, to save memory."""
    parts = (each.double() for each in scores.split(_AT_ONCE))
    return torch.cat([each.transpose(1, 2) @ each for each in parts]) / scores.shape[1]

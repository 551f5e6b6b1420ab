"""The Gaussian pseudo-atom model of the consensus map."""

from functools import lru_cache

import torch
from torch import nn

from dynamight_core.imaging.fourier import frequencies_2d, frequencies_3d, real_transform
from dynamight_core.imaging.geometry import to_voxels
from dynamight_core.imaging.projector import Projector, spread_bilinear


class GaussianModel(nn.Module):
    """Pseudo-atoms whose density is a sum of isotropic Gaussians (paper, Eq. 2, with classes Eq. 8).

    Density at x is ``sum_j b_j sum_c d_jc a_c exp(-|x - c_j|^2 / 2 s_c^2)`` with one amplitude a_c and width s_c
    per class, composition weights d_jc (softmax over classes) and a relative amplitude b_j per Gaussian, shared
    by all particles, so that motion cannot hide as vanishing density.

    Parameters
    ----------
    positions
        (n, 3) A, origin at the centre of the box.
    width
        initial width s (A) of the classes; class c starts at ``width * 1.3 ** c``.
    amplitude
        initial amplitude a, map units.
    n_classes
        number of width classes.
    generator
        of the random composition weights.
    edges
        (e, 2) of an atomic model, whose distances are kept; positions and relative amplitudes are then fixed, and only
        scale and width are learned. None for Gaussians that are free.
    """

    edges: torch.Tensor | None

    def __init__(
        self,
        positions: torch.Tensor,
        width: float,
        amplitude: float,
        n_classes: int = 1,
        generator: torch.Generator | None = None,
        edges: torch.Tensor | None = None,
    ):
        super().__init__()
        n = len(positions)
        self.positions = nn.Parameter(positions.clone().float())
        steps = torch.arange(n_classes, dtype=torch.float32)
        self.log_widths = nn.Parameter(torch.log(torch.as_tensor(width) * 1.3**steps))
        self.log_amplitudes = nn.Parameter(torch.log(torch.as_tensor(amplitude)).expand(n_classes).clone())
        self.composition = nn.Parameter(torch.randn(n, n_classes, generator=generator))
        self.relative_amplitudes = nn.Parameter(torch.ones(n))
        self.register_buffer("edges", edges)
        if self.fixed:
            self.positions.requires_grad_(False)
            self.relative_amplitudes.requires_grad_(False)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def fixed(self) -> bool:
        """Whether positions and relative amplitudes are those of an atomic model and stay."""
        return self.edges is not None

    @property
    def widths(self) -> torch.Tensor:
        """(classes,) widths s, A."""
        return self.log_widths.exp()

    def masses(self, pixel_size: float) -> torch.Tensor:
        """Return (classes, n) integrals of each Gaussian over its volume, map units times voxels."""
        unit = self.log_amplitudes.exp() * (2 * torch.pi) ** 1.5 * (self.widths / pixel_size) ** 3
        masses: torch.Tensor = unit[:, None] * torch.softmax(self.composition, 1).T * self.relative_amplitudes
        return masses

    def filters(self, box: int, pixel_size: float, ndim: int = 2) -> torch.Tensor:
        """Return (classes, box, ..., box//2+1) Fourier transforms of unit-mass Gaussians."""
        frequencies = frequencies_2d if ndim == 2 else frequencies_3d
        squared = frequencies(box, self.positions.device).square().sum(-1) / pixel_size**2
        widths = self.widths.reshape(-1, *[1] * ndim)
        return torch.exp(-2 * torch.pi**2 * widths**2 * squared)

    def project(
        self,
        projector: Projector,
        matrices: torch.Tensor,
        positions: torch.Tensor | None = None,
        transfer: torch.Tensor | None = None,
        occupancies: torch.Tensor | None = None,
        voxel: float | None = None,
    ) -> torch.Tensor:
        """Return (b, box, box//2+1) Fourier images of the model (paper, Eq. 10).

        Parameters
        ----------
        projector
            has box, pixel size and oversampling.
        matrices
            (b, 3, 3) projection matrices.
        positions
            (b, n, 3) deformed positions, A; the model's own if None.
        transfer
            (b, box, box//2+1) CTF of each image; no CTF if None.
        occupancies
            (b, n) factors on the mass of each Gaussian in each image; 1 if None.
        voxel
            size of the voxels that masses are sums over, A; the projector's pixels if None.
        """
        positions = self.positions if positions is None else positions
        masses = self.masses(projector.pixel_size if voxel is None else voxel).expand(len(matrices), -1, -1)
        if occupancies is not None:
            masses = masses * occupancies[:, None]
        filters = self.filters(projector.box, projector.pixel_size)
        if transfer is not None:
            filters = filters * transfer[:, None]
        images = projector.project(positions, masses, matrices, filters)
        return images[:, 0] if masses.shape[1] == 1 else images.sum(1)

    def transform(self, box: int, pixel_size: float, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (box, box, box//2+1) transform of `render`, the origin of real space at index 0 of each axis."""
        positions = self.positions if positions is None else positions
        masses = self.masses(pixel_size)
        if positions.ndim == 3:
            masses = masses.repeat(1, len(positions)) / len(positions)
            positions = positions.flatten(0, 1)
        (grids,) = spread_bilinear(masses[None], to_voxels(positions, box, pixel_size)[None], box)
        correction = self.filters(box, pixel_size, 3) / _trilinear_kernel(box, positions.device)
        return (real_transform(grids, 3) * correction).sum(0)

    def render(self, box: int, pixel_size: float, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (box, box, box) density of the model, or of displaced (n, 3) `positions`, map units.

        Of (b, n, 3) positions, the mean of the b densities.
        """
        density: torch.Tensor = torch.fft.irfftn(
            self.transform(box, pixel_size, positions), s=(box,) * 3, dim=(-3, -2, -1)
        )
        return density


@lru_cache(maxsize=16)
def _trilinear_kernel(box: int, device: torch.device) -> torch.Tensor:
    """Return the (box, box, box//2+1) transform of the kernel of a trilinear spread."""
    return torch.sinc(frequencies_3d(box, device)).square().prod(-1)

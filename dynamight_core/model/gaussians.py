"""The Gaussian pseudo-atom model of the consensus map."""

import torch
from torch import nn

from dynamight_core.imaging.fourier import fourier_to_volume, frequencies_2d, frequencies_3d
from dynamight_core.imaging.projector import Projector


class GaussianModel(nn.Module):
    """Pseudo-atoms whose density is a sum of isotropic Gaussians (paper, Eq. 1).

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
    """

    def __init__(self, positions, width, amplitude, n_classes=1, generator=None):
        super().__init__()
        n = len(positions)
        self.positions = nn.Parameter(positions.clone().float())
        steps = torch.arange(n_classes, dtype=torch.float32)
        self.log_widths = nn.Parameter(torch.log(torch.as_tensor(width) * 1.3**steps))
        self.log_amplitudes = nn.Parameter(torch.log(torch.as_tensor(amplitude)).expand(n_classes).clone())
        self.composition = nn.Parameter(torch.randn(n, n_classes, generator=generator))
        self.relative_amplitudes = nn.Parameter(torch.ones(n))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def widths(self) -> torch.Tensor:
        """(classes,) widths s, A."""
        return self.log_widths.exp()

    def masses(self, pixel_size: float) -> torch.Tensor:
        """Return (classes, n) integrals of each Gaussian over its volume, map units times voxels."""
        unit = self.log_amplitudes.exp() * (2 * torch.pi) ** 1.5 * (self.widths / pixel_size) ** 3
        return unit[:, None] * torch.softmax(self.composition, 1).T * self.relative_amplitudes

    def filters(self, box: int, pixel_size: float, ndim: int = 2) -> torch.Tensor:
        """Return (classes, box, ..., box//2+1) Fourier transforms of unit-mass Gaussians."""
        frequencies = frequencies_2d if ndim == 2 else frequencies_3d
        squared = frequencies(box, self.positions.device).square().sum(-1) / pixel_size**2
        widths = self.widths.reshape(-1, *[1] * ndim)
        return torch.exp(-2 * torch.pi**2 * widths**2 * squared)

    def project(self, projector: Projector, matrices: torch.Tensor, positions: torch.Tensor | None = None):
        """Return (b, box, box//2+1) Fourier images of the model, without CTF (paper, Eq. 2 and 3).

        Parameters
        ----------
        projector
            gives box, pixel size and oversampling.
        matrices
            (b, 3, 3) projection matrices.
        positions
            (b, n, 3) deformed positions, A; the model's own if None.
        """
        positions = self.positions if positions is None else positions
        masses = self.masses(projector.pixel_size)
        images = projector.project(positions, masses.expand(len(matrices), -1, -1), matrices)
        return (images * self.filters(projector.box, projector.pixel_size)).sum(1)

    def render(self, box: int, pixel_size: float, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (box, box, box) density of the model, or of displaced (n, 3) `positions`, map units."""
        positions = self.positions if positions is None else positions
        masses = self.masses(pixel_size)
        grids = torch.stack([spread_trilinear(positions / pixel_size + box // 2, mass, box) for mass in masses])
        transforms = torch.fft.rfftn(torch.fft.ifftshift(grids, dim=(-3, -2, -1)), dim=(-3, -2, -1))
        kernel = torch.sinc(frequencies_3d(box, positions.device)).square().prod(-1)
        return fourier_to_volume((transforms * self.filters(box, pixel_size, 3)).sum(0) / kernel, box)


def spread_trilinear(points: torch.Tensor, weights: torch.Tensor, box: int) -> torch.Tensor:
    """Spread (n,) weights at (n, 3) points (x, y, z in voxels) on a (box, box, box) grid, trilinearly.

    Parts outside the box are lost. Differentiable with respect to both.
    """
    lower = points.detach().floor()
    fraction = points - lower
    lower = lower.long()
    grid = points.new_zeros(box**3)
    for corner in range(8):
        offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=points.device)
        index = lower + offset
        factor = torch.where(offset.bool(), fraction, 1 - fraction).prod(-1)
        inside = ((index >= 0) & (index < box)).all(-1)
        flat = (index[:, 2] * box + index[:, 1]) * box + index[:, 0]
        grid = grid.index_add(0, flat.where(inside, 0), factor * weights * inside)
    return grid.reshape(box, box, box)

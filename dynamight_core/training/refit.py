"""Refilling the Gaussians from the map that their own deformations sharpen.

Gaussians that start in a blurred consensus map stay spread over the blur: gradient descent moves them by
fractions of an Angstrom while the deformations, learned against a blurred reference, come out too small. The
map reconstructed from a half's own training particles with its own deformations is sharper than the consensus;
filling the Gaussians into it anew takes in one step what gradient descent takes hundreds of epochs for.
"""

import numpy as np
import torch
from scipy import ndimage

from dynamight_core.imaging.fourier import (
    expand_shells,
    fourier_to_volume,
    lowpass_volume,
    shell_means,
    shells,
    volume_to_fourier,
)
from dynamight_core.imaging.projector import Projector, read_bilinear
from dynamight_core.model.initialise import fill_region, find_molecule, fit_to_map
from dynamight_core.training.half import HalfTrainer

# How far from the Gaussians' density the map is reconstructed, A.
_MARGIN = 12.0
# Denominators are raised by this share of their shell's mean.
_FLOOR = 0.1
# Views that give the undeformed point spread function; more change it little.
_KERNEL_PARTICLES = 300
_BATCH = 16


@torch.no_grad()
def deformed_map(trainer: HalfTrainer, mask: np.ndarray) -> torch.Tensor:
    """Return the (box, box, box) map of a half's training particles with their deformations undone.

    Weighted backprojection inside a region: the CTF-filtered images are read where the forward field puts each
    voxel, and divided by the undeformed point spread function of the same operator.

    Parameters
    ----------
    trainer
        whose latents have been inferred.
    mask
        (box, box, box) bool, voxels to reconstruct; zero outside.
    """
    model, data = trainer.model, trainer.data
    box, device = model.box, data.device
    projector = Projector(box, model.pixel_size, 2)
    voxels = torch.from_numpy(np.argwhere(mask)[:, ::-1].copy()).float().to(device) - box // 2
    voxels = voxels * model.pixel_size
    displacement = model.evaluator(voxels)
    posed = trainer.posed_data()
    total = torch.zeros(len(voxels), device=device)
    for rows in trainer.rows.split(_BATCH):
        batch = posed.batch(rows)
        grid = projector.reading_grid(batch.transforms * batch.transfer.conj())
        positions = voxels + displacement(trainer.latents[trainer.slot[rows]])
        total += read_bilinear(grid[:, None], projector.image_points(positions, batch.matrices))[:, 0].sum(0)
    volume = torch.zeros(box, box, box, device=device)
    volume[torch.from_numpy(mask).to(device)] = total
    weight = _point_spread(trainer, projector)
    floor = expand_shells(shell_means(weight, box, 3), box, 3) * _FLOOR
    inside = shells(box, 3, device) < box // 2
    return fourier_to_volume(volume_to_fourier(volume) / (weight.clamp(min=0) + floor) * inside, box)


def _point_spread(trainer: HalfTrainer, projector: Projector) -> torch.Tensor:
    """Return the (box, box, box//2+1) transform of the undeformed point spread function, kept on the trainer."""
    if trainer.point_spread is None:
        box, device = projector.box, trainer.data.device
        axis = (torch.arange(box, device=device) - box // 2) * projector.pixel_size
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        points = torch.stack([x, y, z], -1).reshape(-1, 3)
        total = torch.zeros(len(points), device=device)
        chosen = trainer.rows[:: max(1, len(trainer.rows) // _KERNEL_PARTICLES)]
        for rows in chosen.split(_BATCH):
            batch = trainer.data.batch(rows)
            power = batch.transfer.abs().square().to(batch.transforms.dtype)
            grid = projector.reading_grid(power)
            total += read_bilinear(grid[:, None], projector.image_points(points, batch.matrices))[:, 0].sum(0)
        kernel = total.reshape(box, box, box) * (len(trainer.rows) / len(chosen))
        trainer.point_spread = volume_to_fourier(kernel).real
    return trainer.point_spread


def refit_gaussians(trainer: HalfTrainer, resolution: float, seed: int) -> None:
    """Fill and fit the Gaussians anew in the half's own deformed map, low-passed at `resolution` (A).

    Number, classes, network and latents stay; amplitudes start equal again.
    """
    model = trainer.model
    pixel_size = model.pixel_size
    with torch.no_grad():
        density = model.gaussians.render(model.box, pixel_size)
    around = find_molecule(density.cpu(), pixel_size).mask
    around = ndimage.binary_dilation(around, iterations=max(1, round(_MARGIN / pixel_size)))
    sharp = deformed_map(trainer, around).cpu()
    volume = lowpass_volume(sharp, pixel_size, max(resolution, 2.5 * pixel_size))
    mask = find_molecule(volume, pixel_size).mask
    soft = ndimage.gaussian_filter(ndimage.binary_dilation(mask).astype(np.float32), 1.0)
    generator = torch.Generator().manual_seed(seed)
    # In proportion to the density: even filling blurs again what the map shows sharp.
    positions = fill_region(mask, len(model.gaussians), pixel_size, generator, volume)
    n_classes = len(model.gaussians.widths)
    fitted = fit_to_map(positions, volume * torch.from_numpy(soft), pixel_size, n_classes, 60, generator)
    with torch.no_grad():
        for name, value in fitted.state_dict().items():
            getattr(model.gaussians, name).copy_(value)
    trainer.reset_gaussian_optimizer()
    trainer.rebuild_graph()

"""Gaussian refits: placing the Gaussians in a map that their own deformations sharpen.

Gaussians start in a map that is blurred by the motion. Gradient descent moves them by fractions of an Angstrom, while
deformations learned against a blurred reference are too small. The map of a half-set's own training particles with its
own deformations is sharper. A refit to it replaces hundreds of epochs of gradient descent.
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
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.voxels import Voxels, bordered
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import fill_region, find_molecule, fit_to_map
from dynamight_core.training.half import HalfTrainer

# Margin of the map around the Gaussians' density, A.
_MARGIN = 12.0
# Fraction of the shell mean that is added to the denominator.
_FLOOR = 0.1
# Particles for the undeformed point spread function; more change it little.
_KERNEL_PARTICLES = 300
_BATCH = 16
# Refits in turn with inferences at the start.
_SHARPENINGS = 3


@torch.no_grad()
def deformed_map(trainer: HalfTrainer, mask: np.ndarray) -> torch.Tensor:
    """Return the (box, box, box) map of a half-set's training particles with their motion corrected.

    This is weighted backprojection in a region: CTF-filtered images are read at the deformed position of each voxel,
    and their sum is divided by the undeformed point spread function of the same operator.

    Parameters
    ----------
    trainer
        with inferred latents.
    mask
        (box, box, box) bool, voxels to reconstruct; the map is zero outside.
    """
    model, box, device = trainer.model, trainer.model.box, trainer.data.device
    projector = Projector(box, model.pixel_size, 2)
    voxels = Voxels(torch.from_numpy(mask).to(device), (box // 2,) * 3, model.pixel_size, model)
    posed, volume = trainer.posed_data(), torch.zeros(box, box, box, device=device)
    for rows in trainer.rows.split(_BATCH):
        batch = posed.batch(rows)
        images = bordered(projector.reading_grid(batch.transforms * batch.transfer.conj()))
        voxels.read(images, voxels.place(projector.poses(batch.matrices), trainer.latents[trainer.slot[rows]]), volume)
    weight = _point_spread(trainer, projector)
    floor = expand_shells(shell_means(weight, box, 3), box, 3) * _FLOOR
    inside = shells(box, 3, device) < box // 2
    return fourier_to_volume(volume_to_fourier(volume) / (weight.clamp(min=0) + floor) * inside, box)


def _point_spread(trainer: HalfTrainer, projector: Projector) -> torch.Tensor:
    """Return the (box, box, box//2+1) transform of the undeformed point spread function, cached in the trainer."""
    if trainer.point_spread is None:
        box, device = projector.box, trainer.data.device
        voxels = Voxels(torch.ones((box,) * 3, dtype=torch.bool, device=device), (box // 2,) * 3, projector.pixel_size)
        total = torch.zeros(box, box, box, device=device)
        chosen = trainer.rows[:: max(1, len(trainer.rows) // _KERNEL_PARTICLES)]
        for rows in chosen.split(_BATCH):
            batch = trainer.data.batch(rows)
            power = batch.transfer.abs().square().to(batch.transforms.dtype)
            voxels.read(bordered(projector.reading_grid(power)), voxels.place(projector.poses(batch.matrices)), total)
        kernel = total * (len(trainer.rows) / len(chosen))
        trainer.point_spread = volume_to_fourier(kernel).real
    return trainer.point_spread


def refit_gaussians(trainer: HalfTrainer, resolution: float, seed: int) -> None:
    """Refit the Gaussians to the half-set's own map, low-pass filtered at `resolution` (A).

    Number, classes, network and latents are kept; amplitudes are initialised to be equal.
    """
    model = trainer.model
    pixel_size = model.pixel_size
    with torch.no_grad():
        density = model.gaussians.render(model.box, pixel_size)
    around = find_molecule(density.cpu(), pixel_size).mask
    around = ndimage.binary_dilation(around, iterations=max(1, round(_MARGIN / pixel_size)))
    sharp = deformed_map(trainer, around).cpu()
    place_gaussians(model, sharp, resolution, seed)
    # These Gaussians have no momentum.
    trainer.optimizers["gaussians"] = trainer.gaussian_optimizer()
    trainer.rebuild_graph()


def place_gaussians(model: HalfModel, sharp: torch.Tensor, resolution: float, seed: int) -> None:
    """Place a model's Gaussians in a (box, box, box) map, low-pass filtered at `resolution` (A), with equal amplitudes.

    Raises
    ------
    ValueError
        if the map has no molecule.
    """
    pixel_size = model.pixel_size
    volume = lowpass_volume(sharp, pixel_size, max(resolution, 2.5 * pixel_size))
    mask = find_molecule(volume, pixel_size).mask
    soft = ndimage.gaussian_filter(ndimage.binary_dilation(mask).astype(np.float32), 1.0)
    generator = torch.Generator().manual_seed(seed)
    # In proportion to the density: uniform filling would blur the sharper map again.
    positions = fill_region(mask, len(model.gaussians), pixel_size, generator, volume)
    n_classes = len(model.gaussians.widths)
    fitted = fit_to_map(positions, volume * torch.from_numpy(soft), pixel_size, n_classes, 60, generator)
    with torch.no_grad():
        for name, value in fitted.state_dict().items():
            getattr(model.gaussians, name).copy_(value)


def sharpen_reference(trainer: HalfTrainer) -> None:
    """Let the reference follow the linear motions, before a gradient changes their fields.

    A reference that the motion has blurred asks for motion that is too small, and weak motion would be lost before the
    reference is sharper. The fields of the linear motions are kept; latents and Gaussians are found in turn.
    """
    for step in range(_SHARPENINGS):
        refit_gaussians(trainer, trainer.options.refit_resolution, trainer.options.seed * 1000 + step)
        trainer.infer(steps=2)

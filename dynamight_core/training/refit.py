"""Gaussian refits: placing the Gaussians in a map that their own deformations sharpen.

Gaussians start in a map that is blurred by the motion. Gradient descent moves them by fractions of an Angstrom, while
deformations learned against a blurred reference are too small. The map of a half-set's own training particles with its
own deformations is sharper. A refit to it replaces hundreds of epochs of gradient descent.
"""

import numpy as np
import torch
from scipy import ndimage

from dynamight_core.groups import current_group
from dynamight_core.imaging.backprojection import filter_volume
from dynamight_core.imaging.fourier import lowpass_volume, shells
from dynamight_core.imaging.modes import find_modes
from dynamight_core.imaging.projector import Projector
from dynamight_core.imaging.voxels import Voxels, bordered, moving_voxels
from dynamight_core.model.half import HalfModel
from dynamight_core.model.initialise import fill_region, find_molecule, fit_to_map
from dynamight_core.training.epochs import run_epoch
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.schedule import Epoch

# Margin of the map around the Gaussians' density, A.
_MARGIN = 12.0
_BATCH = 16
# Passes over the images after a refit, if views are uneven.
_UNEVEN_EPOCHS = 3
# Refits in turn with inferences at the start.
_SHARPENINGS = 3


@torch.no_grad()
def deformed_map(trainer: HalfTrainer, mask: np.ndarray) -> torch.Tensor:
    """Return the (box, box, box) map of a half-set's training particles with their motion corrected.

    This is weighted backprojection in a region: CTF-filtered images are read at the deformed position of each voxel,
    and their sum is divided by the undeformed point spread function of the same operator. If views are uneven, the map
    is solved for (`WideKernel`): division would smear it along the direction of most views, and motion would be learned
    against a smeared reference.

    Parameters
    ----------
    trainer
        with inferred latents.
    mask
        (box, box, box) bool, voxels to reconstruct; the map is zero outside.
    """
    model, box, device = trainer.model, trainer.model.box, trainer.data.device
    projector = Projector(box, model.pixel_size, 2)
    modes = find_modes(model, trainer.latents, model.gaussians.positions, model.pixel_size)
    voxels = Voxels(torch.from_numpy(mask).to(device), (box // 2,) * 3, model.pixel_size, modes.field)
    parts = moving_voxels(voxels, modes.coordinates, _BATCH)
    posed, volume, group = trainer.posed_data(), torch.zeros(box, box, box, device=device), current_group()
    for rows in group.split(trainer.rows, trainer.data.at_once(_BATCH)):
        batch = posed.batch(rows)
        images = bordered(projector.reading_grid(batch.transforms * batch.transfer.conj()))
        poses, coordinates = projector.poses(batch.matrices), batch.per_image(modes.coordinates[trainer.slot[rows]])
        for part in parts:
            part.read(images, part.place(poses, coordinates), volume)
    group.sum_(volume)
    inside = shells(box, 3, device) < box // 2
    return filter_volume(trainer.point_spread.undo(volume, torch.from_numpy(mask).to(device)), inside)


def refit_gaussians(trainer: HalfTrainer, resolution: float, seed: int) -> None:
    """Refit the Gaussians to the half-set's own map, low-pass filtered at `resolution` (A).

    Number, classes, network and latents are kept; amplitudes are initialised to be equal. If views are uneven, the
    Gaussians are also fitted to the images, because the map is wrong in directions with few views.
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
    if trainer.views_are_uneven:
        for step in range(_UNEVEN_EPOCHS):
            run_epoch(trainer, Epoch("reference"), seed + step)
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

"""Images of particles beside what the model says of them."""

import numpy as np
import torch

from dynamight_core.analysis.explorer.answer import Answer
from dynamight_core.imaging.fourier import fourier_to_image, frequencies_2d
from dynamight_core.reconstruction.images import FullImages
from dynamight_core.run import Run

# Low-pass filter, A, and the range of grey values in standard deviations of the images.
_RESOLUTION, _RANGE = 15.0, 3.0


@torch.no_grad()
def montage(run: Run, rows: torch.Tensor) -> Answer:
    """Return images of (b,) particles: as prepared, low-passed, as the model has them, and what remains.

    Of several images of a particle, it is the first.

    Values: `rows`, from 1, `halves` and `resolution` (A) of the filter. Arrays: raw, filtered, model and residual,
    (b, box, box) uint8; the last three have one range of grey values.
    """
    box, pixel_size = run.models[0].box, run.models[0].pixel_size
    device = run.models[0].latent_mean.device
    data = FullImages(run, device).training_images(rows, box)
    batch = data.image_batch(torch.arange(len(rows)) if data.series is None else data.series.first)
    modelled = torch.empty_like(batch.transforms)
    for number, model in enumerate(run.models, 1):
        own = torch.where(run.halves[rows] == number)[0]
        if len(own):
            latents = run.latents[number - 1][rows[own]].to(device)
            positions = model.gaussians.positions + model.displacements(latents)
            modelled[own] = model.project(batch.matrices[own], batch.transfer[own], positions)
    squared = (frequencies_2d(box, device=device) / pixel_size).square().sum(-1)
    smooth = torch.exp(-squared * _RESOLUTION**2 / 2)
    seen = {"filtered": batch.transforms, "model": modelled, "residual": batch.transforms - modelled}
    pictures = {name: fourier_to_image(transforms * smooth, box) for name, transforms in seen.items()}
    scale = float(pictures["filtered"].std())
    arrays = {"raw": _bytes(batch.images, float(batch.images.std()))}
    arrays |= {name: _bytes(picture, scale) for name, picture in pictures.items()}
    values = {"rows": (rows + 1).tolist(), "halves": run.halves[rows].tolist(), "resolution": _RESOLUTION}
    return Answer(values, arrays)


def _bytes(images: torch.Tensor, scale: float) -> np.ndarray:
    """Return images as bytes, 0 and 255 at so many standard deviations."""
    shown = (images - images.mean()) / max(scale, 1e-12) / _RANGE
    return ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()

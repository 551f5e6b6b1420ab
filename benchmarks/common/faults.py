"""Small simulated data sets with one known fault each, for benchmarks/judge.py."""

from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import torch

from dynamight_core.files import write_map
from dynamight_core.imaging.ctf import evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier
from dynamight_core.options import SimulateOptions
from dynamight_core.parallel import single_threads
from dynamight_core.simulate.dataset import batches, consensus, noisy_images, signal_scale, white_noise
from dynamight_core.simulate.draw import draw_truth
from dynamight_core.simulate.star import write_star
from dynamight_core.simulate.truth import Truth

# Factor of a wrong pixel size, fraction of duplicated images, and largest distance between duplicates, pixels.
WRONG_SIZE, DUPLICATED, APART = 1.02, 0.15, 2


@dataclass(frozen=True)
class Fault:
    """What is wrong with a data set.

    Parameters
    ----------
    options
        of `simulate`, over those of the molecule.
    moves
        whether the molecule moves.
    missing
        fraction of the images without the first moving domain.
    duplicates, wrong_size, flipped
        whether images occur twice, pixels are said to be 2 % larger than they are, and phases were flipped unsaid.
    causes
        names of the causes that a judge should find; one of them is enough.
    """

    options: dict
    moves: bool = False
    missing: float = 0.0
    duplicates: bool = False
    wrong_size: bool = False
    flipped: bool = False
    causes: tuple[str, ...] = ()


def write_faulty(options: SimulateOptions, fault: Fault, out: Path) -> Truth:
    """Simulate a data set with a fault, and write it like `simulate`; returns the truth.

    With duplicates, images of the last rows are those of the first, cut out some pixels apart.
    """
    generator = torch.Generator().manual_seed(options.seed)
    truth, groups = draw_truth(options, generator)
    if fault.missing:
        odd = torch.Generator().manual_seed(options.seed + 77)
        truth.present[:, 0] = (torch.rand(len(truth), generator=odd) >= fault.missing).long()
    with single_threads() as pool:
        truth.scale = signal_scale(truth, options.snr_definition, pool)
        parts = [noisy_images(truth, part, white_noise(truth, part, generator)) for part in batches(len(truth))]
        images = torch.cat(parts)
        if fault.duplicates:
            images = _duplicate(images, truth, options.seed)
        if fault.flipped:
            images = fourier_to_image(
                image_to_fourier(images) * evaluate_ctf(truth.ctf, truth.box, truth.pixel_size).sign(), truth.box
            )
        said = truth
        if fault.wrong_size:
            origins = truth.star_origins * WRONG_SIZE
            said = replace(truth, pixel_size=truth.pixel_size * WRONG_SIZE, star_origins=origins)
        halves = [consensus(said, images.numpy(), half) for half in (1, 2)]
    out.mkdir(parents=True, exist_ok=True)
    for name, half in zip(("_half1", "_half2", ""), (*halves, halves[0] + halves[1]), strict=True):
        write_map(out / f"consensus{name}.mrc", half.volume().numpy(), said.pixel_size)
    with mrcfile.new(out / "particles.mrcs", images.numpy().astype(np.float32), overwrite=True) as stack:
        stack.set_image_stack()
        stack.voxel_size = said.pixel_size
    write_star(out / "particles.star", said, groups, "particles.mrcs")
    truth.save(out / "truth.npz")
    return truth


def _duplicate(images: torch.Tensor, truth: Truth, seed: int) -> torch.Tensor:
    """Replace the last of (n, box, box) images, and their truth, by the first ones, cut out some pixels apart."""
    generator = torch.Generator().manual_seed(seed + 78)
    number = round(DUPLICATED * len(truth))
    old, new = slice(0, number), slice(len(truth) - number, len(truth))
    apart = torch.randint(-APART, APART + 1, (number, 2), generator=generator)
    images = images.clone()
    for row, (x, y) in enumerate(apart.tolist()):
        images[len(truth) - number + row] = images[row].roll((y, x), (0, 1))
    for name in ("motions", "present", "content", "euler", "star_euler", "origins", "star_origins"):
        getattr(truth, name)[new] = getattr(truth, name)[old]
    for values in vars(truth.ctf).values():
        values[new] = values[old].clone()
    # The centre is at box // 2 - origin / pixel size.
    truth.origins[new] -= apart * truth.pixel_size
    truth.star_origins[new] -= apart * truth.pixel_size
    return images

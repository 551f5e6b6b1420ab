"""The one preprocessing of particle images: centre, normalise, crop to the working resolution, mask."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dynamight_core.config import NORMALISATIONS
from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import (
    fourier_to_image,
    image_to_fourier,
    resample_image,
    translation_phases,
)
from dynamight_core.imaging.geometry import image_radius
from dynamight_core.imaging.masks import soft_circle
from dynamight_core.particles.images import ImageReader

_DEFAULT_DIAMETER = 0.9  # of the box
_LEAST_OUTSIDE = 0.05  # of the pixels
# Where a multiplication by the CTF is undone, less is regained below |CTF| = 0.1; what leaks into a CTF zero
# from other frequencies (particles are cut from larger fields) is amplified five times at most.
_CTF_FLOOR = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """How raw images become those that everything after works on.

    Parameters
    ----------
    working_box
        pixels after Fourier cropping, even, at most the images' box.
    diameter
        of the particle circle in A; None is 0.9 of the box. Noise is measured outside it, the mask keeps its
        inside.
    mask
        whether the outside of the circle is set to zero, with a soft edge.
    invert
        whether the particles are dark and grey values change sign.
    normalise
        "image": each image by the mean and standard deviation of its own noise outside the circle, as RELION
        does at extraction; what the noise of images differs in (dose, ice) then scales their particles.
        "set": the mean of each image but one standard deviation for all, which keeps the particles' relative
        scales. "none": grey values stay.
    set_noise
        the standard deviation of normalise="set"; `with_set_noise` measures it.
    """

    working_box: int
    diameter: float | None = None
    mask: bool = True
    invert: bool = False
    normalise: str = "image"
    set_noise: float | None = None

    def __post_init__(self):
        if self.working_box < 2 or self.working_box % 2:
            raise InputError(f"the working box is {self.working_box} pixels; choose an even number")
        if self.normalise not in NORMALISATIONS:
            raise InputError(f"normalise is '{self.normalise}'; choose one of {', '.join(NORMALISATIONS)}")
        if self.diameter is not None and not self.diameter > 0:
            raise InputError(f"the particle diameter is {self.diameter} A; choose a positive one")

    def circle_diameter(self, box: int, pixel_size: float) -> float:
        """Return the diameter (A) of the particle circle in images of `box` pixels."""
        return _DEFAULT_DIAMETER * box * pixel_size if self.diameter is None else self.diameter

    def with_set_noise(self, reader: ImageReader, seed: int, n_images: int = 1000) -> "Preprocessing":
        """Return this preprocessing with `set_noise` measured on a seeded subset, if normalise is "set".

        Parameters
        ----------
        reader
            of all particles.
        seed
            of the choice of images.
        n_images
            at most so many are measured; the root mean square of their noise is taken.
        """
        if self.normalise != "set":
            return self
        p = reader.particles
        chosen = np.random.default_rng(seed).permutation(len(p))[:n_images]
        variances = []
        for rows in np.array_split(np.sort(chosen), -(-len(chosen) // batch_size(p.box))):
            ctf = p.ctf[rows] if p.premultiplied else None
            centred = _centre(reader.read(rows), p.shifts[rows], p.pixel_size, ctf)
            variances.append(_noise(centred, p.pixel_size, self)[1].square())
        return replace(self, set_noise=float(torch.cat(variances).mean().sqrt()))


def prepare_images(
    raw: torch.Tensor,
    shifts: torch.Tensor,
    norm_correction: torch.Tensor,
    pixel_size: float,
    preprocessing: Preprocessing,
    premultiplied_ctf: CtfParameters | None = None,
) -> torch.Tensor:
    """Preprocess images, on whichever device they are.

    In this order: the particle's centre is moved to index D//2 by a Fourier shift; a multiplication by the
    CTF is undone; noise outside the particle circle is brought to mean 0 and standard deviation 1 (in the
    full image: white noise is weaker after cropping); the image is multiplied by the average NormCorrection
    over its own, which RELION does in refinement, to images that were normalised at extraction; contrast is
    inverted; the image is Fourier-cropped, grey values kept; the outside of the circle is masked.

    Multiplication by the CTF C is undone by C / (C^2 + 0.01): an image C (C x + n) becomes C x + n but near
    the zeros of C, and everything after treats it as any other image. RELION multiplies by the real CTF: the
    phases of beam tilt and odd aberrations are in the image before and after.

    Parameters
    ----------
    raw
        (b, D, D).
    shifts
        (b, 2) A: the particle's centre lies at D//2 - shift / pixel_size.
    norm_correction
        (b,) relative to the mean of the set.
    pixel_size
        A.
    preprocessing
        what to do.
    premultiplied_ctf
        of b particles if the images were multiplied by it.

    Returns
    -------
    torch.Tensor
        (b, working_box, working_box) float32.

    Raises
    ------
    InputError
        if the circle leaves too few pixels for the noise, or an image has no noise there.
    """
    p = preprocessing
    box = raw.shape[-1]
    if p.working_box > box:
        raise InputError(f"the working box of {p.working_box} pixels is larger than the images ({box}); choose less")
    images = _centre(raw, shifts, pixel_size, premultiplied_ctf)
    if p.normalise != "none":
        mean, deviation = _noise(images, pixel_size, p)
        if p.normalise == "set":
            if p.set_noise is None:
                raise ValueError("normalise='set' needs set_noise; see Preprocessing.with_set_noise")
            deviation = torch.full_like(deviation, p.set_noise)
        images = (images - mean[:, None, None]) / deviation[:, None, None]
    scale = (-1.0 if p.invert else 1.0) / norm_correction
    images = resample_image(images * scale[:, None, None], p.working_box)
    if p.mask:
        images = images * soft_circle(
            p.working_box, pixel_size * box / p.working_box, p.circle_diameter(box, pixel_size), device=images.device
        )
    return images


def read_prepared(
    reader: ImageReader, indices: np.ndarray, preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Read images, `indices` as in `ImageReader.read`, and return `prepare_images` of them on `device`."""
    p = reader.particles
    return prepare_images(
        reader.read(indices).to(device),
        p.shifts[indices].to(device),
        p.norm_correction[indices].to(device),
        p.pixel_size,
        preprocessing,
        p.ctf[indices].to(device) if p.premultiplied else None,
    )


def batch_size(box: int) -> int:
    """Return how many images of `box` pixels to preprocess at once: 16 MB of them."""
    return max(1, 2**22 // box**2)


def _centre(
    raw: torch.Tensor, shifts: torch.Tensor, pixel_size: float, premultiplied_ctf: CtfParameters | None
) -> torch.Tensor:
    """Return (b, D, D) images with the particle at D//2 and the CTF in them once."""
    box = raw.shape[-1]
    transforms = image_to_fourier(raw) * translation_phases(shifts / pixel_size, box)
    if premultiplied_ctf is not None:
        real = replace(
            premultiplied_ctf,
            beam_tilt=torch.zeros_like(premultiplied_ctf.beam_tilt),
            odd_zernike=torch.zeros_like(premultiplied_ctf.odd_zernike),
        )
        ctf = evaluate_ctf(real, box, pixel_size)
        transforms = transforms * (ctf / (ctf.square() + _CTF_FLOOR))
    return fourier_to_image(transforms, box)


def _noise(images: torch.Tensor, pixel_size: float, preprocessing: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (b,) mean and standard deviation outside the particle circle of centred images."""
    box = images.shape[-1]
    diameter = preprocessing.circle_diameter(box, pixel_size)
    outside = image_radius(box, images.device) * pixel_size > diameter / 2
    if outside.float().mean() < _LEAST_OUTSIDE:
        raise InputError(
            f"a particle diameter of {diameter:g} A in a box of {box * pixel_size:g} A leaves too few pixels "
            "outside to measure the noise; choose a smaller diameter"
        )
    deviation, mean = torch.std_mean(images[:, outside], dim=1)
    # Rounding alone gives about 1e-7 of the contrast.
    if (deviation <= 1e-5 * images.flatten(1).std(dim=1)).any():
        raise InputError("an image has no noise outside the particle circle to normalise by; choose normalise 'none'")
    return mean, deviation

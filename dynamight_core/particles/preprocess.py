"""Preprocessing of particle images: centre, normalise, crop to the working box."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.image_series import per_image
from dynamight_core.imaging.ctf import CtfParameters, Index, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_image, image_to_fourier, resample_image, translation_phases
from dynamight_core.imaging.geometry import image_radius
from dynamight_core.options.train import NORMALISATIONS
from dynamight_core.particles.images import ImageReader

# Particle diameter as a fraction of the box, and the smallest fraction of pixels outside it.
_DEFAULT_DIAMETER, _MIN_OUTSIDE = 0.9, 0.05
# Undoing a multiplication by the CTF restores less below |CTF| = 0.1, and amplifies leakage from other frequencies into
# a CTF zero (particles are cut from larger fields) five times at most.
_CTF_FLOOR = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """How raw images are prepared for everything that follows.

    Parameters
    ----------
    working_box
        pixels after Fourier cropping, even, at most the images' box.
    diameter
        of the particle circle, A; 0.9 of the box if None. Noise is measured outside it.
    invert
        whether the particles are dark: grey values change sign.
    normalise
        "image": by the mean and standard deviation of each image's noise outside the circle, as RELION does at
        extraction; differences of the noise (dose, ice) then scale the particles. "set": by the mean of each image and
        one standard deviation for all, which keeps the particles' relative scales. "none": grey values stay.
    set_noise
        (n,) standard deviation for each image with normalise="set", the same for a half-set; `with_set_noise` measures
        it.

    Raises
    ------
    InputError
        if a value is out of its range.
    """

    working_box: int
    diameter: float | None = None
    invert: bool = False
    normalise: str = "image"
    set_noise: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.working_box < 2 or self.working_box % 2:
            raise InputError(f"the working box is {self.working_box} pixels; choose an even number")
        if self.normalise not in NORMALISATIONS:
            raise InputError(f"normalise is '{self.normalise}'; choose one of {', '.join(NORMALISATIONS)}")
        if self.diameter is not None and not self.diameter > 0:
            raise InputError(f"the particle diameter is {self.diameter} A; choose a positive one")

    def circle_diameter(self, box: int, pixel_size: float) -> float:
        """Return the diameter (A) of the particle circle in images of `box` pixels."""
        return _DEFAULT_DIAMETER * box * pixel_size if self.diameter is None else self.diameter

    def of(self, indices: Index) -> "Preprocessing":
        """Return the preprocessing of the selected images."""
        return self if self.set_noise is None else replace(self, set_noise=self.set_noise[indices])

    def with_set_noise(
        self, reader: ImageReader, halves: torch.Tensor, seed: int, n_images: int = 500
    ) -> "Preprocessing":
        """Return this preprocessing with `set_noise` measured on a random subset of each half-set, for "set" only.

        Parameters
        ----------
        reader
            of all particles.
        halves
            (P,) half-set of each particle; images of one must not change those of another.
        seed
            of the random choice of images.
        n_images
            largest number of images of a half-set to measure. `set_noise` is the root mean square of their noise.
        """
        if self.normalise != "set":
            return self
        p, noise = reader.particles, torch.empty(reader.particles.n_images)
        for half in halves.unique():
            own = torch.where(per_image(p.series, halves) == half)[0].numpy()
            chosen = np.random.default_rng(seed).permutation(own)[:n_images]
            variances = []
            for rows in np.array_split(np.sort(chosen), -(-len(chosen) // batch_size(p.box))):
                ctf = p.ctf[rows] if p.premultiplied else None
                centred = _centre(reader.read(rows), p.shifts[rows], p.pixel_size, ctf)
                variances.append(_noise(centred, p.pixel_size, self, ctf)[1].square())
            noise[own] = torch.cat(variances).mean().sqrt()
        return replace(self, set_noise=noise)


def prepare_images(
    raw: torch.Tensor,
    shifts: torch.Tensor,
    norm_correction: torch.Tensor,
    pixel_size: float,
    preprocessing: Preprocessing,
    premultiplied_ctf: CtfParameters | None = None,
) -> torch.Tensor:
    """Preprocess images on the device they are on.

    In this order:

    1. A Fourier shift moves the particle's centre to index D//2.
    2. A multiplication by the CTF is undone.
    3. Noise outside the particle circle is normalised to mean 0 and standard deviation 1, in the full image: white
       noise is weaker after cropping.
    4. The image is multiplied by the mean NormCorrection over its own, as in RELION's refinement.
    5. Contrast is inverted.
    6. The image is Fourier-cropped; grey values are kept.

    Multiplication by the CTF C is undone by C / (C^2 + 0.01): an image C (C x + n) becomes C x + n, except near zeros
    of C, and is then treated as any other image. RELION multiplies by the real CTF: the phases of beam tilt and odd
    aberrations are in the image before and after.

    Parameters
    ----------
    raw
        (b, D, D).
    shifts
        (b, 2) A: the particle's centre is at D//2 - shift / pixel_size.
    norm_correction
        (b,) relative to the mean of the set.
    pixel_size
        A.
    preprocessing
        the steps and their parameters.
    premultiplied_ctf
        CTF of the b particles if the images were multiplied by it.

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
        mean, deviation = _noise(images, pixel_size, p, premultiplied_ctf)
        if p.normalise == "set":
            if p.set_noise is None:
                raise ValueError("normalise='set' needs set_noise; see Preprocessing.with_set_noise")
            deviation = p.set_noise.to(deviation)
        images = (images - mean[:, None, None]) / deviation[:, None, None]
    scale = (-1.0 if p.invert else 1.0) / norm_correction
    return resample_image(images * scale[:, None, None], p.working_box)


def read_prepared(
    reader: ImageReader, indices: Index, preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the (b, working_box, working_box) preprocessed images of the selected rows, on `device`."""
    p = reader.particles
    return prepare_images(
        reader.read(indices).to(device),
        p.shifts[indices].to(device),
        p.norm_correction[indices].to(device),
        p.pixel_size,
        preprocessing.of(indices),
        p.ctf[indices].to(device) if p.premultiplied else None,
    )


def batch_size(box: int) -> int:
    """Return the number of images of `box` pixels to preprocess at a time: 16 MB."""
    return max(1, 2**22 // box**2)


def _centre(
    raw: torch.Tensor, shifts: torch.Tensor, pixel_size: float, premultiplied_ctf: CtfParameters | None
) -> torch.Tensor:
    """Return (b, D, D) images with the particle at D//2, multiplied by the CTF only once."""
    box = raw.shape[-1]
    transforms = image_to_fourier(raw) * translation_phases(shifts / pixel_size, box)
    if premultiplied_ctf is not None:
        ctf = _real_ctf(premultiplied_ctf, box, pixel_size)
        transforms = transforms * (ctf / (ctf.square() + _CTF_FLOOR))
    return fourier_to_image(transforms, box)


def _real_ctf(parameters: CtfParameters, box: int, pixel_size: float) -> torch.Tensor:
    """Return the (b, box, box//2+1) CTF without odd aberrations, which images are multiplied by."""
    real = replace(
        parameters,
        beam_tilt=torch.zeros_like(parameters.beam_tilt),
        odd_zernike=torch.zeros_like(parameters.odd_zernike),
    )
    return evaluate_ctf(real, box, pixel_size)


def restored_noise(parameters: CtfParameters, box: int, pixel_size: float) -> torch.Tensor:
    """Return the (b, box, box//2+1) fraction of noise power after a multiplication by the CTF is undone.

    It is 1 but near zeros of the CTF, and at high frequencies after a large exposure.
    """
    squared = _real_ctf(parameters, box, pixel_size).square()
    return (squared / (squared + _CTF_FLOOR)).square()


def _noise(
    images: torch.Tensor, pixel_size: float, preprocessing: Preprocessing, premultiplied_ctf: CtfParameters | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (b,) mean and standard deviation of the noise of centred images, outside the particle circle.

    Where exposure has removed noise with the signal, the deviation is that of the noise before.
    """
    box = images.shape[-1]
    diameter = preprocessing.circle_diameter(box, pixel_size)
    outside = image_radius(box, images.device) * pixel_size > diameter / 2
    if outside.float().mean() < _MIN_OUTSIDE:
        raise InputError(
            f"a particle diameter of {diameter:g} A in a box of {box * pixel_size:g} A leaves too few pixels "
            "outside to measure the noise; choose a smaller diameter"
        )
    deviation, mean = torch.std_mean(images[:, outside], dim=1)
    # Rounding alone gives about 1e-7 of the contrast.
    if (deviation <= 1e-5 * images.flatten(1).std(dim=1)).any():
        raise InputError("an image has no noise outside the particle circle to normalise by; choose normalise 'none'")
    if premultiplied_ctf is not None and premultiplied_ctf.exposure.any():
        deviation = deviation / restored_noise(premultiplied_ctf, box, pixel_size).mean((1, 2)).sqrt()
    return mean, deviation

"""The contrast transfer function, with the aberrations of RELION's optics table.

torch-ctf computes the symmetric phase of defocus, astigmatism, spherical aberration, amplitude contrast and phase
shift. RELION's Zernike coefficients multiply full Zernike polynomials of the frequency in 1/A, which torch-ctf does not
have. Those phases, the envelope and the scale are added here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import factorial
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch_ctf import calculate_ctf_2d

from dynamight_core.imaging.fourier import frequencies_2d

# Selects particles: a slice, a mask or indices.
Index = slice | Sequence[int] | torch.Tensor | NDArray[Any]


@dataclass
class CtfParameters:
    """CTF parameters of n particles; every array has one entry per particle.

    Parameters
    ----------
    defocus_u, defocus_v
        (n,) A, positive is underfocus.
    defocus_angle
        (n,) radians, from the x axis to the direction of `defocus_u`, as RELION measures it.
    phase_shift
        (n,) radians.
    voltage
        (n,) kV.
    spherical_aberration
        (n,) mm.
    amplitude_contrast
        (n,) fraction.
    b_factor
        (n,) A^2; the envelope is exp(-B s^2 / 4).
    scale
        (n,) factor on the CTF.
    beam_tilt
        (n, 2) mrad, x and y.
    odd_zernike, even_zernike
        (n, m) radians, RELION's order (rlnOddZernike, rlnEvenZernike); m may be 0.
    magnification
        (n, 2, 2) RELION's rlnMagMat: the image has the frequency M k at k.
    band
        (n,) 1/A, largest frequency along x or y that the image has; infinite for all of its own pixels.
    exposure
        (n,) e/A^2 that the specimen had received before the image; 0 is no attenuation by radiation damage.
    """

    defocus_u: torch.Tensor
    defocus_v: torch.Tensor
    defocus_angle: torch.Tensor
    phase_shift: torch.Tensor
    voltage: torch.Tensor
    spherical_aberration: torch.Tensor
    amplitude_contrast: torch.Tensor
    b_factor: torch.Tensor
    scale: torch.Tensor
    beam_tilt: torch.Tensor
    odd_zernike: torch.Tensor
    even_zernike: torch.Tensor
    magnification: torch.Tensor
    band: torch.Tensor
    exposure: torch.Tensor

    @classmethod
    def create(
        cls, defocus_u: ArrayLike | torch.Tensor, defocus_v: ArrayLike | torch.Tensor | None = None, **values: Any
    ) -> "CtfParameters":
        """Build parameters from (n,) defocus and any other field as a scalar or an array.

        Defaults: no astigmatism, 300 kV, 2.7 mm, amplitude contrast 0.1, no envelope and no aberrations.

        Raises
        ------
        TypeError
            if a name is not a field.
        """
        defocus_u = torch.as_tensor(defocus_u, dtype=torch.float32)
        n = len(defocus_u)
        neutral = {
            "defocus_v": defocus_u,
            "defocus_angle": 0.0,
            "phase_shift": 0.0,
            "voltage": 300.0,
            "spherical_aberration": 2.7,
            "amplitude_contrast": 0.1,
            "b_factor": 0.0,
            "scale": 1.0,
            "band": torch.inf,
            "exposure": 0.0,
        }
        if defocus_v is not None:
            values["defocus_v"] = defocus_v
        arrays = {
            name: torch.as_tensor(values.pop(name, default), dtype=torch.float32).expand(n).clone()
            for name, default in neutral.items()
        }
        matrices = {
            "beam_tilt": torch.zeros(n, 2),
            "odd_zernike": torch.zeros(n, 0),
            "even_zernike": torch.zeros(n, 0),
            "magnification": torch.eye(2).expand(n, 2, 2),
        }
        for name, default in matrices.items():
            value = torch.as_tensor(values.pop(name, default), dtype=torch.float32)
            arrays[name] = value.expand(n, *value.shape[-(default.ndim - 1) :]).clone()
        if values:
            raise TypeError(f"unknown CTF parameters: {', '.join(values)}")
        return cls(defocus_u=defocus_u, **arrays)

    def __len__(self) -> int:
        return len(self.defocus_u)

    def __getitem__(self, index: Index) -> "CtfParameters":
        """Return the parameters of the particles that `index` (slice, mask or indices) selects."""
        return CtfParameters(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "CtfParameters":
        """Return a copy on `device`."""
        return CtfParameters(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def has_odd_aberrations(self) -> bool:
        """Whether beam tilt or odd Zernike terms make the transfer function complex."""
        return bool(self.beam_tilt.any()) or bool(self.odd_zernike.any())


def evaluate_ctf(parameters: CtfParameters, box: int, pixel_size: float) -> torch.Tensor:
    """Return the transfer function of each particle on the half plane.

    CTF = scale * exp(-B s^2/4) * sin(gamma) with gamma = pi lambda dz s^2 - pi/2 Cs lambda^3 s^4 + asin(Q0) +
    phase shift - even Zernike phase (RELION's sign), times exp(i odd phase) for beam tilt or odd Zernike terms.
    White contrast: image = CTF * projection. The CTF is zero beyond an image's band. After an exposure, it is
    multiplied by `remaining_signal`.

    Parameters
    ----------
    parameters
        of n particles.
    box, pixel_size
        of the images, pixels and A.

    Returns
    -------
    torch.Tensor
        (n, box, box//2+1), origin in the corner; complex if any odd aberration is present, otherwise real.
    """
    p = parameters
    device = p.defocus_u.device
    sheared = (p.magnification != torch.eye(2, device=device)).any()
    if sheared and len(torch.unique(p.magnification.reshape(-1, 4), dim=0)) > 1:
        # torch-ctf takes one magnification matrix per call.
        groups = torch.unique(p.magnification.reshape(-1, 4), dim=0, return_inverse=True)[1]
        dtype = torch.complex64 if p.has_odd_aberrations else torch.float32
        out = torch.empty(len(p), box, box // 2 + 1, dtype=dtype, device=device)
        for group in groups.unique():
            out[groups == group] = evaluate_ctf(p[groups == group], box, pixel_size).to(dtype)
        return out

    defocus_u, defocus_v, angle = p.defocus_u, p.defocus_v, p.defocus_angle
    # torch-ctf needs positive astigmatism: let u be the larger axis.
    swap = defocus_u < defocus_v
    defocus_u, defocus_v = torch.where(swap, defocus_v, defocus_u), torch.where(swap, defocus_u, defocus_v)
    angle = torch.where(swap, angle + torch.pi / 2, angle)
    matrix = p.magnification[0] if sheared else None
    wave = calculate_ctf_2d(
        defocus=(defocus_u + defocus_v) / 2e4,
        astigmatism=(defocus_u - defocus_v) / 2e4,
        # torch-ctf 0.6 measures it from the x axis, as RELION does; its docstring differs.
        astigmatism_angle=torch.rad2deg(angle),
        voltage=p.voltage,
        spherical_aberration=p.spherical_aberration,
        amplitude_contrast=p.amplitude_contrast,
        phase_shift=torch.rad2deg(p.phase_shift),
        pixel_size=pixel_size,
        image_shape=(box, box),
        rfft=True,
        fftshift=False,
        # torch-ctf maps frequencies (y, x) by the inverse transpose of this matrix; RELION's M maps (x, y) itself.
        transform_matrix=None if matrix is None else torch.linalg.inv(matrix).T.flip(0, 1),
        return_complex_ctf=True,
    )
    frequency = frequencies_2d(box, device) / pixel_size
    if matrix is not None:
        frequency = frequency @ matrix.T
    if p.even_zernike.any():
        even = zernike_phase(p.even_zernike, frequency, odd=False)
        wave = wave * torch.polar(torch.ones_like(even), -even)
    ctf = wave.imag
    if p.b_factor.any():
        ctf = ctf * torch.exp(-p.b_factor[:, None, None] / 4 * frequency.square().sum(-1))
    ctf = ctf * p.scale[:, None, None]
    if p.exposure.any():
        ctf = ctf * remaining_signal(p.exposure, frequency.norm(dim=-1))
    if p.has_odd_aberrations:
        odd = zernike_phase(p.odd_zernike, frequency, odd=True) + beam_tilt_phase(p, frequency)
        ctf = ctf * torch.polar(torch.ones_like(odd), odd)
    if p.band.isfinite().any():
        ctf = ctf * (frequencies_2d(box, device).abs().amax(-1) / pixel_size <= p.band[:, None, None])
    return ctf


def remaining_signal(exposure: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Return the amplitude that radiation damage leaves of a signal, from 0 to 1.

    exp(-N / 2 N_c) with the critical exposure N_c = 0.245 k^-1.665 + 2.81 e/A^2 (Grant & Grigorieff, eLife 2015), at
    any voltage as in RELION.

    Parameters
    ----------
    exposure
        (n,) N, e/A^2.
    frequency
        (...) k, 1/A.

    Returns
    -------
    torch.Tensor
        (n, ...).
    """
    # At the origin, the critical exposure is infinite.
    critical = 0.245 * frequency.clamp(min=1e-6) ** -1.665 + 2.81
    return torch.exp(-exposure.reshape(-1, *[1] * frequency.ndim) / (2 * critical))


def electron_wavelength(voltage: torch.Tensor) -> torch.Tensor:
    """Return the relativistic electron wavelength (A) at `voltage` (kV)."""
    volts = voltage * 1e3
    return 12.2643247 / torch.sqrt(volts * (1 + volts * 0.978466e-6))


def beam_tilt_phase(parameters: CtfParameters, frequency: torch.Tensor) -> torch.Tensor:
    """Return the axial-coma phase -2 pi Cs lambda^2 s^2 (s . tilt) of a beam tilt, radians, (n, box, box//2+1).

    `frequency` is (box, box//2+1, 2) in 1/A; the sign is that of RELION's image model (image = exp(i phase) * ...).
    """
    p = parameters
    along = torch.einsum("hwc,nc->nhw", frequency, p.beam_tilt * 1e-3)
    factor = -2 * torch.pi * p.spherical_aberration * 1e7 * electron_wavelength(p.voltage) ** 2
    return factor[:, None, None] * frequency.square().sum(-1) * along


def zernike_phase(coefficients: torch.Tensor, frequency: torch.Tensor, odd: bool) -> torch.Tensor:
    """Return the phase of RELION's Zernike coefficients.

    RELION lists the odd terms as Z(1,-1), Z(1,1), Z(3,-3) ... and the even ones as Z(0,0), Z(2,-2), Z(2,0) ...;
    the radius of the polynomials is the frequency in 1/A, not scaled to the unit disc.

    Parameters
    ----------
    coefficients
        (n, m) radians.
    frequency
        (box, box//2+1, 2) in 1/A.
    odd
        whether the list contains the odd or the even terms.

    Returns
    -------
    torch.Tensor
        (n, box, box//2+1) radians.
    """
    radius = frequency.norm(dim=-1)
    theta = torch.atan2(frequency[..., 1], frequency[..., 0])
    phase = torch.zeros(len(coefficients), *radius.shape, device=frequency.device)
    order, index = int(odd), 0
    while index < coefficients.shape[1]:
        for m in range(-order, order + 1, 2):
            if index < coefficients.shape[1] and coefficients[:, index].any():
                radial = sum(
                    (-1) ** k
                    * factorial(order - k)
                    / (factorial(k) * factorial((order + abs(m)) // 2 - k) * factorial((order - abs(m)) // 2 - k))
                    * radius ** (order - 2 * k)
                    for k in range((order - abs(m)) // 2 + 1)
                )
                angular = torch.cos(m * theta) if m >= 0 else torch.sin(-m * theta)
                phase = phase + coefficients[:, index, None, None] * radial * angular
            index += 1
        order += 2
    return phase

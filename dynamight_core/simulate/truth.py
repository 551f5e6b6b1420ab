"""The truth of a simulated data set, in truth.npz."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_volume, frequencies_2d, frequencies_3d, translation_phases
from dynamight_core.imaging.geometry import grid_points, to_points, to_voxels
from dynamight_core.imaging.masks import raised_cosine
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.imaging.projector import Projector
from dynamight_core.simulate.molecules import Molecule

Indices = slice | torch.Tensor

README = """\
Truth of a simulated data set. Lengths in A, angles in degrees, points (x, y, z) with the origin at voxel box//2.
n atoms, p particles in the order of particles.star, d moving domains.
positions          (n, 3) atoms at angle 0
weights            (n,) scattering weight of each atom
moving             (n,) domain of each atom: 0 is at rest, k >= 1 rotates about axis k - 1
axis_points        (d, 3) a point on each axis
axis_directions    (d, 3) unit vectors; rotations are right-handed
atom_sigma         standard deviation of the Gaussian that blurs every atom
angles             (p, d) rotation of each domain in each particle
euler              (p, 3) rot, tilt, psi of RELION
origins            (p, 2) rlnOriginXAngst, rlnOriginYAngst
half               (p,) rlnRandomSubset
scale              grey value of the images per unit weight: image = CTF * scale * sum of blurred weights
noise_power        (box//2 + 1,) noise power per shell of frequency, mean 1 over the image: the noise variance is 1
snr                variance of the projections before the CTF, inside the particle disc, over the noise variance
particle_diameter  of that disc
box, pixel_size    of the images
ctf_*              (p, ...) CTF parameters (defocus in A, voltage in kV, Cs in mm, angles and aberrations in radians)
Atom j of particle i lies at c + R(angle) (positions[j] - c), with c = axis_points[moving[j] - 1] and R the
rotation about axis_directions[moving[j] - 1]; atoms with moving = 0 stay at positions[j].
"""
_NUMBERS = ("pixel_size", "particle_diameter", "snr", "scale")
_MOLECULE = ("positions", "weights", "moving", "axis_points", "axis_directions")


@dataclass
class Truth:
    """A molecule and, for each of p particles, its conformation, pose and optics.

    Parameters
    ----------
    molecule
        at angle 0.
    angles
        (p, domains) radians.
    euler
        (p, 3) rot, tilt, psi in radians.
    origins
        (p, 2) A, as rlnOriginX/YAngst.
    ctf
        of p particles.
    half
        (p,) 1 or 2.
    box, pixel_size
        of the images, pixels and A.
    particle_diameter
        A.
    noise_power
        (box//2+1,) power of the noise per shell; its mean over all frequencies is 1.
    snr
        of the data set.
    scale
        grey value per unit weight.
    """

    molecule: Molecule
    angles: torch.Tensor
    euler: torch.Tensor
    origins: torch.Tensor
    ctf: CtfParameters
    half: torch.Tensor
    box: int
    pixel_size: float
    particle_diameter: float
    noise_power: torch.Tensor
    snr: float
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.angles)

    def positions(self, indices: Indices) -> torch.Tensor:
        """Return the true (b, n, 3) positions (A) of all atoms in the particles `indices` (slice, mask or indices)."""
        return self.molecule.positions_at(self.angles[indices])

    def domains(self, points: torch.Tensor) -> torch.Tensor:
        """Return the (m,) domains of the nearest atoms of (m, 3) points (A, at angle 0)."""
        nearest = cKDTree(self.molecule.positions.numpy()).query(torch.as_tensor(points).numpy())[1]
        return self.molecule.moving[nearest]

    def displacements(self, points: torch.Tensor, indices: Indices) -> torch.Tensor:
        """Return the true displacements of points of the molecule at angle 0.

        Parameters
        ----------
        points
            (m, 3) A; each moves with the domain of its nearest atom.
        indices
            of b particles: slice, mask or indices.

        Returns
        -------
        torch.Tensor
            (b, m, 3) A.
        """
        return self.molecule.move(points, self.domains(points), self.angles[indices]) - points

    def project(self, indices: Indices, angles: torch.Tensor | None = None, domain: int | None = None) -> torch.Tensor:
        """Return the transforms of particles before the CTF, unshifted.

        Parameters
        ----------
        indices
            of b particles: slice, mask or indices.
        angles
            (b,) or (b, domains) radians instead of the true ones.
        domain
            of the atoms to project, 0 for the one at rest; all if None.

        Returns
        -------
        torch.Tensor
            (b, box, box//2+1) complex.
        """
        molecule, magnification = self.molecule, self.ctf.magnification[indices]
        matrices = rotation_matrices(self.euler[indices])[:, :2]
        # Frequency M k is at k in the image: points of the undistorted image are multiplied by the transpose of M.
        matrices = magnification.transpose(1, 2) @ matrices
        if domain is not None:
            molecule = molecule.domain(domain)
        positions = molecule.positions_at(self.angles[indices] if angles is None else angles)
        projector = Projector(self.box, self.pixel_size, oversampling=2)
        frequency = frequencies_2d(self.box) / self.pixel_size @ magnification.transpose(1, 2)[:, None]
        blur = torch.exp(-2 * torch.pi**2 * molecule.atom_sigma**2 * frequency.square().sum(-1))
        return self.scale * blur * projector.project(positions, molecule.weights, matrices)

    def clean_transforms(self, indices: Indices, angles: torch.Tensor | None = None) -> torch.Tensor:
        """Return the transforms of noise-free particle images: `project`, shifted and times the CTF."""
        transforms = self.project(indices, angles)
        shifts = translation_phases(-self.origins[indices] / self.pixel_size, self.box)
        return transforms * shifts * evaluate_ctf(self.ctf[indices], self.box, self.pixel_size)

    def true_map(
        self, angle: float | torch.Tensor = 0.0, box: int | None = None, pixel_size: float | None = None
    ) -> torch.Tensor:
        """Return the map of a perfect reconstruction of one conformation, on its grey scale.

        Parameters
        ----------
        angle
            radians: one number for all domains, or (b,) or (b, domains).
        box, pixel_size
            of the map; if None, of the images.

        Returns
        -------
        torch.Tensor
            (box, box, box), or (b, box, box, box) if `angle` is an array; [z, y, x].
        """
        angles = torch.as_tensor(angle, dtype=torch.float32)
        box, pixel_size = box or self.box, pixel_size or self.pixel_size
        single = angles.ndim == 0
        angles = angles.expand(1, self.molecule.n_domains) if single else angles
        volumes = torch.stack([self._density(p, box, pixel_size) for p in self.molecule.positions_at(angles)])
        # Sums along z are the images; grey values do not depend on the pixel size.
        volumes = volumes * (self.scale * (self.pixel_size / pixel_size) ** 3)
        return volumes[0] if single else volumes

    def _density(self, positions: torch.Tensor, box: int, pixel_size: float) -> torch.Tensor:
        """Return the blurred atoms as a (box, box, box) density whose sum is that of the weights."""
        frequency = frequencies_3d(box) / pixel_size
        fine = 2 * box
        points = to_voxels(positions, fine, pixel_size / 2)
        corner = points.floor()
        fraction = points - corner
        grid = torch.zeros(fine**3)
        for offset in torch.cartesian_prod(*[torch.arange(2)] * 3):
            part = torch.where(offset.bool(), fraction, 1 - fraction).prod(-1)
            index = corner.long() + offset
            inside = ((index >= 0) & (index < fine)).all(-1)
            flat = (index[:, 2] * fine + index[:, 1]) * fine + index[:, 0]
            grid.index_add_(0, flat[inside], (part * self.molecule.weights)[inside])
        transform = torch.fft.rfftn(torch.fft.ifftshift(grid.reshape(fine, fine, fine)))
        half = box // 2
        keep = torch.cat([torch.arange(box - half), torch.arange(fine - half, fine)])
        transform = transform[keep][:, keep][:, :, : half + 1]
        kernel = torch.sinc(frequency * pixel_size / 2).square().prod(-1)
        blur = torch.exp(-2 * torch.pi**2 * self.molecule.atom_sigma**2 * frequency.square().sum(-1))
        return fourier_to_volume(transform * blur / kernel, box)

    def domain_mask(
        self,
        label: int,
        box: int | None = None,
        pixel_size: float | None = None,
        soft_edge: float = 6.0,
        radius: float = 6.0,
    ) -> torch.Tensor:
        """Return a mask around one domain at angle 0.

        Parameters
        ----------
        label
            domain, 0 for the one at rest.
        box, pixel_size
            of the mask; if None, of the images.
        soft_edge
            A, width of the raised-cosine edge outside `radius`.
        radius
            A around each atom, inside which the mask is 1.

        Returns
        -------
        torch.Tensor
            (box, box, box) from 0 to 1, [z, y, x].
        """
        box, pixel_size = box or self.box, pixel_size or self.pixel_size
        atoms = self.molecule.positions[self.molecule.moving == label].numpy()
        voxels = grid_points(to_points(np.arange(float(box)), box, pixel_size))
        distance = cKDTree(atoms).query(voxels, distance_upper_bound=radius + soft_edge)[0]
        mask = raised_cosine((distance - radius) / soft_edge)
        return torch.tensor(mask.reshape(box, box, box), dtype=torch.float32)

    def save(self, path: str | Path) -> None:
        """Write truth.npz; its key `readme` describes the others."""
        molecule = self.molecule
        arrays = {name: getattr(molecule, name) for name in _MOLECULE} | {
            "angles": torch.rad2deg(self.angles),
            "euler": torch.rad2deg(self.euler),
            "origins": self.origins,
            "half": self.half,
            "noise_power": self.noise_power,
        }
        arrays |= {f"ctf_{f.name}": getattr(self.ctf, f.name) for f in fields(CtfParameters)}
        numbers = {name: getattr(self, name) for name in ("box", *_NUMBERS)}
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                readme=np.array(README.splitlines()),
                **{name: array.numpy() for name, array in arrays.items()},
                atom_sigma=molecule.atom_sigma,
                **numbers,
            )


def load_truth(path: str | Path) -> Truth:
    """Read the truth of a simulated data set from its truth.npz.

    Raises
    ------
    InputError
        if the file is missing or was not written by `dynamight simulate`.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            values = {name: torch.from_numpy(data[name]) for name in data.files if data[name].dtype.kind in "fi"}
    except FileNotFoundError as error:
        raise InputError(f"truth {path} does not exist; use the truth.npz of a simulated data set") from error
    except (OSError, ValueError) as error:
        raise InputError(f"truth {path} cannot be read ({error}); use the truth.npz of a simulated data set") from error
    try:
        ctf = CtfParameters(**{f.name: values[f"ctf_{f.name}"] for f in fields(CtfParameters)})
        molecule = Molecule(**{name: values[name] for name in _MOLECULE}, atom_sigma=float(values["atom_sigma"]))
        return Truth(
            molecule=molecule,
            angles=torch.deg2rad(values["angles"]),
            euler=torch.deg2rad(values["euler"]),
            origins=values["origins"],
            ctf=ctf,
            half=values["half"],
            box=int(values["box"]),
            noise_power=values["noise_power"],
            **{name: float(values[name]) for name in _NUMBERS},
        )
    except KeyError as error:
        raise InputError(f"truth {path} lacks {error}; use the truth.npz of a simulated data set") from error

"""The truth of a simulated data set, in truth.npz."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.image_series import ImageSeries
from dynamight_core.imaging.ctf import CtfParameters, evaluate_ctf
from dynamight_core.imaging.fourier import fourier_to_volume, frequencies_2d, frequencies_3d, translation_phases
from dynamight_core.imaging.geometry import grid_points, to_points, to_voxels
from dynamight_core.imaging.masks import raised_cosine
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.imaging.projector import Projector
from dynamight_core.simulate.molecules import Molecule, rigid_molecule

Indices = slice | torch.Tensor

README = """\
Truth of a simulated data set. Lengths in A, angles in degrees, points (x, y, z) with the origin at voxel box//2.
n atoms, p particles in the order of particles.star, d moving domains.
positions          (n, 3) atoms at rest
weights            (n,) scattering weight of each atom
moving             (n,) domain of each atom: 0 is at rest, k >= 1 moves about axis or pivot k - 1
axis_points        (d, 3) a point on each axis, or the pivot
axis_directions    (d, 3) unit vectors, of a linker its mean direction; rotations are right-handed
atom_sigma         standard deviation of the Gaussian that blurs every atom
rotations          (p, d, 3) rotation vector of each domain in each particle
shifts             (p, d, 3) shift of the point on the axis, or of the pivot
angles             (p, d) component of the rotation vector along the axis: the rotation of a domain on an axis
present            (p, d) 1, or 0 where the domain is missing
content            (p,) 0 the molecule, 1 noise alone, 2 another molecule
euler              (p, 3) rot, tilt, psi of RELION
origins            (p, 2) rlnOriginXAngst, rlnOriginYAngst
star_euler         (p, 3) euler as particles.star has it, with its errors
star_origins       (p, 2) origins as particles.star has them, with their errors
half               (p,) rlnRandomSubset
scale              grey value of the images per unit weight: image = CTF * scale * sum of blurred weights
noise_power        (box//2 + 1,) noise power per shell of frequency, mean 1 over the image: the noise variance is 1
snr                variance of the signal over the noise variance, by the definition that was asked for
particle_diameter  of the disc that the signal before the CTF is measured in
box, pixel_size    of the images
other_*            positions and weights of the other molecule
ctf_*              (p, ...) CTF parameters (defocus in A, voltage in kV, Cs in mm, angles and aberrations in radians)
particle           (p,) of tilt series alone, where p are images: the particle of each, from 0
ctf_exposure       (p,) of tilt series alone, e/A^2 before the image
Atom j of particle i lies at c + shift + R (positions[j] - c), with c = axis_points[moving[j] - 1] and R the rotation by
the rotation vector; atoms with moving = 0 stay at positions[j].
"""
_NUMBERS = ("pixel_size", "particle_diameter", "snr", "scale")
# Simulated images have all frequencies of their pixels. Only tilts have exposures.
_CTF = tuple(f.name for f in fields(CtfParameters) if f.name not in ("band", "exposure"))
_MOLECULE = ("positions", "weights", "moving", "axis_points", "axis_directions")
_PARTICLES = ("present", "content", "origins", "star_origins", "half")
PARTICLE, NOISE, OTHER = 0, 1, 2


@dataclass
class Truth:
    """A molecule and, for each of p particles, its conformation, pose and optics.

    Parameters
    ----------
    molecule
        at rest.
    motions
        (p, domains, 6) rotation vectors in radians and shifts in A, as in `Molecule.move`.
    present
        (p, domains) 1, or 0 where a domain is missing.
    content
        (p,) `PARTICLE`, `NOISE` or `OTHER`.
    euler, star_euler
        (p, 3) rot, tilt, psi in radians: true, and as in the STAR file.
    origins, star_origins
        (p, 2) A, as rlnOriginX/YAngst: true, and as in the STAR file.
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
    other
        what images with content `OTHER` show; it does not move.
    scale
        grey value per unit weight.
    particle
        (p,) of tilt series, where p are images: the particle of each, from 0; None with one image for each particle.
    """

    molecule: Molecule
    motions: torch.Tensor
    present: torch.Tensor
    content: torch.Tensor
    euler: torch.Tensor
    origins: torch.Tensor
    star_euler: torch.Tensor
    star_origins: torch.Tensor
    ctf: CtfParameters
    half: torch.Tensor
    box: int
    pixel_size: float
    particle_diameter: float
    noise_power: torch.Tensor
    snr: float
    other: Molecule
    scale: float = 1.0
    particle: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.motions)

    def of_particles(self) -> "Truth":
        """Return the truth of particles: of tilt series, with the first image of each alone."""
        if self.particle is None:
            return self
        first = ImageSeries(self.particle).first
        names = ("motions", "present", "content", "euler", "origins", "star_euler", "star_origins", "ctf", "half")
        return replace(self, particle=None, **{name: getattr(self, name)[first] for name in names})

    @property
    def angles(self) -> torch.Tensor:
        """Rotation of each domain about its axis, (p, domains) radians; of a linker, the component along its mean."""
        return (self.motions[..., :3] * self.molecule.axis_directions).sum(-1)

    def positions(self, indices: Indices) -> torch.Tensor:
        """Return the true (b, n, 3) positions (A) of all atoms in the particles `indices` (slice, mask or indices)."""
        return self.molecule.positions_at(self.motions[indices])

    def domains(self, points: torch.Tensor, frame: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (m,) domains of the nearest atoms of (m, 3) points (A); `frame` as in `at_rest`."""
        return self.at_rest(points, frame)[0]

    def at_rest(self, points: torch.Tensor, frame: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (m,) domains of (m, 3) points (A) of one conformation, and where they are at rest, (m, 3) A.

        Parameters
        ----------
        points
            each belongs to the domain of its nearest atom.
        frame
            (domains, 6) motions of the conformation; at rest if None.
        """
        frame = torch.zeros(self.molecule.n_domains, 6) if frame is None else frame
        atoms = self.molecule.positions_at(frame[None])[0]
        nearest = cKDTree(atoms.numpy()).query(torch.as_tensor(points).numpy())[1]
        labels = self.molecule.moving[nearest]
        return labels, self.molecule.move_back(points, labels, frame)

    def displacements(self, points: torch.Tensor, indices: Indices, frame: torch.Tensor | None = None) -> torch.Tensor:
        """Return the true displacements of points of the molecule.

        Parameters
        ----------
        points
            (m, 3) A; each moves with the domain of its nearest atom.
        indices
            of b particles: slice, mask or indices.
        frame
            (domains, 6) motions of the conformation that the points are of; at rest if None.

        Returns
        -------
        torch.Tensor
            (b, m, 3) A.
        """
        labels, rest = self.at_rest(points, frame)
        return self.molecule.move(rest, labels, self.motions[indices]) - points

    def project(self, indices: Indices, motions: torch.Tensor | None = None, domain: int | None = None) -> torch.Tensor:
        """Return the transforms of particles before the CTF, unshifted.

        Parameters
        ----------
        indices
            of b particles: slice, mask or indices.
        motions
            of b particles in a form that `Molecule.move` takes, instead of the true ones.
        domain
            of the atoms to project, 0 for the one at rest; all if None.

        Returns
        -------
        torch.Tensor
            (b, box, box//2+1) complex.
        """
        molecule, content = self.molecule, self.content[indices]
        if domain is not None:
            molecule = molecule.domain(domain)
        positions = molecule.positions_at(self.motions[indices] if motions is None else motions)
        present = (
            torch.cat([torch.ones(len(content), 1), self.present[indices].float()], 1) * (content == PARTICLE)[:, None]
        )
        transforms = self._project(indices, positions, molecule.weights * present[:, molecule.moving])
        shown = content == OTHER
        if domain is None and shown.any():
            rows = torch.arange(len(self))[indices][shown]
            transforms[shown] = self._project(rows, self.other.positions, self.other.weights)
        return transforms

    def _project(self, indices: Indices, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the transforms of blurred atoms at (n, 3) or (b, n, 3) A with (n,) or (b, n) weights."""
        magnification = self.ctf.magnification[indices]
        projector = Projector(self.box, self.pixel_size, oversampling=2)
        frequency = frequencies_2d(self.box) / self.pixel_size @ magnification.transpose(1, 2)[:, None]
        blur = torch.exp(-2 * torch.pi**2 * self.molecule.atom_sigma**2 * frequency.square().sum(-1))
        return self.scale * blur * projector.project(positions, weights, self.matrices(indices))

    def clean_transforms(self, indices: Indices, motions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the transforms of noise-free particle images: `project`, shifted and times the CTF."""
        return self.project(indices, motions) * self.transfer(indices)

    def transfer(self, indices: Indices) -> torch.Tensor:
        """Return the (b, box, box//2+1) complex factors that shift projections and apply the CTF."""
        shifts = translation_phases(-self.origins[indices] / self.pixel_size, self.box)
        return shifts * evaluate_ctf(self.ctf[indices], self.box, self.pixel_size)

    def matrices(self, indices: Indices) -> torch.Tensor:
        """Return (b, 2, 3) ``x_image = A x_volume``, with the magnification."""
        return self._matrices(indices, self.euler)

    def star_matrices(self) -> torch.Tensor:
        """Return the (p, 2, 3) matrices of `matrices` for the angles in the STAR file."""
        return self._matrices(slice(None), self.star_euler)

    def _matrices(self, indices: Indices, euler: torch.Tensor) -> torch.Tensor:
        # Frequency M k is at k in the image: points of the undistorted image are multiplied by the transpose of M.
        return self.ctf.magnification[indices].transpose(1, 2) @ rotation_matrices(euler[indices])[:, :2]

    def true_map(
        self, motion: float | torch.Tensor = 0.0, box: int | None = None, pixel_size: float | None = None
    ) -> torch.Tensor:
        """Return the map of a perfect reconstruction of one conformation, on its grey scale.

        Parameters
        ----------
        motion
            one angle in radians for all domains, or b motions in a form that `Molecule.move` takes.
        box, pixel_size
            of the map; if None, of the images.

        Returns
        -------
        torch.Tensor
            (box, box, box), or (b, box, box, box) if `motion` is an array; [z, y, x].
        """
        motions = torch.as_tensor(motion, dtype=torch.float32)
        box, pixel_size = box or self.box, pixel_size or self.pixel_size
        single = motions.ndim == 0
        motions = motions.expand(1, self.molecule.n_domains) if single else motions
        volumes = torch.stack([self._density(p, box, pixel_size) for p in self.molecule.positions_at(motions)])
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
        motion: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a mask around one domain.

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
        motion
            (domains, 6) of the conformation; at rest if None.

        Returns
        -------
        torch.Tensor
            (box, box, box) from 0 to 1, [z, y, x].
        """
        box, pixel_size = box or self.box, pixel_size or self.pixel_size
        motions = torch.zeros(1, self.molecule.n_domains) if motion is None else motion[None]
        atoms = self.molecule.domain(label).positions_at(motions)[0].numpy()
        voxels = grid_points(to_points(np.arange(float(box)), box, pixel_size))
        distance = cKDTree(atoms).query(voxels, distance_upper_bound=radius + soft_edge)[0]
        mask = raised_cosine((distance - radius) / soft_edge)
        return torch.tensor(mask.reshape(box, box, box), dtype=torch.float32)

    def save(self, path: str | Path) -> None:
        """Write truth.npz; its key `readme` describes the others."""
        molecule = self.molecule
        arrays = {name: getattr(molecule, name) for name in _MOLECULE}
        arrays |= {name: getattr(self, name) for name in (*_PARTICLES, "noise_power")}
        arrays |= {name: torch.rad2deg(getattr(self, name)) for name in ("angles", "euler", "star_euler")}
        arrays |= {"rotations": torch.rad2deg(self.motions[..., :3]), "shifts": self.motions[..., 3:]}
        arrays |= {"other_positions": self.other.positions, "other_weights": self.other.weights}
        arrays |= {f"ctf_{name}": getattr(self.ctf, name) for name in _CTF}
        if self.particle is not None:
            arrays |= {"particle": self.particle, "ctf_exposure": self.ctf.exposure}
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
        names = (*_CTF, "exposure") if "particle" in values else _CTF
        ctf = CtfParameters.create(**{name: values[f"ctf_{name}"] for name in names})
        molecule = Molecule(**{name: values[name] for name in _MOLECULE}, atom_sigma=float(values["atom_sigma"]))
        _complete(values, molecule)
        rotations = torch.deg2rad(values["rotations"])
        return Truth(
            molecule=molecule,
            motions=torch.cat([rotations, values["shifts"]], -1),
            euler=torch.deg2rad(values["euler"]),
            star_euler=torch.deg2rad(values["star_euler"]),
            ctf=ctf,
            box=int(values["box"]),
            noise_power=values["noise_power"],
            other=rigid_molecule(values["other_positions"], values["other_weights"], molecule.atom_sigma),
            particle=values.get("particle"),
            **_given(values),
        )
    except KeyError as error:
        raise InputError(f"truth {path} lacks {error}; use the truth.npz of a simulated data set") from error


def _given(values: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the arrays and numbers of a truth.npz that are fields of `Truth`, by name."""
    numbers = {name: float(values[name]) for name in _NUMBERS}
    return numbers | {name: values[name] for name in _PARTICLES}


def _complete(values: dict[str, torch.Tensor], molecule: Molecule) -> None:
    """Add what a truth.npz of version 0.1.0 lacks: rotations about axes alone, nothing missing, right poses."""
    if "rotations" in values:
        return
    n, d = values["angles"].shape
    values["rotations"] = values["angles"][..., None] * molecule.axis_directions
    values["shifts"] = torch.zeros(n, d, 3)
    values |= {"present": torch.ones(n, d, dtype=torch.long), "content": torch.zeros(n, dtype=torch.long)}
    values |= {"star_euler": values["euler"], "star_origins": values["origins"]}
    values |= {"other_positions": torch.zeros(0, 3), "other_weights": torch.zeros(0)}

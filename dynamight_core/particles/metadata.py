"""Particles of a STAR or .cs file: poses, CTFs, half-sets, and the location of their images.

RELION 3.0 wrote a single table, with origins in pixels and the pixel size from detector and magnification; 3.1 and
later have an optics table and origins in Angstrom. Both become one `Particles`, whose table keeps every column as text,
so that it can be written back unchanged. Files of cryoSPARC are converted to RELION's tables first.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import CtfParameters, Index
from dynamight_core.imaging.poses import euler_angles, rotation_matrices, rotvec_to_rotmat
from dynamight_core.particles import cryosparc
from dynamight_core.particles.columns import Columns
from dynamight_core.particles.grid import band_of, choose_grid, describe_sizes
from dynamight_core.particles.stacks import find_stack
from dynamight_core.particles.star import read_blocks, unquoted, write_star
from dynamight_core.registry import INPUT_FORMATS


@dataclass
class Particles:
    """n particle images and their metadata; arrays follow the rows of the STAR file.

    Parameters
    ----------
    star_path
        the file they were read from.
    table, optics
        its rows and its optics table (None before RELION 3.1), all columns, every value as text.
    block
        name of the data block with the rows.
    box, pixel_size
        of the images, pixels and A; of the map, if images of several sizes are resampled to it.
    angles
        (n, 3) rot, tilt, psi in radians.
    shifts
        (n, 2) rlnOriginX/YAngst in A: the particle's centre lies at ``box // 2 - shift / pixel_size``.
    ctf
        parameters of n particles.
    stacks
        the image stacks.
    stack_index, frame
        (n,) index in `stacks` and of the image in its stack, from 0.
    halves
        (n,) int8, 1 or 2 (rlnRandomSubset), all 0 if the file has no half-sets.
    image_groups
        (n,) int64; rows of the same image (symmetry expansion) have the same number.
    norm_correction
        (n,) rlnNormCorrection over its mean in the file, 1 without the column. RELION divides the image by it.
    premultiplied
        whether the images were multiplied by their CTF.
    contrast
        (n,) int8, 1, or -1 for an image in which the particle is dark (blob/sign of cryoSPARC).
    records
        (n,) records of a .cs file of cryoSPARC, or None.
    sizes
        (n, 2) box (pixels) and pixel size (A) of the images in their stacks, or None if all are `box` and `pixel_size`.
    """

    star_path: Path
    table: pd.DataFrame
    optics: pd.DataFrame | None
    block: str
    box: int
    pixel_size: float
    angles: torch.Tensor
    shifts: torch.Tensor
    ctf: CtfParameters
    stacks: list[Path]
    stack_index: NDArray[np.int64]
    frame: NDArray[np.int64]
    halves: torch.Tensor
    image_groups: torch.Tensor
    norm_correction: torch.Tensor
    premultiplied: bool
    contrast: torch.Tensor
    records: cryosparc.Records | None = None
    sizes: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, index: Index) -> "Particles":
        """Return the particles that `index` (slice, mask or indices) selects; groups keep their numbers."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        at = torch.from_numpy(rows)
        per_particle = {
            f.name: getattr(self, f.name)[at]
            for f in fields(self)
            if f.name in ("angles", "shifts", "ctf", "halves", "image_groups", "norm_correction", "contrast")
        }
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            stack_index=self.stack_index[rows],
            frame=self.frame[rows],
            records=None if self.records is None else self.records[rows],
            sizes=None if self.sizes is None else self.sizes[rows],
            **per_particle,
        )

    def posed(self, changes: torch.Tensor) -> "Particles":
        """Return the particles in refined poses: (n, 5) rotation vectors (radians) of the images, and shifts (A)."""
        matrices = rotvec_to_rotmat(changes[:, :3]) @ rotation_matrices(self.angles)
        # The centre is at box//2 - origin / pixel size: a larger shift is a smaller origin.
        return replace(self, angles=euler_angles(matrices), shifts=self.shifts - changes[:, 3:])

    @property
    def matrices(self) -> torch.Tensor:
        """(n, 3, 3) rotation matrices with the magnification in the first two rows.

        An image has the true frequency M k at k: a point p of the undistorted projection appears at M^T p.
        """
        matrices = rotation_matrices(self.angles)
        matrices[:, :2] = self.ctf.magnification.transpose(1, 2) @ matrices[:, :2]
        return matrices

    def image_name(self, row: int) -> str:
        """Return the name of a row's image for messages, `index@path` with the index from 1."""
        return f"{self.frame[row] + 1}@{self.stacks[self.stack_index[row]]}"


def read_particles(
    star: str | Path,
    project: str | Path | None = None,
    passthrough: Sequence[str | Path] = (),
    volume: str | None = None,
) -> Particles:
    """Read the particles of a RELION STAR file (3.0 to 5), a .cs file, or a file in a format that a package adds.

    Paths of images may be absolute or relative to `project`, to the folder of the STAR file, to one of its parents (as
    in RELION projects) or to the working folder; the first that exists is used. Stacks are located but not read, except
    for the first header if the file has no box: `ImageReader` reads them.

    `passthrough` are files of cryoSPARC with further fields of a .cs file; see `cryosparc.read_records`. `volume` is
    the map to whose grid images of several boxes or pixel sizes are brought; without it, to that of most images.

    Raises
    ------
    InputError
        if the file cannot be used; the message has the reason and the cure.
    """
    star = Path(star)
    ending, records = star.suffix.removeprefix("."), None
    if ending == "cs":
        records = cryosparc.read_records(star, passthrough)
        blocks = cryosparc.relion_tables(star, records)
    elif passthrough:
        raise InputError(f"--passthrough is for .cs files of cryoSPARC, but the particles are in {star}; omit it")
    else:
        read = INPUT_FORMATS.load(ending) if ending in INPUT_FORMATS else read_blocks
        blocks = read(star)
    block, table = _particle_block(star, blocks)
    optics = blocks.get("optics")
    _refuse_tomography(star, blocks, table)
    columns = Columns(star, table, optics)
    angles, pixel_sizes = columns.angles(), columns.pixel_sizes()
    stacks, stack_index, frame = _find_images(star, table, project)
    sizes = np.stack([columns.boxes(stacks, stack_index), pixel_sizes], -1)
    box, pixel_size, mixed = choose_grid(star, sizes, volume)
    _, image_groups = np.unique(stack_index * (frame.max() + 1) + frame, return_inverse=True)
    norm_correction, ctf = columns.norm_correction(), columns.ctf()
    if mixed:
        ctf.band = torch.from_numpy(band_of(sizes, box, pixel_size)).float()
        # Normalised noise of coarser pixels fills only part of the spectrum, where it would be too strong.
        norm_correction = norm_correction * torch.from_numpy(np.maximum(pixel_sizes / pixel_size, 1)).float()
    return Particles(
        star_path=star,
        table=table,
        optics=optics,
        block=block,
        box=box,
        pixel_size=pixel_size,
        angles=angles,
        shifts=columns.shifts(pixel_sizes),
        ctf=ctf,
        stacks=stacks,
        stack_index=stack_index,
        frame=frame,
        halves=columns.halves(),
        image_groups=torch.from_numpy(image_groups.astype(np.int64)),
        norm_correction=norm_correction,
        premultiplied=columns.is_premultiplied(),
        contrast=columns.contrast(),
        records=records,
        sizes=sizes if mixed else None,
    )


def check_enough(particles: Particles, minimum: int = 200) -> None:
    """Refuse fewer particles than `minimum`.

    Raises
    ------
    InputError
        if there are fewer.
    """
    if len(particles) < minimum:
        raise InputError(
            f"{particles.star_path} holds {len(particles)} particles, too few to learn motion from; "
            f"give at least {minimum}"
        )


def write_particles(path: str | Path, particles: Particles, columns: dict[str, NDArray[Any]]) -> None:
    """Write the input rows of `particles`, in input order and dialect, with `columns` added.

    Particles that were read from a .cs file are also written as one, beside the STAR file.

    Parameters
    ----------
    path
        of the STAR file.
    particles
        whose table and optics are written, every value as it was read.
    columns
        (n,) arrays by label without the leading underscore; a label that the input has is overwritten.
    """
    table = particles.table.copy()
    for name, values in columns.items():
        if len(values) != len(table):
            raise ValueError(f"column {name} has {len(values)} values for {len(table)} particles")
        table[name] = np.asarray(values)
    write_star(path, table, particles.optics, particles.block)
    if particles.records is not None:
        halves = table.get("rlnRandomSubset")
        own = {name: values for name, values in columns.items() if name.startswith("dyn")}
        stacks = [particles.stacks[index] for index in particles.stack_index]
        cryosparc.write_records(
            Path(path).with_suffix(".cs"),
            particles.records,
            None if halves is None else halves.to_numpy().astype(int),
            stacks,
            own,
        )


def describe(particles: Particles) -> list[str]:
    """Return a few lines that describe how the particles were interpreted."""
    p, ctf = particles, particles.ctf
    n_images = len(torch.unique(p.image_groups))
    defocus = torch.stack([ctf.defocus_u, ctf.defocus_v]) / 1e4
    if p.records is not None:
        dialect = f"cryoSPARC ({_count(len(p.optics if p.optics is not None else ()), 'exposure group')})"
    elif p.optics is None:
        dialect = "RELION 3.0 (no optics table)"
    else:
        dialect = f"RELION 3.1 or later ({_count(len(p.optics), 'optics group')})"
    expansion = "" if n_images == len(p) else f" of {n_images} images (symmetry-expanded)"
    column = "rlnRandomSubset" if p.records is None else "alignments3D/split"
    if p.halves.any():
        sizes = [int((p.halves == half).sum()) for half in (1, 2)]
        halves = f"half-sets: {sizes[0]} and {sizes[1]} particles ({column})"
    else:
        halves = f"half-sets: none in the file (no {column})"
    present = {
        "phase shift": ctf.phase_shift.any(),
        "B-factor": ctf.b_factor.any(),
        "CTF scale": (ctf.scale != 1).any(),
        "beam tilt": ctf.beam_tilt.any(),
        "odd Zernike": ctf.odd_zernike.any(),
        "even Zernike": ctf.even_zernike.any(),
        "anisotropic magnification": (ctf.magnification != torch.eye(2)).any(),
        "NormCorrection": (p.norm_correction != 1).any(),
        "CTF-premultiplied images": p.premultiplied,
        "dark particles, which are inverted": (p.contrast < 0).any(),
    }
    return [
        f"{p.star_path}: {len(p)} particles{expansion} in {_count(len(p.stacks), 'stack')}, {dialect}",
        f"box {p.box} pixels of {p.pixel_size:.6g} A ({p.box * p.pixel_size:.6g} A)",
        *([] if p.sizes is None else describe_sizes(p.sizes, p.box, p.pixel_size)),
        halves,
        f"defocus {float(defocus.min()):.2f} to {float(defocus.max()):.2f} um, "
        f"{_range(ctf.voltage)} kV, Cs {_range(ctf.spherical_aberration)} mm",
        f"also present: {', '.join(name for name, there in present.items() if there) or 'nothing'}",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _range(values: torch.Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _particle_block(star: Path, blocks: dict[str, pd.DataFrame]) -> tuple[str, pd.DataFrame]:
    """Return name and rows of the block that lists particles."""
    named = [name for name in ("particles", "images", "") if name in blocks]
    others = [name for name in blocks if name not in named and "rlnImageName" in blocks[name]]
    if not named + others:
        raise InputError(f"{star} has no particles table; {_right_file(blocks)}")
    block = (named + others)[0]
    table = blocks[block]
    if not len(table):
        raise InputError(f"{star} has an empty particles table; give a STAR file with particles")
    if "rlnImageName" not in table:
        raise InputError(f"{star} has no column rlnImageName; give the STAR file of extracted particles")
    return block, table


def _right_file(blocks: dict[str, pd.DataFrame]) -> str:
    """Return which file of a RELION job to give in the place of one with these blocks."""
    for name, table in blocks.items():
        if "rlnExperimentalDataStarFile" in table and len(table):
            return f"give {table['rlnExperimentalDataStarFile'].iloc[0]}, which this optimiser file of RELION names"
        if name.startswith(("optimiser", "model_", "sampling", "job", "pipeline")):
            return "it is another file of a RELION job; give the job's run_data.star"
    return "give a STAR file with a block data_particles"


def _refuse_tomography(star: Path, blocks: dict[str, pd.DataFrame], table: pd.DataFrame) -> None:
    labels = {"rlnTomoName", "rlnTomoParticleName", "rlnTomoParticleId", "rlnTomoVisibleFrames"} & set(table.columns)
    if "general" in blocks:
        labels |= {"rlnTomoSubTomosAre2DStacks"} & set(blocks["general"].columns)
    if labels:
        raise InputError(
            f"{star} lists particles of tilt series (column {min(labels)}), which are not supported; "
            "give a STAR file of single-particle images"
        )


def _find_images(
    star: Path, table: pd.DataFrame, project: str | Path | None
) -> tuple[list[Path], NDArray[np.int64], NDArray[np.int64]]:
    """Return the stacks, and (n,) stack and frame (from 0) of each row of rlnImageName."""
    names = table["rlnImageName"].fillna("").astype(str).map(unquoted)
    indexed = names.str.contains("@", regex=False).to_numpy(dtype=bool)
    parts = names.str.split("@", n=1, expand=True)
    number = pd.to_numeric(parts[0].where(indexed, "1"), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    paths = parts[0] if parts.shape[1] == 1 else parts[1].where(indexed, parts[0])
    bad = ~(number >= 1) | (number % 1 != 0) | (paths == "").to_numpy(bool)
    # Without an index every row would read the first image of its stack.
    bad |= ~indexed & paths.str.lower().str.endswith((".mrcs", ".st")).to_numpy(bool)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{star} has '{names.iloc[row]}' in row {row + 1} of column rlnImageName; "
            "correct it to index@stack with the index from 1, or to a single .mrc image"
        )
    stack_index, unique = pd.factorize(paths)
    folder = star.absolute().parent
    # The file may be a link into another project.
    target = star.resolve().parent
    folders = [folder, *folder.parents, target, *target.parents, Path.cwd()]
    if project is not None:
        folders.insert(0, Path(project))
    folders = list(dict.fromkeys(folders))
    found = [find_stack(name, folders) for name in unique]
    stacks = [path for path in found if path is not None]
    if len(stacks) < len(found):
        missing = unique[found.index(None)]
        row = int(np.argmax(stack_index == found.index(None)))
        raise InputError(
            f"{star} names in row {row + 1} of column rlnImageName the stack {missing}, which does not exist "
            "there or in the folders above; restore it, or give the project folder that names are relative to"
        )
    # A file may have several names, but its images must not end up in both halves.
    files = [(status.st_dev, status.st_ino) for status in map(os.stat, stacks)]
    distinct = list(dict.fromkeys(files))
    number_of = {file: index for index, file in enumerate(distinct)}
    stack_index = np.array([number_of[file] for file in files], dtype=np.int64)[stack_index]
    first = {file: path for file, path in zip(reversed(files), reversed(stacks), strict=True)}
    return [first[file] for file in distinct], stack_index, number.astype(np.int64) - 1

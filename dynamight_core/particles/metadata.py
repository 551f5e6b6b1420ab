"""Particles of a STAR or .cs file: poses, CTFs, half-sets, and the location of their images.

RELION 3.0 wrote a single table, with origins in pixels and the pixel size from detector and magnification; 3.1 and
later have an optics table and origins in Angstrom. Both become one `Particles`, whose table keeps every column as text,
so that it can be written back unchanged. Files of cryoSPARC are converted to RELION's tables first.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.image_series import ImageSeries, images_of
from dynamight_core.imaging.ctf import CtfParameters, Index
from dynamight_core.imaging.poses import euler_angles, rotation_matrices, rotvec_to_rotmat
from dynamight_core.particles import cryosparc
from dynamight_core.particles.columns import Columns
from dynamight_core.particles.grid import band_of, choose_grid, describe_sizes
from dynamight_core.particles.stacks import find_stack, search_folders
from dynamight_core.particles.star import read_blocks, unquoted, write_star
from dynamight_core.particles.tilt_series import (
    ALL_TILTS,
    SeriesRows,
    TiltOptions,
    grouped_rows,
    is_stacked,
    stacked_rows,
)
from dynamight_core.registry import INPUT_FORMATS


@dataclass
class Particles:
    """P particles and their n images; arrays follow the rows of the STAR file.

    A particle has one image, or those of a tilt series; what differs between these has a value for each image.

    Parameters
    ----------
    star_path
        the file they were read from.
    table, optics
        its rows, of particles or of images, and its optics table (None before RELION 3.1), all columns, every value as
        text.
    block
        name of the data block with the rows.
    box, pixel_size
        of the images, pixels and A; of the map, if images of several sizes are resampled to it.
    angles
        (n, 3) rot, tilt, psi in radians.
    shifts
        (n, 2) rlnOriginX/YAngst in A: the particle's centre lies at ``box // 2 - shift / pixel_size``.
    ctf
        parameters of n images.
    stacks
        the image stacks.
    stack_index, frame
        (n,) index in `stacks` and of the image in its stack, from 0.
    halves
        (P,) int8, 1 or 2 (rlnRandomSubset), all 0 if the file has no half-sets.
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
    series
        whose images they are, or None if each particle has one.
    series_rows
        rows of the table, or None with one image for each particle.
    general
        the table data_general of RELION 5, or None.
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
    series: ImageSeries | None = None
    series_rows: SeriesRows | None = None
    general: pd.DataFrame | None = None

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.table) if self.series is None else len(self.series)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.frame)

    @property
    def image_rows(self) -> NDArray[np.int64]:
        """(n,) the row of the table of each image."""
        return np.arange(len(self.table)) if self.series_rows is None else self.series_rows.of_image

    @property
    def particle_table(self) -> pd.DataFrame:
        """The P rows of the table that stand for particles: of images, the first of each particle."""
        rows = None if self.series_rows is None else self.series_rows.particles
        return self.table if rows is None else self.table.iloc[rows.first.numpy()].reset_index(drop=True)

    @property
    def copies(self) -> torch.Tensor:
        """(P,) numbers that particles with the same image (symmetry expansion) share."""
        return self.image_groups if self.series is None else self.image_groups[self.series.first]

    def subset(self, index: Index) -> "Particles":
        """Return the particles that `index` (slice, mask or indices) selects; groups keep their numbers."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        series, series_rows, table_rows = None, None, rows
        images = images_of(self.series, torch.from_numpy(rows)).numpy()
        if self.series is not None and self.series_rows is not None:
            series = ImageSeries(self.series.images(torch.from_numpy(rows))[1])
            series_rows, table_rows = self.series_rows.subset(rows, images, series)
        at = torch.from_numpy(images)
        per_image = {
            name: getattr(self, name)[at]
            for name in ("angles", "shifts", "ctf", "image_groups", "norm_correction", "contrast")
        }
        return replace(
            self,
            table=self.table.iloc[table_rows].reset_index(drop=True),
            stack_index=self.stack_index[images],
            frame=self.frame[images],
            halves=self.halves[torch.from_numpy(rows)],
            records=None if self.records is None else self.records[rows],
            sizes=None if self.sizes is None else self.sizes[images],
            series=series,
            series_rows=series_rows,
            **per_image,
        )

    def first_images(self) -> "Particles":
        """Return the particles with the first image of each alone."""
        if self.series is None:
            return self
        images = self.series.first
        single = replace(self, table=self.particle_table, series=None, series_rows=None)
        per_image = ("angles", "shifts", "ctf", "image_groups", "norm_correction", "contrast")
        chosen = {name: getattr(self, name)[images] for name in per_image}
        chosen |= {name: getattr(self, name)[images.numpy()] for name in ("stack_index", "frame")}
        return replace(single, sizes=None if self.sizes is None else self.sizes[images.numpy()], **chosen)

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

    def name(self, particle: int) -> str:
        """Return the name of the first image of a particle, see `image_name`."""
        return self.image_name(particle if self.series is None else int(self.series.first[particle]))

    def image_name(self, image: int) -> str:
        """Return the name of an image for messages, `index@path` with the index from 1."""
        return f"{self.frame[image] + 1}@{self.stacks[self.stack_index[image]]}"


def read_particles(
    star: str | Path,
    project: str | Path | None = None,
    passthrough: Sequence[str | Path] = (),
    volume: str | None = None,
    tilts: TiltOptions = ALL_TILTS,
) -> Particles:
    """Read the particles of a RELION STAR file (3.0 to 5), a .cs file, or a file in a format that a package adds.

    Paths of images may be absolute or relative to `project`, to the folder of the STAR file, to one of its parents (as
    in RELION projects) or to the working folder; the first that exists is used. Stacks are located but not read, except
    for the first header if the file has no box: `ImageReader` reads them.

    `passthrough` are files of cryoSPARC with further fields of a .cs file; see `cryosparc.read_records`. `volume` is
    the map to whose grid images of several boxes or pixel sizes are brought; without it, to that of most images.

    Particles of tilt series have an image for each tilt: rows that name one particle, or RELION 5's stacks of it. The
    optimisation set of the latter may be given in the place of the particles. `tilts` says which images are used.

    Raises
    ------
    InputError
        if the file cannot be used; the message has the reason and the cure.
    """
    star = Path(star)
    star, tilts = tilts.of_optimisation_set(star, project)
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
    stacked = is_stacked(blocks, table)
    stacks, stack_index, frame = _find_images(star, table, project, stacked)
    columns, rows, series = Columns(star, table, optics), None, None
    if stacked:
        rows, columns, frame = stacked_rows(columns, [stacks[index] for index in stack_index], tilts, project)
        stack_index = stack_index[rows.of_image]
    else:
        rows = grouped_rows(columns, tilts)
        if rows is not None and len(rows.of_image) < len(table):
            columns = Columns(star, table.iloc[rows.of_image].reset_index(drop=True), optics)
            stack_index, frame = stack_index[rows.of_image], frame[rows.of_image]
    if rows is not None:
        series = rows.series
    angles, pixel_sizes = columns.angles(), columns.pixel_sizes()
    sizes = np.stack([columns.boxes(stacks, stack_index), pixel_sizes], -1)
    box, pixel_size, mixed = choose_grid(star, sizes, volume)
    _, image_groups = np.unique(stack_index * (frame.max() + 1) + frame, return_inverse=True)
    norm_correction, ctf = columns.norm_correction(), columns.ctf()
    if rows is not None:
        rows.attenuate(ctf, tilts)
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
        halves=_halves(columns, series),
        image_groups=torch.from_numpy(image_groups.astype(np.int64)),
        norm_correction=norm_correction,
        premultiplied=columns.is_premultiplied(),
        contrast=columns.contrast(),
        records=records,
        sizes=sizes if mixed else None,
        series=series,
        series_rows=rows,
        general=blocks.get("general"),
    )


def _halves(columns: Columns, series: ImageSeries | None) -> torch.Tensor:
    """Return the (P,) half-sets of particles; refuse images of one particle in both."""
    halves = columns.halves()
    if series is None:
        return halves
    wrong = halves != halves[series.first][series.owner]
    if wrong.any():
        row = int(wrong.int().argmax())
        raise InputError(
            f"{columns.star} has images of one particle in both half-sets, the first in row {row + 1}; give all images "
            "of a particle the same rlnRandomSubset"
        )
    return halves[series.first]


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
        (P,) arrays by label without the leading underscore; a label that the input has is overwritten. Where rows are
        images, those of a particle have the same values, and its number (from 1) in the column dynParticle.
    """
    table, series = particles.table.copy(), None if particles.series_rows is None else particles.series_rows.particles
    if series is not None:
        table["dynParticle"] = series.owner.numpy() + 1
    for name, values in columns.items():
        if len(values) != len(particles):
            raise ValueError(f"column {name} has {len(values)} values for {len(particles)} particles")
        table[name] = np.asarray(values) if series is None else np.asarray(values)[series.owner.numpy()]
    general = None if particles.general is None else {"general": particles.general}
    write_star(path, table, particles.optics, particles.block, general)
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
    n_images = len(torch.unique(p.copies))
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
        *([] if p.series is None else _describe_series(p, p.series)),
        f"box {p.box} pixels of {p.pixel_size:.6g} A ({p.box * p.pixel_size:.6g} A)",
        *([] if p.sizes is None else describe_sizes(p.sizes, p.box, p.pixel_size)),
        halves,
        f"defocus {float(defocus.min()):.2f} to {float(defocus.max()):.2f} um, "
        f"{_range(ctf.voltage)} kV, Cs {_range(ctf.spherical_aberration)} mm",
        f"also present: {', '.join(name for name, there in present.items() if there) or 'nothing'}",
    ]


def _describe_series(particles: Particles, series: ImageSeries) -> list[str]:
    """Return a line on particles of several images."""
    fewest, most, exposure = int(series.counts.min()), int(series.counts.max()), particles.ctf.exposure
    numbers = str(fewest) if fewest == most else f"{fewest} to {most}"
    damage = f"exposures of {_range(exposure)} e/A^2" if exposure.any() else "no dose weighting"
    return [f"tilt series: {numbers} images of each particle, {particles.n_images} in all; {damage}"]


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


def _find_images(
    star: Path, table: pd.DataFrame, project: str | Path | None, stacked: bool
) -> tuple[list[Path], NDArray[np.int64], NDArray[np.int64]]:
    """Return the stacks, and (rows,) stack and frame (from 0) of each row of rlnImageName.

    `stacked`: whether rows name stacks, not images.
    """
    names = table["rlnImageName"].fillna("").astype(str).map(unquoted)
    indexed = names.str.contains("@", regex=False).to_numpy(dtype=bool)
    parts = names.str.split("@", n=1, expand=True)
    number = pd.to_numeric(parts[0].where(indexed, "1"), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    paths = parts[0] if parts.shape[1] == 1 else parts[1].where(indexed, parts[0])
    bad = ~(number >= 1) | (number % 1 != 0) | (paths == "").to_numpy(bool)
    # Without an index every row would read the first image of its stack.
    bad |= ~indexed & paths.str.lower().str.endswith((".mrcs", ".st")).to_numpy(bool) & (not stacked)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{star} has '{names.iloc[row]}' in row {row + 1} of column rlnImageName; "
            "correct it to index@stack with the index from 1, or to a single .mrc image"
        )
    stack_index, unique = pd.factorize(paths)
    folders = search_folders(star, project)
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

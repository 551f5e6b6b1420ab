"""Particles as a STAR file describes them: poses, CTFs, half-sets, and where their images are.

RELION 3.0 wrote one table with everything in it, origins in pixels and the pixel size from detector and
magnification; 3.1 and later have an optics table and origins in Angstrom. Both end in one `Particles`, whose
table keeps every column as the text it was, so that it can be written back unharmed.
"""

import linecache
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.poses import rotation_matrices
from dynamight_core.particles.stacks import find_stack, read_stack_header

_POSE_CURE = "give the STAR file of a 3D refinement"
_CTF_CURE = "give particles with estimated CTFs"
_OPTICS_CURE = "add it to the optics table, or to the rows where there is none"
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")


@dataclass
class Particles:
    """n particle images with what is known of each; arrays follow the rows of the STAR file.

    Parameters
    ----------
    star_path
        the file they were read from.
    table, optics
        its rows and its optics table (None before RELION 3.1), all columns, every value as text.
    block
        name of the data block that held the rows.
    box, pixel_size
        of the images, pixels and A.
    angles
        (n, 3) rot, tilt, psi in radians.
    shifts
        (n, 2) rlnOriginX/YAngst in A: the particle's centre lies at ``box // 2 - shift / pixel_size``.
    ctf
        parameters of n particles.
    stacks
        the image stacks.
    stack_index, frame
        (n,) numpy int64, which of the stacks and which image in it, from 0.
    halves
        (n,) int8, 1 or 2 (rlnRandomSubset), all 0 where the file has no half-sets.
    image_groups
        (n,) int64; rows that show the same image (symmetry expansion) share a number.
    norm_correction
        (n,) rlnNormCorrection over its mean in the file, 1 where it has none; RELION divides the image by it.
    premultiplied
        whether the images were multiplied by their CTF.
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
    stack_index: np.ndarray
    frame: np.ndarray
    halves: torch.Tensor
    image_groups: torch.Tensor
    norm_correction: torch.Tensor
    premultiplied: bool

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, index) -> "Particles":
        """Return the particles that `index` (slice, mask or indices) selects; groups keep their numbers."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        at = torch.from_numpy(rows)
        per_particle = {
            f.name: getattr(self, f.name)[at]
            for f in fields(self)
            if f.name in ("angles", "shifts", "ctf", "halves", "image_groups", "norm_correction")
        }
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            stack_index=self.stack_index[rows],
            frame=self.frame[rows],
            **per_particle,
        )

    @property
    def matrices(self) -> torch.Tensor:
        """(n, 3, 3) rotation matrices with the magnification folded into the first two rows.

        An image holds the true frequency M k at k: a point p of the undistorted projection appears at M^T p.
        """
        matrices = rotation_matrices(self.angles)
        matrices[:, :2] = self.ctf.magnification.transpose(1, 2) @ matrices[:, :2]
        return matrices

    def image_name(self, row: int) -> str:
        """Return the name of a row's image for messages, `index@path` with the index from 1."""
        return f"{self.frame[row] + 1}@{self.stacks[self.stack_index[row]]}"


def read_particles(star: str | Path, project: str | Path | None = None) -> Particles:
    """Read the particles of a RELION STAR file (3.0, 3.1, 4 or 5).

    Paths of images may be absolute or relative to `project`, to the folder of the STAR file, to one of its
    parents (as in RELION projects) or to the working folder; the first that exists is taken. Stacks are
    looked for but not read (only the first header, if the file has no box): `ImageReader` does that.

    Raises
    ------
    InputError
        if the file cannot be used; the message says why and what to do.
    """
    star = Path(star)
    blocks = _read_blocks(star)
    block, table = _particle_block(star, blocks)
    optics = blocks.get("optics")
    _refuse_tomography(star, blocks, table)
    columns = _Columns(star, table, optics)

    angles = np.deg2rad(
        np.stack([columns.rows(f"rlnAngle{angle}", _POSE_CURE) for angle in ("Rot", "Tilt", "Psi")], -1)
    )
    pixel_size = _pixel_size(columns)
    stacks, stack_index, frame = _find_images(star, table, project)
    _, image_groups = np.unique(stack_index * (frame.max() + 1) + frame, return_inverse=True)
    norm = columns.rows("rlnNormCorrection", default=1.0)
    if (norm <= 0).any():
        columns.refuse_row("rlnNormCorrection", int(np.argmax(norm <= 0)), "a positive number")

    return Particles(
        star_path=star,
        table=table,
        optics=optics,
        block=block,
        box=_box(columns, stacks),
        pixel_size=pixel_size,
        angles=_tensor(angles),
        shifts=_tensor(_shifts(columns, pixel_size)),
        ctf=_ctf(columns),
        stacks=stacks,
        stack_index=stack_index,
        frame=frame,
        halves=_halves(columns),
        image_groups=torch.from_numpy(image_groups.astype(np.int64)),
        norm_correction=_tensor(norm / norm.mean()),
        premultiplied=_is_premultiplied(columns),
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


def write_star(
    path: str | Path,
    table: pd.DataFrame,
    optics: pd.DataFrame | None,
    block: str = "particles",
    more: dict[str, pd.DataFrame] | None = None,
) -> None:
    """Write rows (block `block`), before them the optics table, if there is one, and after them `more` blocks.

    Text is written as it is, numbers with the digits that give them back exactly, booleans as 0 and 1.
    """
    blocks = {} if optics is None else {"optics": optics.apply(_as_text)}
    blocks[block] = table.apply(_as_text)
    blocks |= {name: rows.apply(_as_text) for name, rows in (more or {}).items()}
    with atomic_path(path) as temporary:
        starfile.write(blocks, temporary, na_rep="nan")


def write_particles(path: str | Path, particles: Particles, columns: dict[str, np.ndarray]) -> None:
    """Write the input rows of `particles`, in input order and dialect, with `columns` added.

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


def describe(particles: Particles) -> list[str]:
    """Return a few lines that say what was understood of the particles."""
    p, ctf = particles, particles.ctf
    n_images = len(torch.unique(p.image_groups))
    defocus = torch.stack([ctf.defocus_u, ctf.defocus_v]) / 1e4
    if p.optics is None:
        dialect = "RELION 3.0 (no optics table)"
    else:
        dialect = f"RELION 3.1 or later ({_count(len(p.optics), 'optics group')})"
    expansion = "" if n_images == len(p) else f" of {n_images} images (symmetry-expanded)"
    if p.halves.any():
        sizes = [int((p.halves == half).sum()) for half in (1, 2)]
        halves = f"half-sets: {sizes[0]} and {sizes[1]} particles (rlnRandomSubset)"
    else:
        halves = "half-sets: none in the file (no rlnRandomSubset)"
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
    }
    return [
        f"{p.star_path}: {len(p)} particles{expansion} in {_count(len(p.stacks), 'stack')}, {dialect}",
        f"box {p.box} pixels of {p.pixel_size:.6g} A ({p.box * p.pixel_size:.6g} A)",
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


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _as_text(column: pd.Series) -> pd.Series:
    """Return a column as text; numpy's text of a float has the fewest digits that give it back."""
    values = column.to_numpy()
    if values.dtype == bool:
        values = values.astype(np.int8)
    if values.dtype.kind in "iuf":
        return pd.Series(values.astype(str), index=column.index)
    return column


def _read_blocks(star: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of a STAR file by block name, all values as text."""
    try:
        with open(star, "rb") as file:
            if b"\0" in file.read(4096):
                raise InputError(f"{star} is not a text file; give the STAR file of the particles")
        # starfile keeps text as text only for columns that it is told of.
        with open(star, errors="replace") as file:
            labels = [line.split()[0][1:] for line in file if line.startswith("_")]
        # starfile reads through linecache, which would give an older file of this name.
        linecache.checkcache(os.path.abspath(star))
        blocks = starfile.read(os.path.abspath(star), always_dict=True, parse_as_string=labels)
    except FileNotFoundError as error:
        raise InputError(f"{star} does not exist; give the STAR file of the particles") from error
    except OSError as error:
        raise InputError(f"{star} cannot be read ({error.strerror}); give a readable STAR file") from error
    except InputError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        # starfile trips over its own unpacking where a block ends before it begins.
        reason = "a data block is empty" if isinstance(error, TypeError) else str(error).strip().rsplit(": ")[-1]
        raise InputError(f"{star} cannot be read as STAR ({reason}); give the file as RELION wrote it") from error
    finally:
        linecache.clearcache()
    tables = {name: pd.DataFrame([block]) if isinstance(block, dict) else block for name, block in blocks.items()}
    tables = {name: table for name, table in tables.items() if table is not None}
    for table in tables.values():
        if table.columns.has_duplicates:
            twice = table.columns[table.columns.duplicated()][0]
            raise InputError(f"{star} has the column {twice} twice in one table; remove one of them")
    return tables


def _particle_block(star: Path, blocks: dict[str, pd.DataFrame]) -> tuple[str, pd.DataFrame]:
    """Return name and rows of the block that lists particles."""
    named = [name for name in ("particles", "images", "") if name in blocks]
    others = [name for name in blocks if name not in named and "rlnImageName" in blocks[name]]
    if not named + others:
        raise InputError(f"{star} has no particles table; give a STAR file with a block data_particles")
    block = (named + others)[0]
    table = blocks[block]
    if not len(table):
        raise InputError(f"{star} has an empty particles table; give a STAR file with particles")
    if "rlnImageName" not in table:
        raise InputError(f"{star} has no column rlnImageName; give the STAR file of extracted particles")
    return block, table


def _refuse_tomography(star: Path, blocks: dict[str, pd.DataFrame], table: pd.DataFrame) -> None:
    labels = {"rlnTomoName", "rlnTomoParticleName", "rlnTomoParticleId", "rlnTomoVisibleFrames"} & set(table.columns)
    if "general" in blocks:
        labels |= {"rlnTomoSubTomosAre2DStacks"} & set(blocks["general"].columns)
    if labels:
        raise InputError(
            f"{star} lists particles of tilt series (column {min(labels)}), which are not supported; "
            "give a STAR file of single-particle images"
        )


class _Columns:
    """Columns of one STAR file as numbers, each checked, from the rows or from the optics table."""

    def __init__(self, star: Path, table: pd.DataFrame, optics: pd.DataFrame | None):
        self.star, self.table, self.optics = star, table, optics
        self.optics_row = None if optics is None else self._match_optics()

    def _match_optics(self) -> np.ndarray:
        """Return (n,) the row of the optics table of each particle."""
        if "rlnOpticsGroup" not in self.table and len(self.optics) == 1:
            return np.zeros(len(self.table), dtype=np.int64)
        if "rlnOpticsGroup" not in self.optics:
            raise InputError(f"{self.star} has no column rlnOpticsGroup in data_optics; number the optics groups")
        groups = self.rows("rlnOpticsGroup", "give each particle its optics group")
        known = pd.Index(self._numbers(self.optics, "rlnOpticsGroup", "data_optics"))
        if not known.is_unique:
            raise InputError(f"{self.star} has two optics groups of one number in rlnOpticsGroup; number them anew")
        matched = known.get_indexer(groups)
        if (matched < 0).any():
            row = int(np.argmax(matched < 0))
            raise InputError(
                f"{self.star} has in row {row + 1} the rlnOpticsGroup {groups[row]:g}, which its optics "
                "table does not list; add that group to data_optics"
            )
        return matched

    def rows(self, label: str, cure: str = "", default: float | None = None) -> np.ndarray:
        """Return (n,) float64 values of a column of the particles table.

        Where the column is missing, return `default`, or refuse with `cure` if there is none.
        """
        if label in self.table:
            return self._numbers(self.table, label, self.star.name)
        if default is None:
            raise InputError(f"{self.star} has no column {label}; {cure}")
        return np.full(len(self.table), default)

    def optical(self, label: str, cure: str = "", default: float | None = None) -> np.ndarray:
        """Return (n,) float64 values of a column of the optics table or, where it has none, of the rows."""
        if self.optics is not None and label in self.optics:
            return self._numbers(self.optics, label, "data_optics")[self.optics_row]
        return self.rows(label, cure, default)

    def has(self, label: str) -> bool:
        """Whether the optics table or the rows have a column."""
        return label in self.table or (self.optics is not None and label in self.optics)

    def optical_lists(self, label: str) -> np.ndarray:
        """Return (n, m) float64 values of a column of lists `[a,b,...]`, short lists filled with zeros."""
        if self.optics is not None and label in self.optics:
            source, at = self.optics, self.optics_row
        elif label in self.table:
            source, at = self.table, slice(None)
        else:
            return np.zeros((len(self.table), 0))
        codes, texts = pd.factorize(source[label].fillna(""))
        lists = []
        for text in texts:
            try:
                lists.append([float(value) for value in text.strip("[]").split(",") if value.strip()])
            except ValueError as error:
                raise InputError(
                    f"{self.star} has '{text}' in column {label}; correct it to a list [a,b,...]"
                ) from error
        out = np.zeros((len(lists), max(map(len, lists))))
        for row, values in zip(out, lists, strict=True):
            row[: len(values)] = values
        if not np.isfinite(out).all():
            raise InputError(f"{self.star} has values that are not finite in column {label}; correct them")
        return out[codes][at]

    def refuse_row(self, label: str, row: int, wanted: str):
        """Raise the error of a value in the particles table that is not what is `wanted`."""
        raise InputError(
            f"{self.star} has '{self.table[label].iloc[row]}' in row {row + 1} of column {label}; "
            f"correct it to {wanted} or remove the particle"
        )

    def _numbers(self, table: pd.DataFrame, label: str, where: str) -> np.ndarray:
        column = table[label]
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite))
            if table is self.table:
                self.refuse_row(label, row, "a finite number")
            raise InputError(
                f"{self.star} has '{column.iloc[row]}' in row {row + 1} of column {label} of {where}; "
                "correct it to a finite number"
            )
        return values


def _one_value(columns: _Columns, values: np.ndarray, what: str) -> float:
    """Return the value that all particles share up to rounding."""
    low, high = values.min(), values.max()
    if low <= 0:
        raise InputError(f"{columns.star} has the {what} {low:g}; correct it to a positive number")
    if high - low > 1e-4 * high:
        raise InputError(
            f"{columns.star} holds particles with several values of {what} ({low:g} and {high:g}); "
            "bring them to one, or give them one at a time"
        )
    return float(np.median(values))


def _pixel_size(columns: _Columns) -> float:
    """Return the images' pixel size (A)."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if columns.has(label):
            return _one_value(columns, columns.optical(label), f"pixel size {label}")
    if columns.optics is not None or not columns.has("rlnDetectorPixelSize"):
        raise InputError(f"{columns.star} has no column rlnImagePixelSize; {_OPTICS_CURE}")
    micrometres = columns.rows("rlnDetectorPixelSize")
    magnification = columns.rows("rlnMagnification", "it gives the pixel size together with rlnDetectorPixelSize")
    if (magnification <= 0).any():
        columns.refuse_row("rlnMagnification", int(np.argmax(magnification <= 0)), "a positive number")
    return _one_value(columns, micrometres * 1e4 / magnification, "pixel size rlnDetectorPixelSize/rlnMagnification")


def _box(columns: _Columns, stacks: list[Path]) -> int:
    """Return the images' box (pixels), from the optics table or the first stack's header."""
    if columns.has("rlnImageDimensionality") and (columns.optical("rlnImageDimensionality") != 2).any():
        raise InputError(f"{columns.star} has rlnImageDimensionality 3 (subtomograms); give single-particle images")
    if columns.has("rlnImageSize"):
        return round(_one_value(columns, columns.optical("rlnImageSize"), "box rlnImageSize"))
    return read_stack_header(stacks[0]).box


def _shifts(columns: _Columns, pixel_size: float) -> np.ndarray:
    """Return (n, 2) rlnOriginX/YAngst; RELION 3.0 gives pixels."""
    if "rlnOriginXAngst" not in columns.table and "rlnOriginX" in columns.table:
        labels, unit = ("rlnOriginX", "rlnOriginY"), pixel_size
    else:
        labels, unit = ("rlnOriginXAngst", "rlnOriginYAngst"), 1.0
    return np.stack([columns.rows(label, _POSE_CURE) for label in labels], -1) * unit


def _halves(columns: _Columns) -> torch.Tensor:
    """Return (n,) int8 half-set of each particle, 0 where the file has none."""
    values = columns.rows("rlnRandomSubset", default=0.0)
    if "rlnRandomSubset" in columns.table:
        odd = ~np.isin(values, (1, 2))
        if odd.any():
            columns.refuse_row("rlnRandomSubset", int(np.argmax(odd)), "1 or 2")
    return torch.from_numpy(values.astype(np.int8))


def _is_premultiplied(columns: _Columns) -> bool:
    """Whether the images carry their CTF twice; other corrected images are refused."""
    for label in ("rlnCtfDataAreCtfCorrected", "rlnCtfDataArePhaseFlipped"):
        if columns.optical(label, default=0.0).any():
            raise InputError(f"{columns.star} has images whose CTF was corrected ({label}); extract them without that")
    flags = columns.optical("rlnCtfDataAreCtfPremultiplied", default=0.0) != 0
    if flags.any() and not flags.all():
        raise InputError(
            f"{columns.star} has optics groups with and without rlnCtfDataAreCtfPremultiplied; "
            "extract all particles the same way"
        )
    return bool(flags.all())


def _ctf(columns: _Columns) -> CtfParameters:
    """Return the CTF parameters, per row and per optics group."""
    magnification = [columns.optical(label, default=float(label[-2] == label[-1])) for label in _MAGNIFICATION]
    beam_tilt = [columns.optical(f"rlnBeamTilt{axis}", default=0.0) for axis in "XY"]
    return CtfParameters(
        defocus_u=_tensor(columns.rows("rlnDefocusU", _CTF_CURE)),
        defocus_v=_tensor(columns.rows("rlnDefocusV", _CTF_CURE)),
        defocus_angle=_tensor(np.deg2rad(columns.rows("rlnDefocusAngle", _CTF_CURE))),
        phase_shift=_tensor(np.deg2rad(columns.rows("rlnPhaseShift", default=0.0))),
        voltage=_tensor(columns.optical("rlnVoltage", _OPTICS_CURE)),
        spherical_aberration=_tensor(columns.optical("rlnSphericalAberration", _OPTICS_CURE)),
        amplitude_contrast=_tensor(columns.optical("rlnAmplitudeContrast", _OPTICS_CURE)),
        b_factor=_tensor(columns.rows("rlnCtfBfactor", default=0.0)),
        scale=_tensor(columns.rows("rlnCtfScalefactor", default=1.0)),
        beam_tilt=_tensor(np.stack(beam_tilt, -1)),
        odd_zernike=_tensor(columns.optical_lists("rlnOddZernike")),
        even_zernike=_tensor(columns.optical_lists("rlnEvenZernike")),
        magnification=_tensor(np.stack(magnification, -1).reshape(-1, 2, 2)),
    )


def _find_images(
    star: Path, table: pd.DataFrame, project: str | Path | None
) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Return the stacks, and (n,) stack and frame (from 0) of each row of rlnImageName."""
    names = table["rlnImageName"].fillna("").astype(str)
    indexed = names.str.contains("@", regex=False).to_numpy(dtype=bool)
    parts = names.str.split("@", n=1, expand=True)
    number = pd.to_numeric(parts[0].where(indexed, "1"), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    paths = parts[0] if parts.shape[1] == 1 else parts[1].where(indexed, parts[0])
    bad = ~(number >= 1) | (number % 1 != 0) | (paths == "").to_numpy(bool)
    # Without an index a stack would stand for its first image again and again.
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
    stacks = [find_stack(name, folders) for name in unique]
    if None in stacks:
        missing = unique[stacks.index(None)]
        row = int(np.argmax(stack_index == stacks.index(None)))
        raise InputError(
            f"{star} names in row {row + 1} of column rlnImageName the stack {missing}, which does not exist "
            "there or in the folders above; restore it, or give the project folder that names are relative to"
        )
    # A file may go by several names; its images must not stand in both halves for that.
    files = [(status.st_dev, status.st_ino) for status in map(os.stat, stacks)]
    distinct = list(dict.fromkeys(files))
    place = {file: index for index, file in enumerate(distinct)}
    stack_index = np.array([place[file] for file in files], dtype=np.int64)[stack_index]
    return [stacks[files.index(file)] for file in distinct], stack_index, number.astype(np.int64) - 1

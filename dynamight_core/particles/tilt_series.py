"""Particles of tilt series: their images, poses and exposures.

A STAR file has them in one of two forms:

- a row for each image (Warp and M, nextPYP, relion_pseudotomo_expansion): rows of one particle share
  rlnTomoParticleName, rlnTomoParticleId or rlnGroupName;
- a row for each particle (RELION 5, WarpTools): rlnImageName is its stack, rlnTomoVisibleFrames says which tilts the
  stack has, and the tomograms file has the geometry, defocus and exposure of each tilt. The rows are expanded here to
  rows of images, as relion_pseudotomo_expansion does.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dynamight_core.errors import InputError
from dynamight_core.image_series import ImageSeries
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.imaging.poses import euler_angles, rotation_matrices
from dynamight_core.particles.columns import Columns
from dynamight_core.particles.stacks import find_stack, read_stack_header, search_folders
from dynamight_core.particles.star import read_blocks, unquoted

_EXPOSURE, _VISIBLE, _STACKED = "rlnMicrographPreExposure", "rlnTomoVisibleFrames", "rlnTomoSubTomosAre2DStacks"
# Sets of columns that together name a particle of several images.
_NAMES = (["rlnTomoParticleName"], ["rlnTomoName", "rlnTomoParticleId"])
# In other files, these are groups of micrographs: tilts of a particle all differ in their exposure.
_GROUPS = ("rlnGroupName", "rlnGroupNumber")
# Warp's B-factor is minus four times the exposure.
_WARP = -4.0
# What rows of images keep of their particle's row.
_KEPT = ("rlnOpticsGroup", "rlnRandomSubset", "rlnNormCorrection", "dynContrast")
_TOMOGRAMS_CURE = "set --tomograms to the tomograms.star of the particles, or give their optimisation set"


@dataclass(frozen=True)
class TiltOptions:
    """Which images of tilt series are used, and how.

    Parameters
    ----------
    tomograms
        tomograms.star of RELION 5; found beside the particles if None.
    max_tilts, max_exposure
        number of images of each particle, those of least exposure, and largest exposure before an image, e/A^2; all if
        None.
    dose_weighting
        whether signal fades with exposure.
    """

    tomograms: str | None = None
    max_tilts: int | None = None
    max_exposure: float | None = None
    dose_weighting: bool = True

    def of_optimisation_set(self, star: Path, project: str | Path | None) -> tuple[Path, "TiltOptions"]:
        """Return the particles file, and options with the tomograms, that an optimisation set of RELION names."""
        named = _optimisation_set(star)
        if named is None:
            return star, self
        particles, tomograms = named
        folders = search_folders(star, project)
        found = find_stack(particles, folders)
        if found is None:
            raise InputError(f"{star} names the particles {particles}, which do not exist there; give their STAR file")
        return found, self if self.tomograms is not None else replace(
            self, tomograms=str(find_stack(tomograms, folders))
        )

    def chosen(self, star: Path, series: ImageSeries, exposure: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (n,) which images are used, of (n,) exposures (e/A^2, NaN where unknown)."""
        kept = np.ones(len(exposure), dtype=bool)
        if self.max_exposure is not None:
            if np.isnan(exposure).any():
                raise InputError(f"{star} has no exposures ({_EXPOSURE}); omit --max-exposure")
            kept = exposure <= self.max_exposure
            without = torch.bincount(series.owner[kept], minlength=len(series)) == 0
            if without.any():
                raise InputError(
                    f"{int(without.sum())} particles of {star} have no image after an exposure of at most "
                    f"{self.max_exposure:g} e/A^2; increase --max-exposure"
                )
        if self.max_tilts is not None:
            # NaN is last, and ties stay in the order of the file.
            order = np.lexsort((exposure, series.owner.numpy()))
            kept &= ImageSeries(series.owner[order]).rank.numpy()[order.argsort()] < self.max_tilts
        return kept


ALL_TILTS = TiltOptions()


@dataclass(frozen=True)
class SeriesRows:
    """How n images belong to the rows of a table.

    Parameters
    ----------
    series
        the particle of each image.
    of_image
        (n,) row of each image.
    particles
        the particle of each row where rows are images, also of those that are not used; None if rows are particles.
    exposure
        (n,) e/A^2 before each image, NaN where unknown.
    in_b_factor
        whether the exposure was told by rlnCtfBfactor.
    """

    series: ImageSeries
    of_image: NDArray[np.int64]
    particles: ImageSeries | None
    exposure: NDArray[np.float64]
    in_b_factor: bool = False

    def subset(
        self, chosen: NDArray[np.int64], images: NDArray[np.int64], series: ImageSeries
    ) -> tuple["SeriesRows", NDArray[np.int64]]:
        """Return the same of (p,) chosen particles with these (b,) images and this series, and rows of the table."""
        exposure = self.exposure[images]
        if self.particles is None:
            return replace(self, series=series, of_image=series.owner.numpy(), exposure=exposure), chosen
        rows, index = self.particles.images(torch.from_numpy(chosen))
        particles = ImageSeries(index)
        before = self.particles.rank[torch.from_numpy(self.of_image[images])]
        of_image = (particles.first[series.owner] + before).numpy()
        return replace(self, series=series, of_image=of_image, particles=particles, exposure=exposure), rows.numpy()

    def attenuate(self, ctf: CtfParameters, tilts: TiltOptions) -> None:
        """Let the signal of (n,) transfer functions fade with exposure."""
        if self.in_b_factor:
            ctf.b_factor = torch.zeros_like(ctf.b_factor)
        if tilts.dose_weighting:
            ctf.exposure = torch.from_numpy(np.nan_to_num(self.exposure)).float()


def is_stacked(blocks: dict[str, pd.DataFrame], table: pd.DataFrame) -> bool:
    """Return whether each row of a particles table is a particle with a stack of images."""
    general = blocks.get("general")
    flag = general is not None and _STACKED in general and str(general[_STACKED].iloc[0]) == "1"
    return flag or _VISIBLE in table


def grouped_rows(columns: Columns, tilts: TiltOptions) -> SeriesRows | None:
    """Return how the images of a table with a row for each belong to particles; None if each is a particle."""
    table, star = columns.table, columns.star
    codes = _particle_codes(table)
    if codes is None:
        return None
    series = ImageSeries.of_names(torch.from_numpy(codes))
    twice = pd.DataFrame({"particle": codes, "image": table["rlnImageName"]}).duplicated()
    if twice.any():
        raise InputError(
            f"{star} has in row {int(twice.to_numpy().argmax()) + 1} an image that the same particle has already; give "
            "particles of tilt series before symmetry expansion, and set --symmetry"
        )
    exposure, in_b_factor = np.full(len(table), np.nan), False
    if _EXPOSURE in table:
        exposure = columns.rows(_EXPOSURE)
    elif "rlnCtfBfactor" in table:
        b_factor = columns.rows("rlnCtfBfactor")
        if (b_factor <= 0).all() and b_factor.any():
            exposure, in_b_factor = b_factor / _WARP, True
    kept = np.flatnonzero(tilts.chosen(star, series, exposure))
    used = ImageSeries(series.owner[kept])
    return SeriesRows(used, kept, series, exposure[kept], in_b_factor)


def _particle_codes(table: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return (rows,) numbers that images of one particle share, None if no particle has two."""
    for labels in _NAMES:
        if set(labels) <= set(table.columns):
            codes: NDArray[np.int64] = table.groupby(labels, sort=False).ngroup().to_numpy(copy=True)
            return codes if codes.max() + 1 < len(codes) else None
    exposures = [table[label] for label in (_EXPOSURE, "rlnCtfBfactor") if label in table]
    for label in _GROUPS:
        if label in table and exposures:
            codes = pd.factorize(table[label])[0]
            repeated = pd.DataFrame({"group": codes, "exposure": exposures[0].to_numpy()}).duplicated().any()
            if not repeated and 0 < codes.max() < len(codes) - 1:
                return codes.astype(np.int64)
    return None


def stacked_rows(
    columns: Columns, stacks: list[Path], tilts: TiltOptions, project: str | Path | None
) -> tuple[SeriesRows, Columns, NDArray[np.int64]]:
    """Expand particles with stacks to their images.

    Parameters
    ----------
    columns
        of P particles.
    stacks
        the stack of each particle.
    tilts
        which images are used.
    project
        folder that names may be relative to.

    Returns
    -------
    tuple
        how the n images belong to the particles; columns with a row for each image; and (n,) images in the stacks,
        from 0.
    """
    star, table = columns.star, columns.table
    if "rlnTomoName" not in table or _VISIBLE not in table:
        label = "rlnTomoName" if "rlnTomoName" not in table else _VISIBLE
        raise InputError(f"{star} has no column {label}; give the STAR file of extracted 2D stacks")
    path = _tomograms_of(star, tilts, project)
    tomograms = _read_tomograms(path, project)
    names, parts = table["rlnTomoName"].map(unquoted), []
    for row, (name, visible) in enumerate(zip(names, table[_VISIBLE], strict=True)):
        if name not in tomograms:
            raise InputError(f"{path} has no tomogram {name}, which {star} names in row {row + 1}; {_TOMOGRAMS_CURE}")
        frames, images = _visible_frames(star, row, str(visible), tomograms[name], stacks[row])
        parts.append((np.full(len(frames), row), tomograms[name].first + frames, images))
    rows, at, images = (np.concatenate(each) for each in zip(*parts, strict=True))
    poses, offsets, places = _in_tomogram(columns, np.stack([tomograms[name].centre for name in names]))
    frames_of_all = _joined(tomograms)
    exposure = frames_of_all.values[_EXPOSURE][at]
    kept = np.flatnonzero(tilts.chosen(star, ImageSeries(torch.from_numpy(rows)), exposure))
    rows, at, images, exposure = rows[kept], at[kept], images[kept], exposure[kept]
    turned = frames_of_all.rotations[at]
    angles = np.degrees(euler_angles(torch.from_numpy(turned @ poses[rows])).numpy())
    shifts = np.einsum("nij,nj->ni", turned, offsets[rows])
    depths = np.einsum("nij,nj->ni", turned, places[rows])[:, 2] * frames_of_all.values["slope"][at]
    expanded = table[[label for label in _KEPT if label in table]].iloc[rows].reset_index(drop=True)
    for label, column in zip(("Rot", "Tilt", "Psi"), angles.T, strict=True):
        expanded[f"rlnAngle{label}"] = column
    expanded["rlnOriginXAngst"], expanded["rlnOriginYAngst"] = shifts[:, 0], shifts[:, 1]
    for label in ("rlnDefocusU", "rlnDefocusV"):
        expanded[label] = frames_of_all.values[label][at] + depths
    for label in ("rlnDefocusAngle", "rlnPhaseShift", "rlnCtfScalefactor"):
        expanded[label] = frames_of_all.values[label][at]
    slope = frames_of_all.values["rlnCtfBfactorPerElectronDose"][at]
    expanded["rlnCtfBfactor"] = frames_of_all.values["rlnCtfBfactor"][at] + slope * exposure * tilts.dose_weighting
    # A B-factor for each electron takes the place of the critical exposure.
    exposure = np.where(slope > 0, 0.0, exposure)
    series = ImageSeries(torch.from_numpy(rows))
    return SeriesRows(series, rows, None, exposure), Columns(star, expanded, columns.optics), images


@dataclass(frozen=True)
class _Tomogram:
    """The tilts of a tomogram, or of all.

    Parameters
    ----------
    first
        number of its first tilt among those of all tomograms.
    centre
        (3,) half of its size, pixels of the tilt series.
    rotations
        (t, 3, 3) from the tomogram to each tilt.
    values
        (t,) by label; "slope" is the defocus (A) for each A along the beam.
    """

    first: int
    centre: NDArray[np.float64]
    rotations: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.rotations)


def _joined(tomograms: dict[str, _Tomogram]) -> _Tomogram:
    """Return the tilts of all tomograms."""
    every = list(tomograms.values())
    values = {label: np.concatenate([each.values[label] for each in every]) for label in every[0].values}
    return _Tomogram(0, every[0].centre, np.concatenate([each.rotations for each in every]), values)


def _in_tomogram(
    columns: Columns, centres: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the poses (P, 3, 3), offsets (P, 3) and places (P, 3) of particles in their tomograms, A.

    A tilt R takes x of the map to R pose x; the offset is what rlnOrigin is of an image, before the tilt. Places count
    from the centre of the tomogram, and are 0 where there are none. `centres` are (P, 3), pixels of the tilt series.
    """
    pose = rotation_matrices(columns.angles().double()).numpy()
    if columns.has("rlnTomoSubtomogramRot"):
        degrees = [columns.rows(f"rlnTomoSubtomogram{angle}") for angle in ("Rot", "Tilt", "Psi")]
        given = rotation_matrices(torch.from_numpy(np.deg2rad(np.stack(degrees, -1)))).numpy()
    else:
        given = np.broadcast_to(np.eye(3), pose.shape)
    offset = np.stack([columns.rows(f"rlnOrigin{axis}Angst", default=0.0) for axis in "XYZ"], -1)
    offset = np.einsum("nij,nj->ni", given, offset)
    place = np.zeros_like(offset)
    if columns.has("rlnCenteredCoordinateXAngst"):
        place = np.stack([columns.rows(f"rlnCenteredCoordinate{axis}Angst") for axis in "XYZ"], -1)
    elif columns.has("rlnCoordinateZ") and columns.has("rlnTomoTiltSeriesPixelSize"):
        pixels = np.stack([columns.rows(f"rlnCoordinate{axis}") for axis in "XYZ"], -1)
        place = (pixels - centres) * columns.optical("rlnTomoTiltSeriesPixelSize")[:, None]
    return given @ pose, offset, place - offset


def _visible_frames(
    star: Path, row: int, visible: str, tomogram: _Tomogram, stack: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the (v,) visible tilts of a particle, and their images in its stack, both from 0."""
    flags = np.array([value.strip() == "1" for value in unquoted(visible).strip("[]").split(",")])
    if len(flags) != len(tomogram):
        raise InputError(
            f"{star} has {len(flags)} values in row {row + 1} of column {_VISIBLE} for a tilt series of "
            f"{len(tomogram)} images; {_TOMOGRAMS_CURE}"
        )
    frames, number = np.flatnonzero(flags), read_stack_header(stack).n_images
    if not len(frames):
        raise InputError(f"{star} has in row {row + 1} a particle with no visible image; remove it")
    # Early WarpTools wrote all tilts, also those that are not visible.
    if number == len(flags):
        return frames, frames
    if number != len(frames):
        raise InputError(
            f"stack {stack} has {number} images, but row {row + 1} of {star} has {len(frames)} visible ones; extract "
            "the particles again"
        )
    return frames, np.arange(number)


def _optimisation_set(star: Path) -> tuple[str, str] | None:
    """Return the names of particles and tomograms in an optimisation set of RELION; None if a file is none."""
    if star.suffix != ".star":
        return None
    for table in read_blocks(star).values():
        if {"rlnTomoParticlesFile", "rlnTomoTomogramsFile"} <= set(table.columns) and len(table):
            return unquoted(table["rlnTomoParticlesFile"].iloc[0]), unquoted(table["rlnTomoTomogramsFile"].iloc[0])
    return None


def _tomograms_of(star: Path, tilts: TiltOptions, project: str | Path | None) -> Path:
    """Return the tomograms file: that of the options, of an optimisation set beside the particles, or beside them."""
    folders = search_folders(star, project)
    names = [tilts.tomograms] if tilts.tomograms is not None else []
    if not names:
        for path in sorted(star.parent.glob("*optimisation_set.star")):
            named = _optimisation_set(path)
            if named is not None and Path(named[0]).name == star.name:
                names.append(named[1])
        names += [f"{star.stem}_tomograms.star", "tomograms.star"]
    found = [path for path in (find_stack(name, folders) for name in names) if path is not None]
    if not found:
        raise InputError(f"the tomograms file of {star} is not found ({', '.join(names)}); {_TOMOGRAMS_CURE}")
    return found[0]


def _read_tomograms(path: Path, project: str | Path | None) -> dict[str, _Tomogram]:
    """Return the tilts of each tomogram in a tomograms file, by its name."""
    blocks, folders = read_blocks(path), search_folders(path, project)
    if "global" not in blocks or "rlnTomoName" not in blocks["global"]:
        raise InputError(f"{path} has no block data_global with rlnTomoName; give the tomograms.star of RELION")
    together, tomograms, first = Columns(path, blocks["global"], None), {}, 0
    hand = together.rows("rlnTomoHand", "give the tomograms.star of RELION")
    slope = hand * together.rows("rlnTomoDefocusSlope", default=1.0)
    damage = together.rows("rlnCtfBfactorPerElectronDose", default=0.0)
    sizes = np.stack([together.rows(f"rlnTomoSize{axis}", default=0.0) for axis in "XYZ"], -1)
    for number, name in enumerate(blocks["global"]["rlnTomoName"].map(unquoted)):
        source, tables = path, blocks
        if "rlnTomoTiltSeriesStarFile" in blocks["global"]:
            named = unquoted(blocks["global"]["rlnTomoTiltSeriesStarFile"].iloc[number])
            found = find_stack(named, folders)
            if found is None:
                raise InputError(f"{path} names the tilt series {named}, which does not exist there; restore it")
            source, tables = found, read_blocks(found)
        if name not in tables:
            raise InputError(f"{source} has no block data_{name}; give the file that belongs to {path}")
        columns = Columns(source, tables[name], None)
        values = {_EXPOSURE: columns.rows(_EXPOSURE, "give the exposure before each tilt")}
        values |= {label: columns.rows(label, "estimate CTFs") for label in ("rlnDefocusU", "rlnDefocusV")}
        values |= {label: columns.rows(label, default=0.0) for label in ("rlnDefocusAngle", "rlnPhaseShift")}
        values |= {"rlnCtfScalefactor": columns.rows("rlnCtfScalefactor", default=1.0)}
        values |= {"rlnCtfBfactor": columns.rows("rlnCtfBfactor", default=0.0)}
        values |= {"slope": np.full(len(tables[name]), slope[number])}
        values |= {"rlnCtfBfactorPerElectronDose": np.full(len(tables[name]), damage[number])}
        tomograms[name] = _Tomogram(first, sizes[number] / 2, _tilt_rotations(columns), values)
        first += len(tables[name])
    return tomograms


def _tilt_rotations(columns: Columns) -> NDArray[np.float64]:
    """Return the (t, 3, 3) rotations from a tomogram to its tilts: the tilt angles, or the projections of RELION 4."""
    if columns.has("rlnTomoProjX"):
        rows = [columns.optical_lists(f"rlnTomoProj{axis}")[:, :3] for axis in "XYZ"]
        rotations: NDArray[np.float64] = np.stack(rows, 1)
        if rotations.shape[2] < 3 or np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() > 0.01:
            raise InputError(f"{columns.star} has projections rlnTomoProjX/Y/Z that are no rotations; correct them")
        return rotations
    x_tilt = columns.rows("rlnTomoXTilt", default=0.0)
    angles = [columns.rows(f"rlnTomo{name}", "align the tilt series") for name in ("YTilt", "ZRot")]
    # About the fixed axes x, y and z, one after the other.
    turned: NDArray[np.float64] = Rotation.from_euler("xyz", np.stack([x_tilt, *angles], -1), degrees=True).as_matrix()
    return turned

"""Columns of a STAR file as checked numbers: the one place that knows RELION's labels and units."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dynamight_core.errors import InputError
from dynamight_core.imaging.ctf import CtfParameters
from dynamight_core.particles.stacks import read_stack_header

_POSE_CURE = "give the STAR file of a 3D refinement"
_CTF_CURE = "give particles with estimated CTFs"
_OPTICS_CURE = "add it to the optics table, or to the rows if there is none"
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")


class Columns:
    """Columns of one STAR file as checked numbers, from the rows or from the optics table.

    Every method raises `InputError` for a missing column without a default and for a value that it cannot use; the
    message names file, row and column.

    Parameters
    ----------
    star
        the file, for messages.
    table, optics
        its n rows and its optics table (None before RELION 3.1), every value as text.
    """

    def __init__(self, star: Path, table: pd.DataFrame, optics: pd.DataFrame | None):
        self.star, self.table, self.optics = star, table, optics
        self._optics_row = np.zeros(len(table), dtype=np.int64) if optics is None else self._match_optics(optics)

    def _match_optics(self, optics: pd.DataFrame) -> NDArray[np.int64]:
        """Return (n,) the row of the optics table of each particle."""
        if "rlnOpticsGroup" not in self.table and len(optics) == 1:
            return np.zeros(len(self.table), dtype=np.int64)
        if "rlnOpticsGroup" not in optics:
            raise InputError(f"{self.star} has no column rlnOpticsGroup in data_optics; number the optics groups")
        groups = self.rows("rlnOpticsGroup", "give each particle its optics group")
        known = pd.Index(self._numbers(optics, "rlnOpticsGroup", "data_optics"))
        if not known.is_unique:
            raise InputError(f"{self.star} has two optics groups with the same rlnOpticsGroup; renumber them")
        matched: NDArray[np.int64] = known.get_indexer(groups)
        if (matched < 0).any():
            row = int(np.argmax(matched < 0))
            raise InputError(
                f"{self.star} has in row {row + 1} the rlnOpticsGroup {groups[row]:g}, which its optics "
                "table does not list; add that group to data_optics"
            )
        return matched

    def rows(self, label: str, cure: str = "", default: float | None = None) -> NDArray[np.float64]:
        """Return the (n,) values of a column of the particles table.

        `default` replaces a missing column; without a default the error ends with `cure`.
        """
        if label in self.table:
            return self._numbers(self.table, label, self.star.name)
        if default is None:
            raise InputError(f"{self.star} has no column {label}; {cure}")
        return np.full(len(self.table), default)

    def optical(self, label: str, cure: str = "", default: float | None = None) -> NDArray[np.float64]:
        """Return the (n,) values of a column of the optics table or, if the table lacks it, of the rows."""
        if self.optics is not None and label in self.optics:
            return self._numbers(self.optics, label, "data_optics")[self._optics_row]
        return self.rows(label, cure, default)

    def has(self, label: str) -> bool:
        """Whether the optics table or the rows have a column."""
        return bool(label in self.table or (self.optics is not None and label in self.optics))

    def optical_lists(self, label: str) -> NDArray[np.float64]:
        """Return the (n, m) values of a column of lists `[a,b,...]`, short lists filled with zeros; m may be 0."""
        if self.optics is not None and label in self.optics:
            column, rows = self.optics[label], self._optics_row
        elif label in self.table:
            column, rows = self.table[label], np.arange(len(self.table))
        else:
            return np.zeros((len(self.table), 0))
        codes, texts = pd.factorize(column.fillna(""))
        lists = []
        for text in texts:
            try:
                lists.append([float(value) for value in text.strip("[]").split(",") if value.strip()])
            except ValueError as error:
                raise InputError(
                    f"{self.star} has '{text}' in column {label}; correct it to a list [a,b,...]"
                ) from error
        filled: NDArray[np.float64] = np.zeros((len(lists), max(map(len, lists))))
        for row, values in zip(filled, lists, strict=True):
            row[: len(values)] = values
        if not np.isfinite(filled).all():
            raise InputError(f"{self.star} has values that are not finite in column {label}; correct them")
        out: NDArray[np.float64] = filled[codes][rows]
        return out

    def _refuse_row(self, label: str, row: int, wanted: str) -> NoReturn:
        """Raise the error for a value of the particles table that is not `wanted`."""
        raise InputError(
            f"{self.star} has '{self.table[label].iloc[row]}' in row {row + 1} of column {label}; "
            f"correct it to {wanted} or remove the particle"
        )

    def _positive(self, label: str, cure: str = "", default: float | None = None) -> NDArray[np.float64]:
        """Return the (n,) values of a column of the particles table, all positive."""
        values = self.rows(label, cure, default)
        if (values <= 0).any():
            self._refuse_row(label, int(np.argmax(values <= 0)), "a positive number")
        return values

    def _numbers(self, table: pd.DataFrame, label: str, where: str) -> NDArray[np.float64]:
        column = table[label]
        numbers = pd.to_numeric(column, errors="coerce")
        values: NDArray[np.float64] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite))
            if table is self.table:
                self._refuse_row(label, row, "a finite number")
            raise InputError(
                f"{self.star} has '{column.iloc[row]}' in row {row + 1} of column {label} of {where}; "
                "correct it to a finite number"
            )
        return values

    def angles(self) -> torch.Tensor:
        """Return (n, 3) rot, tilt, psi in radians."""
        degrees = [self.rows(f"rlnAngle{angle}", _POSE_CURE) for angle in ("Rot", "Tilt", "Psi")]
        return _tensor(np.deg2rad(np.stack(degrees, -1)))

    def shifts(self, pixel_sizes: NDArray[np.float64]) -> torch.Tensor:
        """Return (n, 2) rlnOriginX/YAngst, A, of images of (n,) pixel sizes (A), in which RELION 3.0 writes them."""
        if "rlnOriginXAngst" not in self.table and "rlnOriginX" in self.table:
            labels, unit = ("rlnOriginX", "rlnOriginY"), pixel_sizes[:, None]
        else:
            labels, unit = ("rlnOriginXAngst", "rlnOriginYAngst"), np.ones((1, 1))
        return _tensor(np.stack([self.rows(label, _POSE_CURE) for label in labels], -1) * unit)

    def pixel_sizes(self) -> NDArray[np.float64]:
        """Return the (n,) pixel sizes of the images, A."""
        for label in ("rlnImagePixelSize", "rlnPixelSize"):
            if self.has(label):
                return self._positive_values(self.optical(label), f"pixel size {label}")
        if self.optics is not None or not self.has("rlnDetectorPixelSize"):
            raise InputError(f"{self.star} has no column rlnImagePixelSize; {_OPTICS_CURE}")
        micrometres = self.rows("rlnDetectorPixelSize")
        cure = "it and rlnDetectorPixelSize define the pixel size"
        magnification = self._positive("rlnMagnification", cure)
        return self._positive_values(
            micrometres * 1e4 / magnification, "pixel size rlnDetectorPixelSize/rlnMagnification"
        )

    def boxes(self, stacks: list[Path], stack_index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the (n,) boxes of the images (pixels), from the optics table or the headers of their stacks.

        Without boxes in the file, all images are taken to have that of the first stack, unless pixel sizes differ.
        """
        if self.has("rlnImageDimensionality") and (self.optical("rlnImageDimensionality") != 2).any():
            raise InputError(
                f"{self.star} has rlnImageDimensionality 3 (subtomograms); give images, or extract tilt-series "
                "particles as 2D stacks"
            )
        if self.has("rlnImageSize"):
            boxes: NDArray[np.float64] = np.round(
                self._positive_values(self.optical("rlnImageSize"), "box rlnImageSize")
            )
            return boxes
        several = np.ptp(self.pixel_sizes()) > 0
        headers = [read_stack_header(stack).box for stack in (stacks if several else stacks[:1])]
        found: NDArray[np.float64] = np.array(headers, dtype=np.float64)
        return found[stack_index] if several else np.full(len(self.table), found[0])

    def ctf(self) -> CtfParameters:
        """Return the CTF parameters, per row and per optics group."""
        magnification = [self.optical(label, default=float(label[-2] == label[-1])) for label in _MAGNIFICATION]
        beam_tilt = [self.optical(f"rlnBeamTilt{axis}", default=0.0) for axis in "XY"]
        return CtfParameters(
            defocus_u=_tensor(self.rows("rlnDefocusU", _CTF_CURE)),
            defocus_v=_tensor(self.rows("rlnDefocusV", _CTF_CURE)),
            defocus_angle=_tensor(np.deg2rad(self.rows("rlnDefocusAngle", _CTF_CURE))),
            phase_shift=_tensor(np.deg2rad(self.rows("rlnPhaseShift", default=0.0))),
            voltage=_tensor(self.optical("rlnVoltage", _OPTICS_CURE)),
            spherical_aberration=_tensor(self.optical("rlnSphericalAberration", _OPTICS_CURE)),
            amplitude_contrast=_tensor(self.optical("rlnAmplitudeContrast", _OPTICS_CURE)),
            b_factor=_tensor(self.rows("rlnCtfBfactor", default=0.0)),
            scale=_tensor(self.rows("rlnCtfScalefactor", default=1.0)),
            beam_tilt=_tensor(np.stack(beam_tilt, -1)),
            odd_zernike=_tensor(self.optical_lists("rlnOddZernike")),
            even_zernike=_tensor(self.optical_lists("rlnEvenZernike")),
            magnification=_tensor(np.stack(magnification, -1).reshape(-1, 2, 2)),
            band=torch.full((len(self.table),), torch.inf),
            exposure=torch.zeros(len(self.table)),
        )

    def halves(self) -> torch.Tensor:
        """Return (n,) int8 half-sets 1 and 2, all 0 if the file has none."""
        values = self.rows("rlnRandomSubset", default=0.0)
        if "rlnRandomSubset" in self.table:
            odd = ~np.isin(values, (1, 2))
            if odd.any():
                self._refuse_row("rlnRandomSubset", int(np.argmax(odd)), "1 or 2")
        return torch.from_numpy(values.astype(np.int8))

    def norm_correction(self) -> torch.Tensor:
        """Return (n,) rlnNormCorrection over its mean, 1 without the column."""
        norm = self._positive("rlnNormCorrection", default=1.0)
        return _tensor(norm / norm.mean())

    def contrast(self) -> torch.Tensor:
        """Return (n,) int8 dynContrast: -1 where the particle is dark in its image, else 1, also without the column."""
        values = self.rows("dynContrast", default=1.0)
        odd = ~np.isin(values, (1, -1))
        if odd.any():
            self._refuse_row("dynContrast", int(np.argmax(odd)), "1 or -1")
        return torch.from_numpy(values.astype(np.int8))

    def is_premultiplied(self) -> bool:
        """Whether the images were multiplied by their CTF after the microscope did; other corrections are refused."""
        for label in ("rlnCtfDataAreCtfCorrected", "rlnCtfDataArePhaseFlipped"):
            if self.optical(label, default=0.0).any():
                raise InputError(f"{self.star} has images whose CTF was corrected ({label}); extract them without that")
        flags = self.optical("rlnCtfDataAreCtfPremultiplied", default=0.0) != 0
        if flags.any() and not flags.all():
            raise InputError(
                f"{self.star} has optics groups with and without rlnCtfDataAreCtfPremultiplied; "
                "extract all particles the same way"
            )
        return bool(flags.all())

    def _positive_values(self, values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        """Return the values of all particles, all positive."""
        if values.min() <= 0:
            raise InputError(f"{self.star} has the {what} {values.min():g}; correct it to a positive number")
        return values


def _tensor(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

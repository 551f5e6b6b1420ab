"""Tiny particle sets in every dialect of RELION, written without the code under test."""

import warnings
from pathlib import Path

import mrcfile
import numpy as np


def table_text(block, columns):
    """Return a STAR loop as text; `columns` maps labels to one text a row."""
    lines = [f"\n# version 30001\n\ndata_{block}\n\nloop_ "]
    lines += [f"_{label} #{i + 1} " for i, label in enumerate(columns)]
    lines += [" ".join(f"{value:>12}" for value in row) + " " for row in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n\n"


class ParticleFiles:
    """A folder in which a test builds STAR files and stacks of 12 particles, box 16, 2 A."""

    n, box, pixel_size = 12, 16, 2.0

    def __init__(self, folder: Path):
        self.folder = folder
        generator = np.random.default_rng(7)
        self.angles = np.round(generator.uniform(-180, 180, (self.n, 3)), 6)
        self.shifts = np.round(generator.normal(0, 3, (self.n, 2)), 6)
        self.defocus = np.round(generator.uniform(8000, 20000, (self.n, 2)), 6)
        self.pixels = generator.normal(size=(self.n, self.box, self.box)).astype(np.float32)

    def rows(self, dialect="3.1", stack="particles.mrcs", **columns):
        """Return the columns of the particles table; `columns` replace or add, None takes one away."""
        rows = {
            "rlnCoordinateX": [f"{10 * i}.000000" for i in range(self.n)],
            "rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(self.n)],
            "rlnMicrographName": [f"mic_{i // 5}.mrc" for i in range(self.n)],
        }
        for i, name in enumerate(("Rot", "Tilt", "Psi")):
            rows[f"rlnAngle{name}"] = [f"{value:.6f}" for value in self.angles[:, i]]
        for i, name in enumerate("XY"):
            label, unit = (f"rlnOrigin{name}", 2.0) if dialect == "3.0" else (f"rlnOrigin{name}Angst", 1.0)
            rows[label] = [f"{value:.8f}" for value in self.shifts[:, i] / unit]
        for i, name in enumerate("UV"):
            rows[f"rlnDefocus{name}"] = [f"{value:.6f}" for value in self.defocus[:, i]]
        rows["rlnDefocusAngle"] = ["30.000000"] * self.n
        rows["rlnRandomSubset"] = [str(1 + i % 2) for i in range(self.n)]
        if dialect == "3.0":
            rows |= {
                "rlnVoltage": ["200.000000"] * self.n,
                "rlnSphericalAberration": ["1.400000"] * self.n,
                "rlnAmplitudeContrast": ["0.070000"] * self.n,
                "rlnDetectorPixelSize": ["14.000000"] * self.n,
                "rlnMagnification": ["70000.000000"] * self.n,
            }
        else:
            rows["rlnOpticsGroup"] = ["1"] * self.n
        return {label: values for label, values in (rows | columns).items() if values is not None}

    def optics(self, groups=1, **columns):
        """Return the columns of the optics table; `columns` replace or add, None takes one away."""
        optics = {
            "rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(groups)],
            "rlnOpticsGroup": [str(i + 1) for i in range(groups)],
            "rlnVoltage": ["200.000000"] * groups,
            "rlnSphericalAberration": ["1.400000"] * groups,
            "rlnAmplitudeContrast": ["0.070000"] * groups,
            "rlnImagePixelSize": ["2.000000"] * groups,
            "rlnImageSize": ["16"] * groups,
            "rlnImageDimensionality": ["2"] * groups,
        }
        return {label: values for label, values in (optics | columns).items() if values is not None}

    def star(self, rows=None, optics=None, name="particles.star", block="particles"):
        """Write a STAR file; with `optics` False there is no optics table."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "" if optics is False else table_text("optics", optics or self.optics())
        path.write_text(text + table_text(block, rows or self.rows()))
        return path

    def stacks_and_single_images(self):
        """Write three stacks and three single images; return the images' names in the order of the particles."""
        names = []
        for i in range(3):
            self.stack(f"mic{i}.mrcs", self.pixels[4 * i : 4 * i + 3])
            self.stack(f"single{i}.mrc", self.pixels[4 * i + 3])
            names += [f"{j + 1}@mic{i}.mrcs" for j in range(3)] + [f"single{i}.mrc"]
        return names

    def stack(self, name="particles.mrcs", images=None):
        """Write an image stack and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), mrcfile.new(path, overwrite=True) as mrc:
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN, where a test wants it
            mrc.set_data(self.pixels if images is None else images)
            if mrc.data.ndim == 3:
                mrc.set_image_stack()
        return path

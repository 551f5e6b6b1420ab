"""Atomic models that maps are compared with, by FSC in each region (paper, Fig. 3 and Extended Data Fig. 4 and 5)."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from dynamight_core.errors import InputError
from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.model.atomic import reduce_structure
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.run import Run
from dynamight_core.structures import read_structure, zero_of_coordinates

# Width of an atom, pixels. All atoms have the same one, which an FSC does not see.
_WIDTH = 1.0
# Column of fsc.star: of a model, and of a model in a region.
COLUMN = "dynAtomic_"


def model_densities(paths: Iterable[str], origin: str, run: Run) -> dict[str, torch.Tensor]:
    """Return the (box, box, box) densities of atomic models in the consensus frame, by the stems of their files.

    Parameters
    ----------
    paths
        PDB or mmCIF files.
    origin
        of their coordinates, as `structures.zero_of_coordinates` takes it.
    run
        whose particles have the box and pixel size.

    Raises
    ------
    InputError
        if a file cannot be read, lies outside the box, or has the name of another.
    """
    box, pixel_size, found = run.particles.box, run.particles.pixel_size, {}
    for path in paths:
        name = re.sub(r"\W+", "_", Path(path).name.partition(".")[0])
        if name in found:
            raise InputError(f"two files of --models are called {name}; rename one of them")
        structure = read_structure(path)
        reduce_structure(structure, path)
        atoms = [each.atom for each in structure[0].all()]
        positions = np.array([atom.pos.tolist() for atom in atoms])
        positions = positions - zero_of_coordinates(positions, origin, run.config.inputs.map, box, pixel_size)[1]
        inside = inside_box(nearest_voxels(positions, box, pixel_size), box)
        if inside.mean() < 0.5:
            raise InputError(f"--models {path} lies mostly outside the map; set --origin, or fit it to the map")
        gaussians = GaussianModel(torch.from_numpy(positions[inside]).float(), _WIDTH * pixel_size, 1.0)
        with torch.no_grad():
            numbers = [atom.element.atomic_number for atom, kept in zip(atoms, inside, strict=True) if kept]
            gaussians.relative_amplitudes.copy_(torch.tensor(numbers, dtype=torch.float32))
            found[name] = gaussians.render(box, pixel_size)
    return found

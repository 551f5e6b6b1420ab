"""Atomic models from files, the atoms that a selection names, and where their coordinates are zero in a map."""

from pathlib import Path

import gemmi
import numpy as np

from dynamight_core.errors import InputError
from dynamight_core.files import header_origin, read_map
from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.options import ORIGINS

ORIGIN_NAMES = {"centre": "centre of the box", "corner": "first voxel", "map": "origin in the consensus map's header"}
ATOMIC = (".pdb", ".cif", ".mmcif", ".ent")


def read_structure(path: str | Path) -> gemmi.Structure:
    """Read a PDB or mmCIF file, gzipped or not.

    Raises
    ------
    InputError
        if it is missing, cannot be read or holds no atoms.
    """
    if not Path(path).exists():
        raise InputError(f"model {path} does not exist; give a PDB or mmCIF file")
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model {path} cannot be read ({error}); give a PDB or mmCIF file") from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"model {path} holds no atoms; give a PDB or mmCIF file with coordinates")
    return structure


def selected_atoms(structure: gemmi.Structure, selection: str, path: str | Path) -> set[tuple[str, str, str]]:
    """Return chain, residue number with insertion code, and name of the atoms that a selection names.

    Parameters
    ----------
    structure
        of the file.
    selection
        parts separated by blanks, each a chain ("L"), a range of residues in it ("H/1-213"), or a selection in
        gemmi's syntax, which begins with a slash.
    path
        of the file, for errors.

    Raises
    ------
    InputError
        if a part is not understood or names no atom.
    """
    found = set()
    for part in selection.split():
        pattern = part if part.startswith("/") else "//" + part
        try:
            chosen = gemmi.Selection(pattern)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"selection {part!r} is not understood; write parts like L or H/1-213") from error
        names = {
            (chain.name, str(residue.seqid), atom.name)
            for model in chosen.models(structure)
            for chain in chosen.chains(model)
            for residue in chosen.residues(chain)
            for atom in chosen.atoms(residue)
        }
        if not names:
            chains = ", ".join(chain.name for chain in structure[0])
            raise InputError(f"selection {part!r} names no atom of {path}, which has the chains {chains}; correct it")
        found |= names
    if not found:
        raise InputError("selection is empty; name the atoms that turn, such as H/1-213 L")
    return found


def zero_of_coordinates(
    positions: np.ndarray, origin: str, map_path: str | Path, box: int, pixel_size: float
) -> tuple[str, np.ndarray]:
    """Return where in a map the coordinates of a file are zero, by name and as what to subtract from them.

    Parameters
    ----------
    positions
        (m, 3) A, as the file has them.
    origin
        "centre" of the box, at index box // 2; "corner", at the first voxel; "map", where the map's header has it;
        "auto", which of the three puts the positions into most density.
    map_path
        of the map.
    box, pixel_size
        of the map, voxels and A.

    Returns
    -------
    tuple
        "centre", "corner" or "map", and (3,) A.

    Raises
    ------
    InputError
        if the origin has another name, or the map cannot be read.
    """
    if origin not in ORIGINS:
        raise InputError(f"--origin is '{origin}'; choose one of {', '.join(ORIGINS)}")
    offsets = {"corner": np.full(3, box // 2 * pixel_size), "centre": np.zeros(3)}
    if origin in ("auto", "map"):
        offsets["map"] = offsets["corner"] + header_origin(map_path)
    if origin == "auto":
        volume, _ = read_map(map_path)
        origin = max(offsets, key=lambda name: _density_at(volume, positions - offsets[name], pixel_size))
    return origin, offsets[origin]


def _density_at(volume: np.ndarray, positions: np.ndarray, pixel_size: float) -> float:
    """Return the mean of a [z, y, x] map at the voxels nearest to (m, 3) positions (A), its own mean outside."""
    voxels = nearest_voxels(positions, volume.shape[0], pixel_size)
    inside = inside_box(voxels, volume.shape[0])
    values = np.full(len(voxels), volume.mean())
    values[inside] = volume[tuple(voxels[inside].T)]
    return float(values.mean())

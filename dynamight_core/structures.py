"""Atomic models from files, selections of atoms, and the origin of their coordinates in a map."""

import math
from pathlib import Path

import gemmi
import numpy as np

from dynamight_core.errors import InputError
from dynamight_core.files import check_is_file, header_origin, read_map
from dynamight_core.imaging.geometry import inside_box, nearest_voxels
from dynamight_core.options.common import ORIGINS

ORIGIN_NAMES = {"centre": "centre of the box", "corner": "first voxel", "map": "origin in the consensus map's header"}
ATOMIC = (".pdb", ".cif", ".mmcif", ".ent")


def read_structure(path: str | Path) -> gemmi.Structure:
    """Read a PDB or mmCIF file, gzipped or not.

    Raises
    ------
    InputError
        if it is missing, cannot be read or contains no atoms.
    """
    check_is_file(path, "model", "use a PDB or mmCIF file")
    try:
        structure = gemmi.read_structure(str(path))
    except Exception as error:  # gemmi lets errors of its containers through, such as IndexError.
        raise InputError(f"model {path} cannot be read ({error}); use a PDB or mmCIF file") from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"model {path} contains no atoms; use a PDB or mmCIF file with coordinates")
    for place in structure[0].all():
        if not all(map(math.isfinite, place.atom.pos.tolist())):
            raise InputError(f"model {path} has no coordinates for {place}; remove such atoms")
    return structure


def selected_atoms(structure: gemmi.Structure, selection: str, path: str | Path) -> set[tuple[str, str, str]]:
    """Return chain, residue number with insertion code, and name of the selected atoms.

    Parameters
    ----------
    structure
        of the file.
    selection
        parts separated by spaces, each a chain ("L"), a range of its residues ("H/1-213"), or a selection in gemmi's
        syntax, which begins with a slash.
    path
        of the file, for error messages.

    Raises
    ------
    InputError
        if a part is not valid or selects no atom.
    """
    found = set()
    for part in selection.split():
        pattern = part if part.startswith("/") else "//" + part
        try:
            chosen = gemmi.Selection(pattern)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"selection {part!r} is not valid; use parts such as L or H/1-213") from error
        names = {
            (chain.name, str(residue.seqid), atom.name)
            for model in chosen.models(structure)
            for chain in chosen.chains(model)
            for residue in chosen.residues(chain)
            for atom in chosen.atoms(residue)
        }
        if not names:
            chains = ", ".join(chain.name for chain in structure[0])
            raise InputError(f"selection {part!r} selects no atom of {path}, which has the chains {chains}; correct it")
        found |= names
    if not found:
        raise InputError("selection is empty; select the atoms that rotate, such as H/1-213 L")
    return found


def zero_of_coordinates(
    positions: np.ndarray, origin: str, map_path: str | Path, box: int, pixel_size: float
) -> tuple[str, np.ndarray]:
    """Return the origin of a file's coordinates in a map: its name, and the offset to subtract from coordinates.

    Parameters
    ----------
    positions
        (m, 3) A, as in the file.
    origin
        "centre" of the box, at index box // 2; "corner", the first voxel; "map", the origin in the map's header;
        "auto", the one of the three with the most density at the positions.
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
        if the origin is not one of these, or the map cannot be read.
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
    """Return the mean of a [z, y, x] map at the voxels nearest to (m, 3) positions (A); outside, the map's mean."""
    voxels = nearest_voxels(positions, volume.shape[0], pixel_size)
    inside = inside_box(voxels, volume.shape[0])
    values = np.full(len(voxels), volume.mean())
    values[inside] = volume[tuple(voxels[inside].T)]
    return float(values.mean())

"""Results for other programs: motion as a map, as atoms and as arrows, and an embedding of the particles."""

from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from dynamight_core.analysis.embedding import FILE, embed
from dynamight_core.analysis.molecule import all_gaussians, half_motions, spread_out
from dynamight_core.files import atomic_path, header_origin, write_map, write_table
from dynamight_core.imaging.geometry import grid_points, to_points, to_voxels
from dynamight_core.judging.conclusion import counted_motions
from dynamight_core.reconstruction.deformation import distance_from_points
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# The motion is evaluated on a grid of this spacing (A) and interpolated.
_SPACING = 4.0
# Distance from the Gaussians (A) up to which the motion is mapped: the surface to colour is slightly outside them.
_REACH = 12.0


def write_exports(run: Run, embedding: str = "auto", reporter: Reporter = PRINT) -> None:
    """Write RUN/analysis/motion.mrc and its error, gaussians_half?.cif, embedding.csv and latents.csv.

    ``motion_error.mrc`` is the error of the motion, ``motion_beyond_error.mrc`` the motion that exceeds its error (root
    of the difference of the squares). ``latents.csv`` has the latents of all particles under both decoders. Maps and
    models have the origin of the consensus map's header.

    Parameters
    ----------
    run
        finished and summarised.
    embedding
        "umap", "pca" (the first two motions), or "auto": umap if more than two motions are found and the package
        umap-learn is installed.
    reporter
        takes lines for the user.

    Raises
    ------
    InputError
        if there is no such embedding, or umap-learn is missing.
    """
    folder = run.path / "analysis"
    box, pixel_size = run.particles.box, run.particles.pixel_size
    corner = header_origin(run.config.inputs.map)
    maps = [folder / f"motion{name}.mrc" for name in ("", "_error", "_beyond_error")]
    gaussians = [folder / f"gaussians_half{half}.cif" for half in (1, 2)]
    motion, error = motion_maps(run, box, pixel_size)
    beyond = np.sqrt(np.clip(motion**2 - error**2, 0, None))
    for path, volume in zip(maps, (motion, error, beyond), strict=True):
        write_map(path, volume, pixel_size, corner)
    for half, path in enumerate(gaussians, 1):
        write_gaussians(run, half, path, corner + box // 2 * pixel_size)
    if embedding == "auto" and len(counted_motions(run)) <= 2:
        # Two motions are a plane already.
        embedding = "pca"
    columns, names = embed(run.motions.coordinates.numpy(), embedding, run.config.train.seed, reporter)
    write_table(folder / FILE, pd.DataFrame(columns, columns=names))
    values = {f"half{h}_latent{k}": z for h in (1, 2) for k, z in enumerate(run.latents[h - 1].T.numpy(), 1)}
    write_table(folder / "latents.csv", pd.DataFrame(values))
    reporter.say(f"Maps of the motion, its error and the motion beyond error: {', '.join(map(str, maps))}.")
    reporter.say(f"Gaussians with their motion: {gaussians[0]} and {gaussians[1]}.")


def write_arrows(run: Run, motion: int = 1, n: int = 150, reporter: Reporter = PRINT) -> list[Path]:
    """Write one motion as arrows, for ChimeraX and as a table. The radius of the sphere at each tip is the error.

    Arrows run from the mean conformation to one standard deviation along the motion. They are spread evenly over the
    molecule and have the origin of the consensus map's header.

    Parameters
    ----------
    run
        finished and summarised.
    motion
        from 1.
    n
        largest number of arrows.
    reporter
        takes lines for the user.

    Returns
    -------
    list
        RUN/analysis/motionK_arrows.bild and .csv.
    """
    coordinates = run.motions.coordinates.double().numpy()
    start = coordinates.mean(0)
    start[motion - 1] = 0.0
    end = start.copy()
    end[motion - 1] = coordinates[:, motion - 1].std()
    stem = run.path / "analysis" / f"motion{motion}_arrows"
    files = write_shift_arrows(run, start, end, stem, n, f"motion {motion}, one standard deviation")
    reporter.say(f"Arrows of motion {motion}, with their errors: {stem}.bild (for ChimeraX) and {stem}.csv.")
    return files


def write_shift_arrows(
    run: Run, start: np.ndarray, end: np.ndarray, stem: Path, n: int = 150, title: str = "first state to last"
) -> list[Path]:
    """Write arrows from one conformation to another. The radius of the sphere at each tip is the error.

    Parameters
    ----------
    run
        finished and summarised.
    start, end
        (K,) coordinates, A rms.
    stem
        path of the files, without suffix.
    n
        largest number of arrows; they are spread evenly over the molecule.
    title
        comment in the BILD file.

    Returns
    -------
    list
        the .bild and .csv, with the origin of the consensus map's header.
    """
    motions = run.motions
    shifts = [motions.displacement(torch.as_tensor(at, dtype=torch.float32)[None])[0] for at in (start, end)]
    centre = header_origin(run.config.inputs.map) + run.box // 2 * run.pixel_size
    shift = (shifts[1] - shifts[0]).numpy()
    points = (motions.points + shifts[0]).numpy() + centre
    return write_arrow_files(points, shift, np.asarray(run.summary["point_error"]), stem, n, title)


def write_arrow_files(
    points: np.ndarray, shift: np.ndarray, error: np.ndarray, stem: Path, n: int = 150, title: str = ""
) -> list[Path]:
    """Write arrows as .bild, for ChimeraX, and as .csv. The radius of the sphere at each tip is the error.

    Parameters
    ----------
    points, shift
        (m, 3) starts and displacements, A.
    error
        (m,) A.
    stem
        path of the files, without suffix.
    n
        largest number of arrows; they are spread evenly over the points.
    title
        comment in the BILD file.
    """
    chosen = spread_out(points, n)
    size = np.linalg.norm(shift, axis=1)
    table = pd.DataFrame(
        {
            **{f"{name}_A": points[chosen, i] for i, name in enumerate("xyz")},
            **{f"shift_{name}_A": shift[chosen, i] for i, name in enumerate("xyz")},
            "shift_A": size[chosen],
            "error_A": error[chosen],
        }
    )
    lines = [f".comment {title}; the radius of a sphere is the error"]
    for row in chosen[size[chosen] > 0.05 * size.max()]:
        tip = points[row] + shift[row]
        ends = " ".join(f"{value:.2f}" for value in (*points[row], *tip))
        lines += [".color 0.15 0.25 0.35", ".transparency 0", f".arrow {ends} 0.4 1.0 0.7"]
        ball = " ".join(f"{value:.2f}" for value in (*tip, error[row]))
        lines += [".color 0.80 0.40 0.20", ".transparency 0.6", f".sphere {ball}"]
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".bild", ".csv")]
    with atomic_path(files[0]) as path:
        path.write_text("\n".join(lines) + "\n")
    write_table(files[1], table, "%.5g")
    return files


@torch.no_grad()
def motion_at(run: Run, positions: torch.Tensor) -> np.ndarray:
    """Return the (p,) motion, A rms over particles about the mean conformation, at (p, 3) consensus positions (A).

    The fields of both half-sets are averaged, so that noise of one half-set alone is not motion.
    """
    variance = run.motions.coordinates.var(0, unbiased=False)
    fields = torch.zeros(())
    for half in (1, 2):
        fields = fields + half_motions(run, half, positions)[1] / 2
    return (variance[:, None] * fields.square().sum(-1)).sum(0).sqrt().numpy()


def errors_from_points(points: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from (m,) errors that are known at (m, 3) points to those at (p, 3) positions, all A.

    They are rms over the nearest points, weighted by their inverse distance.
    """
    distance, nearest = cKDTree(points).query(positions, k=min(8, len(points)))
    weight = 1 / (distance + 1.0)
    return lambda errors: np.sqrt((weight * errors[nearest] ** 2).sum(1) / weight.sum(1))


def motion_maps(run: Run, box: int, pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the (box, box, box) motion at every voxel around the molecule, A rms, and its error; 0 elsewhere."""
    coarse = max(1, min(box, round(box * pixel_size / _SPACING)))
    spacing = box * pixel_size / coarse
    grid = grid_points(to_points(np.arange(coarse + 1.0), coarse, spacing))
    gaussians = all_gaussians(run)
    near = np.isfinite(cKDTree(gaussians).query(grid, distance_upper_bound=_REACH + 2 * spacing)[0])
    values = np.zeros((2, len(grid)), dtype=np.float32)
    values[0, near] = motion_at(run, torch.from_numpy(grid[near].astype(np.float32)))
    values[1, near] = errors_from_points(run.motions.points.numpy(), grid[near])(np.asarray(run.summary["point_error"]))
    # Voxels of the box in units of the coarse grid, which has the same centre.
    axis = to_voxels(to_points(np.arange(float(box)), box, pixel_size), coarse, spacing)
    where = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = distance_from_points(gaussians, box, pixel_size) <= _REACH
    fine = [ndimage.map_coordinates(part.reshape([coarse + 1] * 3), where, order=1, mode="nearest") for part in values]
    motion, error = (np.where(inside, part, 0).astype(np.float32) for part in fine)
    return motion, error


def write_gaussians(run: Run, half: int, path: str | Path, centre) -> None:
    """Write the Gaussians of a half-set in the consensus conformation as mmCIF.

    Each is an unknown atom (UNX), with its motion (A rms) as B-factor and its amplitude, relative to the largest, as
    occupancy.

    Parameters
    ----------
    run
        finished and summarised.
    half
        1 or 2.
    path
        of the file.
    centre
        (x, y, z) coordinates of the centre of the box in the file, A.
    """
    model = run.models[half - 1]
    positions = model.consensus_positions.cpu()
    motion = motion_at(run, positions)
    amplitudes = model.gaussians.relative_amplitudes.detach().clamp(min=0).cpu().numpy()
    chain = gemmi.Chain("A")
    for number, (position, value, amplitude) in enumerate(
        zip(positions.double().numpy() + centre, motion, amplitudes / amplitudes.max(), strict=True), 1
    ):
        atom = gemmi.Atom()
        atom.name, atom.element = "UNK", gemmi.Element("X")
        atom.pos, atom.b_iso, atom.occ = gemmi.Position(*position), float(value), float(amplitude)
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = "UNX", gemmi.SeqId(str(number)), "H"
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure = gemmi.Structure()
    structure.name = f"gaussians_half{half}"
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    structure.setup_entities()
    with atomic_path(path) as temporary:
        structure.make_mmcif_document().write_file(str(temporary))

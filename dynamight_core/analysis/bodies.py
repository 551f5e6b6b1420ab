"""Rotation and shift of each rigid body in every particle, as a table and in RELION's multi-body form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.transform import Rotation

from dynamight_core.analysis.molecule import main_rotation, xyz_columns
from dynamight_core.files import read_map, write_tables
from dynamight_core.imaging.poses import euler_angles, rotation_matrices
from dynamight_core.model.half import HalfModel
from dynamight_core.particles.star import write_star
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

_BATCH = 1024
_Motions = tuple[torch.Tensor, torch.Tensor]


@dataclass
class BodyMotions:
    """Motions of the B - 1 moving bodies, from the consensus to each of n particles.

    Parameters
    ----------
    numbers
        (B - 1,) numbers of the bodies, from 1 in the order of their masks.
    rotations
        (n, B - 1, 3, 3) in the frame of the consensus map.
    shifts
        (n, B - 1, 3) A: a point x moves to R x + shift.
    rotation_errors, shift_errors
        (n, B - 1, 3) standard deviations of each component of the rotation vector (radians) and of the shift of the
        body's centre (A), from the width of the latent's posterior and the disagreement of the half-sets.
    centres
        (B - 1, 3) centres of the bodies, A.
    """

    numbers: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    rotation_errors: np.ndarray
    shift_errors: np.ndarray
    centres: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """(n, B - 1, 3) rotation vectors, radians."""
        return Rotation.from_matrix(self.rotations.reshape(-1, 3, 3)).as_rotvec().reshape(self.rotations.shape[:-1])

    def shift_of(self, points: np.ndarray) -> np.ndarray:
        """Return the (n, B - 1, 3) displacement (A) of one point of each body, given (B - 1, 3) points (A)."""
        return np.einsum("nbij,bj->nbi", self.rotations, points) + self.shifts - points


@torch.no_grad()
def body_motions(run: Run) -> BodyMotions:
    """Return the motions of a run's bodies in all particles, each from its own half-set's decoder."""
    n = len(run.halves)
    decoder: Any = run.models[0].decoder
    moving, centres = decoder.moving, decoder.centres[decoder.moving].double()
    rotations = torch.zeros(n, len(moving), 3, 3, dtype=torch.float64)
    shifts = torch.zeros(n, len(moving), 3, dtype=torch.float64)
    variances = torch.zeros(2, n, len(moving), 3, dtype=torch.float64)
    for rows in torch.arange(n).split(_BATCH):
        found = [_motions(model, run.latents[half][rows]) for half, model in enumerate(run.models)]
        # Both half-sets have the same error, so each has half the variance of their difference.
        between = [part.square() / 2 for part in _differences(found[0], found[1], centres)]
        for half, model in enumerate(run.models):
            mine = run.halves[rows] == half + 1
            own = rows[mine]
            here = found[half][0][mine], found[half][1][mine]
            rotations[own], shifts[own] = here
            spread = torch.linalg.cholesky(run.covariances[half][own])
            variances[:, own] = torch.stack([part[mine] for part in between])
            for axis in range(spread.shape[-1]):
                there = _motions(model, run.latents[half][own] + spread[:, :, axis])
                variances[:, own] += torch.stack(_differences(here, there, centres)).square()
    errors = variances.sqrt().numpy()
    return BodyMotions(moving.numpy() + 1, rotations.numpy(), shifts.numpy(), errors[0], errors[1], centres.numpy())


def _motions(model: HalfModel, latents: torch.Tensor) -> _Motions:
    """Return rotations and shifts as in `BodyMotions`, in double precision."""
    decoder: Any = model.decoder
    rotations, shifts = decoder.motions(latents.to(model.latent_mean))
    return rotations.cpu().double(), shifts.cpu().double()


def _differences(first: _Motions, second: _Motions, centres: torch.Tensor) -> list[torch.Tensor]:
    """Return the rotation vectors (radians) and shifts of the centres (A) between two sets of motions."""
    between = (second[0] @ first[0].transpose(-1, -2)).reshape(-1, 3, 3).numpy()
    vectors = torch.from_numpy(Rotation.from_matrix(between).as_rotvec()).reshape(first[1].shape)
    moved = [(rotations @ centres[..., None])[..., 0] + shifts for rotations, shifts in (first, second)]
    return [vectors, moved[1] - moved[0]]


def particle_table(motions: BodyMotions) -> pd.DataFrame:
    """Return one row per particle: angle and rotation vector (degrees) and shift (A) of each body, with errors.

    The angle is positive about the body's main axis (see `summary_table`).
    """
    vectors, shifts = motions.vectors, motions.shift_of(motions.centres)
    columns = {}
    for index, number in enumerate(motions.numbers):
        vector, error = vectors[:, index], motions.rotation_errors[:, index]
        size = np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)
        name = f"body{number}"
        columns[f"{name}_angle_deg"] = main_rotation(vector)[1]
        # Error along the rotation vector. A rotation of zero has no axis: all of the error counts.
        along = np.where(size > 1e-9, (vector / size) ** 2, 1.0)
        columns[f"{name}_angle_error_deg"] = np.degrees(np.sqrt((along * error**2).sum(1)))
        columns |= xyz_columns(f"{name}_rotation", np.degrees(vector), "deg")
        columns |= xyz_columns(f"{name}_rotation_error", np.degrees(error), "deg")
        columns |= xyz_columns(f"{name}_shift", shifts[:, index])
        columns |= xyz_columns(f"{name}_shift_error", motions.shift_errors[:, index])
    return pd.DataFrame(columns)


def summary_table(run: Run, motions: BodyMotions) -> pd.DataFrame:
    """Return one row per body: mask, size, rotation and shift (empty for the largest, which does not move)."""
    decoder: Any = run.models[0].decoder
    vectors, shifts = motions.vectors, motions.shift_of(motions.centres)
    rows = []
    for body, path in enumerate(run.config.inputs.bodies or []):
        row = {"body": body + 1, "mask": Path(path).name, "share": float(decoder.shares[body])}
        row |= {f"centre_{name}_A": float(decoder.centres[body, i]) for i, name in enumerate("xyz")}
        for index in np.flatnonzero(motions.numbers == body + 1):
            (axis, angle), shift = main_rotation(vectors[:, index]), shifts[:, index]
            error = (motions.rotation_errors[:, index] ** 2).sum(1).mean() ** 0.5
            row |= {
                "angle_std_deg": angle.std(),
                "angle_low_deg": np.quantile(angle, 0.025),
                "angle_high_deg": np.quantile(angle, 0.975),
                "rotation_error_rms_deg": np.degrees(error),
                "shift_std_A": np.sqrt(((shift - shift.mean(0)) ** 2).sum(1).mean()),
                "shift_error_rms_A": np.sqrt((motions.shift_errors[:, index] ** 2).sum(1).mean()),
                **{f"axis_{name}": axis[i] for i, name in enumerate("xyz")},
            }
        rows.append(row)
    return pd.DataFrame(rows)


def write_bodies(run: Run, reporter: Reporter = PRINT) -> list[Path]:
    """Write the motions of a run's bodies to RUN/analysis; nothing for a run without bodies.

    ``bodies.csv`` is `particle_table`, in the order of particles.star. ``bodies_summary.csv`` is `summary_table`.
    ``relion_bodies.star`` and ``relion_data.star`` describe bodies and particles for RELION's multi-body refinement
    (RELION 3.1 or later).

    Parameters
    ----------
    run
        finished and summarised.
    reporter
        takes lines for the user.
    """
    if run.config.inputs.bodies is None:
        return []
    folder, motions = run.path / "analysis", body_motions(run)
    summary = summary_table(run, motions)
    written = write_tables(folder, {"bodies": particle_table(motions), "bodies_summary": summary})
    for row in summary.dropna(subset="angle_std_deg").itertuples():
        reporter.say(
            f"Body {row.body} ({row.mask}): rotation {row.angle_std_deg:.1f} degrees (standard deviation over "
            f"particles; uncertainty {row.rotation_error_rms_deg:.1f}), shift of its centre {row.shift_std_A:.1f} A "
            f"(uncertainty {row.shift_error_rms_A:.1f})."
        )
    if run.particles.optics is not None:
        written += _write_relion(run, motions, summary)
    return written


def _write_relion(run: Run, motions: BodyMotions, summary: pd.DataFrame) -> list[Path]:
    """Write RELION's body and data STAR files.

    RELION rotates body b about the centre of mass of its mask, rounded to voxels, by A = A_consensus O' E(0, 90, 0)'
    E(angles) O. O rotates the line between the centre of the body and that of the body it is relative to into z. The
    centre c appears in the image at A_consensus c - offset.
    """
    particles, masks = run.particles.first_images(), run.config.inputs.bodies or []
    decoder: Any = run.models[0].decoder
    largest = int(decoder.largest)
    centres = np.stack([_rounded_centre(path) for path in masks])
    order = np.argsort(-summary["share"].to_numpy())
    relative = np.where(np.arange(len(masks)) == largest, order[order != largest][0], largest)
    bodies = pd.DataFrame(
        {
            "rlnBodyMaskName": masks,
            "rlnBodyRotateRelativeTo": relative + 1,
            "rlnBodySigmaAngles": summary["angle_std_deg"].fillna(0.0),
            "rlnBodySigmaOffsetAngst": summary["shift_std_A"].fillna(0.0),
        }
    )
    consensus = rotation_matrices(particles.angles).double().numpy()
    upright = rotation_matrices(torch.tensor([0.0, torch.pi / 2, 0.0], dtype=torch.float64)).numpy()
    zero = np.zeros((len(run.halves), 2))
    tables = {}
    for body in range(len(masks)):
        matrices, offset = np.tile(upright, (len(zero), 1, 1)), zero
        for index in np.flatnonzero(motions.numbers == body + 1):
            to_z = _into_z(centres[body] - centres[relative[body]])
            matrices = upright @ to_z @ motions.rotations[:, index] @ to_z.T
            points = np.tile(centres[body], (len(motions.numbers), 1))
            offset = -np.einsum("nij,nj->ni", consensus, motions.shift_of(points)[:, index])[:, :2]
        angles = np.degrees(euler_angles(torch.from_numpy(matrices)).numpy())
        table = {"rlnOriginXAngst": offset[:, 0], "rlnOriginYAngst": offset[:, 1]}
        table |= {f"rlnAngle{name}": angles[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
        table["rlnNormCorrection"] = particles.table.get("rlnNormCorrection", np.ones(len(zero)))
        tables[f"images_body_{body + 1}"] = pd.DataFrame(table)
    rows = particles.table.copy()
    if run.pose_changes is not None:
        poses = torch.cat([torch.rad2deg(particles.angles), particles.shifts], 1).numpy()
        rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]] = poses
    folder = run.path / "analysis"
    write_star(folder / "relion_bodies.star", bodies, None, "")
    write_star(folder / "relion_data.star", rows, particles.optics, particles.block, tables)
    return [folder / "relion_bodies.star", folder / "relion_data.star"]


def _rounded_centre(path: str) -> np.ndarray:
    """Return the centre of mass of a mask, rounded to voxels, (x, y, z) A from the centre of the box."""
    mask, pixel_size = read_map(path)
    axis = np.arange(len(mask)) - len(mask) // 2
    sums = [mask.sum(tuple({0, 1, 2} - {dim})) for dim in (2, 1, 0)]
    return np.array([np.rint(total @ axis / total.sum()) for total in sums]) * pixel_size


def _into_z(axis: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation, rows x, y, z, with z along an axis and y perpendicular to the x axis."""
    z = axis / np.linalg.norm(axis)
    across = np.hypot(z[1], z[2])
    if across < 1e-6:
        return np.array([[0.0, 0.0, -np.sign(z[0])], [0.0, 1.0, 0.0], [np.sign(z[0]), 0.0, 0.0]])
    y = np.array([0.0, z[2], -z[1]]) / across
    return np.stack([np.cross(y, z), y, z])

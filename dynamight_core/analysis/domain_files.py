"""Files of the rigid-body domains: masks, bodies for RELION, and tables of their motion."""

from pathlib import Path

import numpy as np
import pandas as pd
import starfile
import torch
from scipy.spatial import cKDTree

from dynamight_core.analysis.domains import Domains
from dynamight_core.analysis.molecule import all_gaussians, xyz_columns
from dynamight_core.files import atomic_path, header_origin, write_map, write_table, write_tables
from dynamight_core.imaging.geometry import nearest_voxels
from dynamight_core.imaging.masks import distance_from, distance_from_voxels, raised_cosine
from dynamight_core.judging.errors import region_errors
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run

# Distance of a mask from the points of its domain, and width of its soft edge, A.
_REACH, _EDGE = 7.0, 6.0


def summary_table(domains: Domains, run: Run) -> pd.DataFrame:
    """Return one row per domain: size, motion, error, and the spread of its angles and shifts."""
    motion, error = (np.asarray(run.summary[name]) for name in ("point_motion", "point_error"))
    rows = []
    for domain in range(len(domains)):
        mine = domains.labels == domain
        angle, shift, joint = domains.angles[:, domain], domains.shifts[:, domain], domains.joints[domain]
        motion_rms, error_rms = (float(np.sqrt((values[mine] ** 2).mean())) for values in (motion, error))
        rows.append(
            {
                "domain": domain + 1,
                "against": "consensus" if domain == 0 else "domain 1",
                "share_of_points": mine.mean(),
                "motion_A": motion_rms,
                "error_A": error_rms,
                "motion_beyond_error_A": float(np.sqrt(max(0.0, motion_rms**2 - error_rms**2))),
                "angle_std_deg": angle.std(),
                "angle_low_deg": np.quantile(angle, 0.025),
                "angle_high_deg": np.quantile(angle, 0.975),
                "shift_rms_A": np.sqrt(((shift - shift.mean(0)) ** 2).sum(1).mean()),
                **{f"axis_{name}": domains.axes[domain, i] for i, name in enumerate("xyz")},
                **xyz_columns("centre", domains.centres[domain]),
                **xyz_columns("joint", np.full(3, np.nan) if joint is None else joint),
            }
        )
    return pd.DataFrame(rows)


def write_domains(run: Run, domains: Domains, reporter: Reporter = PRINT) -> list[Path]:
    """Write masks and tables of the domains to RUN/analysis/domains.

    ``domainN_mask.mrc`` is for focused or multi-body refinement: 1 within 7 A of the domain's Gaussians (of both
    half-sets) and nearer to them than to other domains, with a soft edge of 6 A. ``bodies.star`` is the list of bodies
    for RELION's --multibody_masks (two domains or more).

    ``domains.csv`` has one row per domain. ``particles.csv`` has one row per particle, in the order of particles.star:
    the angle (degrees) and shift (A) of each domain, and for each domain and the molecule the amount (A rms) and
    direction (mean displacement, A) of the motion about the mean. ``points.csv`` has domain, motion and error of the
    common points, ``residuals.csv`` the motion that 1, 2, ... domains leave unexplained.

    Parameters
    ----------
    run
        finished and summarised.
    domains
        of the run.
    reporter
        takes lines for the user.
    """
    out = run.path / "analysis" / "domains"
    for previous in (*out.glob("domain*_mask.mrc"), *out.glob("bodies.star"), *out.glob("errors.csv")):
        previous.unlink()
    positions = (run.motions.points + run.motions.mean).numpy()
    gaussians = all_gaussians(run)
    labels = domains.labels[cKDTree(run.motions.points.numpy()).query(gaussians)[1]]
    origin = header_origin(run.config.inputs.map)
    written = []
    for domain, mask in enumerate(domain_masks(gaussians, labels, len(domains), run.box, run.pixel_size), 1):
        written.append(out / f"domain{domain}_mask.mrc")
        write_map(written[-1], mask, run.pixel_size, origin)
    columns = {}
    for domain in range(len(domains)):
        columns[f"domain{domain + 1}_angle_deg"] = domains.angles[:, domain]
        columns |= xyz_columns(f"domain{domain + 1}_shift", domains.shifts[:, domain])
    columns |= _amounts(run, domains)
    points = pd.DataFrame(positions, columns=["x_A", "y_A", "z_A"]).assign(domain=domains.labels + 1)
    motion, error = (np.asarray(run.summary[name]) for name in ("point_motion", "point_error"))
    beyond = np.sqrt(np.clip(motion**2 - error**2, 0, None))
    points = points.assign(motion_A=motion, error_A=error, motion_beyond_error_A=beyond)
    residuals = pd.DataFrame({"domains": range(1, len(domains.residuals) + 1), "residual_rms_A": domains.residuals})
    tables = {
        "domains": summary_table(domains, run),
        "particles": pd.DataFrame(columns),
        "points": points,
        "residuals": residuals,
    }
    written += write_tables(out, tables, "%.5g")
    if len(domains) > 1:
        written.append(_write_bodies(out, domains))
    number = f"{len(domains)} rigid-body domains" if len(domains) > 1 else "one rigid-body domain"
    reporter.say(f"The motion has {number}; masks, angles and shifts: {out}.")
    return written


def write_errors(run: Run, domains: Domains, reporter: Reporter = PRINT) -> Path:
    """Write RUN/analysis/domains/errors.csv: for each particle, the error of its displacement in each domain, A rms."""
    found = region_errors(run, torch.from_numpy(domains.labels), len(domains), torch.arange(len(run.halves)))
    columns = {f"domain{domain + 1}_error_A": found[:, domain].numpy() for domain in range(len(domains))}
    path = run.path / "analysis" / "domains" / "errors.csv"
    write_table(path, pd.DataFrame(columns), "%.5g")
    reporter.say(f"Uncertainty of each particle's displacement in each domain: {path}.")
    return path


def _amounts(run: Run, domains: Domains) -> dict[str, np.ndarray]:
    """Return columns with the amount and direction of each domain's, and the molecule's, motion about the mean."""
    coordinates = run.motions.coordinates.double().numpy()
    centred = coordinates - coordinates.mean(0)
    components = run.motions.components.double().numpy()
    parts = {"molecule": np.ones(len(domains.labels), dtype=bool)}
    parts |= {f"domain{domain + 1}": domains.labels == domain for domain in range(len(domains))}
    columns = {}
    for name, mine in parts.items():
        fields = components[:, mine]
        # The mean square over points is a quadratic form of the coordinates.
        form = np.einsum("kmi,lmi->kl", fields, fields) / mine.sum()
        columns[f"{name}_motion_A"] = np.sqrt(np.clip(((centred @ form) * centred).sum(1), 0, None))
        columns |= xyz_columns(f"{name}_mean", centred @ fields.mean(1))
    return columns


def _write_bodies(out: Path, domains: Domains) -> Path:
    """Write bodies.star for RELION's multi-body refinement: bodies rotate relative to the largest, that to the second.

    The priors are twice as wide as the estimated spread, which is drawn towards the mean, and at least 2 degrees and
    1 A.
    """
    n = len(domains)
    spread = np.sqrt(((domains.shifts - domains.shifts.mean(0)) ** 2).sum(2).mean(0) / 3)
    table = pd.DataFrame(
        {
            "rlnBodyMaskName": [str((out / f"domain{domain + 1}_mask.mrc").resolve()) for domain in range(n)],
            "rlnBodyRotateRelativeTo": [2, *[1] * (n - 1)],
            "rlnBodySigmaAngles": np.maximum(2.0, 2 * domains.angles.std(0)).round(1),
            "rlnBodySigmaOffsetAngst": np.maximum(1.0, 2 * spread).round(1),
        }
    )
    with atomic_path(out / "bodies.star") as path:
        starfile.write({"": table}, path)
    return out / "bodies.star"


def domain_masks(
    gaussians: np.ndarray, labels: np.ndarray, n_domains: int, box: int, pixel_size: float
) -> list[np.ndarray]:
    """Return (box, box, box) soft masks around the points of each domain.

    Parameters
    ----------
    gaussians
        (p, 3) A, with the origin at the centre of the box.
    labels
        (p,) domains, from 0.
    n_domains, box, pixel_size
        number of domains; pixels; A.
    """
    voxels = np.clip(nearest_voxels(gaussians, box, pixel_size), 0, box - 1)
    each = (voxels[labels == domain] for domain in range(n_domains))
    distances = np.stack([distance_from_voxels(points, box, pixel_size).astype(np.float32) for points in each])
    nearest = distances.argmin(0)
    cores = [(nearest == domain) & (distances[domain] <= _REACH) for domain in range(n_domains)]
    return [raised_cosine(distance_from(core, pixel_size) / _EDGE).astype(np.float32) for core in cores]

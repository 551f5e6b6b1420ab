"""A finished run of the molecule `hinge` of any size within seconds: its latents are drawn, not learned."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from dynamight_core import __version__
from dynamight_core.config import RunConfig
from dynamight_core.files import write_map
from dynamight_core.judging.errors import SYSTEMATIC
from dynamight_core.judging.summary import motion_per_point
from dynamight_core.model.gaussians import GaussianModel
from dynamight_core.model.half import HalfModel
from dynamight_core.model.motions import principal_motions
from dynamight_core.options import InputOptions, TrainOptions
from dynamight_core.particles.star import write_star
from dynamight_core.simulate.molecules import hinge_molecule

BOX, PIXEL = 64, 3.0
# Standard deviation of the hinge's angle, radians, and of the error of its coordinate, as a fraction of the spread.
ANGLE, ERROR = 0.2, 0.25
_PROVENANCE: dict = {"dynamight_core": __version__, "folder": ".", "commands": {}}


def make_run(folder: Path, particles: int, n_gaussians: int = 600, seed: int = 0) -> Path:
    """Write a finished run of the molecule `hinge` with drawn latents to a folder; returns that of the run.

    Half 1 and half 2 take turns, every tenth particle is a validation particle. Images are not there.
    """
    torch.manual_seed(seed)
    run, n = folder / "run", particles
    molecule = hinge_molecule(seed)
    models = [_fitted(molecule, n_gaussians, seed + half) for half in (1, 2)]
    angles = torch.randn(n)
    latents = torch.stack([angles, 0.3 * torch.randn(n)], 1)
    latents = latents + ERROR * torch.randn(2, n, 2) * torch.tensor([1.0, 0.3])
    halves, validation = torch.arange(n) % 2 + 1, torch.arange(n) % 10 == 0
    covariances = (ERROR**2 * torch.diag(torch.tensor([1.0, 0.09]))).expand(2, n, 2, 2).contiguous()
    for half, model in enumerate(models, 1):
        (run / f"half{half}").mkdir(parents=True, exist_ok=True)
        model.save(run / f"half{half}" / "model.safetensors")
    tensors = {"latents": latents, "covariances": covariances, "halves": halves, "validation": validation}
    safetensors.torch.save_file(tensors, run / "latents.safetensors")
    points = torch.cat([model.gaussians.positions.detach()[:1000] for model in models])
    with torch.no_grad():
        evaluators = [model.consensus_evaluator(points) for model in models]

    @torch.no_grad()
    def displacements(rows):
        both = [evaluate(latents[half][rows]) for half, evaluate in enumerate(evaluators)]
        return torch.where((halves[rows] == 1)[:, None, None], *both)

    motions = principal_motions(displacements, n, points, 3)
    motions.save(run / "analysis" / "motions.safetensors")
    magnitude = motions.coordinates.square().sum(1).sqrt()
    error = ERROR * float(motions.coordinates[:, 0].std()) * (0.7 + 0.6 * torch.rand(n))
    columns = {"dynHalf": halves, "dynValidation": validation.long()}
    columns |= {f"dynMotion{k + 1}": motions.coordinates[:, k] for k in range(motions.coordinates.shape[1])}
    columns |= {"dynMotionRms": magnitude, "dynMotionError": error, "dynMotionDisagreement": 0.4 * error}
    _write_star(folder / "particles.star", run / "particles.star", columns, np.random.default_rng(seed))
    volume = models[0].gaussians.render(BOX, PIXEL).detach().numpy()
    write_map(folder / "consensus.mrc", volume, PIXEL)
    summary = {
        "verdict": {
            "verdict": "supported",
            "gain": 8.0,
            "gain_error": 0.3,
            "null": -1.0,
            "null_error": 0.2,
            "particles": int(validation.sum()),
            "sentence": "The latents of this run are drawn, not learned.",
        },
        "motion_rms": float(magnitude.square().mean().sqrt()),
        "motion_between_particles_rms": float(motions.coordinates.var(0).sum().sqrt()),
        "error_factor": SYSTEMATIC,
        "error_rms": float(error.square().mean().sqrt()),
        "error_disagreement_rms": float(0.4 * error.mean()),
        "error_posterior_rms": float(0.9 * error.mean()),
        "unseen_motion_rms": 0.5,
        "motion_shares": motions.shares.tolist(),
        "point_motion": motion_per_point(motions).tolist(),
        "point_error": (0.3 * motion_per_point(motions)).tolist(),
        "particles": n,
        "model": {
            "dynamight_core": __version__,
            "box": BOX,
            "pixel_size": PIXEL,
            "particles": [int((halves == half).sum()) for half in (1, 2)],
            "halves_are_random": False,
            "gaussians": n_gaussians,
            "latents": 2,
            "motions": motions.coordinates.shape[1],
            "device": "cpu",
        },
        "validation_particles": int(validation.sum()),
        "warnings": [],
    }
    (run / "analysis" / "summary.json").write_text(json.dumps(summary))
    inputs = InputOptions(star=str(folder / "particles.star"), map=str(folder / "consensus.mrc"))
    RunConfig(inputs, TrainOptions(n_gaussians=n_gaussians, n_latents=2, n_motions=3), _PROVENANCE).write(run)
    return run


def _fitted(molecule, n: int, seed: int) -> HalfModel:
    """Return a model of n Gaussians whose decoder knows the hinge: latent 1 its angle, latent 2 a little stretch."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(molecule), generator=generator)[:n]
    gaussians = GaussianModel(molecule.positions[chosen], 4.0, 1.0, generator=generator)
    model = HalfModel(gaussians, BOX, PIXEL, 2, "basis", 0.9 * BOX * PIXEL, None)
    optimizer = torch.optim.Adam(model.decoder.parameters(), 1e-2)
    along = molecule.positions[chosen] - molecule.positions.mean(0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        latents = 1.5 * torch.randn(48, 2, generator=generator)
        true = molecule.move(molecule.positions[chosen], molecule.moving[chosen], ANGLE * latents[:, 0])
        true = true - molecule.positions[chosen] + 0.02 * latents[:, 1, None, None] * along
        loss = (model.decoder.displacements(latents, gaussians.positions.detach()) - true).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _write_star(given: Path, results: Path, columns: dict, rng) -> None:
    """Write particles as RELION 3.1 does, and the same with the columns of results."""
    n = len(columns["dynHalf"])
    table = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@particles.mrcs" for i in range(n)],
            "rlnMicrographName": [f"micrograph_{i // 100:05d}.mrc" for i in range(n)],
            "rlnAngleRot": rng.uniform(-180, 180, n).round(3),
            "rlnAngleTilt": rng.uniform(0, 180, n).round(3),
            "rlnAnglePsi": rng.uniform(-180, 180, n).round(3),
            "rlnOriginXAngst": 0.0,
            "rlnOriginYAngst": 0.0,
            "rlnDefocusU": rng.uniform(8000, 20000, n).round(1),
            "rlnDefocusV": rng.uniform(8000, 20000, n).round(1),
            "rlnDefocusAngle": 30.0,
            "rlnOpticsGroup": 1,
            "rlnRandomSubset": columns["dynHalf"].numpy(),
        }
    )
    optics = pd.DataFrame(
        {
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [PIXEL],
            "rlnImageSize": [BOX],
            "rlnImageDimensionality": [2],
        }
    )
    write_star(given, table, optics)
    for name, values in columns.items():
        table[name] = values.numpy()
    write_star(results, table, optics)
    # A stack of which only the name is asked for.
    (given.parent / "particles.mrcs").write_bytes(b"")

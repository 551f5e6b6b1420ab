"""The summary of a training: principal motions, errors and the verdict."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from dynamight_core import processes
from dynamight_core.belonging import record_files
from dynamight_core.files import atomic_path
from dynamight_core.groups import world
from dynamight_core.judging.agreement import halves_agreement
from dynamight_core.judging.bias import model_bias
from dynamight_core.judging.causes import COMPOSITION, JUNK, TOO_LITTLE, find_causes, with_rivals
from dynamight_core.judging.conclusion import record_conclusion
from dynamight_core.judging.detection import unseen_motion
from dynamight_core.judging.errors import SYSTEMATIC, MotionErrors, motion_errors
from dynamight_core.judging.gathering import Evidences, Statics
from dynamight_core.judging.verdict import judge
from dynamight_core.model.half import HalfModel
from dynamight_core.model.motions import PrincipalMotions, principal_motions
from dynamight_core.particles.metadata import Particles, write_particles
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run
from dynamight_core.training.stage import Trained
from dynamight_core.version import __version__

# Common points of both half-sets.
_POINTS = 2000


def summarise(trained: Trained, reporter: Reporter = PRINT) -> Run:
    """Find principal motions, errors and the verdict of a training.

    Writes RUN/particles.star, RUN/analysis/motions.safetensors and RUN/analysis/summary.json.

    Parameters
    ----------
    trained
        result of `training.stage.train`.
    reporter
        receives messages.
    """
    options, models, path = trained.options, trained.models, trained.run
    run = Run(path)
    n = len(run.halves)
    points = _common_points(models, options.seed)
    with torch.no_grad():
        evaluators = [model.consensus_evaluator(points.to(trained.data.device)) for model in models]

    @torch.no_grad()
    def displacements(rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(rows), len(points), 3)
        for h in (0, 1):
            mine = torch.where(run.halves[rows] == h + 1)[0]
            if len(mine):
                out[mine] = evaluators[h](run.latents[h][rows[mine]].to(trained.data.device)).cpu()
        return out

    motions = principal_motions(displacements, n, points, options.n_motions)
    motions.save(path / "analysis" / "motions.safetensors")
    bias = model_bias(run)
    warnings = [*([bias] if bias else []), *trained.prepared.warnings]
    relatives = trained.prepared.relatives
    statics = Statics(trained)
    verdict = judge(models, statics.models, trained.data, run.halves, run.validation, relatives, options.seed)
    unseen = unseen_motion(models, trained.data, trained.training_rows, options.seed)
    evidences = Evidences(trained, statics, run.halves, run.validation)
    evidence = evidences.gather(motions, unseen)
    causes = world().agreed(find_causes(verdict, evidence))
    verdict = with_rivals(verdict, evidence, causes)
    composition = None
    if any(cause.found is True and cause.name in (COMPOSITION, JUNK) for cause in causes):
        composition = evidences.groups().groups
    if not processes.is_first():
        return run
    found = verdict.verdict == "supported"
    # Among the causes, the conclusion tells it already.
    if not found and not any(cause.found for cause in causes if cause.name == TOO_LITTLE):
        warnings.append(
            f"motion of up to {unseen:.1f} A rms could go undetected at this noise level and particle count; the "
            "uncertainties include it"
        )
    hidden = 0.0 if found else unseen
    errors = motion_errors(evaluators, models, run.latents, run.covariances, run.halves, hidden)
    agreement = halves_agreement(run)
    magnitude = torch.cat([displacements(rows).square().sum(-1).mean(1).sqrt() for rows in torch.arange(n).split(256)])
    summary = {
        "verdict": asdict(verdict),
        "causes": [asdict(cause) for cause in causes],
        "evidence": evidence.gains(),
        **statistics(motions, magnitude, errors),
        "error_factor": SYSTEMATIC,
        "unseen_motion_rms": unseen,
        "motion_shares": motions.shares.tolist(),
        "motion_correlations": [None if np.isnan(value) else value for value in agreement["correlation"]],
        "shared_motions": agreement["motion"][agreement["shared"]].tolist(),
        "particles": n,
        "model": _describe(run, trained),
        "validation_particles": int(run.validation.sum()),
        "warnings": warnings,
    }
    with atomic_path(path / "analysis" / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1))
    write_results(run, motions, magnitude, errors, composition)
    record_files(path)
    reporter.say(
        f"Motion {summary['motion_rms']:.2f} A rms, uncertainty {summary['error_rms']:.2f} A rms "
        f"({summary['error_disagreement_rms']:.2f} from disagreement of the half-sets' decoders, "
        f"{summary['error_posterior_rms']:.2f} from the noise of images)."
    )
    if bias:
        reporter.warn(bias)
    for line in warnings[len(trained.prepared.warnings) + bool(bias) :]:
        reporter.note(line)
    record_conclusion(run, reporter)
    return run


def _describe(run: Run, trained: Trained) -> dict:
    """Return what other programs need to know about a run without reading its tensors."""
    particles = trained.prepared.particles
    return {
        "dynamight_core": __version__,
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "particles": [int((run.halves == half).sum()) for half in (1, 2)],
        "images": particles.n_images,
        "halves_are_random": not bool(particles.halves.any()),
        "gaussians": len(run.models[0].gaussians),
        "latents": run.models[0].n_latents,
        "motions": run.motions.coordinates.shape[1],
        "preset": trained.options.preset,
        "device": str(trained.data.device),
    }


def statistics(motions: PrincipalMotions, magnitude: torch.Tensor, errors: MotionErrors) -> dict[str, Any]:
    """Return the size of motions and errors, A rms, by their names in summary.json.

    Parameters
    ----------
    motions
        principal motions of all n particles.
    magnitude
        (n,) rms displacement of each.
    errors
        of the same particles.
    """
    return {
        "motion_rms": float(magnitude.square().mean().sqrt()),
        "motion_between_particles_rms": float(motions.coordinates.var(0, unbiased=False).sum().sqrt()),
        "error_rms": float(errors.particle.square().mean().sqrt()),
        "error_disagreement_rms": float(errors.disagreement.square().mean().sqrt()),
        "error_posterior_rms": float(errors.posterior.square().mean().sqrt()),
        "point_motion": motion_per_point(motions).tolist(),
        "point_error": errors.point.tolist(),
    }


def motion_per_point(motions: PrincipalMotions) -> torch.Tensor:
    """Return (m,) rms over particles of the displacement from the mean at each point, A."""
    variance = motions.coordinates.var(0, unbiased=False)
    return (variance[:, None] * motions.components.square().sum(-1)).sum(0).sqrt()


def _common_points(models: tuple[HalfModel, HalfModel], seed: int) -> torch.Tensor:
    """Return (m, 3) points of the consensus frame, half of them from the Gaussians of each half-set."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for model in models:
        consensus = model.consensus_positions.cpu()
        points.append(consensus[torch.randperm(len(consensus), generator=generator)[: _POINTS // 2]])
    return torch.cat(points)


def write_results(
    run: Run,
    motions: PrincipalMotions,
    magnitude: torch.Tensor,
    errors: MotionErrors,
    composition: torch.Tensor | None = None,
) -> None:
    """Write RUN/particles.star, and the STAR files of groups of different composition; remove old ones.

    Parameters
    ----------
    run, motions, errors
        of the n particles.
    magnitude
        (n,) A, rms displacement.
    composition
        (n,) group of each particle, or None.
    """
    particles = run.particles
    columns = {} if particles.halves.any() else {"rlnRandomSubset": run.halves.numpy()}
    columns |= {"dynHalf": run.halves.numpy(), "dynValidation": run.validation.numpy().astype(np.int64)}
    own = run.own_latents()
    columns |= {f"dynLatent{i + 1}": own[:, i].numpy() for i in range(own.shape[1])}
    k = motions.coordinates.shape[1]
    columns |= {f"dynMotion{i + 1}": motions.coordinates[:, i].numpy() for i in range(k)}
    columns |= {"dynMotionRms": magnitude.numpy(), "dynMotionError": errors.particle.numpy()}
    columns |= {"dynMotionDisagreement": errors.disagreement.numpy()}
    if run.pose_changes is not None:
        columns |= _pose_columns(run.particles, run.pose_changes)
    if composition is not None:
        columns["dynComposition"] = composition.numpy()
    write_particles(run.path / "particles.star", particles, columns)
    for group in (1, 2):
        path = run.path / "analysis" / "composition" / f"group{group}.star"
        for ending in (".star", ".cs", ".csg"):
            path.with_suffix(ending).unlink(missing_ok=True)
        if composition is not None:
            rows = torch.where(composition == group)[0]
            path.parent.mkdir(exist_ok=True)
            mine = {name: values[rows.numpy()] for name, values in columns.items()}
            write_particles(path, particles.subset(rows), mine)


def _pose_columns(particles: Particles, changes: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the refined poses (degrees, A) and their changes."""
    labels = ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "AngleChange", "ShiftChange")
    poses = torch.rad2deg(particles.angles).T, particles.shifts.T
    changed = torch.rad2deg(changes[:, :3].norm(dim=1)), changes[:, 3:].norm(dim=1)
    values = (*poses[0], *poses[1], *changed)
    return {f"dyn{label}": column.numpy() for label, column in zip(labels, values, strict=True)}

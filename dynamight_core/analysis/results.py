"""A finished run: what it learned, and the summary that every later stage reads."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import starfile
import torch

from dynamight_core import __version__
from dynamight_core.analysis.detection import unseen_motion
from dynamight_core.analysis.errors import ALIKE, MotionErrors, motion_errors
from dynamight_core.analysis.motions import PrincipalMotions, principal_motions
from dynamight_core.analysis.verdict import judge
from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.imaging.poses import euler_angles, rotation_matrices, rotations_about
from dynamight_core.model.half import HalfModel
from dynamight_core.particles.metadata import Particles, read_particles, write_particles
from dynamight_core.reconstruction.bias import model_bias
from dynamight_core.training.run import Trained

# Common points of both halves.
_POINTS = 2000
COMPOSITION_WARNING = (
    "differences in composition (missing parts) are outside this model and can look like motion: they should "
    "have been removed by classification before"
)


class Run:
    """A run folder whose training has finished.

    Parameters
    ----------
    path
        folder.

    Raises
    ------
    InputError
        if it holds no finished training, or files of different runs.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = RunConfig.read(self.path)
        file = self.path / "latents.safetensors"
        if not file.exists():
            raise InputError(f"training of {path} has not finished; go on with dynamight train --resume")
        try:
            tensors = safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{file} is damaged ({error}); finish the run with dynamight train --resume") from error
        self.latents, self.covariances = tensors["latents"], tensors["covariances"]
        self.halves, self.validation = tensors["halves"], tensors["validation"].bool()
        self.pose_changes = tensors.get("pose_changes")
        self.models = tuple(HalfModel.load(self.path / f"half{half}" / "model.safetensors") for half in (1, 2))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run folder; the same as the constructor."""
        return cls(path)

    @cached_property
    def particles(self) -> Particles:
        """The particles of the input STAR, with refined poses if they were refined."""
        inputs = self.config.inputs
        particles = read_particles(inputs.star, inputs.project)
        if len(particles) != len(self.halves):
            raise InputError(
                f"{inputs.star} has {len(particles)} particles but {self.path} was trained on {len(self.halves)}; "
                "bring the file back as it was"
            )
        if inputs.premultiplied is not None:
            particles.premultiplied = inputs.premultiplied
        if self.pose_changes is not None:
            turned = rotations_about(self.pose_changes[:, :3]) @ rotation_matrices(particles.angles)
            particles.angles = euler_angles(turned)
            # The centre is at D//2 - origin / pixel size: content that lies farther has a smaller origin.
            particles.shifts = particles.shifts - self.pose_changes[:, 3:]
        return particles

    @cached_property
    def motions(self) -> PrincipalMotions:
        """The principal motions."""
        return PrincipalMotions.load(self._summarised("analysis/motions.safetensors"))

    @cached_property
    def summary(self) -> dict:
        """Verdict, statistics and warnings."""
        return json.loads(self._summarised("analysis/summary.json").read_text())

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows of RUN/particles.star."""
        blocks = starfile.read(self._summarised("particles.star"), always_dict=True)
        return blocks.get("particles", list(blocks.values())[-1])

    @property
    def box(self) -> int:
        """Of the particles' images, pixels; known without reading their STAR file."""
        return self.summary["model"]["box"]

    @property
    def pixel_size(self) -> float:
        """Of the particles' images, A; known without reading their STAR file."""
        return self.summary["model"]["pixel_size"]

    def own_latents(self) -> torch.Tensor:
        """Return (n, d) each particle's latent under its own half."""
        return self.latents[self.halves - 1, torch.arange(len(self.halves))]

    def consensus_to_reference(self, half: int, points: torch.Tensor) -> torch.Tensor:
        """Carry (p, 3) points (A) from the consensus frame to the reference frame of a half (1 or 2).

        See `HalfModel.carry`.
        """
        return self.models[half - 1].carry(points)

    def _summarised(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise InputError(f"{path} is missing; make it by going on with dynamight train --resume")
        return path


def summarise(
    trained: Trained, say: Callable[[str], None] = print, progress: Callable[[str, int, int], None] | None = None
) -> Run:
    """Find principal motions, errors and the verdict of a training, and write them.

    Writes RUN/particles.star, RUN/analysis/motions.safetensors and RUN/analysis/summary.json.

    Parameters
    ----------
    trained
        what `training.run.train` returned.
    say
        takes lines for the user.
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
    warnings = [*([bias] if bias else []), *trained.prepared.warnings, COMPOSITION_WARNING]
    groups = trained.prepared.particles.image_groups
    verdict = judge(models, trained.data, run.halves, run.validation, groups, options.seed)
    unseen = unseen_motion(models, trained.data, [trainer.rows for trainer in trained.trainers], options.seed)
    found = verdict.verdict == "supported"
    if not found:
        warnings.append(
            f"motion of up to {unseen:.1f} A rms could be there without showing in images so noisy and so few; the "
            "error estimates contain it"
        )
    hidden = 0.0 if found else unseen
    errors = motion_errors(evaluators, models, run.latents, run.covariances, run.halves, hidden)
    magnitude = torch.cat([displacements(rows).square().sum(-1).mean(1).sqrt() for rows in torch.arange(n).split(256)])
    between = motions.coordinates.var(0, unbiased=False).sum().sqrt()
    summary = {
        "verdict": verdict.asdict(),
        "motion_rms": float(magnitude.square().mean().sqrt()),
        "motion_between_particles_rms": float(between),
        "error_factor": ALIKE,
        "error_rms": float(errors.particle.square().mean().sqrt()),
        "error_disagreement_rms": float(errors.disagreement.square().mean().sqrt()),
        "error_posterior_rms": float(errors.posterior.square().mean().sqrt()),
        "unseen_motion_rms": unseen,
        "motion_shares": motions.shares.tolist(),
        "point_motion": motion_per_point(motions).tolist(),
        "point_error": errors.point.tolist(),
        "particles": n,
        "model": _describe(run, trained),
        "validation_particles": int(run.validation.sum()),
        "warnings": warnings,
    }
    with atomic_path(path / "analysis" / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1))
    _write_table(run, motions, magnitude, errors)
    say(verdict.sentence)
    say(
        f"Motion {summary['motion_rms']:.2f} A rms, error estimate {summary['error_rms']:.2f} A rms "
        f"({summary['error_disagreement_rms']:.2f} between the halves' decoders, "
        f"{summary['error_posterior_rms']:.2f} from the noise of each image)."
    )
    if bias:
        say(f"Warning: {bias}.")
    for line in warnings[len(trained.prepared.warnings) + bool(bias) :]:
        say(f"Note: {line}.")
    return run


def _describe(run: Run, trained: Trained) -> dict:
    """Return what programs that start this one want to know of a run without reading its tensors."""
    particles = trained.prepared.particles
    return {
        "dynamight_core": __version__,
        "box": particles.box,
        "pixel_size": particles.pixel_size,
        "particles": [int((run.halves == half).sum()) for half in (1, 2)],
        "halves_are_random": not bool(particles.halves.any()),
        "gaussians": len(run.models[0].gaussians),
        "latents": run.models[0].n_latents,
        "motions": run.motions.coordinates.shape[1],
        "device": str(trained.data.device),
    }


def motion_per_point(motions: PrincipalMotions) -> torch.Tensor:
    """Return (m,) rms over particles of the displacement from the mean at each point, A."""
    variance = motions.coordinates.var(0, unbiased=False)
    return (variance[:, None] * motions.components.square().sum(-1)).sum(0).sqrt()


def _common_points(models: tuple[HalfModel, HalfModel], seed: int) -> torch.Tensor:
    """Return (m, 3) points of the consensus frame, as many from each half's Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for model in models:
        consensus = model.consensus_positions.cpu()
        points.append(consensus[torch.randperm(len(consensus), generator=generator)[: _POINTS // 2]])
    return torch.cat(points)


def _write_table(run: Run, motions: PrincipalMotions, magnitude: torch.Tensor, errors: MotionErrors) -> None:
    particles = run.particles
    columns = {
        "dynHalf": run.halves.numpy(),
        "dynValidation": run.validation.numpy().astype(np.int64),
    }
    own = run.own_latents()
    columns |= {f"dynLatent{i + 1}": own[:, i].numpy() for i in range(own.shape[1])}
    k = motions.coordinates.shape[1]
    columns |= {f"dynMotion{i + 1}": motions.coordinates[:, i].numpy() for i in range(k)}
    columns |= {"dynMotionRms": magnitude.numpy(), "dynMotionError": errors.particle.numpy()}
    columns |= {"dynMotionDisagreement": errors.disagreement.numpy()}
    if run.pose_changes is not None:
        columns |= _pose_columns(run)
    write_particles(run.path / "particles.star", particles, columns)


def _pose_columns(run: Run) -> dict[str, np.ndarray]:
    """Return the refined poses (degrees, A) and by how much they changed."""
    angles = torch.rad2deg(run.particles.angles).numpy()
    shifts = run.particles.shifts.numpy()
    change = run.pose_changes
    return {
        "dynAngleRot": angles[:, 0],
        "dynAngleTilt": angles[:, 1],
        "dynAnglePsi": angles[:, 2],
        "dynOriginXAngst": shifts[:, 0],
        "dynOriginYAngst": shifts[:, 1],
        "dynAngleChange": torch.rad2deg(change[:, :3].norm(dim=1)).numpy(),
        "dynShiftChange": change[:, 3:].norm(dim=1).numpy(),
    }

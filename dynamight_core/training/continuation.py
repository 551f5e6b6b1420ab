"""Training that is initialised from the models of a finished run instead of a map."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dynamight_core.belonging import particles_in_order, rows_of, trained_rows
from dynamight_core.errors import InputError, option_name
from dynamight_core.model.half import HalfModel
from dynamight_core.run import Run
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.read import Prepared

# Options that define the models or the particles that train them.
_SAME = (
    "n_gaussians",
    "width_classes",
    "n_latents",
    "decoder",
    "decoder_layers",
    "decoder_width",
    "encoder_width",
    "encoder_pooling",
    "box_units",
    "halves",
    "gaussian_amplitudes",
    "refine_poses",
    "seed",
    "validation_fraction",
)


def _arrange(before: Run, prepared: Prepared) -> None:
    """Bring the results of a run into the order of the new particles, whose poses and CTFs may be others."""
    trained = trained_rows(before.path)
    if trained is None:
        return
    images, series = rows_of(before.path, trained, prepared.particles, parts=("image",)), prepared.particles.series
    order = torch.from_numpy(images if series is None else particles_in_order(series, images)).argsort()
    before.latents, before.covariances = before.latents[:, order], before.covariances[:, order]
    before.halves, before.validation = before.halves[order], before.validation[order]
    if before.pose_changes is not None:
        before.pose_changes = before.pose_changes[order]


@dataclass(frozen=True)
class PreviousRun:
    """A finished run to start from.

    Parameters
    ----------
    run
        with the particles, half-sets and options of the new one.
    """

    run: Run

    @classmethod
    def open(cls, prepared: Prepared, run: Path) -> "PreviousRun | None":
        """Return the run of `--start-from`, or None.

        Parameters
        ----------
        prepared, run
            of the new training.

        Raises
        ------
        InputError
            if it is not finished, is the new run itself, or has other particles or other models.
        """
        inputs, options = prepared.inputs, prepared.options
        if inputs.start_from is None:
            return None
        folder = Path(inputs.start_from)
        if folder.resolve() == run.resolve():
            raise InputError(f"--start-from is {folder}, the new run itself; use another folder for the new run")
        before = Run(folder)
        changed = [name for name in _SAME if getattr(before.config.train, name) != getattr(options, name)]
        if changed:
            names = ", ".join(map(option_name, changed))
            raise InputError(f"{folder} was trained with other values of {names}; use the same values to start from it")
        used = before.config.provenance.get("atomic_model")
        record = None if prepared.atomic is None else prepared.atomic.record
        if (used and used["sha256"]) != (record and record["sha256"]):
            names = "no atomic model" if used is None else f"the atomic model {used['file']}"
            raise InputError(f"{folder} was trained with {names}; use the same --atomic-model to start from it")
        _arrange(before, prepared)
        # Held-out particles must stay held out, or the verdict would use training particles.
        same_halves = torch.equal(before.halves, prepared.halves.long())
        if not same_halves or not torch.equal(before.validation, prepared.validation):
            raise InputError(
                f"{folder} was trained on other particles, half-sets or held-out particles than "
                f"{prepared.particles.star_path} has; use the same STAR file to start from it"
            )
        return cls(before)

    def model(self, half: int, prepared: Prepared, device: torch.device) -> HalfModel:
        """Return the trained model of a half-set, with the motion mask of the new run.

        Raises
        ------
        InputError
            if it was trained with another working box or other bodies.
        """
        model = self.run.models[half - 1]
        if model.box != prepared.working_box:
            raise InputError(
                f"{self.run.path} was trained on images of {model.box} pixels, but the new run has images of "
                f"{prepared.working_box}; set --working-box {model.box}"
            )
        # Training may have found bodies by itself.
        given = prepared.bodies is not None or self.run.config.inputs.bodies is not None
        if given and not model.decoder.built_from(prepared.bodies):
            raise InputError(f"{self.run.path} was trained with other masks of --bodies; use the same to start from it")
        model.motion_mask = prepared.motion_mask
        return model.to(device).train()

    def start(self, trainer: HalfTrainer) -> None:
        """Bring a trainer to the final state of the run."""
        rows, index = trainer.rows.cpu(), trainer.half - 1
        trainer.latents.copy_(self.run.latents[index, rows])
        trainer.covariances.copy_(self.run.covariances[index, rows])
        if self.run.pose_changes is not None:
            trainer.rotations.copy_(self.run.pose_changes[rows, :3])
            trainer.shifts.copy_(self.run.pose_changes[rows, 3:])
        trainer.started = True

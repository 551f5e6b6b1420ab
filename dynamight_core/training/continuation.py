"""Training that is initialised from the models of a finished run instead of a map."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from dynamight_core.config import RunConfig
from dynamight_core.errors import InputError, option_name
from dynamight_core.model.half import HalfModel
from dynamight_core.training.half import HalfTrainer
from dynamight_core.training.read import Prepared

# Options that define the models or the particles that train them.
_SAME = (
    "n_gaussians",
    "width_classes",
    "n_latents",
    "decoder",
    "gaussian_amplitudes",
    "refine_poses",
    "seed",
    "validation_fraction",
)


@dataclass(frozen=True)
class PreviousRun:
    """A finished run to start from.

    Parameters
    ----------
    folder
        of the run.
    latents, covariances
        (2, n, d) and (2, n, d, d), of every particle under each half-set's decoder.
    pose_changes
        (n, 5), or None if poses were not refined.
    """

    folder: Path
    latents: torch.Tensor
    covariances: torch.Tensor
    pose_changes: torch.Tensor | None

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
        before = RunConfig.read(folder)
        changed = [name for name in _SAME if getattr(before.train, name) != getattr(options, name)]
        if changed:
            names = ", ".join(map(option_name, changed))
            raise InputError(f"{folder} was trained with other values of {names}; use the same values to start from it")
        used = before.provenance.get("atomic_model")
        record = None if prepared.atomic is None else prepared.atomic.record
        if (used and used["sha256"]) != (record and record["sha256"]):
            names = "no atomic model" if used is None else f"the atomic model {used['file']}"
            raise InputError(f"{folder} was trained with {names}; use the same --atomic-model to start from it")
        path = folder / "latents.safetensors"
        if not path.exists():
            raise InputError(f"training of {folder} has not finished; finish it with --resume to start from it")
        tensors = safetensors.torch.load_file(path)
        # Held-out particles must stay held out, or the verdict would use training particles.
        for name, now in (("halves", prepared.halves), ("validation", prepared.validation)):
            if not torch.equal(tensors[name].long(), now.long()):
                raise InputError(
                    f"{folder} was trained on other particles, half-sets or held-out particles than "
                    f"{prepared.particles.star_path} has; use the same STAR file to start from it"
                )
        return cls(folder, tensors["latents"], tensors["covariances"], tensors.get("pose_changes"))

    def model(self, half: int, prepared: Prepared, device: torch.device) -> HalfModel:
        """Return the trained model of a half-set, with the motion mask of the new run.

        Raises
        ------
        InputError
            if it was trained with another working box or other bodies.
        """
        model = HalfModel.load(self.folder / f"half{half}" / "model.safetensors")
        if model.box != prepared.working_box:
            raise InputError(
                f"{self.folder} was trained on images of {model.box} pixels, but the new run has images of "
                f"{prepared.working_box}; set --working-box {model.box}"
            )
        if not model.decoder.built_from(prepared.bodies):
            raise InputError(f"{self.folder} was trained with other masks of --bodies; use the same to start from it")
        model.motion_mask = prepared.motion_mask
        return model.to(device).train()

    def start(self, trainer: HalfTrainer) -> None:
        """Bring a trainer to the final state of the run."""
        rows, index = trainer.rows.cpu(), trainer.half - 1
        trainer.latents.copy_(self.latents[index, rows])
        trainer.covariances.copy_(self.covariances[index, rows])
        if self.pose_changes is not None:
            trainer.rotations.data.copy_(self.pose_changes[rows, :3])
            trainer.shifts.data.copy_(self.pose_changes[rows, 3:])
        trainer.started = True

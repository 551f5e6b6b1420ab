"""Resumable state of a half-set: safetensors for tensors, JSON for the rest, no pickle."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.model.graph import LongEdges, NeighbourGraph
from dynamight_core.training.half import HalfTrainer


@dataclass(frozen=True)
class Checkpoint:
    """The state of a half-set's training.

    Parameters
    ----------
    tensors
        by name.
    state
        the rest; JSON values.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the state to ``RUN/half?/checkpoints``; only the newest two checkpoints are kept."""
        with atomic_path(folder / f"epoch{self.state['epoch']:05d}.safetensors") as path:
            safetensors.torch.save_file(self.tensors, path, {"state": json.dumps(self.state)})
        for old in checkpoint_epochs(folder)[:-2]:
            (folder / f"epoch{old:05d}.safetensors").unlink()


def checkpoint_of(trainer: HalfTrainer, epoch: int, progress: dict) -> Checkpoint:
    """Return the state of a half-set.

    Parameters
    ----------
    trainer
        of the half-set.
    epoch
        number of finished epochs.
    progress
        further state of the run; JSON values.
    """
    tensors = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {
        "latents": trainer.latents,
        "covariances": trainer.covariances,
        "pose_changes": trainer.pose_changes.detach(),
        "graph.edges": trainer.graph.edges,
        "graph.distances": trainer.graph.distances,
    }
    if trainer.fixed_weights is not None:
        tensors["fixed_weights"] = trainer.fixed_weights
    if trainer.long_edges is not None:
        tensors |= {f"long_edges.{field.name}": getattr(trainer.long_edges, field.name) for field in fields(LongEdges)}
    for name, optimizer in trainer.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    state = {
        "epoch": epoch,
        "stiffness": trainer.stiffness,
        "decoder": trainer.model.decoder_name,
        "started": trainer.started,
        "followed": trainer.followed,
        "mean_spacing": trainer.graph.mean_spacing,
        "progress": progress,
    }
    # safetensors refuses tensors that share memory.
    return Checkpoint({name: value.detach().clone().contiguous() for name, value in tensors.items()}, state)


def checkpoint_epochs(folder: Path) -> list[int]:
    """Return the epochs with a checkpoint, ascending."""
    numbers = (path.stem.removeprefix("epoch") for path in folder.glob("epoch*.safetensors"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def load_checkpoint(folder: Path, epoch: int, trainer: HalfTrainer) -> dict:
    """Restore a trainer from a checkpoint and return its `progress`.

    Raises
    ------
    InputError
        if the file is damaged or does not fit the trainer's options.
    """
    path = folder / f"epoch{epoch:05d}.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).to(trainer.data.device) for name in file.keys()}
        prefix = "model."
        trainer.model.restore(
            state["decoder"],
            {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)},
        )
        trainer.restart_optimizers()
    except (OSError, safetensors.SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} cannot be resumed ({error}); train again with --overwrite") from error
    trainer.latents, trainer.covariances = tensors["latents"], tensors["covariances"]
    trainer.rotations, trainer.shifts = tensors["pose_changes"].split((3, 2), dim=1)
    trainer.graph = NeighbourGraph(tensors["graph.edges"], tensors["graph.distances"], state["mean_spacing"])
    trainer.fixed_weights = tensors.get("fixed_weights")
    if "long_edges.edges" in tensors:
        trainer.long_edges = LongEdges(*(tensors[f"long_edges.{field.name}"] for field in fields(LongEdges)))
    trainer.scale_regularisation(float(trainer.model.regularisation_share))
    trainer.stiffness, trainer.started, trainer.followed = state["stiffness"], state["started"], state["followed"]
    for name, optimizer in trainer.optimizers.items():
        stored: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{name}."):
                index, field = key.split(".")[2:]
                # Adam keeps its step counter on the CPU.
                stored.setdefault(int(index), {})[field] = value.cpu() if field == "step" else value
        optimizer.load_state_dict({"state": stored, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["progress"]

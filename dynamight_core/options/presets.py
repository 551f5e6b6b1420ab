"""Presets: named sets of options. What the user sets himself overrides them.

Every value has its source: the paper (Schwab et al., Nature Methods 2024), the published program (3dem/DynaMight) where
the paper is silent, or neither where the option is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dynamight_core.errors import option_name

SOURCES = {"paper": "paper", "program": "published program", "ours": "switches off what is ours"}


@dataclass(frozen=True)
class Setting:
    """The value of an option in a preset.

    Parameters
    ----------
    value
        as the option takes it.
    source
        of the value, one of `SOURCES`.
    note
        what else there is to say, a sentence or nothing.
    needs
        names of options without whose value in the preset this one makes no sense: the default stays if the user sets
        one of them to something else.
    without
        names of options that say the same in another way: the default stays if the user sets one of them.
    """

    value: Any
    source: str
    note: str = ""
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """The note, and on what other options the value depends."""
        needed, replacing = (", ".join(map(option_name, names)) for names in (self.needs, self.without))
        conditions = [f"with the preset's {needed}" if needed else "", f"without {replacing}" if replacing else ""]
        only = " and ".join(filter(None, conditions))
        return " ".join(filter(None, (self.note, f"Only {only}." if only else "")))


def _paper(value: Any, note: str = "", **conditions: tuple[str, ...]) -> Setting:
    return Setting(value, "paper", note, **conditions)


def _program(value: Any, note: str = "", **conditions: tuple[str, ...]) -> Setting:
    return Setting(value, "program", note, **conditions)


def _ours(value: Any, note: str = "") -> Setting:
    return Setting(value, "ours", note)


_PAPER = {
    "input": {"full_box": _program(True, without=("working_box",))},
    "train": {
        "threshold_resolution": _paper(0.0, "The threshold is for the map as given."),
        "threshold_percentile": _program(99.0, without=("threshold",)),
        "initial_resolution": _program(0.0, "The Gaussians are fitted to the map as given."),
        "gaussian_amplitudes": _paper(False, "One amplitude for each class."),
        "refits": _ours(0),
        "n_latents": _paper(10),
        "decoder": _paper("coordinate", without=("bodies",)),
        "decoder_layers": _paper(8, needs=("decoder",), without=("bodies",)),
        "decoder_width": _program(32, needs=("decoder",), without=("bodies",)),
        "encoder_pooling": _paper(1, "The published program averages 2 x 2 pixels."),
        "encoder_width": _paper(256, "The second layer has half of it."),
        "box_units": _program(True, "Rates of the Gaussians and the coordinate network count in widths of the box."),
        "regularisation": _paper("dynamic"),
        "regularisation_ratio": _paper(0.9, "RELION's job sets 1."),
        "rigidity": _ours(0.0),
        "motion_resolution": _ours(0.0),
        "large_motions": _ours(False),
        "rigid_parts": _ours(False),
        "epochs": _paper(220, "The stop rule may end training earlier."),
        "warm_up_epochs": _program(3),
        "latent_refinement": _paper(False, "The encoder is trained in every epoch."),
        "final_latents": _paper("encoder"),
        "batch_size": _program(128),
        "learning_rate": _paper(1e-4, "The published program has 1e-3."),
        "encoder_learning_rate": _paper(1e-3),
        "gaussian_learning_rate": _paper(1e-4, "In widths of the box."),
        "width_learning_rate": _paper(1e-4),
        "weight_decay": _program(0.0),
        "kl_weight": _program(0.005, "0.01 there, where the data term has no factor 1/2."),
        "reference_interval": _paper(30),
        "reference_epochs": _paper(5),
        "reference_predictions": _paper(1),
        "stop_after_rises": _paper(40),
        "validation_fraction": _paper(0.1),
        "validation_trains_encoders": _paper(True),
    },
    "invert": {
        "epochs": _paper(200),
        "layers": _paper(6),
        "width": _program(96),
        "box_units": _program(True),
        "particles_per_epoch": _program(0, "All particles."),
        "points_per_batch": _program(0, "All Gaussians."),
        "learning_rate": _program(5e-4, "Halved there when the loss rises, along a cosine here."),
        "weight_decay": _program(1e-4),
    },
    "reconstruct": {
        "method": _paper("wbp"),
        "through_inverse": _paper(True),
        "modes": _program(
            False,
            "The network is evaluated for each particle, on every second voxel.",
            needs=("method", "shrink", "conformation"),
        ),
        "shrink": _ours(False),
        "choose_density": _ours(False),
        "conformation": _paper("reference"),
        "regularisation": _ours(0.1, "Neither gives a floor in these units."),
    },
}
PRESETS: Mapping[str, Mapping[str, Mapping[str, Setting]]] = MappingProxyType({"default": {}, "paper": _PAPER})
# What later stages say for the preset of their run.
FOLLOW = "run"
LABELS = {"default": "default", "paper": "paper (Schwab et al. 2024)"}


def preset_values(preset: str, stage: str, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the values that a preset has for options of a stage, by name; nothing where the defaults stay.

    Parameters
    ----------
    preset, stage
        names.
    given
        options that the user sets, of any stage, by name.
    """
    settings = PRESETS[preset].get(stage, {})
    others = {name for name, setting in settings.items() if name in given and given[name] != setting.value}
    chosen = {name for name, value in given.items() if value not in (None, [])}
    return {
        name: setting.value
        for name, setting in settings.items()
        if others.isdisjoint(setting.needs) and chosen.isdisjoint(setting.without)
    }

"""The warning of bias that accompanies all results of a run with an atomic model, or with one model for both halves."""

import json
from pathlib import Path

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.run import Run

_ATOMIC = "one atomic model"
_BIAS = (
    f"both half-sets share {_ATOMIC}: its features can appear in both half-maps where images do not show them, and "
    "the FSC counts them as signal"
)
_JOINT = "one model was trained on both half-sets"
JOINT_WARNING = (
    f"{_JOINT} (--halves joint): the half-maps are not independent, the resolution is overestimated, and "
    "uncertainties are too small; this run is a control only"
)


def is_joint(run: Run) -> bool:
    """Return whether one model was trained on both half-sets."""
    return run.config.train.halves == "joint"


def has_atomic_model(run: Run) -> bool:
    """Return whether an atomic model defines the Gaussians of a finished run."""
    return any(model.gaussians.fixed for model in run.models)


def wrong_model_result(run: Run) -> Path:
    """Return the path of the result of the control ``wrong-model``."""
    return Path(run.path) / "analysis" / "controls" / "wrong-model.json"


def model_bias(run: Run) -> str | None:
    """Return the warning of bias: of a joint model, or of an atomic model with the result of the control.

    None if half-sets are independent and there is no atomic model.

    Raises
    ------
    InputError
        if the control's result cannot be read.
    """
    if not has_atomic_model(run):
        return JOINT_WARNING if is_joint(run) else None
    bias = f"{JOINT_WARNING}. In addition, {_BIAS}" if is_joint(run) else _BIAS
    path = wrong_model_result(run)
    if not path.exists():
        return f"{bias}; the control wrong-model, which tests this, was not run"
    try:
        sentence = json.loads(path.read_text())["sentence"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the control again or remove the file") from error
    return f"{bias}. Control wrong-model: {sentence.rstrip('.')}"


def record_model_bias(run: Run) -> str | None:
    """Update the warning in RUN/analysis/summary.json and return it."""
    warning = model_bias(run)
    if warning is None:
        return None
    summary = run.summary
    others = [line for line in summary["warnings"] if _ATOMIC not in line and _JOINT not in line]
    if summary["warnings"] != [warning, *others]:
        summary["warnings"] = [warning, *others]
        with atomic_path(Path(run.path) / "analysis" / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1))
    return warning

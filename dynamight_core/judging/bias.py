"""The warning that every result of a run with an atomic model carries, and what a control says of it."""

import json
from pathlib import Path

from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.run import Run

_BEGINS = "the Gaussians of both halves are those of one atomic model"
_BIAS = f"{_BEGINS}: the maps can show its features where the images do not, and the FSC between halves does not tell"


def has_atomic_model(run: Run) -> bool:
    """Return whether the Gaussians of a finished run are those of an atomic model."""
    return any(model.gaussians.fixed for model in run.models)


def wrong_model_result(run: Run) -> Path:
    """Return where the control that replaces a domain of the atomic model leaves its result."""
    return Path(run.path) / "analysis" / "controls" / "wrong-model.json"


def model_bias(run: Run) -> str | None:
    """Return the warning of model bias, with the result of the control ``wrong-model`` or that it was not run.

    None for runs without an atomic model.

    Raises
    ------
    InputError
        if the control's result cannot be read.
    """
    if not has_atomic_model(run):
        return None
    path = wrong_model_result(run)
    if not path.exists():
        return f"{_BIAS}; the control wrong-model, which would, was not run"
    try:
        sentence = json.loads(path.read_text())["sentence"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the control again, or remove the file") from error
    return f"{_BIAS}. Control wrong-model: {sentence.rstrip('.')}"


def record_model_bias(run: Run) -> str | None:
    """Bring the warning in RUN/analysis/summary.json up to date, and return it."""
    warning = model_bias(run)
    if warning is None:
        return None
    summary = run.summary
    others = [line for line in summary["warnings"] if not line.startswith(_BEGINS)]
    if summary["warnings"] != [warning, *others]:
        summary["warnings"] = [warning, *others]
        with atomic_path(Path(run.path) / "analysis" / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1))
    return warning

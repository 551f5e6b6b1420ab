"""Molecular motions from cryo-EM particle images, and the sharper maps that follow from them.

``import dynamight_core as dm`` offers what ``docs/python.md`` describes. Nothing is loaded before it is used.
"""

import os
from typing import TYPE_CHECKING, Any

from dynamight_core.version import __version__

if TYPE_CHECKING:
    from dynamight_core.api import (
        QUIET,
        InputError,
        Maps,
        Reporter,
        Run,
        Volume,
        analyse,
        infer,
        open_run,
        reconstruct,
        train,
    )

__all__ = [
    "QUIET",
    "InputError",
    "Maps",
    "Reporter",
    "Run",
    "Volume",
    "__version__",
    "analyse",
    "infer",
    "open_run",
    "reconstruct",
    "train",
]

# Waiting threads sleep. Spinning, they slow every process on a shared machine down, this one most: with
# two jobs on two cores an epoch took ten times as long. Has an effect only before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dynamight_core import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Some of many: the same ones every time."""

import torch


def evenly(values: torch.Tensor, number: int) -> torch.Tensor:
    """Return at most a number of the rows of (n, ...) values, evenly spaced."""
    return values[torch.linspace(0, len(values) - 1, min(len(values), number)).long()]

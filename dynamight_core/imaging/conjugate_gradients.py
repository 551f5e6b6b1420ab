"""Conjugate gradients, one step at a time: whoever asks decides when to stop."""

from collections.abc import Callable, Iterator

import torch

Operator = Callable[[torch.Tensor], torch.Tensor]


def conjugate_gradients(
    apply: Operator, precondition: Operator, target: torch.Tensor, values: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Solve a symmetric positive system; yield the solution and its residual after each step.

    Parameters
    ----------
    apply
        the system's matrix.
    precondition
        about its inverse. It may be inexact, such as a few steps of another solver (Polak and Ribiere's formula).
    target
        the right-hand side.
    values
        where to start, of the same shape.
    """
    residual = target - apply(values)
    # The infinite product before the first step makes its direction the corrected residual.
    direction, previous, before = torch.zeros_like(values), residual, residual.new_tensor(torch.inf)
    while True:
        corrected = precondition(residual)
        product = (residual * corrected).sum()
        direction = corrected + (product - (previous * corrected).sum()) / before * direction
        image = apply(direction)
        length = product / (direction * image).sum()
        values, previous, residual, before = values + length * direction, residual, residual - length * image, product
        yield values, residual

"""out[m] = sum_n table[index, m, n] * inputs[n]: every update of the package, and the same with its residual norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def lincomb(inputs: Sequence[torch.Tensor], table: torch.Tensor, index: int) -> tuple[torch.Tensor, ...]:
    """Linear combinations of equally shaped tensors with the coefficients of one step.

    Args:
        inputs: K tensors of one shape; any floating dtypes.
        table: (N, M, K) coefficients on the inputs' device; its dtype is that of accumulation and result.
        index: the step, 0 to N - 1.

    Returns:
        M tensors of the inputs' shape and the table's dtype.

    Raises:
        ValueError: the number or shapes of the inputs do not fit.
        IndexError: `index` is outside the table.
    """
    steps, _, columns = table.shape
    if len(inputs) != columns or any(x.shape != inputs[0].shape for x in inputs):
        raise ValueError(f"lincomb needs {columns} inputs of one shape, got {[tuple(x.shape) for x in inputs]}")
    if not 0 <= index < steps:
        raise IndexError(f"step {index} is outside the table of {steps} steps")
    return tuple(_combine(inputs, row) for row in table[index])


def lincomb_residual(
    inputs: Sequence[torch.Tensor], table: torch.Tensor, index: int, y: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """`lincomb`, and how far its first output f is from y.

    Returns:
        The outputs, and (B, 2) per-sample sums of squares [|f - y|^2, |f|^2] in the table's dtype. They are not finite
        where f is not.
    """
    out = lincomb(inputs, table, index)
    f = out[0].flatten(1)
    gap = f - y.flatten(1)
    return out, torch.stack([gap.square().sum(1), f.square().sum(1)], 1)


def _combine(inputs: Sequence[torch.Tensor], row: torch.Tensor) -> torch.Tensor:
    # 0-d coefficients stay on the device: reading them out would stall a GPU once per step.
    total = inputs[0].to(row.dtype) * row[0]
    for x, c in zip(inputs[1:], row[1:], strict=True):
        total += x.to(row.dtype) * c
    return total

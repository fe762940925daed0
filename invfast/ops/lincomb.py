"""out[m] = sum_k table[index, m, k] * inputs[k]: every update of the package, and the same with its residual norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from invfast.ops.contract import Index, check_target, check_update


def lincomb(inputs: Sequence[torch.Tensor], table: torch.Tensor, index: Index) -> list[torch.Tensor]:
    """Linear combinations of equally shaped tensors with the coefficients of one step.

    Args:
        inputs: K = 1..4 tensors of one shape (B, ...); any floating dtypes.
        table: (N, M, K) coefficients on the inputs' device, M 1 or 2; its dtype, float32 or float64, is that of
            accumulation and result.
        index: the step, 0 to N - 1: an int, or int64 on the device, () or (B,) for a step a sample. On the device one
            outside the table makes its samples NaN.

    Returns:
        M tensors of the inputs' shape and the table's dtype.

    Raises:
        TypeError, ValueError: inputs or table do not fit.
        IndexError: an int outside the table.
    """
    check_update(inputs, table, index)
    return [_combine(inputs, row) for row in _rows(table, index, inputs[0].ndim)]


def lincomb_residual(
    inputs: Sequence[torch.Tensor], table: torch.Tensor, index: Index, y: torch.Tensor
) -> list[torch.Tensor]:
    """`lincomb`, and how far its first output f is from y.

    Returns:
        The outputs, and last (B, 3) in the table's dtype: per sample |f - y|^2, |f|^2, and 1 where all of f is finite,
        else 0.
    """
    check_target(inputs, y)
    out = lincomb(inputs, table, index)
    f = out[0].flatten(1)
    gap = f - y.flatten(1)
    finite = f.isfinite().all(1).to(f.dtype)
    return [*out, torch.stack([gap.square().sum(1), f.square().sum(1), finite], 1)]


def _rows(table: torch.Tensor, index: Index, ndim: int) -> torch.Tensor:
    """(M, K) coefficients that multiply a tensor of `ndim` dimensions: 0-d, or one a sample."""
    if isinstance(index, int):
        return table[index]
    last = len(table) - 1
    inside = ((index >= 0) & (index <= last)).reshape(-1, 1, 1)
    rows = torch.where(inside, table.index_select(0, index.clamp(0, last).reshape(-1)), torch.nan)
    return rows.permute(1, 2, 0).reshape(*table.shape[1:], -1, *(1,) * (ndim - 1))


def _combine(inputs: Sequence[torch.Tensor], row: torch.Tensor) -> torch.Tensor:
    # Coefficients stay on the device: reading them out would stall a GPU once per step.
    total = inputs[0].to(row.dtype) * row[0]
    for x, c in zip(inputs[1:], row[1:], strict=True):
        total += x.to(row.dtype) * c
    return total

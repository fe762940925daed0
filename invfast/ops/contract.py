"""What every implementation of the ops takes: schemas, and the checks that make all of them refuse alike.

    lincomb(inputs, table, index)              out[m] = sum_k table[index, m, k] * inputs[k]
    lincomb_residual(inputs, table, index, y)  the same, and per sample |f - y|^2, |f|^2, finite, with f = out[0]
    anderson_mix(values, residuals)            sum_j a_j f_j with a = argmin |sum_j a_j r_j|^2, sum_j a_j = 1

Tables and steps are inputs, never attributes, so that a compiled or captured graph serves every step. A step given as
an int is checked; on the device it cannot be, and one outside the table makes its samples NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SCHEMAS = {
    "lincomb": "(Tensor[] inputs, Tensor table, Tensor index) -> Tensor[]",
    "lincomb_residual": "(Tensor[] inputs, Tensor table, Tensor index, Tensor y) -> Tensor[]",
    "anderson_mix": "(Tensor[] values, Tensor[] residuals) -> Tensor",
}
MAX_INPUTS, MAX_OUTPUTS = 4, 2
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WIDE = (torch.float32, torch.float64)
Index = int | torch.Tensor


def check_update(inputs: Sequence[torch.Tensor], table: torch.Tensor, index: Index) -> None:
    """Inputs of one shape (B, ...) on the table's device, a table (N, M, K), a step of it.

    Raises:
        TypeError: a dtype that is not floating, or a step that is neither int nor int64 tensor.
        ValueError: numbers, shapes or devices that do not fit.
        IndexError: an int outside the table.
    """
    if table.ndim != 3 or table.dtype not in WIDE or not 1 <= table.shape[1] <= MAX_OUTPUTS:
        raise ValueError(
            f"table must be float32 or float64 (steps, 1..{MAX_OUTPUTS} outputs, 1..{MAX_INPUTS} inputs), "
            f"got {table.dtype} {tuple(table.shape)}"
        )
    if len(inputs) != table.shape[2] or not 1 <= len(inputs) <= MAX_INPUTS:
        raise ValueError(
            f"a table of {table.shape[2]} columns needs as many inputs (1..{MAX_INPUTS}), got {len(inputs)}"
        )
    _check_alike("inputs", inputs, inputs[0].shape, table.device)
    if isinstance(index, torch.Tensor):
        if index.dtype != torch.int64 or index.device != table.device:
            raise TypeError(
                f"a step on the device must be int64 on {table.device}, got {index.dtype} on {index.device}"
            )
        if index.ndim and index.shape != inputs[0].shape[:1]:
            raise ValueError(
                f"steps must be one, or one a sample {tuple(inputs[0].shape[:1])}, got {tuple(index.shape)}"
            )
    elif not isinstance(index, int):
        raise TypeError(f"a step must be an int or an int64 tensor, got {index!r}")
    elif not 0 <= index < table.shape[0]:
        raise IndexError(f"step {index} is outside the table of {table.shape[0]} steps")


def check_target(inputs: Sequence[torch.Tensor], y: torch.Tensor) -> None:
    """What the result is compared with: shaped like an input.

    Raises:
        TypeError, ValueError: it is not.
    """
    _check_alike("y", [y], inputs[0].shape, inputs[0].device)


def check_history(values: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]) -> None:
    """Equally many values and residuals of one shape (B, ...) and dtype, float32 or float64.

    Raises:
        TypeError, ValueError: they are not.
    """
    if len(values) != len(residuals) or not 1 <= len(values) <= MAX_INPUTS:
        raise ValueError(
            f"anderson_mix needs 1..{MAX_INPUTS} values and as many residuals, got {len(values)} and {len(residuals)}"
        )
    first = values[0]
    _check_alike("values and residuals", [*values, *residuals], first.shape, first.device)
    if first.dtype not in WIDE or any(x.dtype != first.dtype for x in [*values, *residuals]):
        raise TypeError(
            f"values and residuals must all be float32 or all float64, got {[x.dtype for x in [*values, *residuals]]}"
        )


def _check_alike(name: str, tensors: Sequence[torch.Tensor], shape: torch.Size, device: torch.device) -> None:
    for x in tensors:
        if x.shape != shape or not shape:
            raise ValueError(f"{name} must have one shape (B, ...), got {[tuple(each.shape) for each in tensors]}")
        if x.device != device:
            raise ValueError(f"{name} must lie on {device}, got {x.device}")
        if x.dtype not in FLOATING:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")

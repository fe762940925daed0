"""Anderson mixing, each sample on its own: y = sum_j a_j f_j with a = argmin |sum_j a_j r_j|^2 and sum_j a_j = 1.

Anderson, J. ACM 12 (1965); for DDIM inversion: Pan et al., ICCV 2023 (AIDI_A).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from invfast.ops.contract import check_history

RIDGE = 1e-10
WEIGHT_LIMIT = 1e3


def anderson_mix(values: Sequence[torch.Tensor], residuals: Sequence[torch.Tensor]) -> torch.Tensor:
    """The next iterate from the last m values and residuals, oldest first.

    The Gram matrix of a sample's residuals, accumulated in their dtype and normalised by its diagonal, is solved in
    float64 with a ridge of 1e-10. A sample whose weights come out non-finite, or larger than 1e3 in sum of magnitudes,
    takes the latest value as it is.

    Args:
        values: m = 1..4 tensors f_j of shape (B, ...), float32 or float64.
        residuals: m tensors r_j = f_j - y_j of the same shape and dtype.

    Returns:
        (B, ...) the mixed iterate, in the values' dtype.

    Raises:
        TypeError, ValueError: they are not alike.
    """
    check_history(values, residuals)
    if len(values) == 1:
        return values[0].clone()
    r = torch.stack([x.flatten(1) for x in residuals], 1)
    weights = _weights((r @ r.transpose(1, 2)).double()).to(values[0].dtype)
    shape = (-1,) + (1,) * (values[0].ndim - 1)
    columns = [w.reshape(shape) for w in weights.unbind(1)]
    mixed = values[-1] * columns[-1]
    for f, w in zip(values[:-1], columns[:-1], strict=True):
        # A column left out must not bring its NaN along.
        mixed += torch.where(w == 0, torch.zeros_like(f), f * w)
    return mixed


def _weights(gram: torch.Tensor) -> torch.Tensor:
    """(B, m) weights from the (B, m, m) Gram matrices, float64."""
    m = gram.shape[-1]
    scale = gram.diagonal(dim1=1, dim2=2).sqrt()
    normal = gram / (scale.unsqueeze(1) * scale.unsqueeze(2))
    normal = normal + RIDGE * torch.eye(m, dtype=gram.dtype, device=gram.device)
    inverse = 1 / scale
    solved, _ = torch.linalg.solve_ex(normal, inverse.unsqueeze(2))
    weights = solved.squeeze(2) * inverse
    weights = weights / weights.sum(1, keepdim=True)
    latest = torch.zeros_like(weights)
    latest[:, -1] = 1
    safe = weights.isfinite().all(1) & (weights.abs().sum(1) <= WEIGHT_LIMIT)
    return torch.where(safe.unsqueeze(1), weights, latest)

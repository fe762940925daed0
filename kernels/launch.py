"""What the torch operators `invfast_triton::*` do, which `invfast.ops` registers: allocate, choose a grid and launch.

How a sample is cut, and with it the order of its sums, depends on its size alone: a batch is bit-equal to its images.
Arguments are checked by `invfast.ops`; a step that lies on the device is checked by the kernels.
"""

from __future__ import annotations

import contextlib

import torch

from invfast.kernels.anderson import gram_kernel, mix_kernel, whole_kernel
from invfast.kernels.lincomb import finish_kernel, lincomb_kernel, residual_kernel

# Elements of a block, and warps: every thread holds whole 16-byte accesses of each stream, of 16-bit ones too beside a
# float32 table, and the registers suffice on sm_80, sm_90 and sm_100 (docs/kernels.md). Not tuned for time, for want of
# a GPU.
MAP = (1024, 4)
SUM = {torch.float32: (1024, 4), torch.float64: (512, 4)}
MIX = {torch.float32: (1024, 4), torch.float64: (1024, 8)}
# Up to this many elements one program serves a sample, in one launch. 16 blocks by one program took 14.3 us inside a
# graph, of which a launch is 1.5 (H200): from three blocks on a second launch is the cheaper.
WHOLE = 2048
CHUNKS = 128  # most programs that share a sample
EXACT = {"enable_fp_fusion": False}
"""Nothing is fused but what is written as `tl.fma`."""


def lincomb(inputs: list[torch.Tensor], table: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
    outputs = _empty(inputs[0], table)
    if inputs[0].numel() == 0:
        return outputs
    x, out, table, index = _padded(inputs, 4), [*outputs, None], table.contiguous(), index.contiguous()
    # One step for all: the batch is one long sample, which keeps odd sizes aligned.
    samples = inputs[0].shape[0] if index.ndim else 1
    size = inputs[0].numel() // samples
    block, warps = MAP
    blocks = _ceil(size, block)
    with _on(inputs[0]):
        lincomb_kernel[(samples * blocks,)](
            *x, out[0], out[1], table, index, size, table.shape[0], index.ndim, blocks,
            M=table.shape[1], K=table.shape[2], BLOCK=block, num_warps=warps, **EXACT,
        )  # fmt: skip
    return outputs


def lincomb_residual(
    inputs: list[torch.Tensor], table: torch.Tensor, index: torch.Tensor, y: torch.Tensor
) -> list[torch.Tensor]:
    outputs = _empty(inputs[0], table)
    samples = inputs[0].shape[0]
    sums = torch.empty((samples, 3), dtype=table.dtype, device=table.device)
    if inputs[0].numel() == 0:
        sums.zero_()[:, 2] = 1
        return [*outputs, sums]
    x, out, table, index = _padded(inputs, 4), [*outputs, None], table.contiguous(), index.contiguous()
    size = inputs[0].numel() // samples
    block, warps = SUM[table.dtype]
    chunks, blocks = plan(size, block)
    partial = sums if chunks == 1 else torch.empty((samples, 3, chunks), dtype=table.dtype, device=table.device)
    with _on(inputs[0]):
        residual_kernel[(samples * chunks,)](
            *x, y.contiguous(), out[0], out[1], table, index, partial, size, table.shape[0], index.ndim, chunks, blocks,
            M=table.shape[1], K=table.shape[2], BLOCK=block, num_warps=warps, **EXACT,
        )  # fmt: skip
        if chunks > 1:
            finish_kernel[(samples,)](partial, sums, chunks, CHUNKS=CHUNKS, num_warps=4, **EXACT)
    return [*outputs, sums]


def anderson_mix(values: list[torch.Tensor], residuals: list[torch.Tensor]) -> torch.Tensor:
    first, m = values[0], len(values)
    if m == 1:
        return first.clone(memory_format=torch.contiguous_format)
    out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    if first.numel() == 0:
        return out
    samples, f, r = first.shape[0], _padded(values, 4), _padded(residuals, 4)
    size = first.numel() // samples
    block, warps = MIX[first.dtype]
    chunks, blocks = plan(size, block)
    with _on(first):
        if chunks == 1:
            whole_kernel[(samples,)](
                *f, *r, out, size, blocks, M=m, BLOCK=block, num_warps=warps, **EXACT
            )  # fmt: skip
            return out
        partial = torch.empty((samples, m * (m + 1) // 2, chunks), dtype=torch.float64, device=first.device)
        gram_kernel[(samples * chunks,)](
            *r, partial, size, chunks, blocks, M=m, BLOCK=block, num_warps=warps, **EXACT
        )  # fmt: skip
        mix_kernel[(samples * chunks,)](
            *f, partial, out, size, chunks, blocks, M=m, BLOCK=block, CHUNKS=CHUNKS, num_warps=warps, **EXACT
        )  # fmt: skip
    return out


def plan(size: int, block: int) -> tuple[int, int]:
    """(chunks, blocks): a sample is `chunks` programs' work, `blocks` blocks of `block` elements each."""
    blocks = _ceil(size, block)
    each = blocks if size <= WHOLE else _ceil(blocks, CHUNKS)
    return _ceil(blocks, each), each


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def _empty(x: torch.Tensor, table: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty(x.shape, dtype=table.dtype, device=x.device) for _ in range(table.shape[1])]


def _padded(tensors: list[torch.Tensor], count: int) -> list[torch.Tensor | None]:
    """Contiguous, and None for the inputs that a kernel can take and this call has not."""
    return [x.contiguous() for x in tensors] + [None] * (count - len(tensors))


def _on(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda and torch.cuda.is_available() else contextlib.nullcontext()

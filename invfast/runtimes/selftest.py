"""What a dtype is worth on this CPU, measured: names of CPUs say little, and virtual machines hide instructions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from invfast.locks import once


class Measured(NamedTuple):
    """Times as fast as float32 (medians of interleaved runs), and the relative error, of one dtype."""

    speed: float
    error: float

    @property
    def pays(self) -> bool:
        """A clear gain, at the error rounding explains."""
        return self.speed >= 1.3 and self.error <= 2e-2


@once
def bfloat16_on_cpu() -> Measured:
    """One convolution, one linear layer and one attention, a few times each; some 50 ms, once a process."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
        x, kernel = draw(1, 128, 32, 32), draw(128, 128, 3, 3) / 34
        rows, weight, heads = draw(1024, 512), draw(512, 512) / 23, draw(3, 1, 8, 512, 64)

        def work(dtype: torch.dtype) -> Callable[[], list[torch.Tensor]]:
            image, filters = x.to(dtype, memory_format=torch.channels_last), kernel.to(dtype)
            filters = filters.contiguous(memory_format=torch.channels_last)
            tokens, matrix, (q, k, v) = rows.to(dtype), weight.to(dtype), heads.to(dtype)
            return lambda: [
                F.conv2d(image, filters, padding=1),
                F.linear(tokens, matrix),
                F.scaled_dot_product_attention(q, k, v),
            ]

        full, half = work(torch.float32), work(torch.bfloat16)
        wanted, got = full(), half()
        error = max(((g.float() - w).norm() / w.norm()).item() for g, w in zip(got, wanted, strict=True))
        times = [(_seconds(full), _seconds(half)) for _ in range(3)]
    slow, fast = (sorted(each)[1] for each in zip(*times, strict=True))
    return Measured(slow / fast, error)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

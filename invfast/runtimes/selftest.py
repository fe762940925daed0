"""What a dtype is worth on this CPU, measured: names of CPUs say little, and virtual machines hide instructions."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from invfast.locks import once
from invfast.runtimes.cache import remember, remembered

ROUNDS, SECONDS = 25, 0.5
"""Interleaved rounds whose median counts, for a busy moment spoils a few; where they take long fewer, but five."""


class Measured(NamedTuple):
    """Times as fast as float32 (medians of interleaved rounds), and the relative error, of one dtype."""

    speed: float
    error: float

    @property
    def pays(self) -> bool:
        """A clear gain, at the error rounding explains."""
        return self.speed >= 1.3 and self.error <= 2e-2


@once
def bfloat16_on_cpu() -> Measured:
    """What bfloat16 is worth here, measured once a machine, in half a second, and remembered in the cache.

    So every process decides alike: around the threshold one measurement is above it and the next below, and an
    inversion would run in another dtype than its way back.
    """
    known = remembered(_machine())
    if isinstance(known, list) and len(known) == 2 and all(isinstance(each, float) for each in known):
        return Measured(*known)
    found = _measure()
    remember(_machine(), list(found))
    return found


def _machine() -> dict[str, Any]:
    """All that the verdict depends on."""
    return {
        "measured": "bfloat16 on a CPU",
        "torch": torch.__version__,
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _model_name()],
        "threads": torch.get_num_threads(),
        "limits": {name: os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")},
    }


def _model_name() -> str:
    """As Linux names it, with what it can do; elsewhere what Python knows."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in lines.items()}
        return " ".join(said[key] for key in ("model name", "flags") if key in said) or platform.processor()
    except (OSError, ValueError):
        return platform.processor()


def _measure() -> Measured:
    """One convolution, one linear layer and one attention, float32 and bfloat16 in turn."""
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
        times: list[tuple[float, float]] = []
        while len(times) < 5 or (len(times) < ROUNDS and sum(map(sum, times)) < SECONDS):
            times.append((_seconds(full), _seconds(half)))
    slow, fast = (sorted(each)[len(times) // 2] for each in zip(*times, strict=True))
    return Measured(slow / fast, error)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

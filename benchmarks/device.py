"""What the suites ask of a device: to wait for it, its clock, its memory, and work recorded as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from invfast.executors import cuda_graphs


def wait(device: torch.device) -> None:
    """Until all that was queued on it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """(what the call returned, its seconds on the wall, between two events on the device).

    The device is idle before and after, so that the wall has all of the call. A CPU has no clock of its own: the same.
    """
    wait(device)
    began = time.perf_counter()
    if device.type != "cuda":
        found = call()
        wall = time.perf_counter() - began
        return found, wall, wall
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    found = call()
    last.record()
    wait(device)
    return found, time.perf_counter() - began, first.elapsed_time(last) / 1e3


def peak_gib(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """(what the call returned, GiB of the device's memory that it took at most beside what was taken before)."""
    if device.type != "cuda":
        return call(), 0.0
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    found = call()
    wait(device)
    return found, (torch.cuda.max_memory_allocated(device) - before) / 2**30


def recorded(call: Callable[[], Any], count: int, device: torch.device) -> Callable[[], None]:
    """A CUDA graph of `count` calls, run once before it is recorded; what they return is dropped.

    Raises:
        RuntimeError: the calls wait for the device, or do something else that no graph can hold.
    """

    def body() -> None:
        for _ in range(count):
            call()

    recorder = cuda_graphs(device)
    with recorder.aside():
        call()
    wait(device)
    return recorder.record(body).replay

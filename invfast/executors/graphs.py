"""CUDA graphs: how one is recorded, on which device and stream, and beside whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch

_recording = threading.RLock()
"""Held while a graph is recorded, and by what runs aside: torch's streams come from a pool of 32, and what is queued on
one that is being captured is captured too."""


class Graph(Protocol):
    def replay(self) -> None: ...


class Recorder(Protocol):
    size: int
    """Bytes that its graphs compute in."""

    def aside(self) -> AbstractContextManager[None]:
        """Where what will be recorded is run first."""

    def record(self, body: Callable[[], object]) -> Graph:
        """A graph of what `body` queues; nothing of it runs yet."""


class CUDAGraphs:
    """Records on a stream of its own of one device, into one memory pool.

    Neither begins with a wait for the whole device, as `torch.cuda.graph` does: while another thread records that is
    an error, and ends that recording too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.size = device, 0
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        with _recording, torch.cuda.device(self.device):
            current, own = torch.cuda.current_stream(self.device), self.stream
            own.wait_stream(current)
            try:
                with torch.cuda.stream(own):
                    yield
            finally:
                current.wait_stream(own)

    def record(self, body: Callable[[], object]) -> Graph:
        """A graph of what `body` queues, kept apart from all else that threads queue meanwhile.

        Raises:
            RuntimeError: it cannot be recorded; names the first error and the remedy.
        """
        with _recording, self.aside():
            self.stream.synchronize()  # of this stream alone
            _forget_workspaces()  # the graph's must lie in its own pool, which lives as long as it
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved(self.device)
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                body()
                graph.capture_end()
            except BaseException as error:
                self._abandon(graph)
                if not isinstance(error, Exception):
                    raise
                raise RuntimeError(
                    f"a step cannot be captured as a CUDA graph ({type(error).__name__}: {error}); pass "
                    "cuda_graph=False"
                ) from error
            _forget_workspaces()  # and nobody else's there
            self.size += max(0, torch.cuda.memory_reserved(self.device) - before)
        return _On(graph, self.device)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a recording that failed; that it did is known, and its stream is given up with it."""
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(AttributeError, RuntimeError):  # where that failed before it told the allocator
            torch._C._cuda_endAllocateToPool(self.device.index or 0, self.pool)
        self.stream = torch.cuda.Stream(self.device)


def _forget_workspaces() -> None:
    """Has cuBLAS take new workspaces: it keeps one a stream, frees them behind the back of graphs that hold their
    address, and torch's streams come from a pool.
    """
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if forget is not None:
        forget()


class _On:
    """A graph that is replayed on its device's current stream, whichever device the caller is on."""

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self.graph, self.device = graph, device

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()


def cuda_graphs(device: torch.device) -> Recorder:
    """A recorder of CUDA graphs for a device."""
    return CUDAGraphs(device)

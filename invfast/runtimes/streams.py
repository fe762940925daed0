"""Work of another library on a CUDA stream, in order with torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs what is inside on a stream after all that torch has queued on its own, and before all it queues next.

    The host does not wait. Memory of torch's stream may be used inside: it is given to nobody else before torch's
    stream has waited for this one. None, on a CPU, does nothing.
    """
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    if current == stream:
        yield
        return
    stream.wait_stream(current)
    try:
        yield
    finally:
        current.wait_stream(stream)

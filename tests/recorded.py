"""A stand-in for a CUDA graph on the CPU: operations recorded with their tensors, replayed without our Python."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "aten.item", "nonzero")  # inference mode shows item itself


class Recording(TorchDispatchMode):
    """What runs under it, and how the memory that it wrote to looked before."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(name in str(function) for name in READS), f"{function} reads from the device while recording"
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        owned = {x.untyped_storage().data_ptr() for x in given}
        if function._schema.is_mutable:
            self.before += [(x, x.clone()) for x in given if x.untyped_storage().data_ptr() not in self.made]
        out = function(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        fresh = [x for x in results if x.untyped_storage().data_ptr() not in owned]
        self.made |= {x.untyped_storage().data_ptr() for x in fresh}
        self.calls.append((function, args, kwargs or {}, fresh, out))
        return out


class Graph:
    """Replays what was recorded, into the same memory."""

    def __init__(self, calls):
        self.calls = calls

    def replay(self):
        for function, args, kwargs, fresh, _ in self.calls:
            again = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            if fresh:
                for old, new in zip(fresh, again, strict=True):
                    old.copy_(new)


class Recorder:
    """Like `executors.cuda_graphs()`, on the CPU: a recording runs, but leaves memory as it found it."""

    size = 0

    def __init__(self):
        self.made = []

    def aside(self):
        return nullcontext()

    def record(self, body):
        with Recording() as recording:
            body()
        for x, before in reversed(recording.before):
            x.copy_(before)
        self.made.append(Graph(recording.calls))
        return self.made[-1]

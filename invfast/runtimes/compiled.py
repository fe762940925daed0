"""torch.compile: one graph of the whole network."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from invfast.runtimes.base import Network, Spec, Traits
from invfast.runtimes.eager import Torch

logger = logging.getLogger("invfast")
_one_at_a_time = threading.RLock()
"""Held while compiling: Inductor's settings, loggers and warnings are the process's."""


class Compile(Torch):
    """The network as one graph for one batch and size; on a CPU its weights are frozen into it, packed for oneDNN.

    Args:
        name: of the runtime.
        autotune: let Inductor time its kernels for every shape, on a GPU: 5 to 20 s a shape, for dozens of them.
    """

    traits = Traits(dynamic_batch=False, shares=True, capturable=True, precomputes=True)

    def __init__(self, name: str = "compile", autotune: bool = False) -> None:
        self.name, self.autotune = name, autotune

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.autotune and device.type != "cuda":
            return f"autotuning is for CUDA devices, and the pipeline is on {device}; take runtime='compile'"
        return super().refuses(device, dtype)

    def fuses(self, device: torch.device) -> bool:
        return device.type == "cuda"  # measured there alone

    def unavailable(self) -> str | None:
        if torch.cuda.is_available():
            if importlib.util.find_spec("triton"):
                return None
            return "torch.compile needs triton on a GPU, and it is not there (pip install 'invfast[triton]')"
        if shutil.which("g++") or shutil.which("clang++"):
            return None
        return "torch.compile needs a C++ compiler on a CPU, and neither g++ nor clang++ is there (apt install g++)"

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        def network(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
            return module(x, t, **static_inputs, return_dict=False)[0]

        cpu = spec.device.type == "cpu"
        frozen = cpu and spec.dtype != torch.float64  # oneDNN packs no such weights
        mode = {"mode": "max-autotune-no-cudagraphs"} if self.autotune else {}
        # Dynamo keeps its results by code object, for ever, and refuses the ninth: each network has one of its own.
        network.__code__ = network.__code__.replace()
        compiled = torch.compile(network, fullgraph=True, dynamic=False, **mode)

        @torch.inference_mode()
        def guarded(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
            static = {name: _uniform(value) for name, value in static_inputs.items()}
            return compiled(_uniform(x), _uniform(t), **static)

        weakref.finalize(guarded, torch._dynamo.eval_frame.remove_from_cache, network.__code__)
        logger.warning("compiling %s for this size, once a process: %s", type(module).__name__, self._takes(cpu))
        began = time.perf_counter()
        # Freezing is read when the graph is lowered, which is at this first call; patched here, never set globally.
        with _one_at_a_time, _quiet(), torch._inductor.config.patch(freezing=frozen):
            guarded(**example_inputs)
        logger.info("compiled in %.0f s", time.perf_counter() - began)
        return guarded

    def _takes(self, cpu: bool) -> str:
        """How long, by what was measured on an H100, and on a CPU."""
        if self.autotune:
            return "autotuning takes many minutes, an hour is possible"
        return "a minute or more" if cpu else "45 to 68 s were measured for SD1.5, 84 s for SDXL"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what dynamo and Inductor write to stderr beside errors: tables of timings, hints, warnings."""
    from torch._inductor import select_algorithm

    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch._inductor")]
    levels, printing = [each.level for each in loggers], select_algorithm.PRINT_AUTOTUNE
    # Put in and taken out: `catch_warnings` works on a copy, and would lose what other threads set meanwhile.
    warnings.filterwarnings("ignore", module=r"torch\.")
    own = warnings.filters[0]
    select_algorithm.PRINT_AUTOTUNE = False
    for each in loggers:
        each.setLevel(max(each.getEffectiveLevel(), logging.ERROR))
    try:
        yield
    finally:
        select_algorithm.PRINT_AUTOTUNE = printing
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if own in warnings.filters:
            warnings.filters.remove(own)


def _uniform(value: torch.Tensor) -> torch.Tensor:
    """The value as the graph was compiled for: an inference tensor, contiguous; anything else would compile again."""
    return value.contiguous() if value.is_inference() else value.clone(memory_format=torch.contiguous_format)

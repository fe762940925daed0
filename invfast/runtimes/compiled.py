"""torch.compile: one graph of the whole network, or of each kind of block that a transformer repeats."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import threading
import time
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from invfast.runtimes.base import Network, Spec, Traits
from invfast.runtimes.eager import Torch

logger = logging.getLogger("invfast")
_one_at_a_time = threading.RLock()
"""Held while compiling: Inductor's settings, loggers and warnings are the process's."""
REPEATED = 3
"""Blocks of a kind from which on it is compiled once for all of them."""
MOST = 0.8
"""Share of the weights that such blocks must hold: UNets declare theirs too, and are convolutions beside them."""


class Compile(Torch):
    """The network as one graph for one batch and size; on a CPU its weights are frozen into it, packed for oneDNN.

    Of a transformer that declares blocks to be repeated (`_repeated_blocks` in diffusers) each kind is compiled once
    and takes its weights as inputs; what lies between them runs as it is.

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

        cpu, blocks = spec.device.type == "cpu", _repeated(module)
        frozen = cpu and not blocks and spec.dtype != torch.float64  # oneDNN packs no such weights
        mode = {"mode": "max-autotune-no-cudagraphs"} if self.autotune else {}
        kinds = {type(block): _own(type(block).forward) for block in blocks}
        for kind, forward in kinds.items():
            compiled = torch.compile(forward, fullgraph=True, dynamic=False, **mode)
            for block in blocks:
                if type(block) is kind:
                    block.forward = types.MethodType(compiled, block)
        codes = [forward.__code__ for forward in kinds.values()]
        if not blocks:
            network = _own(network)
            codes, network = [network.__code__], torch.compile(network, fullgraph=True, dynamic=False, **mode)

        @torch.inference_mode()
        def guarded(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
            static = {name: _uniform(value) for name, value in static_inputs.items()}
            return network(_uniform(x), _uniform(t), **static)

        for code in codes:
            weakref.finalize(guarded, torch._dynamo.eval_frame.remove_from_cache, code)
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


def _repeated(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Blocks of the kinds that a model of diffusers declares to repeat, where it consists of them."""
    names = {name for part in module.modules() for name in getattr(part, "_repeated_blocks", None) or ()}
    blocks = [part for part in module.modules() if type(part).__name__ in names]
    counts = Counter(type(block) for block in blocks)
    blocks = [block for block in blocks if counts[type(block)] >= REPEATED]
    held = sum(p.numel() for block in blocks for p in block.parameters())
    return blocks if held > MOST * sum(p.numel() for p in module.parameters()) else []


def _own(function: types.FunctionType) -> Callable:
    """The same function with a code object of its own: dynamo keeps what it makes by that, and refuses the ninth."""
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    new = types.FunctionType(function.__code__.replace(), *parts)
    new.__kwdefaults__ = function.__kwdefaults__
    return new


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

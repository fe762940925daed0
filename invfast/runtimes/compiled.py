"""torch.compile: one graph of the whole network."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
import weakref
from collections.abc import Mapping

import torch

from invfast.runtimes.base import Network, Spec
from invfast.runtimes.eager import Torch

logger = logging.getLogger("invfast")


class Compile(Torch):
    """The network as one graph for one batch and size; on a CPU its weights are frozen into it, packed for oneDNN."""

    name = "compile"
    dynamic_batch = False
    exports = True

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
        mode = {} if cpu else {"mode": "max-autotune-no-cudagraphs"}
        # Dynamo keeps its results by code object, for ever, and refuses the ninth: each network has one of its own.
        network.__code__ = network.__code__.replace()
        compiled = torch.compile(network, fullgraph=True, dynamic=False, **mode)

        @torch.inference_mode()
        def guarded(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
            static = {name: _uniform(value) for name, value in static_inputs.items()}
            return compiled(_uniform(x), _uniform(t), **static)

        weakref.finalize(guarded, torch._dynamo.eval_frame.remove_from_cache, network.__code__)
        logger.warning("compiling %s for this size, once; a minute or more", type(module).__name__)
        began = time.perf_counter()
        # Freezing is read when the graph is lowered, which is at this first call; patched here, never set globally.
        with torch._inductor.config.patch(freezing=cpu):
            guarded(**example_inputs)
        logger.info("compiled in %.0f s", time.perf_counter() - began)
        return guarded


def _uniform(value: torch.Tensor) -> torch.Tensor:
    """The value as the graph was compiled for: an inference tensor, contiguous; anything else would compile again."""
    return value.contiguous() if value.is_inference() else value.clone(memory_format=torch.contiguous_format)

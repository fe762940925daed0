"""TensorRT and TensorRT-RTX: the fastest engines on NVIDIA GPUs, through one module, for their APIs are alike.

The network is cast and exported to ONNX, then built for one GPU, one size and any batch up to a power of two; file and
engine are kept in the cache. TensorRT-RTX builds for GPUs that are not there, so an engine can be made ahead of time on
another machine.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from invfast.locks import once
from invfast.runtimes import engine_build, onnx
from invfast.runtimes.base import Exporting, Network, Spec, Traits
from invfast.runtimes.cache import Cache
from invfast.runtimes.engine import Engine

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FILE, KERNELS = "model.engine", "kernels"
MOST = 16
"""Samples a call; larger batches take several."""

_engines: WeakValueDictionary[tuple[Path, torch.device], Engine] = WeakValueDictionary()
"""Those some prepared network holds; a network for another batch of the same entry uses the same."""
_loading = threading.Lock()


class TensorRT(Exporting):
    """A network as an engine of one of the two packages.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        target: the compute capability to build for (86 for 8.6) where that is not this machine's GPU; such an engine
            is only built.
    """

    traits = Traits(capturable=True, precomputes=True)

    def __init__(self, package: str, target: int | None = None) -> None:
        self.package, self.target = package, target
        self.name = package if target is None else f"{package} for SM{target}"

    def ahead_of_time(self, capability: int) -> TensorRT:
        """The same for GPUs of a compute capability, wherever they are."""
        return TensorRT(self.package, capability)

    def unavailable(self) -> str | None:
        reason = _missing(self.package) or onnx.missing(EXTRAS[self.package])
        if reason is None and self.target is None and not torch.cuda.is_available():
            return (
                "torch finds no NVIDIA GPU and driver here (runtime='tensorrt_rtx' builds an engine for another "
                "machine's: invfast export --runtime tensorrt_rtx --capability 86)"
            )
        return reason

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.target is None and device.type != "cuda":
            return f"the pipeline is on {device}; move it to an NVIDIA GPU"
        if dtype not in DTYPES:
            return f"it computes in float32, bfloat16 or float16, not in {dtype}"
        capability = self.target or capability_of(device)
        if self.package == "tensorrt" and self.target and self.target != _own():
            return f"tensorrt builds for the GPU it finds, not for SM{self.target}; tensorrt_rtx builds for others"
        if self.package == "tensorrt_rtx" and capability not in targets():
            known = ", ".join(f"SM{each}" for each in targets())
            return f"tensorrt_rtx builds for {known}, not for SM{capability}; use runtime='tensorrt'"
        if dtype == torch.bfloat16 and capability < 80:
            return f"SM{capability} has no bfloat16 arithmetic; use dtype=torch.float16"
        return None

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        shape = profile(example_inputs)
        inputs = {
            **onnx.description(module, example_inputs, spec),
            "onnx": onnx.version(),
            **self._kind(self.target or capability_of(spec.device), spec.dtype),
            "profile": shape,
        }
        build = functools.partial(self._build, module, example_inputs, spec, inputs["capability"], shape)
        doing = f"building an engine of {type(module).__name__} for SM{inputs['capability']}, once; minutes"
        folder = Cache().entry(inputs, build, doing)
        if self.target is not None:
            return _elsewhere(self.name)
        with _loading:
            engine = _engines.get((folder, spec.device))
            if engine is None:
                engine = _engines[folder, spec.device] = self._load(folder, inputs, example_inputs, spec.device)
        rows = shape["x"][2][0]
        found = network(engine, rows)
        found.caller = lambda: network(engine.caller(), rows)
        return found

    def cached(self, identity: Callable[[], str], device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the cache has an engine of a network for this GPU, of any size."""
        wanted = self._kind(capability_of(device), dtype)
        found = [e for e in Cache().entries() if all(e.inputs.get(name) == value for name, value in wanted.items())]
        return any(e.inputs.get("network") == identity() for e in found if "kernels" not in e.inputs)

    def _kind(self, capability: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "runtime": f"{self.package} {_library(self.package).__version__}",
            "capability": capability,
            "dtype": str(dtype).removeprefix("torch."),
            "platform": sys.platform,
        }

    def _build(
        self,
        module: torch.nn.Module,
        example_inputs: Mapping[str, torch.Tensor],
        spec: Spec,
        capability: int,
        shape: engine_build.Profile,
        folder: Path,
    ) -> None:
        path = onnx.exported(module, example_inputs, spec)
        engine_build.in_child(self.package, path, folder / FILE, shape, capability)

    def _load(
        self, folder: Path, inputs: Mapping[str, Any], example_inputs: Mapping[str, torch.Tensor], device: torch.device
    ) -> Engine:
        """The engine, run once, so that TensorRT-RTX's kernels for these shapes are compiled, and kept."""
        if self.package == "tensorrt":
            return Engine(self.package, folder / FILE, device)
        key = {**inputs, "kernels": torch.cuda.get_device_name(device)}
        cache = Cache()
        found = cache.find(key)
        engine = Engine(self.package, folder / FILE, device, (found / KERNELS).read_bytes() if found else None)
        network(engine, inputs["profile"]["x"][2][0])(**example_inputs)
        if not engine.kernels_taken:
            if found:  # of another driver
                cache.remove(found.name)
            keep = lambda target: (target / KERNELS).write_bytes(engine.kernels())  # noqa: E731
            cache.entry(key, keep, f"keeping the kernels of {inputs['class']}")
        return engine


def profile(example_inputs: Mapping[str, torch.Tensor]) -> engine_build.Profile:
    """This size, and any batch up to the next power of two, by input; the last is what is optimised for."""
    rows = min(MOST, 1 << (len(example_inputs["x"]) - 1).bit_length())
    shapes = {name: list(value.shape[1:]) for name, value in example_inputs.items() if name != "t"}
    found = {name: ([1, *rest], [rows, *rest], [rows, *rest]) for name, rest in shapes.items()}
    t = example_inputs.get("t")
    if t is not None and t.ndim:  # no time but what stands for it, one row for all samples
        found["t"] = (list(t.shape),) * 3
    return found


def network(engine: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], rows: int) -> Network:
    """An engine for at most so many rows, as a network for any number of them."""

    @torch.inference_mode()
    def any_batch(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
        if not t.ndim:
            t = t.to(x.device, torch.float32 if t.is_floating_point() else torch.int64)
        rest = {"x": x, **static_inputs}
        parts = [
            engine({"t": t, **{name: value[start : start + rows].contiguous() for name, value in rest.items()}})
            for start in range(0, len(x), rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return any_batch


def capability_of(device: torch.device) -> int:
    """86 for a GPU of compute capability 8.6."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def targets() -> list[int]:
    """The compute capabilities TensorRT-RTX builds for."""
    known = _library("tensorrt_rtx").ComputeCapability.__members__
    return sorted(int(name[2:]) for name in known if name.startswith("SM"))


def _own() -> int | None:
    return capability_of(torch.device("cuda")) if torch.cuda.is_available() else None


def _elsewhere(name: str) -> Network:
    def nowhere(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"this engine was built ahead of time, {name}; it runs on such a GPU only")

    return nowhere


def _missing(package: str) -> str | None:
    install = f'pip install "invfast[{EXTRAS[package]}]"'
    if importlib.util.find_spec(package) is None:
        return f"No module named {package!r} ({install})"
    try:
        _library(package)
    except ImportError as error:  # its shared libraries come in a package of their own
        return f"{package} does not load: {error} ({install})"
    return None


@once
def _library(package: str) -> Any:
    return importlib.import_module(package)

"""Where the network runs. Each runtime knows torch and its own library, no method and no schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from invfast.runtimes.base import Calibration, Network, Runtime, Spec, Traits
from invfast.runtimes.cache import unusable
from invfast.runtimes.compiled import Compile
from invfast.runtimes.eager import Eager
from invfast.runtimes.onnxruntime_ import CUDA, TENSORRT, ONNXRuntime
from invfast.runtimes.openvino import OpenVINO
from invfast.runtimes.prepared import prepared, ready
from invfast.runtimes.selftest import bfloat16_on_cpu
from invfast.runtimes.tensorrt import TensorRT
from invfast.warned import warn

RUNTIMES: dict[str, Runtime] = {
    "eager": Eager(),
    "compile": Compile(),
    "compile_autotune": Compile("compile_autotune", autotune=True),
    "openvino": OpenVINO("openvino", "CPU"),
    "openvino_gpu": OpenVINO("openvino_gpu", "GPU"),
    "onnxruntime": ONNXRuntime("onnxruntime", CUDA),
    "onnxruntime_tensorrt": ONNXRuntime("onnxruntime_tensorrt", TENSORRT),
    "tensorrt": TensorRT("tensorrt"),
    "tensorrt_rtx": TensorRT("tensorrt_rtx"),
}
LARGE = 50_000_000
"""Parameters from which exporting a network pays within one run."""
EXPORT_BYTES = 8
"""On disk, for each parameter, while a network is converted: handed over and written, in float32 at most."""
NO_ENGINE = "no engine of it in the cache"


WORTH_COMPILING = 55_000
"""Samples from which compiling pays within one call on a GPU: SD1.5 compiles in some 60 s and saves 1.09 ms a sample at
batch 16. A batch of one saves 2.63 ms (7.08 ms a step eager, 4.45 compiled), SDXL at 1024 px 8.5: 23,000 and 10,000
samples would do, but a grid has 1,000 steps at most."""


class Choice(NamedTuple):
    """A runtime, the dtype it computes in, and why; and what is faster but costs more than one run gains."""

    runtime: Runtime
    dtype: torch.dtype
    reason: str
    faster: Runtime | None = None


def resolve(
    name: str | Runtime,
    device: torch.device,
    dtype: torch.dtype,
    *,
    free: bool,
    parameters: int,
    opaque: str | None,
    identity: Callable[[], str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Choice:
    """The runtime for a network, chosen once, before the loop.

    Where the cache cannot be used, "auto" takes what needs none, and warns; a runtime asked for by name raises an
    OSError when it exports. Both name INVFAST_CACHE.

    Args:
        name: "auto", one of RUNTIMES, or a runtime itself.
        device: where the pipeline is.
        dtype: what to compute in.
        free: whether "auto" may take another dtype that this machine is faster in; the caller named none.
        parameters: of the network.
        opaque: why the network must run as the Python module it is; None where it may be exported.
        identity: the network's digest, computed when "auto" asks whether an engine of it was built.
        refused: runtimes that cannot run this network, and why.

    Raises:
        ValueError: the name is unknown, or the runtime cannot run this network in this dtype on this device.
        RuntimeError: the runtime was asked for by name and cannot run here; says why and what to install.
    """
    why = "asked for by name"
    if name == "auto" and dtype == torch.int8:
        name, why = "openvino", "it alone computes in int8"
    if name == "auto":
        return _auto(device, dtype, free, parameters, opaque, identity, refused or {})
    runtime = named(name) if isinstance(name, str) or not hasattr(name, "prepare") else name
    reason = runtime.unavailable()
    if reason:
        raise RuntimeError(f"runtime {runtime.name!r} is unavailable: {reason}")
    reason = (opaque if runtime.traits.exports else None) or runtime.refuses(device, dtype)
    reason = reason or (refused or {}).get(runtime.name)
    if reason:
        raise ValueError(f"runtime {runtime.name!r} cannot run this network: {reason}")
    return Choice(runtime, dtype, why)


def ahead_of_time(name: str, capability: int) -> Runtime:
    """The runtime that builds for GPUs of a compute capability (86 for 8.6), whatever is in this machine.

    Raises:
        ValueError: the name is unknown, or that runtime builds for the machine it is on.
    """
    runtime = named(name)
    if not isinstance(runtime, TensorRT):
        raise ValueError(
            f"runtime {name!r} does not build for another machine's GPU; expected 'tensorrt_rtx', or no capability"
        )
    return runtime.ahead_of_time(capability)


def named(name: str) -> Runtime:
    """One of RUNTIMES; ValueError where there is none of this name."""
    if not isinstance(name, str) or name not in RUNTIMES:
        raise ValueError(f"unknown runtime {name!r}; expected 'auto' or one of {', '.join(map(repr, RUNTIMES))}")
    return RUNTIMES[name]


def _auto(
    device: torch.device,
    dtype: torch.dtype,
    free: bool,
    parameters: int,
    opaque: str | None,
    identity: Callable[[], str] | None,
    refused: Mapping[str, str],
) -> Choice:
    eager = RUNTIMES["eager"]
    if opaque:
        return Choice(eager, dtype, opaque)
    if device.type == "cuda":
        return _on_gpu(device, dtype, parameters, identity)
    if device.type != "cpu":
        return Choice(eager, dtype, f"the pipeline is on {device}, for which nothing faster is known")
    if parameters < LARGE:
        return Choice(eager, dtype, f"{_millions(parameters)}: an export would cost more than it saves")
    openvino = RUNTIMES["openvino"]
    half = free and bfloat16_on_cpu().pays
    said = refused.get("openvino") or openvino.unavailable()
    if said is None:
        best = torch.bfloat16 if half and openvino.refuses(device, torch.bfloat16) is None else dtype
        said = openvino.refuses(device, best) or _no_cache(parameters, identity)
        if said is None:
            return Choice(openvino, best, "the fastest engine on a CPU" + _measured(half))
    return Choice(eager, torch.bfloat16 if half else dtype, f"openvino: {said}" + _measured(half))


def _on_gpu(device: torch.device, dtype: torch.dtype, parameters: int, identity: Callable[[], str] | None) -> Choice:
    """An engine where there is one, else eager at once, or compiled where that pays; in the graphs of `capture`."""
    engine, said = _with_engine(device, dtype, identity) if identity is not None else (None, NO_ENGINE)
    if engine:
        return Choice(engine, dtype, said)
    compiled = RUNTIMES["compile"]
    missing = compiled.unavailable()
    if parameters < LARGE or missing:
        why = missing or f"{_millions(parameters)}: compiling would cost more than it saves"
        return Choice(RUNTIMES["eager"], dtype, f"{said}; {why}")
    why = "eager at once: compiling takes a minute or more, prepare(runtime='compile') makes it ready for calls to come"
    return Choice(RUNTIMES["eager"], dtype, f"{said}; {why}", compiled)


def worth_making(runtime: Runtime, example_inputs: Mapping[str, torch.Tensor], spec: Spec, samples: int) -> str | None:
    """Why a faster runtime is taken after all, for a run of at least so many samples; None where it does not pay.

    What Inductor's cache on disk holds cannot be asked: its key is made of the traced graph, and tracing is what takes
    the time. So only a network that is ready in this process counts as ready.
    """
    if ready(runtime, example_inputs, spec):
        return f"{runtime.name} has this very network ready in this process"
    if samples >= WORTH_COMPILING:
        return f"{samples} samples in one call: {runtime.name} pays from {WORTH_COMPILING} on"
    return None


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M parameters"


def _with_engine(device: torch.device, dtype: torch.dtype, identity: Callable[[], str]) -> tuple[TensorRT | None, str]:
    """The runtime whose engine is in the cache, and what to say of it; another size of it may have to be built."""
    can = [RUNTIMES[name] for name in ("tensorrt", "tensorrt_rtx")]
    can = [each for each in can if each.unavailable() is None and each.refuses(device, dtype) is None]
    why = unusable() if can else None
    if why:
        warn(f"engines are left out: {why}")
        return None, why
    for runtime in can:
        if runtime.cached(identity, device, dtype):
            return runtime, f"the cache has an engine of this network for {device} in {dtype}"
    return None, NO_ENGINE


def _no_cache(parameters: int, identity: Callable[[], str] | None) -> str | None:
    """Why OpenVINO's network cannot be kept, which is warned of; None where it can, or is there already."""
    why = unusable(EXPORT_BYTES * parameters)
    if why is None or (identity is not None and _is_kept(identity)):
        return None
    warn(f"running eagerly: {why}")
    return why


def _is_kept(identity: Callable[[], str]) -> bool:
    try:
        return RUNTIMES["openvino"].cached(identity)
    except OSError:
        return False


def _measured(half: bool) -> str:
    speed, error = bfloat16_on_cpu() if half else (1, 0)
    return f"; bfloat16 measured {speed:.1f} x float32, error {error:.0e}" if half else ""


__all__ = [
    "LARGE",
    "RUNTIMES",
    "Calibration",
    "Choice",
    "Network",
    "Runtime",
    "Spec",
    "Traits",
    "ahead_of_time",
    "bfloat16_on_cpu",
    "prepared",
    "ready",
    "resolve",
    "worth_making",
]

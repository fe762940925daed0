"""What there is on this machine, and why something is not."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata
from typing import Any

import torch

from invfast import methods, ops, runtimes
from invfast.runtimes.cache import Cache, unusable

PACKAGES = (
    "invfast",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "pillow",
    "openvino",
    "nncf",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torchmetrics",
)
AUTO = (
    f"openvino on a CPU for networks of at least {runtimes.LARGE / 1e6:.0f} M parameters, in bfloat16 where that "
    "pays and no dtype is named; on an NVIDIA GPU tensorrt or tensorrt_rtx where the cache has an engine of the "
    "network, else compile where such a network is ready in this process; eager for the rest, for small ones, on other "
    "devices, and for what only Python can run"
)


def report() -> dict[str, Any]:
    """Versions, devices, runtimes and methods as plain values; docs/cli.schema.json describes them."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": {
            "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "runtimes": {name: runtime.unavailable() or "available" for name, runtime in runtimes.RUNTIMES.items()},
        "kernels": _kernels(),
        "bfloat16": _bfloat16(),
        "cache": _cache(),
        "metrics": _importable("torchmetrics", "eval"),
        "methods": {name: repr(method) for name, method in methods.METHODS.items()},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A report as text."""
    return [
        f"python {found['python']}",
        *(f"{name} {version or 'not installed'}" for name, version in found["versions"].items()),
        *(f"device {name}: {what or 'none'}" for name, what in found["devices"].items()),
        *(f"runtime {name}: {state}" for name, state in found["runtimes"].items()),
        f"runtime auto: {AUTO}",
        *(f"kernels {name}: {state}" for name, state in found["kernels"].items()),
        f"bfloat16 on the CPU: {found['bfloat16']}",
        f"cache: {found['cache']}",
        f"metrics: {found['metrics']}",
        *(f"method {name}: {what}" for name, what in found["methods"].items()),
    ]


def _kernels() -> dict[str, str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = ops.resolve(device)
    states = {name: ops.unavailable(name, device) or f"available on {device}" for name in ops.NAMES}
    return {**states, "auto": f"{chosen.name} ({chosen.reason})"}


def _bfloat16() -> str:
    speed, error = runtimes.bfloat16_on_cpu()
    pays = "taken" if runtimes.bfloat16_on_cpu().pays else "not taken"
    return f"{speed:.2f} x the speed of float32 in a short test, relative error {error:.0e}; {pays} by runtime auto"


def _cache() -> str:
    why = unusable()
    return f"unavailable: {why}" if why else str(Cache().folder)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _importable(name: str, extra: str) -> str:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f'unavailable: {error} (pip install "invfast[{extra}]")'
    return "available"

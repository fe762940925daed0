"""ONNX files: one graph with open batch, size and token count, from torch.export, kept in the cache.

Runtimes that read ONNX share them. TensorRT is strongly typed, so a file is in the dtype it is to be computed in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from invfast.runtimes import convert
from invfast.runtimes.base import Spec
from invfast.runtimes.cache import Cache

FILE = "model.onnx"


def missing(extra: str) -> str | None:
    """Which package an export needs and does not find, with the install command of a runtime's extra."""
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            return f'No module named {name!r} (pip install "invfast[{extra}]")'
    return None


def version() -> str:
    """Of the exporter."""
    return metadata.version("onnxscript")


def description(module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> dict[str, Any]:
    """All that shapes the file, as plain values."""
    return {
        **convert.description(module, example_inputs, spec),
        "runtime": f"onnx {version()}",
        "dtype": str(spec.dtype).removeprefix("torch."),
    }


def exported(module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Path:
    """The ONNX file of a module in `spec.dtype`, exported if it is not in the cache; inputs by name, output "out"."""
    inputs = description(module, example_inputs, spec)
    example = {name: _example(value, spec.axes.get(name, {})) for name, value in example_inputs.items()}
    axes = {name: list(spec.axes.get(name, {})) for name in example_inputs}
    folder = Cache().entry(
        inputs,
        lambda target: convert.in_child("onnx", module, example, target, spec.dtype, axes),
        f"exporting {type(module).__name__} to ONNX, once",
        convert.room(module, spec.dtype),
    )
    return folder / FILE


def _example(value: torch.Tensor, axes: Mapping[int, int]) -> torch.Tensor:
    """Like an input, of lengths no tracer mistakes for constants: two samples, sides that differ on every level."""
    shape = list(value.shape)
    for j, (axis, multiple) in enumerate(axes.items()):
        shape[axis] = 2 if axis == 0 else max(2, shape[axis]) if multiple == 1 else 2 * (j + 1) * multiple
    return torch.empty(shape, dtype=value.dtype)

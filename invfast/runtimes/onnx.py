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
        **convert.description(module, example_inputs, spec.identity()),
        "runtime": f"onnx {version()}",
        "dtype": str(spec.dtype).removeprefix("torch."),
    }


def exported(module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Path:
    """The ONNX file of a module in `spec.dtype`, exported if it is not in the cache; inputs by name, output "out"."""
    inputs = description(module, example_inputs, spec)
    factor = convert.halvings(module) if inputs["size"] == "open" else None
    example = {name: _example(name, value, factor) for name, value in example_inputs.items()}
    axes = {name: _open_axes(name, value.ndim, factor is not None) for name, value in example_inputs.items()}
    folder = Cache().entry(
        inputs,
        lambda target: convert.in_child("onnx", module, example, target, spec.dtype, axes),
        f"exporting {type(module).__name__} to ONNX, once",
        convert.room(module, spec.dtype),
    )
    return folder / FILE


def _example(name: str, value: torch.Tensor, factor: int | None) -> torch.Tensor:
    """Like an input, of lengths no tracer mistakes for constants: two samples, sides that differ on every level."""
    if name == "t":
        return torch.empty(value.shape, dtype=value.dtype)
    shape = [2, *value.shape[1:]]
    if name == "x" and factor is not None:
        shape[2:] = [4 * factor, 6 * factor]
    elif value.ndim == 3:
        shape[1] = max(2, shape[1])
    return torch.empty(shape, dtype=value.dtype)


def _open_axes(name: str, dims: int, open_size: bool) -> list[int]:
    """Samples, the sides of x, the tokens of embeddings."""
    if name == "t":
        return []
    if name == "x":
        return [0, 2, 3] if open_size else [0]
    return [0, 1] if dims == 3 else [0]

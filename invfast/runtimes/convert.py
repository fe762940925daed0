"""Conversion in a child process, so that what it takes of memory goes back; the child runs this file.

Weights go through a safetensors file in a private folder, the rest of the module through the child's standard input.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "weights.safetensors"


def description(module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], network: str) -> dict[str, Any]:
    """What shapes a converted network whatever it is converted to, as plain values for the key of a cache entry.

    Where every level halves evenly, the network's path does not depend on the size, and "size" is "open".
    """
    sides = example_inputs["x"].shape[2:]
    factor = halvings(module)
    even = factor > 1 and all(side % factor == 0 for side in sides)
    return {
        "class": type(module).__name__,
        "network": network,
        "precomputed": list(getattr(module, "precomputed", ())),
        **{name: metadata.version(name) for name in ("torch", "diffusers")},
        "inputs": {name: [value.ndim, value.is_floating_point()] for name, value in example_inputs.items()},
        "size": "open" if even else list(sides),
    }


def halvings(module: torch.nn.Module) -> int:
    """By how much a UNet's lowest level is smaller than its input; 1 where the module has no levels."""
    return 2 ** max(0, len(getattr(module, "up_blocks", [])) - 1)


def in_child(
    kind: str,
    module: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    open_axes: Mapping[str, list[int]] | None = None,
) -> None:
    """Writes a converted network into a folder.

    Args:
        kind: of the conversion, a name in `CONVERTERS`.
        module: in eval mode, in any dtype.
        example_inputs: "x", "t" where it takes times, and the static inputs; only their shapes and kinds count.
        folder: private and empty.
        dtype: what the converted network holds and takes floats in, but a time () in float32; integers are int64.
        open_axes: the axes of each input that any length may take, for tracers that are told.

    Raises:
        RuntimeError: the child failed; carries the end of what it said.
    """
    save_file(_apart(module), folder / WEIGHTS)
    shapes = {name: (tuple(value.shape), value.is_floating_point()) for name, value in example_inputs.items()}
    try:
        order = pickle.dumps(
            {"path": sys.path, "kind": kind, "folder": str(folder), "inputs": shapes, "dtype": dtype, "open": open_axes}
        )
        body = pickle.dumps(_hollow(module))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise RuntimeError(f"{type(module).__name__} cannot be handed to another process: {error}") from error
    # -P: this file's own folder is no place to import from, it has namesakes of libraries
    done = subprocess.run([sys.executable, "-P", __file__], input=order + body, capture_output=True)
    (folder / WEIGHTS).unlink()
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{kind} could not convert {type(module).__name__}: " + "\n".join(said[-3:]))


def _apart(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors by name; only one of those that share memory is no copy."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for j, _, name, tensor in _tensors(module):
        value = tensor.detach().contiguous()
        address = value.untyped_storage().data_ptr()
        found[f"{j}.{name}"] = value.clone() if address in seen else value
        seen.add(address)
    return found


def _tensors(module: torch.nn.Module) -> list[tuple[int, dict[str, Any], str, torch.Tensor]]:
    """(number of the part, where it keeps the tensor, its name there, tensor), in one order on both sides."""
    return [
        (j, store, name, tensor)
        for j, part in enumerate(module.modules())
        for store in (part._parameters, part._buffers)
        for name, tensor in store.items()
        if tensor is not None
    ]


def _hollow(module: torch.nn.Module) -> torch.nn.Module:
    """The module without its values."""
    empty = {id(tensor): tensor.detach().to("meta") for _, _, _, tensor in _tensors(module)}
    return copy.deepcopy(module, empty)


class _Positional(torch.nn.Module):
    """(x, t, *static inputs) -> output, for tracers that know no names; without t where the module takes no times."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        leading = [named.pop(name) for name in ("x", "t") if name in named]
        return self.module(*leading, **named, return_dict=False)[0]


def _openvino(module: _Positional, example: tuple[torch.Tensor, ...], folder: Path, _: Any) -> None:
    sys.modules["openvino_telemetry"] = None  # it would report the conversion over the network
    import openvino

    model = openvino.convert_model(module, example_input=example)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)  # it would round tables of times too


def _onnx(module: _Positional, example: tuple[torch.Tensor, ...], folder: Path, axes: Mapping[str, list[int]]) -> None:
    # DYNAMIC, unlike AUTO, is an error where the tracer would fix an axis to the example's length.
    shapes = [dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in module.names]
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        dynamic_shapes={"inputs": tuple(shapes)},
        input_names=module.names,
        output_names=["out"],
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces: more bytes than the graph itself
    program.save(folder / "model.onnx", external_data=True)


CONVERTERS: dict[str, Callable[[_Positional, tuple[torch.Tensor, ...], Path, Any], None]] = {
    "onnx": _onnx,
    "openvino": _openvino,
}


def _main() -> None:
    # Both objects come from the parent that started this process, over its own pipe.
    order = pickle.load(sys.stdin.buffer)
    sys.path[:] = order["path"]
    module = pickle.load(sys.stdin.buffer)
    folder, dtype = Path(order["folder"]), order["dtype"]
    values = load_file(folder / WEIGHTS)
    for j, store, name, _ in _tensors(module):
        value = values[f"{j}.{name}"]
        store[name] = torch.nn.Parameter(value.to(dtype) if value.is_floating_point() else value, requires_grad=False)
    example = tuple(
        torch.zeros(shape, dtype=(torch.float32 if name == "t" and not shape else dtype) if floating else torch.int64)
        for name, (shape, floating) in order["inputs"].items()
    )
    with torch.no_grad():
        CONVERTERS[order["kind"]](_Positional(module, list(order["inputs"])).eval(), example, folder, order["open"])


if __name__ == "__main__":
    _main()

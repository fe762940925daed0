"""Conversion in a child process, so that what it takes of memory goes back; the child runs this file.

Weights go through a safetensors file in a private folder, the rest of the module through the child's standard input.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "weights.safetensors"


def in_child(kind: str, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes a converted network into a folder.

    Args:
        kind: of the conversion, a name in `CONVERTERS`.
        module: in eval mode, in any dtype; it is converted in float32.
        example_inputs: "x", "t" and the static inputs; the converted network takes them in float32, or int64.
        folder: private and empty.

    Raises:
        RuntimeError: the child failed; carries the end of what it said.
    """
    save_file(_apart(module), folder / WEIGHTS)
    shapes = {name: (tuple(value.shape), value.is_floating_point()) for name, value in example_inputs.items()}
    try:
        order = pickle.dumps({"path": sys.path, "kind": kind, "folder": str(folder), "inputs": shapes})
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
    """(x, t, *static inputs) -> output, for tracers that know no names."""

    def __init__(self, module: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, x: torch.Tensor, t: torch.Tensor, *static_inputs: torch.Tensor) -> torch.Tensor:
        return self.module(x, t, **dict(zip(self.names, static_inputs, strict=True)), return_dict=False)[0]


def _openvino(module: torch.nn.Module, example: tuple[torch.Tensor, ...], folder: Path) -> None:
    sys.modules["openvino_telemetry"] = None  # it would report the conversion over the network
    import openvino

    model = openvino.convert_model(module, example_input=example)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)  # it would round tables of times too


CONVERTERS: dict[str, Callable[[torch.nn.Module, tuple[torch.Tensor, ...], Path], None]] = {"openvino": _openvino}


def _main() -> None:
    # Both objects come from the parent that started this process, over its own pipe.
    order = pickle.load(sys.stdin.buffer)
    sys.path[:] = order["path"]
    module = pickle.load(sys.stdin.buffer)
    folder = Path(order["folder"])
    values = load_file(folder / WEIGHTS)
    for j, store, name, _ in _tensors(module):
        value = values[f"{j}.{name}"]
        store[name] = torch.nn.Parameter(value.float() if value.is_floating_point() else value, requires_grad=False)
    names = [name for name in order["inputs"] if name not in ("x", "t")]
    kinds = {True: torch.float32, False: torch.int64}
    example = tuple(torch.zeros(shape, dtype=kinds[floating]) for shape, floating in order["inputs"].values())
    with torch.no_grad():
        CONVERTERS[order["kind"]](_Positional(module, names).eval(), example, folder)


if __name__ == "__main__":
    _main()

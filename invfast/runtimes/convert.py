"""Conversion in a child process, so that what it takes of memory goes back; the child runs this file.

Weights go through a safetensors file in a private folder, the rest of the module through the child's standard input.
"""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from invfast.runtimes.base import Spec

WEIGHTS, SAMPLES = "weights.safetensors", "samples.safetensors"


def description(module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> dict[str, Any]:
    """What shapes a converted network whatever it is converted to, as plain values for the key of a cache entry."""
    return {
        "class": type(module).__name__,
        "network": spec.identity(),
        "precomputed": list(spec.precomputed),
        **versions(),
        "inputs": {name: [value.ndim, value.is_floating_point()] for name, value in example_inputs.items()},
        "size": "open" if spec.any_size else list(example_inputs["x"].shape[2:]),
    }


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "diffusers")}


def room(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Bytes a conversion takes on disk: the weights as they are handed over, and as they are written in a dtype."""
    return sum(tensor.numel() * (tensor.element_size() + dtype.itemsize) for *_, tensor in _tensors(module))


def in_child(
    kind: str,
    module: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    folder: Path,
    dtype: torch.dtype = torch.float32,
    options: Any = None,
    samples: list[dict[str, torch.Tensor]] | None = None,
) -> None:
    """Writes a converted network into a folder.

    Args:
        kind: of the conversion, a name in `CONVERTERS`.
        module: in eval mode, in any dtype.
        example_inputs: "x", "t" where it takes times, and the static inputs; only their shapes and kinds count.
        folder: private and empty.
        dtype: what the converted network holds and takes floats in, but a time () in float32; integers are int64.
        options: of the conversion: for "onnx" the axes of each input that any length may take, for "openvino int8"
            what stays in floating point.
        samples: inputs of single images, for "openvino int8".

    Raises:
        RuntimeError: the child failed; carries the end of what it said.
    """
    save_file(_apart(module), folder / WEIGHTS)
    if samples is not None:
        named = {f"{j}.{name}": value for j, each in enumerate(samples) for name, value in each.items()}
        save_file({name: value.clone().contiguous() for name, value in named.items()}, folder / SAMPLES)
    shapes = {name: (tuple(value.shape), value.is_floating_point()) for name, value in example_inputs.items()}
    try:
        order = pickle.dumps(
            {
                "path": sys.path,
                "kind": kind,
                "folder": str(folder),
                "inputs": shapes,
                "dtype": dtype,
                "options": options,
            }
        )
        body = pickle.dumps(_hollow(module))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise RuntimeError(f"{type(module).__name__} cannot be handed to another process: {error}") from error
    # -P: this file's own folder is no place to import from, it has namesakes of libraries
    done = subprocess.run([sys.executable, "-P", __file__], input=order + body, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{kind} could not convert {type(module).__name__}: " + "\n".join(said[-3:]))
    (folder / WEIGHTS).unlink()
    (folder / SAMPLES).unlink(missing_ok=True)


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
    _keep_sinusoids(folder / "model.xml")


def _keep_sinusoids(path: Path) -> None:
    """Marks sines, cosines and what leads to them as float32's, whatever a network is compiled to.

    In bfloat16 their arguments, times up to 1000, would be off by up to 2: SD1.5's output at t = 981 was 4.7e-2 away
    from float32's, and is 1.1e-2 away like at t = 0. The mark is what OpenVINO itself puts on rotary embeddings; its
    Python interface cannot set it.
    """
    tree = ElementTree.parse(path)
    layers = {layer.get("id"): layer for layer in tree.findall("layers/layer")}
    edges = [(edge.get("from-layer"), edge.get("to-layer")) for edge in tree.findall("edges/edge")]
    todo = [name for name, layer in layers.items() if layer.get("type") in ("Sin", "Cos")]
    marked = set(todo)
    while todo:
        at = todo.pop()
        new = {source for source, target in edges if target == at} - marked
        marked |= new
        todo += new
    for layer in (layers[name] for name in marked):
        if layer.get("type") not in ("Const", "Parameter"):
            info = layer.find("rt_info")
            info = ElementTree.SubElement(layer, "rt_info") if info is None else info
            ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _openvino_int8(module: _Positional, example: tuple[torch.Tensor, ...], folder: Path, in_float: list[str]) -> None:
    """Post-training quantisation by NNCF: weights and activations in int8, each activation in one range for all times.

    A range holds all the samples: NNCF's default, the mean of each sample's largest value, clips what the times of
    little noise need, and on the bundled UNet one evaluation was 3.9e-2 off instead of 2.0e-2. Neither SmoothQuant
    nor the corrections of biases: the first made it 4.8e-2, the second changed nothing. Weights use half their range:
    CPUs without VNNI add pairs of products in 16 bits, which overflow otherwise.
    """
    sys.modules["openvino_telemetry"] = None  # as above
    import nncf
    import openvino
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization import range_estimator as ranges

    nncf.set_log_level(logging.ERROR)
    least, most = (
        ranges.StatisticsCollectorParameters(statistics_type=statistic, aggregator_type=over)
        for statistic, over in (
            (ranges.StatisticsType.MIN, ranges.AggregatorType.MIN),
            (ranges.StatisticsType.MAX, ranges.AggregatorType.MAX),
        )
    )
    stored = load_file(folder / SAMPLES)
    count = len(stored) // len(module.names)
    samples = [[stored[f"{j}.{name}"].numpy() for name in module.names] for j in range(count)]
    model = nncf.quantize(
        openvino.convert_model(module, example_input=example),
        nncf.Dataset(samples),
        subset_size=count,
        model_type=nncf.ModelType.TRANSFORMER,  # additions and normalisations between the products stay in float
        ignored_scope=nncf.IgnoredScope(patterns=in_float, validate=False),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.ENABLE,
            activations_range_estimator_params=ranges.RangeEstimatorParameters(min=least, max=most),
            disable_bias_correction=True,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
        ),
    )
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


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
    "openvino int8": _openvino_int8,
}


def _main() -> None:
    # Both objects come from the parent that started this process, over its own pipe.
    order = pickle.load(sys.stdin.buffer)
    sys.path[:] = order["path"]
    module = pickle.load(sys.stdin.buffer)
    folder, dtype = Path(order["folder"]), order["dtype"]
    values = load_file(folder / WEIGHTS)
    parameters = {id(part._parameters) for part in module.modules()}
    for j, store, name, _ in _tensors(module):
        value = values[f"{j}.{name}"]
        value = value.to(dtype) if value.is_floating_point() else value
        # Tracers take a buffer that is a parameter for another one of its name.
        store[name] = torch.nn.Parameter(value, requires_grad=False) if id(store) in parameters else value
    example = tuple(
        torch.zeros(shape, dtype=(torch.float32 if name == "t" and not shape else dtype) if floating else torch.int64)
        for name, (shape, floating) in order["inputs"].items()
    )
    with torch.no_grad():
        CONVERTERS[order["kind"]](_Positional(module, list(order["inputs"])).eval(), example, folder, order["options"])


if __name__ == "__main__":
    _main()

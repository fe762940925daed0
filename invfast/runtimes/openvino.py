"""OpenVINO: the fastest engine on Intel and AMD CPUs, and the one for Intel GPUs.

The network is converted once, in a child process, with open shapes and float32 weights, and kept in the cache; each
size is then compiled with static shapes, in seconds. In int8 it is quantised in the same child process, once a size,
for ranges are measured on latents of that size; what stays in floating point is float32.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from invfast.locks import once
from invfast.runtimes import convert
from invfast.runtimes.base import Exporting, Network, Spec
from invfast.runtimes.bindings import Bindings
from invfast.runtimes.cache import Cache, content
from invfast.runtimes.split import split

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "f32"}
CAPABILITIES = {torch.bfloat16: "BF16", torch.float16: "FP16", torch.int8: "INT8"}
ROWS = 1024
"""Latent pixels a call is worth; smaller images are grouped up to it. One 256 px image is one group of its own."""


class OpenVINO(Exporting):
    """A network compiled by OpenVINO for one of its devices, fed from and answering in float32."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "No module named 'openvino' (pip install \"invfast[openvino]\")"
        found = _core().available_devices
        if not any(each.split(".")[0] == self.device for each in found):
            return f"OpenVINO finds no {self.device} here, only {', '.join(found)}"
        return None

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"the pipeline is on {device}; move it to the CPU, from where OpenVINO takes its inputs"
        if dtype not in HINTS:
            return f"it computes in float32, bfloat16, float16 or int8, not in {dtype}"
        if dtype == torch.int8 and self.device != "CPU":
            return "int8 is for the CPU; take runtime='openvino'"
        if dtype == torch.int8 and importlib.util.find_spec("nncf") is None:
            return "int8 needs the module 'nncf' (pip install \"invfast[int8]\")"
        needed = CAPABILITIES.get(dtype)
        if needed and needed not in _core().get_property(self.device, "OPTIMIZATION_CAPABILITIES"):
            return (
                f"this {self.device} has no arithmetic in {str(dtype).removeprefix('torch.')}; use dtype=torch.float32"
            )
        return None

    def input_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        names = [name for name in example_inputs if name not in ("x", "t")]
        x = example_inputs["x"]
        inputs = {
            **convert.description(module, example_inputs, spec),
            "runtime": f"openvino {_version()}",
            "sinusoids": "float32",
        }
        int8 = spec.dtype == torch.int8
        folder = (_quantised if int8 else _converted)(module, example_inputs, spec, inputs)
        batch = min(len(x), max(1, ROWS // (x.shape[2] * x.shape[3])))
        shapes = {name: [batch, *value.shape[1:]] if name != "t" else [] for name, value in example_inputs.items()}
        compiled = self._compile(str(folder / "model.xml"), shapes, HINTS[spec.dtype])
        network = split(_network(compiled, names), batch)
        if int8:
            network.digest = content(folder)
        return network

    def cached(self, identity: Callable[[], str]) -> bool:
        """Whether the cache has a network of sizes that halve evenly, in floating point, whole."""
        wanted = {**convert.versions(), "runtime": f"openvino {_version()}", "size": "open"}
        cache = Cache()
        found = [e for e in cache.entries() if all(e.inputs.get(name) == value for name, value in wanted.items())]
        found = [e for e in found if "int8" not in e.inputs]
        return any(e.inputs.get("network") == identity() and cache.find(e.inputs) for e in found)

    def _compile(self, path: str, shapes: Mapping[str, list[int]], hint: str) -> Any:
        model = _core().read_model(path)
        model.reshape({port: shapes[name] for port, name in zip(model.inputs, shapes, strict=True)})
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
        return _core().compile_model(model, self.device, settings)


def _converted(
    module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec, inputs: Mapping[str, Any]
) -> Path:
    return Cache().entry(
        inputs,
        lambda target: convert.in_child("openvino", module, example_inputs, target),
        f"converting {type(module).__name__} for openvino, once",
        convert.room(module),
    )


def _quantised(
    module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec, inputs: Mapping[str, Any]
) -> Path:
    if spec.calibration is None:
        raise ValueError("an int8 network needs samples to measure its ranges on; pass a Spec with a calibration")
    kept = list(spec.in_float)
    made_from = {"nncf": metadata.version("nncf"), "float": kept, "ranges": "min to max", **spec.calibration.says}

    def build(target: Path) -> None:
        samples = spec.calibration.samples()
        convert.in_child("openvino int8", module, example_inputs, target, options=kept, samples=samples)

    doing = f"quantising {type(module).__name__} for openvino, once for this size"
    return Cache().entry({**inputs, "int8": made_from}, build, doing, convert.room(module))


def _network(compiled: Any, names: list[str]) -> Network:
    requests = Bindings(compiled.create_infer_request)  # one at a time each; the CPU takes them in turn

    def network(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
        feed = [x, t.float() if t.is_floating_point() else t, *(static_inputs[name] for name in names)]
        with requests.one() as request:
            request.infer([value.contiguous().numpy() for value in feed], share_inputs=True, share_outputs=True)
            return torch.from_numpy(request.get_output_tensor(0).data).clone()

    return network


@once
def _core() -> Any:
    return _openvino().Core()


def _version() -> str:
    return _openvino().__version__


@once
def _openvino() -> ModuleType:
    """The module, kept from reporting its import over the network, which it does where it finds its telemetry."""
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None
    try:
        return importlib.import_module("openvino")
    finally:
        sys.modules.pop("openvino_telemetry", None)
        if before is not None:
            sys.modules["openvino_telemetry"] = before

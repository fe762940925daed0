"""ONNX Runtime: its CPU provider, and on NVIDIA GPUs its CUDA or TensorRT provider, by the pipeline's device.

One exported file serves every size and batch. Tensors are bound where they lie (IO binding): nothing is copied, and on
a GPU nothing waits. The distributions onnxruntime and onnxruntime-gpu install the same module, the later over the
earlier; so what counts is what the module can do, and errors name both.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from invfast.runtimes import onnx
from invfast.runtimes.base import Exporting, Network, Spec
from invfast.runtimes.bindings import Bindings
from invfast.runtimes.cache import Cache
from invfast.runtimes.streams import beside

TYPES = {torch.float32: 1, torch.float16: 10, torch.int64: 7}
"""Numbers of element types in ONNX files (TensorProto.DataType)."""
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


class ONNXRuntime(Exporting):
    """A network run by ONNX Runtime: on the CPU by its own provider, on a GPU by the one named here."""

    def __init__(self, name: str, on_gpu: str) -> None:
        self.name, self.on_gpu = name, on_gpu

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "No module named 'onnxruntime' (pip install \"invfast[onnx]\", or invfast[onnx-gpu] for NVIDIA GPUs)"
        found = _providers()
        if found is None:
            return (
                f"the module onnxruntime is broken, as removing one of its two distributions leaves it; {_installed()}"
            )
        if self.on_gpu == TENSORRT and TENSORRT not in found:
            return f"onnxruntime has no {TENSORRT}, only {', '.join(found)}; {_installed()}"
        return onnx.missing("onnx")

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type not in ("cpu", "cuda") or (device.type == "cpu" and self.on_gpu == TENSORRT):
            wanted = "an NVIDIA GPU" if self.on_gpu == TENSORRT else "the CPU or an NVIDIA GPU"
            return f"the pipeline is on {device}; move it to {wanted}"
        if dtype not in (torch.float32, torch.float16) or (device.type == "cpu" and dtype != torch.float32):
            computes = "float32" if device.type == "cpu" else "float32 or float16"
            return f"on {device.type} it computes in {computes}, not in {dtype}"
        provider = self._provider(device)
        if provider not in _providers():
            return f"onnxruntime has no {provider}, only {', '.join(_providers())}; {_installed()}"
        return None

    def prepare(self, module: torch.nn.Module, example_inputs: Mapping[str, torch.Tensor], spec: Spec) -> Network:
        path = onnx.exported(module, example_inputs, spec)
        provider = self._provider(spec.device)
        stream = torch.cuda.Stream(spec.device) if spec.device.type == "cuda" else None
        settings = _settings(provider, spec, stream)
        if provider == TENSORRT:
            shapes = _profile(example_inputs)
            inputs = {
                **onnx.description(module, example_inputs, spec),
                "runtime": f"{self.name} {_version()}",
                "device": torch.cuda.get_device_name(spec.device),
                "profile": shapes,
            }
            # Loading a session builds its engines, and writes them where it is told to.
            folder = Cache().entry(
                inputs,
                lambda target: _session(path, provider, {**settings, **shapes, **_engines(target)}),
                f"building TensorRT engines of {type(module).__name__}, once",
            )
            settings |= {**shapes, **_engines(folder)}
        return _network(_session(path, provider, settings), spec.device, stream)

    def _provider(self, device: torch.device) -> str:
        return self.on_gpu if device.type == "cuda" else CPU


def _network(session: Any, device: torch.device, stream: torch.cuda.Stream | None) -> Network:
    import onnxruntime

    bindings, options = Bindings(session.io_binding), onnxruntime.RunOptions()
    # The stream is the session's own, and so are the handles of its libraries that work is queued with.
    queue = threading.Lock() if stream else nullcontext()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream keeps the order
    index = device.index or 0

    @torch.inference_mode()
    def network(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
        t = t.to(device, torch.float32 if t.is_floating_point() else torch.int64)
        feed = {"x": x, "t": t, **static_inputs}
        feed = {name: value.contiguous() for name, value in feed.items()}
        out = torch.empty_like(feed["x"])
        with bindings.one() as binding:
            for name, value in feed.items():
                binding.bind_input(name, device.type, index, TYPES[value.dtype], value.shape, value.data_ptr())
            binding.bind_output("out", device.type, index, TYPES[out.dtype], out.shape, out.data_ptr())
            with queue, beside(stream):
                session.run_with_iobinding(binding, options)
        return out

    return network


def _session(path: Path, provider: str, settings: dict[str, str]) -> Any:
    """A session on a provider.

    Raises:
        RuntimeError: ONNX Runtime took another one; it does so where a provider's libraries do not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; below that it warns of every graph it optimises
    rest = [CUDA] if provider == TENSORRT else []
    wanted = [(provider, settings), *((each, _shared(settings)) for each in rest)]
    session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    if session.get_providers()[0] != provider:
        raise RuntimeError(
            f"onnxruntime could not load {provider} and took {', '.join(session.get_providers())}: its CUDA, cuDNN or "
            f"TensorRT libraries are missing or of another version; {_installed()}"
        )
    return session


def _settings(provider: str, spec: Spec, stream: torch.cuda.Stream | None) -> dict[str, str]:
    if stream is None:
        return {}
    settings = {"device_id": str(spec.device.index or 0), "user_compute_stream": str(stream.cuda_stream)}
    if provider == CUDA:
        return {**settings, "use_tf32": "0"}
    return {**settings, "trt_fp16_enable": str(int(spec.dtype == torch.float16))}


def _shared(settings: Mapping[str, str]) -> dict[str, str]:
    """What of the TensorRT provider's settings the CUDA provider beside it takes too."""
    return {name: value for name, value in settings.items() if not name.startswith("trt_")}


def _engines(folder: Path) -> dict[str, str]:
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}


def _profile(example_inputs: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Engines for this size and any batch up to this one, as the provider's settings."""
    ranges = {"min": 1, "opt": len(example_inputs["x"]), "max": len(example_inputs["x"])}
    rest = {name: value.shape[1:] for name, value in example_inputs.items() if name != "t"}
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, [rows, *shape]))}" for name, shape in rest.items()
        )
        for kind, rows in ranges.items()
    }


def _providers() -> list[str] | None:
    import onnxruntime

    known = getattr(onnxruntime, "get_available_providers", None)
    return known() if known else None


def _version() -> str:
    import onnxruntime

    return onnxruntime.__version__


def _installed() -> str:
    """Which distributions there are, and what to do where they are in each other's way."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    both = ", which overwrite each other" if len(found) > 1 else ""
    return (
        f"installed: {' and '.join(found) or 'neither onnxruntime nor onnxruntime-gpu'}{both} "
        "(pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu; onnxruntime is for CPUs only)"
    )

"""A TensorRT engine that runs on torch's tensors: bound by address, queued on torch's stream, nothing copied.

An execution context holds the shapes and addresses of one call, and the memory that its kernels compute in: so each
call has one of its own while it is queued, and the device takes the next call of the same context up after it.
"""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from invfast.runtimes.bindings import Bindings
from invfast.runtimes.streams import beside

OUT = "out"


class Context:
    """An execution context, the shapes it is set to, and where on the device its last call ends."""

    def __init__(self, execution: Any) -> None:
        self.execution = execution
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.last: torch.cuda.Event | None = None
        self.recorded = False
        """Whether a CUDA graph holds it, which may be replayed at any time."""


class Engine:
    """One engine, its weights on the GPU, and an execution context for each of the calls that come at once.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        path: the engine.
        device: a GPU.
        kernels: what `kernels` gave after an earlier run: TensorRT-RTX compiles its kernels where it runs.

    Raises:
        RuntimeError: it cannot be loaded here; says why.
    """

    def __init__(self, package: str, path: Path, device: torch.device, kernels: bytes | None = None) -> None:
        trt = importlib.import_module(package)
        self.device = device
        self._log = _log(trt)  # must outlive all that was made with it
        with _current(device):
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes()) if self._runtime else None
            if self._engine is None:
                raise RuntimeError(
                    f"{package} {trt.__version__} cannot load the engine {path}: {self._log.last()}; it runs on the "
                    "GPU it was built for, under an NVIDIA driver as new as the package"
                )
            self.kernels_taken = False
            self._config = self._create_config(trt, kernels)
            # Of no method of its own: a cycle would keep the engine's memory until it is collected.
            self.contexts = Bindings(functools.partial(_create_context, self._engine, self._config, self._log, device))
            # Of torch's default stream TensorRT waits for the whole device; so it gets one of its own there.
            self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, a new tensor in the dtype of "x".

        Args:
            inputs: contiguous, on the device, in the dtypes the engine was built with.

        Raises:
            ValueError: a shape is outside the engine's profile.
            RuntimeError: it could not be queued.
        """
        with self.contexts.one() as held:
            return self.run(held, inputs)

    def caller(self) -> Caller:
        """A way in for one run, with a context of its own."""
        return Caller(self)

    def run(self, held: Context, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As a call, in a context that nobody else uses meanwhile."""
        context = held.execution
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        if shapes != held.shapes:
            held.shapes = {}
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise ValueError(f"input {name} of shape {shape} is outside the engine's profile")
            held.shapes = shapes
        x = inputs["x"]
        out = torch.empty(tuple(context.get_tensor_shape(OUT)), dtype=x.dtype, device=x.device)
        for name, value in (*inputs.items(), (OUT, out)):
            context.set_tensor_address(name, value.data_ptr())
        stream = self._queue()
        with _current(self.device), beside(stream), _in_turn(held, stream):
            if not context.execute_async_v3(stream.cuda_stream if stream else 0):
                raise RuntimeError(f"TensorRT could not run the engine: {self._log.last()}")
        return out

    def kernels(self) -> bytes:
        """What was compiled for this GPU so far, to be handed to the next engine of the same file."""
        return bytes(self._cache.serialize())

    def _queue(self) -> torch.cuda.Stream | None:
        if self._stream is None:
            return None
        current = torch.cuda.current_stream(self.device)
        return self._stream if current == torch.cuda.default_stream(self.device) else current

    def _create_config(self, trt: Any, kernels: bytes | None) -> Any:
        config = self._engine.create_runtime_config()
        if hasattr(trt, "IRuntimeCache"):  # TensorRT-RTX
            # LAZY answers from other kernels until compilation is done: an inversion and its way back would differ.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._cache = config.create_runtime_cache()
            self.kernels_taken = bool(kernels) and self._cache.deserialize(kernels)
            config.set_runtime_cache(self._cache)
        return config


class Caller:
    """An engine for one run: its own context where that is idle, so that nobody else runs in what its graphs hold."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.own, self._lock = engine, engine.contexts.take(), threading.Lock()
        weakref.finalize(self, _give_back, engine, self.own)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if not self._lock.acquire(blocking=False):  # another thread's call of the same run
            return self.engine(inputs)
        try:
            return self.engine.run(self.own, inputs)
        finally:
            self._lock.release()


def _create_context(engine: Any, config: Any, log: Any, device: torch.device) -> Context:
    with _current(device):
        context = engine.create_execution_context(config)
    if context is None:
        raise RuntimeError(f"TensorRT could not make an execution context: {log.last()}")
    return Context(context)


def _give_back(engine: Engine, held: Context) -> None:
    if not held.recorded:
        engine.contexts.give(held)


@contextmanager
def _in_turn(held: Context, stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Lets what is queued inside run after the context's last call, on whichever stream that was.

    While a graph is recorded nothing runs, and neither waits are allowed: its context is warm and nobody else's.
    """
    if stream is None:
        yield
        return
    if torch.cuda.is_current_stream_capturing():
        held.recorded = True
        yield
        return
    if held.last is not None:
        stream.wait_event(held.last)
    yield
    held.last = held.last or torch.cuda.Event()
    held.last.record(stream)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps what went wrong."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def last(self) -> str:
            return self.errors[-1] if self.errors else "it does not say why"

    return Log()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

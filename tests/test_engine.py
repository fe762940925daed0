"""TensorRT engines: torch's tensors are bound where they lie, and every call asked of the API exists."""

import ast
import ctypes
import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from together import THREADS, Meeting, together

from invfast import runtimes
from invfast.runtimes import engine as engine_module
from invfast.runtimes import tensorrt
from invfast.runtimes.engine import Engine

CPU = torch.device("cpu")
rtx = pytest.importorskip("tensorrt_rtx")

# What the variables of engine.py and engine_build.py are, in the bindings' own names.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "shapes": "IOptimizationProfile",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "_cache": "IRuntimeCache",
}
CONFIG = {"engine_build": "IBuilderConfig", "engine": "IRuntimeConfig"}
ONLY_RTX = {
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ComputeCapability.__members__",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.serialize",
    "IRuntimeCache.deserialize",
}


def used():
    """Class.attribute of all that the two files ask of the package."""
    found = set()
    for name in ("engine", "engine_build"):
        tree = ast.parse((Path(runtimes.__file__).parent / f"{name}.py").read_text())
        objects = {**OBJECTS, "config": CONFIG[name]}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            on_self = isinstance(owner, ast.Attribute) and getattr(owner.value, "id", "") == "self"
            key = owner.attr if on_self else getattr(owner, "id", "")
            if key in objects and not (key == "shapes" and name == "engine"):
                found.add(f"{objects[key]}.{node.attr}")
            if isinstance(owner, ast.Attribute) and getattr(owner.value, "id", "") == "trt":
                found.add(f"{owner.attr}.{node.attr}")
    return found


@pytest.mark.parametrize("package", ["tensorrt_rtx", "tensorrt"])
def test_every_call_exists(package):
    try:
        trt = importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package} cannot be imported: {error}")
    wanted = used()
    assert len(wanted) > 25
    assert {"IExecutionContext.set_tensor_address", "BuilderFlag.TF32", "Runtime.deserialize_cuda_engine"} <= wanted
    assert wanted >= ONLY_RTX
    if package == "tensorrt":
        wanted -= ONLY_RTX
    missing = [
        each for each in sorted(wanted) if not hasattr(getattr(trt, each.split(".")[0], None), each.split(".")[1])
    ]
    assert not missing
    assert hasattr(trt, "IRuntimeCache") == (package == "tensorrt_rtx")  # by which engine.py knows it


class Context:
    """An execution context that computes 2 x, from addresses, and refuses batches above 2."""

    def __init__(self):
        self.shapes, self.addresses, self.asked = {}, {}, []

    def set_input_shape(self, name, shape):
        self.asked.append(name)
        self.shapes[name] = shape
        return shape == () or shape[0] <= 2

    def get_tensor_shape(self, name):
        return self.shapes["x"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        count = torch.Size(self.shapes["x"]).numel()
        values = (ctypes.c_float * count).from_address(self.addresses["x"])
        (ctypes.c_float * count).from_address(self.addresses["out"])[:] = [2 * value for value in values]
        return True


@pytest.fixture
def standin(monkeypatch, tmp_path):
    """An engine on the CPU whose package is a stand-in, and its contexts."""
    contexts = []

    def create(config):
        contexts.append(Context())
        return contexts[-1]

    engine = SimpleNamespace(create_runtime_config=object, create_execution_context=create)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda blob: engine)
    trt = SimpleNamespace(ILogger=rtx.ILogger, Runtime=lambda log: runtime, __version__="0")
    monkeypatch.setattr("invfast.runtimes.engine.importlib.import_module", lambda name: trt)
    (tmp_path / "file").write_bytes(b"")
    return Engine("tensorrt", tmp_path / "file", CPU), contexts


def test_tensors_are_bound_where_they_lie(standin):
    engine, (context,) = standin
    network = tensorrt.network(engine, 2)
    x, tokens = torch.randn(3, 5, 4, 4).transpose(2, 3), torch.randn(3, 2)
    out = network(x, torch.tensor(7, dtype=torch.int32), tokens=tokens)
    assert torch.equal(out, 2 * x)
    assert context.asked == ["t", "x", "tokens"] * 2  # batches of 2 and 1
    kept = out.clone()
    network(x[:1], torch.tensor(7), tokens=tokens[:1])
    assert context.asked == ["t", "x", "tokens"] * 2  # the shapes of the last call
    assert context.addresses["tokens"] == tokens.data_ptr()  # nothing copied
    assert torch.equal(out, kept)
    with pytest.raises(ValueError, match=r"input x of shape \(3, 5, 4, 4\) is outside the engine's profile"):
        tensorrt.network(engine, 4)(x, torch.tensor(7), tokens=tokens)
    assert torch.equal(network(x[:1], torch.tensor(7), tokens=tokens[:1]), 2 * x[:1])
    context.execute_async_v3 = lambda stream: False
    with pytest.raises(RuntimeError, match="could not run the engine: it does not say why"):
        network(x[:1], torch.tensor(7), tokens=tokens[:1])


def called(engine, value):
    x = torch.full((1, 4), float(value))
    return tensorrt.network(engine, 2)(x, torch.tensor(7), tokens=torch.zeros(1, 2))


def test_calls_at_once_have_a_context_each(standin, monkeypatch):
    engine, contexts = standin
    meeting, real = Meeting(THREADS), Context.execute_async_v3

    def execute(self, stream):
        with meeting:  # addresses were set before, by all who came
            return real(self, stream)

    monkeypatch.setattr(Context, "execute_async_v3", execute)
    for _ in range(2):
        found = together(*(partial(called, engine, j) for j in range(THREADS)))
        assert all(torch.equal(each, torch.full((1, 4), 2.0 * j)) for j, each in enumerate(found))
    assert meeting.most == len(contexts) == THREADS  # no more than there were calls at once
    called(engine, 1)
    assert len(contexts) == THREADS


def test_a_run_has_a_context_of_its_own(standin):
    """What its graphs hold runs for nobody else, and ends with it."""
    engine, contexts = standin
    first, second = engine.caller(), engine.caller()
    for caller, context in ((first, contexts[0]), (second, contexts[1]), (first, contexts[0])):
        context.addresses.clear()
        assert torch.equal(called(caller, 3), torch.full((1, 4), 6.0))
        assert context.addresses
    called(engine, 1)
    assert len(contexts) == 3
    del second
    third = engine.caller()
    assert third.own.execution in contexts[1:]  # given back
    assert len(contexts) == 3
    first.own.recorded = True
    held = first.own
    del first
    assert held not in [engine.contexts.take() for _ in range(2)]


def test_one_runs_calls_at_once_have_a_context_each(standin, monkeypatch):
    engine, contexts = standin
    caller, meeting, real = engine.caller(), Meeting(2), Context.execute_async_v3

    def execute(self, stream):
        with meeting:
            return real(self, stream)

    monkeypatch.setattr(Context, "execute_async_v3", execute)
    found = together(*(partial(called, caller, j) for j in range(2)))
    assert all(torch.equal(each, torch.full((1, 4), 2.0 * j)) for j, each in enumerate(found))
    assert (meeting.most, len(contexts)) == (2, 2)


def test_a_contexts_calls_follow_each_other_on_the_device(monkeypatch):
    """Whichever streams they are on; the memory they compute in is the context's. A recording waits for nothing."""
    said, capturing = [], []

    class Event:
        def record(self, stream):
            said.append(("ends", stream.name))

    def stream(name):
        return SimpleNamespace(name=name, wait_event=lambda event: said.append(("waits", name)))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    held = engine_module.Context(None)
    for name in ("a", "b"):
        with engine_module._in_turn(held, stream(name)):
            said.append(("runs", name))
    assert said == [("runs", "a"), ("ends", "a"), ("waits", "b"), ("runs", "b"), ("ends", "b")]
    assert not held.recorded
    said.clear()
    capturing.append(True)
    with engine_module._in_turn(held, stream("c")):
        said.append(("is recorded", "c"))
    assert (said, held.recorded) == ([("is recorded", "c")], True)

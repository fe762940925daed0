"""Recording CUDA graphs, on a stand-in for torch.cuda: which device and stream, what is waited for, what fails."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from recorded import Recorder
from test_capture import network
from test_methods import schedule
from together import WAIT, together
from toy import predictor

from invfast.executors import SHORTEST, Captured, Plain, graphs
from invfast.integrate import Hooks, integrate
from invfast.methods import DDIM, EDICT, OBELM, Auto, FixedPoint, Problem
from invfast.methods.base import Stepper
from invfast.ops.registry import checked, register


class Cuda:
    """torch.cuda as far as graphs need it: devices and streams of the current thread, and a log of calls."""

    def __init__(self):
        self.log, self.capturing, self.most, self._lock = [], 0, 0, threading.Lock()
        self.here = threading.local()

    def say(self, *what):
        self.log.append((*what, getattr(self.here, "device", 0), getattr(self.here, "stream", "default")))

    @contextmanager
    def device(self, device):
        before, self.here.device = getattr(self.here, "device", 0), torch.device(device).index
        try:
            yield
        finally:
            self.here.device = before

    @contextmanager
    def stream(self, stream):
        before, self.here.stream = getattr(self.here, "stream", "default"), stream.name
        try:
            yield
        finally:
            self.here.stream = before

    def current_stream(self, device):
        return SimpleNamespace(wait_stream=lambda other: self.say("joined", other.name))

    def Stream(self, device):  # noqa: N802
        name = f"own {torch.device(device).index}.{len(self.log)}"
        self.say("made", name)
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.say("forked", name),
            synchronize=lambda: self.say("waited for", name),
        )

    def graph_pool_handle(self):
        self.say("pool")
        return "pool"

    def synchronize(self, device=None):
        raise AssertionError("the whole device is waited for")

    empty_cache = synchronize

    def memory_reserved(self, device):
        return 1000 * sum(entry[0] == "end" for entry in self.log)

    def CUDAGraph(self):  # noqa: N802
        cuda = self

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert capture_error_mode == "thread_local"
                with cuda._lock:
                    cuda.capturing += 1
                    cuda.most = max(cuda.most, cuda.capturing)
                cuda.say("begin")

            def capture_end(self):
                with cuda._lock:
                    cuda.capturing -= 1
                cuda.say("end")

            def replay(self):
                cuda.say("replay")

        return Graph()


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    core = SimpleNamespace(
        _cuda_clearCublasWorkspaces=lambda: fake.say("workspaces"),
        _cuda_endAllocateToPool=lambda index, pool: fake.say("allocator told"),
    )
    monkeypatch.setattr(graphs, "torch", SimpleNamespace(cuda=fake, device=torch.device, _C=core))
    return fake


SECOND = torch.device("cuda", 1)


def test_all_of_it_happens_on_the_given_device(cuda):
    recorder = graphs.cuda_graphs(SECOND)
    with recorder.aside():
        cuda.say("warm-up")
    recorder.record(lambda: cuda.say("body")).replay()
    own = next(name for what, name, *_ in cuda.log if what == "made")
    assert {entry[-2] for entry in cuda.log} == {1}
    inside = {entry[0]: entry[-1] for entry in cuda.log}
    assert all(inside[what] == own for what in ("warm-up", "begin", "body", "end"))
    assert inside["replay"] == "default"
    assert ("waited for", own) in {entry[:2] for entry in cuda.log}
    order = [entry[0] for entry in cuda.log if entry[0] in ("workspaces", "begin", "end")]
    assert order == ["workspaces", "begin", "end", "workspaces"]
    assert (cuda.here.device, cuda.here.stream) == (0, "default")
    assert recorder.size == 1000


@pytest.mark.parametrize("broken", [False, True], ids=["ends", "its end fails too"])
def test_a_capture_that_fails_says_what_went_wrong_first(broken, cuda, monkeypatch):
    recorder, real = graphs.cuda_graphs(SECOND), cuda.CUDAGraph

    def body():
        raise ValueError("operation not permitted")

    def made():
        graph = real()
        end = graph.capture_end
        graph.capture_end = lambda: (end(), broken and fail())
        return graph

    monkeypatch.setattr(cuda, "CUDAGraph", made)
    with pytest.raises(RuntimeError, match=r"ValueError: operation not permitted\); pass cuda_graph=False") as caught:
        recorder.record(body)
    assert isinstance(caught.value.__cause__, ValueError)
    assert cuda.capturing == 0
    assert (cuda.here.device, cuda.here.stream) == (0, "default")
    monkeypatch.setattr(cuda, "CUDAGraph", real)
    recorder.record(lambda: cuda.say("body"))
    used = {entry[0]: entry[-1] for entry in cuda.log}
    assert used["body"] == used["begin"] != next(name for what, name, *_ in cuda.log if what == "made")


def fail():
    raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_only_its_end_finds_invalid_is_a_failed_one(cuda, monkeypatch):
    real = cuda.CUDAGraph

    def made():
        graph = real()
        graph.capture_end = lambda: fail()
        return graph

    monkeypatch.setattr(cuda, "CUDAGraph", made)
    recorder = graphs.cuda_graphs(SECOND)
    before = recorder.stream
    with pytest.raises(RuntimeError, match=r"previous error during capture.*pass cuda_graph=False"):
        recorder.record(lambda: None)
    assert recorder.stream is not before
    monkeypatch.setattr(cuda, "CUDAGraph", real)
    assert together(lambda: recorder.record(lambda: None) is not None) == [True]  # nobody holds the lock


def test_an_interrupt_is_not_called_a_failed_capture(cuda):
    def body():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graphs.cuda_graphs(SECOND).record(body)
    assert cuda.capturing == 0


def test_one_thread_records_at_a_time(cuda):
    barrier = threading.Barrier(4)

    def one():
        recorder = graphs.cuda_graphs(SECOND)
        barrier.wait(WAIT)
        for _ in range(20):
            recorder.record(lambda: cuda.say("body"))

    together(*[one] * 4)
    assert cuda.most == 1


class Empty(Recorder):
    """Records on the wrong stream: what the body queues is lost, as a graph of another device's work is empty."""

    def record(self, body):
        super().record(body)
        return SimpleNamespace(replay=lambda: None)


@pytest.mark.parametrize("method", [DDIM(), FixedPoint(4, tolerance=1e-3)])
def test_a_graph_that_does_nothing_is_an_error(method, x0):
    grid = schedule()
    stepper, predict = (
        method.inverter(Problem(grid)),
        predictor(3, torch.float32, dynamic_batch=False, function=network),
    )
    take = Captured(stepper, predict, grid, "cpu", Empty())
    with pytest.raises(RuntimeError, match=r"the CUDA graph of a step did nothing.*pass cuda_graph=False"):
        integrate(take, {"latents": x0.float()}, grid, Hooks())


@pytest.mark.parametrize("steps", range(1, 6))
def test_what_is_too_short_is_not_recorded(steps, x0):
    grid, recorder = schedule(steps), Recorder()
    predict = predictor(3, torch.float32, dynamic_batch=False, function=network)
    integrate(
        Captured(DDIM().inverter(Problem(grid)), predict, grid, "cpu", recorder),
        {"latents": x0.float()},
        grid,
        Hooks(),
    )
    assert len(recorder.made) == (steps >= SHORTEST)


def test_the_predictor_it_was_given_stays_as_it_is(x0):
    grid = schedule()
    predict = predictor(3, torch.float32, dynamic_batch=False, function=network)
    static = predict.static
    take = Captured(DDIM().inverter(Problem(grid)), predict, grid, "cpu", Recorder())
    integrate(take, {"latents": x0.float()}, grid, Hooks())
    assert predict.static is static
    assert predict.evaluations == [0] * 3
    assert take.evaluations == [grid.num_steps] * 3


def launches(method, x0, dtype=torch.float32):
    """Beside the network, of each recorded piece: kernels that it launches, by the key of the piece."""
    kernels, grid = checked("public", register("invfast")), schedule()
    predict = predictor(len(x0), dtype, dynamic_batch=False, function=lambda x, t: x.detach() * 1)
    take = Captured(method.inverter(Problem(grid, kernels=kernels)), predict, grid, "cpu", Recorder())
    integrate(take, {"latents": x0.float()}, grid, Hooks())
    return {
        key: sum(map(moves, piece.graph.calls)) - piece.counts.samples // len(x0) for key, piece in take.graphs.items()
    }


def moves(call):
    """Whether a recorded operation launches a kernel: no view and no allocation does."""
    function, *_, fresh, _out = call
    return function._schema.is_mutable or (bool(fresh) and "empty" not in str(function))


@pytest.mark.parametrize(
    ("method", "most"), [(DDIM(), 4), (EDICT(), 7), (OBELM(), 5), (FixedPoint(1, warm_start="linear"), 7)]
)
def test_a_step_launches_little_beside_the_network(method, most, x0):
    assert max(launches(method, x0).values()) <= most


@pytest.mark.parametrize(("dtype", "most", "more"), [(torch.float32, 12, 14), (torch.float16, 13, 18)], ids=str)
def test_what_auto_launches_beside_the_network(dtype, most, more, x0):
    found = launches(Auto(120.0), x0.float(), dtype)
    once, again, last = (max(n for (_, k), n in found.items() if k == piece) for piece in ("begin", 1, "finish"))
    assert once + last <= most  # a step of one evaluation, as most are
    assert again <= more


class Rotating(Stepper):
    """Hands names around in a circle, some of them views of others, one of them empty."""

    def __init__(self, steps):
        self.steps = range(steps)

    def init(self, state):
        x = state["latents"]
        return {"latents": x, "a": x + 1, "b": x + 2, "c": x + 3, "none": x[:0]}

    def step(self, step, state, predict):
        predict(state["latents"], step.t)
        a, b, c = state["a"], state["b"], state["c"]
        return {"latents": a.flip(0), "a": b, "b": c, "c": a, "none": state["none"][:0]}, None


def test_names_may_change_places(x0):
    grid, found = schedule(8), []
    for make in (Plain, lambda *given: Captured(*given, grid, "cpu", Recorder())):
        predict = predictor(3, torch.float32, dynamic_batch=False, function=network)
        found.append(integrate(make(Rotating(8), predict), {"latents": x0.float()}, grid, Hooks()).state)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

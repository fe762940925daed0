"""Steps as CUDA graphs: a step is recorded once, network and updates together, and replayed for the whole grid.

A graph holds fixed addresses and no Python. So the state lives in buffers that each replay overwrites, the step's
number lies on the device and times and coefficients are looked up by it, and what depends on data is never recorded: a
step that residuals cut short is recorded in pieces, and which piece comes next is decided between two replays, from a
flag read one piece late so that the device never waits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from invfast.schedule import Schedule, Step

if TYPE_CHECKING:
    from invfast.methods.base import Predict, Stepper

State = dict[str, torch.Tensor]
WARM_UP = 2
"""Runs before a recording: libraries choose their algorithms and allocate then."""


KEPT = ("sums", "spent")
"""Tensors beside the buffers that a step adds to."""


class Graph(Protocol):
    def replay(self) -> None: ...


HELD = 2
"""How many runs' graphs are kept for the next call; each holds its network, its buffers and a memory pool."""

_held: OrderedDict[Hashable, Captured] = OrderedDict()
_lock = threading.Lock()

Record = Callable[[Callable[[], object], Callable[[], object]], Graph]
"""(warm_up, body) -> a graph of `body`; recording it leaves all buffers as they are."""


def cuda_graphs() -> Record:
    """A recorder of CUDA graphs that share one memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def record(warm_up: Callable[[], object], body: Callable[[], object]) -> Graph:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                warm_up()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread's allocations, say of a progress bar's, must not spoil a recording.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            body()
        return graph

    return record


def held(key: Hashable, predict: Predict, make: Callable[[], Captured]) -> Captured:
    """The graphs of an earlier run of the same key, or new ones, kept for the next.

    Args:
        key: all that shapes a run's graphs but the values of its condition and state.
        predict: this run's predictor.
        make: makes them anew.

    A run inside another's callback, or in another thread, gets its own: nobody writes into buffers that are in use.
    """
    with _lock:
        found = _held.get(key)
        if found is not None and found.busy:
            return make()
        if found is not None:
            _held.move_to_end(key)
            found.again(predict).busy = True
            return found
        while len(_held) >= HELD:  # before new ones are made, so that there are never more at once
            _held.popitem(last=False)
        with torch.inference_mode():  # the condition's own tensors may be the caller's, who would see the next one's
            predict.static = {
                name: value.clone(memory_format=torch.contiguous_format) for name, value in predict.static.items()
            }
        made = _held[key] = make()
        made.busy = True
        return made


def release() -> None:
    """Forgets every graph that is kept, and with it its memory."""
    with _lock:
        _held.clear()


def same_work(stepper: Stepper) -> tuple[range, ...]:
    """Ranges of steps that launch the same work."""
    return getattr(stepper, "phases", (stepper.steps,))


class Captured:
    """Takes steps like `stepper.step`, by graphs: one a phase, or one a piece where residuals cut steps short.

    Args:
        stepper: the method's. It may have `phases`, ranges of steps that launch the same work, and `iterations` with
            `begin`, `iterate` and `finish` (see `methods.base`). It draws no random numbers within a step.
        predict: a Predictor whose network may be captured; its counts go on as if it had been called.
        schedule: the grid.
        device: where the state is.
        record: how to make a graph.
        late: read flags one piece late, which spares a device that runs behind the host every wait; by default on CUDA.
    """

    def __init__(
        self,
        stepper: Stepper,
        predict: Predict,
        schedule: Schedule,
        device: torch.device | str,
        record: Record,
        late: bool | None = None,
    ) -> None:
        self.stepper, self.predict, self.record = stepper, predict, record
        self.phases = same_work(stepper)
        self.iterations = getattr(stepper, "iterations", None)
        self.times = schedule.t.to(device)
        self.numbers = torch.arange(schedule.num_steps, device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.buffers: State = {}
        self.names: tuple[str, ...] = ()
        self.graphs: dict[object, _Recorded] = {}
        self.sums: torch.Tensor | None = None
        self.spent: torch.Tensor | None = None
        self.late = torch.device(device).type == "cuda" if late is None else late
        self.busy = False
        """Whether a run is under way, whose counts its caller has yet to read: who made it so takes it back."""

    def __call__(self, step: Step, state: State) -> tuple[State, torch.Tensor | None]:
        """The state after a step, in buffers that the next call overwrites, and its sums."""
        phase = next(p for p in self.phases if step.i in p)
        if len(phase) == 1:  # a recording would be used once
            return self.stepper.step(step, state, self.predict)
        self._load(state)
        self.number.copy_(self.numbers[step.i])
        at = self._step(step)
        if self.iterations is None:
            self._run(phase, lambda held: self._whole(at, held))
        else:
            self._pieces(phase, at)
        return {name: self.buffers[name] for name in self.names}, None if self.sums is None else self.sums[step.i]

    @torch.inference_mode()
    def close(self) -> None:
        """Adds to the predictor's counts what only the device knows: evaluations of images until they were done."""
        if self.spent is not None:
            self._count(0, self.spent.tolist())
            self.spent.zero_()

    @torch.inference_mode()
    def again(self, predict: Predict) -> Captured:
        """Ready for another run: its predictor's condition goes to where the graphs read theirs; counts start anew."""
        for name, value in predict.static.items():
            self.predict.static[name].copy_(value)
        self.predict.samples, self.predict.evaluations = 0, [0] * len(self.predict.evaluations)
        if self.spent is not None:
            self.spent.zero_()
        return self

    def _pieces(self, phase: range, at: Step) -> None:
        """A step whose end the residuals decide."""
        stepper, flags = self.stepper, _Flags(self.late)
        names = self._run((phase, "begin"), lambda held: stepper.begin(at, self._state(held), self.predict))
        for k in range(self.iterations):
            # The first pieces see a growing history, all later ones the same.
            key = (phase, min(k, stepper.memory + 1))
            names = self._run(key, lambda held, k=k, names=names: self._iterate(k, at, {n: held[n] for n in names}))
            if k + 1 < self.iterations and flags.closed(self.buffers["open"]):
                break
        self._run((phase, "finish"), lambda held: self._keep(*stepper.finish(at, self._state(held), held)))

    def _iterate(self, k: int, at: Step, work: State) -> State:
        if self.spent is None:
            self.spent = torch.zeros(len(work["x"]), dtype=torch.int64, device=self.number.device)
        self.spent += work.get("open", 1)
        counted = list(self.predict.evaluations)
        new = self.stepper.iterate(k, at, work, self.predict)
        self.predict.evaluations = counted  # `close` adds them: which images were open is not known here
        return new

    def _whole(self, at: Step, held: State) -> State:
        return self._keep(*self.stepper.step(at, self._state(held), self.predict))

    def _keep(self, state: State, sums: torch.Tensor | None) -> State:
        if sums is not None:
            if self.sums is None:
                self.sums = sums.new_zeros((len(self.numbers), *sums.shape))
            self.sums.index_copy_(0, self.number.reshape(1), sums.unsqueeze(0))
        return state

    def _step(self, step: Step) -> Step:
        """The step as a graph sees it: number and times on the device."""
        return _OnDevice(step.i, self.number, self.times)

    def _state(self, held: State) -> State:
        return {name: held[name] for name in self.names}

    def _load(self, state: State) -> None:
        self.names = tuple(state)
        for name, value in state.items():
            held = self.buffers.get(name)
            if held is None:
                self.buffers[name] = value.clone()
            elif held is not value:
                held.copy_(value)

    def _run(self, key: object, function: Callable[[State], State]) -> tuple[str, ...]:
        """Replays the graph of a key, recorded the first time; returns the names of the buffers that it fills."""
        if key not in self.graphs:
            self.graphs[key] = self._recorded(function)
        found = self.graphs[key]
        found.graph.replay()
        self._count(found.samples, found.evaluations)
        return found.names

    def _count(self, samples: int, evaluations: list[int]) -> None:
        self.predict.samples += samples
        self.predict.evaluations = [a + b for a, b in zip(self.predict.evaluations, evaluations, strict=True)]

    def _recorded(self, function: Callable[[State], State]) -> _Recorded:
        """A graph that puts what `function` makes of the buffers into them, and what its evaluations count."""
        predict, names = self.predict, []
        before = predict.samples, list(predict.evaluations)
        kept = {
            name: value.clone() for name, value in (("sums", self.sums), ("spent", self.spent)) if value is not None
        }

        def warm_up() -> None:
            for name, value in function(dict(self.buffers)).items():
                self.buffers.setdefault(name, torch.empty_like(value))

        def body() -> None:
            predict.samples, predict.evaluations = 0, [0] * len(before[1])
            held = list(self.buffers.values())
            found = function(dict(self.buffers))
            names.extend(found)
            # A result that is another name's buffer is set aside: that buffer is overwritten here as well.
            new = {n: v.clone() if any(v is each for each in held) else v for n, v in found.items()}
            for name, value in new.items():
                self.buffers[name].copy_(value)

        graph = self.record(warm_up, body)
        for name in KEPT:  # without what the warm-up added
            held = getattr(self, name)
            if held is not None:
                held.copy_(kept[name]) if name in kept else held.zero_()
        counts = predict.samples, predict.evaluations
        predict.samples, predict.evaluations = before
        return _Recorded(graph, *counts, tuple(names))


@dataclass(frozen=True)
class _Recorded:
    graph: Graph
    samples: int
    evaluations: list[int]
    names: tuple[str, ...]


class _OnDevice(Step):
    """A step whose times are looked up where they are asked for, so that the look-up is recorded."""

    def __init__(self, i: int, number: torch.Tensor, times: torch.Tensor) -> None:
        object.__setattr__(self, "i", i)
        object.__setattr__(self, "index", number)
        object.__setattr__(self, "times", times)

    @property
    def source_t(self) -> torch.Tensor:
        return self.times.index_select(0, self.index.reshape(1)).reshape(())

    @property
    def t(self) -> torch.Tensor:
        return self.times.index_select(0, (self.index + 1).reshape(1)).reshape(())


class _Flags:
    """Whether all images are done, as of the piece before the last where the host is not to wait for the device."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self.before: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def closed(self, open_: torch.Tensor) -> bool:
        if not self.late:
            return not bool(open_.any())
        before, self.before = self.before, self._on_its_way(open_)
        if before is None:
            return False
        flag, event = before
        if event is not None:
            event.synchronize()
        return not bool(flag.any())

    def _on_its_way(self, open_: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if open_.device.type != "cuda":
            return open_.clone(), None
        flag = torch.empty(open_.shape, dtype=torch.bool, pin_memory=True).copy_(open_, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(open_.device))
        return flag, event

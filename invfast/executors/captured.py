"""Steps as CUDA graphs: a step is recorded once, network and updates together, and replayed for the whole grid.

A graph holds fixed addresses and no Python. So state and condition live in buffers, and the step's number lies on the
device, where the graph advances it; times and coefficients are looked up by it. What depends on data is never recorded:
a step that residuals cut short is recorded in pieces, and which piece comes next the host decides between two replays.
Reading that flag late would spare waits and cost an evaluation a step: SD1.5 took 465 ms so, and 249 with the waits.

What is done for the first time is done plainly, as a step that counts; that is the warm-up of what is recorded next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from invfast.counts import Counted, Counts
from invfast.executors.graphs import Graph, Recorder
from invfast.schedule import Schedule, Step

if TYPE_CHECKING:
    from invfast.methods.base import Predict, State, Stepper

SHORTEST = 3
"""Steps that a phase must have to be recorded: the first is plain, and two replays pay a recording back."""
WORK = "work."
"""Before the names of what the pieces of a step hand on."""


class Captured(Counted):
    """Takes steps like `stepper.step`, by graphs: one a phase, or one a piece where residuals cut steps short.

    Args:
        stepper: the method's. It draws no random numbers within a step.
        predict: a Predictor whose network may be captured; its condition is copied, it stays as it is.
        schedule: the grid.
        device: where the state is.
        recorder: how to make a graph.
    """

    captured = True

    def __init__(
        self, stepper: Stepper, predict: Predict, schedule: Schedule, device: torch.device | str, recorder: Recorder
    ) -> None:
        self.stepper, self.dtype, self.recorder = stepper, predict.dtype, recorder
        self._steps = stepper
        """Whose steps are recorded: graphs read its tables, also when a run brings an equal one."""
        with torch.inference_mode():  # copies: the condition's own tensors may be the caller's, who would see changes
            self.predict = predict.bound(
                {n: x.clone(memory_format=torch.contiguous_format) for n, x in predict.static.items()}
            )
            times = self.predict.nodes(schedule.t.to(device))
            self.times = times[:-1], times[1:], self.predict.nodes(schedule.middle_t.to(device))
            self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.at: int | None = None
        """The number on the device, as far as is known here."""
        self.buffers: State = {}
        self.sums: torch.Tensor | None = None
        self.measured: dict[range, bool] = {}
        """Of each phase whether its steps have sums."""
        self.graphs: dict[object, _Recorded] = {}
        self.warm: set[object] = set()
        self.counts: Counts = self.predict.counts

    @property
    def size(self) -> int:
        """Bytes of its buffers and of what the graphs compute in."""
        held = [*self.buffers.values(), *self.predict.static.values(), *self.times]
        return sum(x.nbytes for x in held) + (0 if self.sums is None else self.sums.nbytes) + self.recorder.size

    def begin(self, stepper: Stepper, predict: Predict) -> Captured:
        """Ready for a run: its condition goes to where the graphs read theirs; counts start anew."""
        self.stepper = stepper
        with torch.inference_mode():
            for name, value in predict.static.items():
                self.predict.static[name].copy_(value)
        self.counts = self.predict.counts = predict.counts.anew()
        self.warm.clear()  # libraries are set up per thread
        return self

    def __call__(self, step: Step, state: State) -> tuple[State, torch.Tensor | None]:
        phase = next(p for p in self._steps.phases if step.i in p)
        if len(phase) < SHORTEST:
            return self._steps.step(step, state, self.predict)
        self._write(state)
        if self.at != step.i:
            self.number.fill_(step.i)
        self.at, recorded = step.i + phase.step, len(self.graphs)
        at = _OnDevice(step.i, self.number, *self.times)
        names = (self._in_pieces if self._steps.iterations else self._at_once)(phase, at, tuple(state))
        if len(self.graphs) > recorded and int(self.number) != self.at:
            raise RuntimeError(
                f"the CUDA graph of a step did nothing: what was recorded did not run on {self.number.device}; pass "
                "cuda_graph=False"
            )
        return {n: self.buffers[n] for n in names}, self.sums[step.i] if self.measured.get(phase) else None

    def _at_once(self, phase: range, at: Step, names: tuple[str, ...]) -> tuple[str, ...]:
        return self._run(phase, lambda held: self._end(phase, *self._steps.step(at, held, self.predict)), names)

    def _in_pieces(self, phase: range, at: Step, state: tuple[str, ...]) -> tuple[str, ...]:
        """A step whose end the residuals decide; the state stays as it is until its last piece."""
        stepper, predict = self._steps, self.predict

        def iterate(k: int, work: State) -> State:
            return _kept_as(WORK, stepper.iterate(k, at, work, predict))

        work = self._run((phase, "begin"), lambda held: iterate(0, stepper.begin(at, held, predict)), state)
        for k in range(1, stepper.iterations):
            open_ = [j for j, done in enumerate(self.buffers[f"{WORK}done"].tolist()) if not done]
            if not open_:
                break
            before = list(self.counts.evaluations)
            work = self._run((phase, stepper.kind(k)), lambda held, k=k: iterate(k, _named(WORK, held)), work)
            # A graph computes all images; those that are done are not counted.
            self.counts.evaluations = [count + (j in open_) for j, count in enumerate(before)]

        def finish(held: State) -> State:
            before = {name: held[name] for name in state}
            return self._end(phase, *stepper.finish(at, before, _named(WORK, held)))

        return self._run((phase, "finish"), finish, (*state, *work))

    def _end(self, phase: range, state: State, sums: torch.Tensor | None) -> State:
        """What ends every step: its sums are put down, and the number moves on."""
        self.measured[phase] = sums is not None
        if sums is not None:
            if self.sums is None:
                self.sums = sums.new_zeros((len(self.times[1]), *sums.shape))
            self.sums.index_copy_(0, self.number, sums.unsqueeze(0))
        self.number.add_(phase.step)
        return state

    def _run(self, key: object, function: Callable[[State], State], names: tuple[str, ...]) -> tuple[str, ...]:
        """What `function` makes of the named buffers, put into buffers; the names of those."""
        held = {name: self.buffers[name] for name in names}
        if key not in self.graphs and key not in self.warm:
            self.warm.add(key)
            with self.recorder.aside():
                found = function(held)
                self._write(found)
            return tuple(found)
        if key not in self.graphs:
            self.graphs[key] = self._recorded(function, held)
        self.graphs[key].graph.replay()
        self.counts.join(self.graphs[key].counts)
        return self.graphs[key].names

    def _recorded(self, function: Callable[[State], State], held: State) -> _Recorded:
        names: list[str] = []

        def body() -> None:
            found = function(held)
            names.extend(found)
            self._write(found)

        self.predict.counts = self.counts.anew()
        try:
            graph = self.recorder.record(body)
            return _Recorded(graph, self.predict.counts, tuple(names))
        finally:
            self.predict.counts = self.counts

    def _write(self, found: State) -> None:
        """Puts values into the buffers of their names, each before the buffer that it lies in is written to."""
        pending = {name: value for name, value in found.items() if value is not self.buffers.get(name)}
        while pending:
            free = [name for name in pending if not self._is_read(name, pending)]
            if not free:  # they change places
                buffers = set(map(_memory, self.buffers.values()))
                name = next(n for n, value in pending.items() if _memory(value) in buffers)
                pending[name] = pending[name].clone()
            for name in [name for name in free if name not in self.buffers]:
                self.buffers[name] = pending.pop(name).clone()
            for dtype in {pending[name].dtype for name in free if name in pending}:  # one launch for all of a dtype
                names = [name for name in free if name in pending and pending[name].dtype == dtype]
                torch._foreach_copy_([self.buffers[n] for n in names], [pending.pop(n) for n in names])

    def _is_read(self, name: str, pending: State) -> bool:
        """Whether another value that is still to be copied lies in the buffer of this name."""
        buffer = self.buffers.get(name)
        others = (value for other, value in pending.items() if other != name)
        return buffer is not None and any(_memory(value) == _memory(buffer) for value in others)


@dataclass(frozen=True)
class _Recorded:
    graph: Graph
    counts: Counts
    names: tuple[str, ...]


class _OnDevice(Step):
    """A step whose times are looked up by its number where they are asked for, so that the look-up is recorded."""

    def __init__(
        self, i: int, number: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, middle: torch.Tensor
    ) -> None:
        vars(self).update(i=i, index=number.reshape(()), number=number, earlier=earlier, later=later, middle=middle)

    @property
    def source_t(self) -> torch.Tensor:
        return self._at(self.earlier)

    @property
    def t(self) -> torch.Tensor:
        return self._at(self.later)

    @property
    def middle_t(self) -> torch.Tensor:
        return self._at(self.middle)

    def _at(self, table: torch.Tensor) -> torch.Tensor:
        found = table.index_select(0, self.number)
        return found.reshape(()) if table.ndim == 1 else found


def _kept_as(prefix: str, values: State) -> State:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _named(prefix: str, held: State) -> State:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


def _memory(x: torch.Tensor) -> int:
    """What two tensors have in common that lie in the same memory; empty ones lie in none."""
    return x.untyped_storage().data_ptr() if x.numel() else id(x)

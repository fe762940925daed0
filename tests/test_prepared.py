"""Networks that are kept for later calls: made once, by one thread, and of use to all."""

import threading
from functools import partial

import pytest
import torch
from together import THREADS, WAIT, Meeting, together

from invfast import release, runtimes
from invfast.runtimes import Spec, Traits
from invfast.store import READY

CPU = torch.device("cpu")


class Toy:
    """A runtime whose networks are made under a test's eyes."""

    name, traits = "toy", Traits()

    def __init__(self, prepare):
        self.prepare = lambda module, inputs, spec: prepare(spec.identity())


def toy(runtime, name):
    spec = Spec(CPU, torch.float32, lambda: name)
    return runtimes.prepared(runtime, lambda: torch.nn.Identity(), {"x": torch.zeros(1)}, spec)


@pytest.fixture
def empty():
    release()
    yield
    release()


def test_a_network_is_made_once(empty):
    meeting, made = Meeting(THREADS), []

    def prepare(name):
        with meeting:
            made.append(name)
        return object()

    found = together(*[partial(toy, Toy(prepare), "same")] * THREADS)
    assert made == ["same"]
    assert len(set(map(id, found))) == 1


def test_networks_that_differ_are_made_side_by_side(empty):
    meeting = Meeting(THREADS, WAIT)  # all of them must come

    def prepare(name):
        with meeting:
            return object()

    found = together(*(partial(toy, Toy(prepare), name) for name in range(THREADS)))
    assert meeting.most == THREADS
    assert len(set(map(id, found))) == THREADS
    assert set(map(id, READY.contents().values())) == set(map(id, found))


def test_what_is_ready_waits_for_nothing(empty):
    begun, end = threading.Event(), threading.Event()

    def prepare(name):
        if name == "slow":
            begun.set()
            assert end.wait(WAIT)
        return name

    runtime = Toy(prepare)
    kept = toy(runtime, "ready")

    def other():
        assert begun.wait(WAIT)
        try:
            return toy(runtime, "ready"), READY.contents()
        finally:
            end.set()

    slow, (found, networks) = together(partial(toy, runtime, "slow"), other)
    assert (slow, found) == ("slow", kept)
    assert list(networks.values()) == ["ready"]


def test_who_waited_for_one_that_failed_makes_it(empty):
    meeting, made = Meeting(2), []

    def prepare(name):
        with meeting:
            made.append(name)
            if len(made) == 1:
                raise KeyboardInterrupt
        return "network"

    def attempt():
        try:
            return toy(Toy(prepare), "same")
        except KeyboardInterrupt:
            return "interrupted"

    assert sorted(together(attempt, attempt)) == ["interrupted", "network"]
    assert len(made) == 2


def test_a_network_outlives_its_place(empty):
    """Forgotten while it is called: by others that need the room, and by `release`."""
    made = []

    def prepare(name):
        def network(x):
            if name == "first" and not made:
                made.append(name)
                together(*(partial(toy, runtime, other) for other in ("second", "third")))
                release()
            return x + 1

        return network

    runtime = Toy(prepare)
    first = toy(runtime, "first")
    assert torch.equal(first(torch.ones(1)), torch.full((1,), 2.0))
    assert not READY.contents()

"""The store of ready things: bounded, shared by threads, lent to one run at a time, and gone with what it reads."""

import gc
import threading
import weakref
from functools import partial

import pytest
import torch
from together import THREADS, WAIT, Meeting, together

from invfast import store
from invfast.store import Made, Store

HERE = torch.device("cpu")


class Thing:
    """Something with an identity that can be referred to weakly."""


def made(size=0, **meaning):
    return Made(Thing(), lambda: size, **meaning)


@pytest.fixture
def small(monkeypatch):
    """A store for 100 bytes on any device."""
    monkeypatch.setattr(store, "memory", lambda device: 400)
    return Store(number=5)


def test_a_thing_is_made_once(small):
    first = small.take("a", made)
    assert small.take("a", partial(pytest.fail, "made again")) is first
    assert small.has("a")
    assert not small.has("b")
    small.release()
    assert small.take("a", made) is not first


def test_the_longest_unused_goes_first(small):
    for key in "abcde":
        small.take(key, made)
    small.take("a", made)
    small.take("f", made)
    assert list(small.contents()) == list("cdeaf")


def test_bytes_are_bounded_on_each_device(small):
    other = torch.device("meta")
    small.take("a", partial(made, 60))
    small.take("there", partial(made, 90, device=other))
    small.take("light", made)
    small.take("b", partial(made, 60))
    assert list(small.contents()) == ["there", "light", "b"]  # what holds nothing here makes no room
    small.take("large", partial(made, 200))
    assert list(small.contents()) == ["there", "light", "large"]  # slow to make: kept though it is too large


def test_what_is_made_in_a_moment_is_not_kept_where_it_is_too_large(small):
    kept = small.take("a", partial(made, 60))
    small.take("large", partial(made, 101, cheap=True))
    assert small.contents() == {"a": kept}


def test_room_is_made_before_a_thing_that_is_expected(small):
    gone = weakref.ref(small.take("a", partial(made, 60)))

    def make():
        assert gone() is None
        return made(60)

    small.take("b", make, expected=60)
    for key in "cdef":
        small.take(key, made, expected=1)
    assert len(small.contents()) <= 5


def test_what_reads_a_module_is_forgotten_with_it(small):
    module = torch.nn.Linear(1, 1)
    small.take("of it", partial(made, owner=module))
    with small.lend("lent", partial(made, owner=module)):
        pass
    other = small.take("another's", made)
    del module
    gc.collect()
    assert small.contents() == {"another's": other}


def test_a_module_may_go_while_the_store_is_locked(small):
    module = torch.nn.Linear(1, 1)
    small.take("of it", partial(made, owner=module))
    with small._lock:  # where a collection begins is nobody's choice
        del module
        gc.collect()
    assert small.contents() == {}


def test_a_store_holds_no_module_alive(small):
    module = torch.nn.Linear(1, 1)
    there = weakref.ref(module)
    small.take("of it", partial(made, owner=module))
    del module
    gc.collect()
    assert there() is None


def test_what_is_lent_is_one_runs(small):
    with small.lend("a", made) as mine:
        with small.lend("a", made) as its:  # a run inside another's callback
            assert its is not mine
        (other,) = together(lambda: borrow(small))
        assert other not in (mine, its)
    assert borrow(small) is mine
    assert list(small.contents()) == ["a"]


def borrow(small):
    with small.lend("a", made) as found:
        return found


def test_what_is_lent_is_not_forgotten_for_room(small):
    with small.lend("a", partial(made, 90)) as mine:
        small.take("b", partial(made, 90))
        assert list(small.contents()) == ["a", "b"]
    assert borrow(small) is mine


def test_what_a_run_made_larger_is_asked_again(small):
    sizes = [10, 95]
    small.take("before", partial(made, 10))
    with small.lend("a", lambda: Made(Thing(), lambda: sizes[0])):
        del sizes[0]
    assert list(small.contents()) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_failed_leaves_nothing(error, small):
    with pytest.raises(error), small.lend("a", made):
        raise error
    assert small.contents() == {}
    with pytest.raises(error), small.lend("a", partial(fail, error)):
        pass
    assert borrow(small)


def fail(error):
    raise error


def test_released_while_it_is_lent(small):
    with small.lend("a", made) as mine:
        small.release()
        assert small.contents() == {}
        assert borrow(small) is not mine
    assert len(small.contents()) == 1


def test_threads_make_one_thing(small, eager_switching):
    meeting, count = Meeting(THREADS), []

    def make():
        with meeting:
            count.append(1)
        return made()

    found = together(*[partial(small.take, "a", make)] * THREADS)
    assert count == [1]
    assert len(set(map(id, found))) == 1


def test_nothing_waits_for_another_thing(small):
    begun, end = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert end.wait(WAIT)
        return made()

    def other():
        assert begun.wait(WAIT)
        try:
            return small.take("b", made)
        finally:
            end.set()

    assert all(together(partial(small.take, "a", slow), other))


def test_many_threads_and_little_room(small, eager_switching):
    def use(j):
        for k in range(200):
            key = (j * 7 + k) % 11
            with small.lend(("lent", key), partial(made, 30)) as one:
                assert one
            assert small.take(key, partial(made, 30, cheap=bool(k % 2)))
        return True

    assert all(together(*(partial(use, j) for j in range(THREADS))))
    assert len(small.contents()) <= 5
    assert sum(entry.size for entry in small._entries.values()) <= 100


def test_what_is_forgotten_is_gone_at_once(small):
    """Without a collection: on a GPU the next thing needs its memory, and graphs must not end within a recording."""
    module, found = torch.nn.Identity(), []
    gc.disable()
    try:
        small.take("kept", partial(watched, found, module))
        with pytest.raises(KeyError), small.lend("failed", partial(watched, found, module)):
            raise KeyError
        with small.lend("lent", partial(watched, found, module)):
            pass
        small.release()
        assert [each() for each in found] == [None] * 3
    finally:
        gc.enable()


def watched(found, owner):
    thing = Thing()
    found.append(weakref.ref(thing))
    return Made(thing, lambda: 1, HERE, owner)


def test_release_tells_others(small):
    told = []
    small.also(lambda: told.append(1))
    small.release()
    assert told == [1]

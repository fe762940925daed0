"""Ready things, kept from one call to the next: networks, layers, engines, graphs. A process has one store of them.

    take   what any number of threads may use at once
    lend   what a run writes into: its own while it lasts, and who comes meanwhile makes one that is not kept

Bounded in number and, on each device, in bytes; the longest unused go first. What reads a caller's module is forgotten
with that module. Nothing is made while the store is locked: one thread makes a thing, those that want the same wait.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

CPU = torch.device("cpu")
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use, in either version of its control groups."""
NUMBER = 32
"""How many things are kept: a pipeline takes six in one size, both ways, captured; four in each size more."""
SHARE = 1 / 4
"""How much of a device's memory they may hold beside the caller's own."""


class Made(NamedTuple):
    """A thing, and what keeping it means.

    Args:
        value: the thing.
        size: bytes that it holds beside the caller's own, asked again after each use of what is lent.
        device: where it holds them.
        owner: the caller's module whose memory it reads.
        cheap: it is made in a moment, and not kept where it alone is more than the store may hold.
    """

    value: Any
    size: Callable[[], int] = int
    device: torch.device = CPU
    owner: Any = None
    cheap: bool = False


@dataclass(eq=False)
class _Entry:
    made: Made | None = None
    size: int = 0
    busy: bool = False
    """Lent: nobody else may use it, and it is not forgotten for the room it takes."""
    owner: Any = None
    queued: Any = None
    """On a GPU, after what made or used it last: another stream has to wait for that."""


class Store:
    """Ready things by key; a key holds all that shapes the thing."""

    def __init__(self, number: int = NUMBER, share: float = SHARE) -> None:
        self.number, self.share = number, share
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._making: WeakValueDictionary[Hashable, threading.RLock] = WeakValueDictionary()
        """Held by who makes a thing; gone with the last who waits for it."""
        self._lock = threading.Lock()
        self._orphans: deque[tuple[Hashable, _Entry]] = deque()
        """Entries whose owner went while the store was locked: a collection may begin anywhere."""
        self._released: list[Callable[[], None]] = []

    def take(self, key: Hashable, make: Callable[[], Made], expected: int = 0, device: torch.device = CPU) -> Any:
        """The thing of a key, made where it is not there; so many bytes of the device are made free before."""
        found = self._find(key)
        if found is None:
            with self._lock:
                making = self._making.setdefault(key, threading.RLock())
            with making:
                found = self._find(key)
                if found is None:  # not made by who held this lock before, or that failed
                    self._make_room(device, expected)
                    found = make()
                    self._keep(key, found)
        return found.value

    @contextmanager
    def lend(self, key: Hashable, make: Callable[[], Made]) -> Iterator[Any]:
        """The thing of a key for one run; one whose run failed is forgotten, for it may be half changed."""
        self._bury()
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            taken = entry.busy
            if not taken:
                entry.busy = True
                self._entries.move_to_end(key)
        if taken:
            yield make().value
            return
        try:
            if entry.made is None:
                self._own(key, entry, make())
            _follow(entry)
            yield entry.made.value
        except BaseException:
            self._forget(key, entry)
            raise
        _mark(entry)
        with self._lock:
            entry.size, entry.busy = entry.made.size(), False
            if self._entries.get(key) is entry:
                self._entries.move_to_end(key)
        self._make_room(entry.made.device)

    def has(self, key: Hashable) -> bool:
        """Whether there is nothing to make."""
        return self._find(key) is not None

    def contents(self) -> dict[Hashable, Any]:
        """What is kept now."""
        self._bury()
        with self._lock:
            return {key: entry.made.value for key, entry in self._entries.items() if entry.made is not None}

    def release(self) -> None:
        """Forgets everything; what is in use ends with its last user."""
        with self._lock:
            dropped, self._entries = self._entries, OrderedDict()
        dropped.clear()
        for each in self._released:
            each()

    def also(self, forget: Callable[[], None]) -> None:
        """Has `release` call this too."""
        self._released.append(forget)

    def _find(self, key: Hashable) -> Made | None:
        self._bury()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if entry is None or entry.made is None:
            return None
        _follow(entry)
        return entry.made

    def _keep(self, key: Hashable, made: Made) -> None:
        entry = _Entry()
        self._own(key, entry, made)
        if made.cheap and entry.size > self._limit(made.device):
            return
        with self._lock:
            self._entries[key] = entry
        self._make_room(made.device)

    def _own(self, key: Hashable, entry: _Entry, made: Made) -> None:
        entry.made, entry.size = made, made.size()
        _mark(entry)
        if made.owner is not None:
            store, its = weakref.ref(self), weakref.ref(entry)  # a cycle would outlive what frees memory for the next

            def gone(_: Any) -> None:
                if store() is not None and its() is not None:
                    store()._orphaned(key, its())

            entry.owner = weakref.ref(made.owner, gone)
            entry.made = made._replace(owner=None)

    def _make_room(self, device: torch.device, expected: int | None = None) -> None:
        """Forgets the longest unused until what is there, and to come, is within bounds; what came last stays."""
        coming, dropped = expected is not None, []
        with self._lock:
            idle = [(key, entry) for key, entry in self._entries.items() if entry.made and not entry.busy]
            here = {key for key, entry in self._entries.items() if entry.made and entry.made.device == device}
            held = sum(self._entries[key].size for key in here) + (expected or 0)
            for key, entry in idle if coming else idle[:-1]:
                heavy = held > self._limit(device) and key in here and entry.size > 0
                if heavy or len(self._entries) + coming > self.number:
                    dropped.append(self._entries.pop(key))
                    held -= entry.size if key in here else 0
        dropped.clear()  # outside the lock: what ends may ask for it

    def _limit(self, device: torch.device) -> int:
        return int(self.share * memory(device))

    def _forget(self, key: Hashable, entry: _Entry) -> None:
        with self._lock:
            gone = self._entries.pop(key) if self._entries.get(key) is entry else None
        del gone

    def _orphaned(self, key: Hashable, entry: _Entry) -> None:
        if self._lock.acquire(blocking=False):
            gone = self._entries.pop(key) if self._entries.get(key) is entry else None
            self._lock.release()
            del gone
        else:
            self._orphans.append((key, entry))

    def _bury(self) -> None:
        while self._orphans:
            self._forget(*self._orphans.popleft())


def _mark(entry: _Entry) -> None:
    """Notes what is queued on the current stream, which made or used the thing."""
    device = entry.made.device
    if device.type == "cuda":
        entry.queued = torch.cuda.Event()
        entry.queued.record(torch.cuda.current_stream(device))


def _follow(entry: _Entry) -> None:
    """Has the current stream wait for that; the host does not."""
    if entry.queued is not None:
        torch.cuda.current_stream(entry.made.device).wait_event(entry.queued)


def beside(module: torch.nn.Module, addresses: Iterable[tuple[Any, ...]]) -> int:
    """Bytes of a private module's tensors that do not lie at the given addresses, (address, ...) each."""
    owners = {address for address, *_ in addresses}
    own = {x.data_ptr(): x.nbytes for x in chain(module.parameters(), module.buffers())}
    return sum(size for address, size in own.items() if address not in owners)


def memory(device: torch.device) -> int:
    """Bytes that a device has, or this process's container may use of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no POSIX system
        found = 8 * 2**30
    for path in CONTAINER:
        with suppress(OSError, ValueError):  # not there, or "max"
            found = min(found, int(path.read_text()))
    return found


READY = Store()


def release() -> None:
    """Frees what calls keep for the next ones: networks in another layout or dtype, exported ones, CUDA graphs."""
    READY.release()

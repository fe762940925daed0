"""What a module is, read once a call: by walking over it where anything about it changed, else by seeing that nothing
did.

Between two calls a network is nearly always the same object with the same attributes. So its outline, which takes tens
of milliseconds to write down, is kept beside a picture of every attribute, by identity; a call compares the pictures,
asks where the weights lie, and sums them up. Values that can change in place are written down again each time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property
from operator import is_
from typing import Any, TypeVar

import torch

from invfast.denoiser.clone import as_it_is, own_dtype
from invfast.fingerprint import Fingerprint, Outline, fingerprints, outline
from invfast.store import READY, Made
from invfast.words import said, settled

T = TypeVar("T")

_kept: weakref.WeakKeyDictionary[torch.nn.Module, _Seen] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
READY.also(_kept.clear)  # they hold the weights of modules that are still there, also where those have others by now


class Reading:
    """A module as it is now.

    Args:
        module: the caller's; read, never written.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        with _lock:
            seen = _kept.get(module)
        if seen is None or not seen.holds():
            seen = _Seen(module)
            with _lock:
                if seen.lasts:
                    _kept[module] = seen
                else:
                    _kept.pop(module, None)
        self.module, self._seen, self._together = module, seen, [self]

    @staticmethod
    def of(modules: Mapping[str, torch.nn.Module]) -> dict[str, Reading]:
        """Of several modules, whose weights are summed up together."""
        each = {name: Reading(module) for name, module in modules.items()}
        for one in each.values():
            one._together = list(each.values())
        return each

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What follows from the module's structure alone, found once for as long as that is the same."""
        if name not in self._seen.notes:
            self._seen.notes[name] = find()
        return self._seen.notes[name]

    @property
    def as_it_is(self) -> str | None:
        """Why it is neither copied nor converted, as the end of a sentence; None where it may be."""
        return self._seen.as_it_is

    @property
    def lasts(self) -> bool:
        """Whether it says all of itself, so that what was made of it is good for an equal one."""
        return self._seen.lasts

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._seen.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._seen.device

    @property
    def parameters(self) -> int:
        return self._seen.parameters

    @property
    def opaque(self) -> str | None:
        """Why it must run as it is, and may be looked into, as a sentence; None where it may be exported."""
        return self._seen.opaque or _hooked_everywhere()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What it is, its weights as they are at the first asking."""
        found = fingerprints([each._seen.outline for each in self._together])
        for each, its in zip(self._together, found, strict=True):
            vars(each)["fingerprint"] = its  # that of the others, too
        return self.__dict__["fingerprint"]

    @property
    def addresses(self) -> tuple[Any, ...]:
        """Where its weights lie, and their dtypes and strides."""
        return self._seen.addresses

    def keep(self, what: tuple[Hashable, ...], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What `make` makes of it in a moment, the same as in the last calls for as long as it is and lies as it did.

        Args:
            what: what is made, and all that shapes it beside the module.
            make: makes it.
            size: of it, the bytes that are not the module's own.
        """

        def made() -> Made:
            value = make()
            held = size(value)
            return Made(value, lambda: held, self.device, self.module, cheap=True)

        return made().value if self.key is None else READY.take((*what, self.device, *self.key), made)

    @property
    def key(self) -> tuple[Any, ...] | None:
        """It and where its weights lie, for what reads them there; None where that does not say all of it."""
        return (self.fingerprint.exact, *self.addresses) if self.lasts else None

    @property
    def code(self) -> tuple[Any, ...]:
        """What its classes run, for what was recorded of it: they can be patched too."""
        kinds = {*(kind for _, kind in self._seen.kinds), *map(type, self._seen.processors)}
        return tuple(sorted((f"{k.__module__}.{k.__qualname__}", id(_runs(k))) for k in kinds))


class _Seen:
    """All of a module but the values of its weights, and a picture of it to tell whether that is still so."""

    def __init__(self, module: torch.nn.Module) -> None:
        parts, self.tensors = list(module.modules()), [*module.parameters(), *module.buffers()]
        self.addresses, self.notes = tuple(map(_address, self.tensors)), {}
        self.as_it_is, self.dtype = as_it_is(module), own_dtype(module)
        self.opaque = self._opaque(module)
        self.device = next(iter(self.tensors), torch.empty(0)).device
        self.parameters = sum(x.numel() for x in module.parameters())
        self.outline: Outline = outline(module)
        # A picture of what is managed would hold on to the module itself, through bound methods.
        self.lasts = self.opaque is None and self.outline.lasts
        if self.lasts:
            self.kinds = [(weakref.ref(part), type(part)) for part in parts]
            self.processors = [each for part in parts if (each := vars(part).get("processor")) is not None]
            self.picture = [(store, tuple(store), tuple(store.values())) for part in parts for store in _stores(part)]
            self.empty = [store for part in parts for store in (part._forward_hooks, part._forward_pre_hooks)]
            changing = [(vars(part), key) for part in parts for key, x in vars(part).items() if not settled(key, x)]
            self.changing = [(held, key, said(key, held[key])) for held, key in changing]

    def holds(self) -> bool:
        if any(self.empty) or any(type(part()) is not kind for part, kind in self.kinds):
            return False
        for store, keys, values in self.picture:
            if len(store) != len(keys) or not all(map(is_, store.values(), values)) or tuple(store) != keys:
                return False
        if tuple(map(_address, self.tensors)) != self.addresses:
            return False
        return all(said(key, held[key]) == before for held, key, before in self.changing)

    def _opaque(self, module: torch.nn.Module) -> str | None:
        """An export loses hooks, and what a processor of the caller's records."""
        if self.as_it_is:
            return f"{type(module).__name__} {self.as_it_is}, and runs as it is"
        for processor in getattr(module, "attn_processors", {}).values():
            if not type(processor).__module__.startswith(("diffusers.", "peft.")):
                return f"attention processor {type(processor).__name__} is the caller's own, and only Python can run it"
        return None


def _stores(part: torch.nn.Module) -> Iterator[dict[str, Any]]:
    yield vars(part)
    yield from (part._parameters, part._buffers, part._modules)


def _runs(kind: type) -> Any:
    return kind.forward if issubclass(kind, torch.nn.Module) else kind.__call__


def _address(x: torch.Tensor) -> Any:
    """Where a weight lies and of what kind it is: what `.data` and `.to` change behind a module's back."""
    plain = type(x) in (torch.Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return (x.data_ptr(), x.dtype, x.stride()) if plain else id(x)


def _hooked_everywhere() -> str | None:
    every = torch.nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return "hooks on every module are registered with torch, and only Python runs them"
    return None

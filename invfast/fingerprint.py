"""What a module computes, as digests: whether two are the same network, and whether an export is still this one.

Two questions, one walk over the module. An export asks for the same module to the letter. An inversion asks for the
same function, however it is written down: that projections are fused, that a module is compiled, that an adapter is
loaded but switched off, changes nothing; an adapter's scale, FreeU, another activation do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from invfast.digests import checksums
from invfast.words import NO_EFFECT, OWN, kind, of_object, of_value, said, tells

_MOVING = ("GroupOffloadingHook", "LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook")
"""Hooks of diffusers that only place weights."""
_ATTENTION = re.compile(r"(?:Fused|Sliced|XFormers)?(Attn(?:AddedKV)?)Processor(?:2_0|NPU)?")
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
_SCALE_SAYS_IT = frozenset({"r", "lora_alpha", "lora_dropout"})
"""What of an adapter its scaling holds already, or only training reads."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fingerprint:
    """What a module is, as far as it can be read.

    Args:
        exact: SHA-256 over names, classes, settings and tensors, to the letter.
        weights: SHA-256 over the tensors it computes with.
        settings: SHA-256 over whatever else decides what it computes.
        unreadable: why there is none of them, as the end of a sentence whose subject is the module; else None.
    """

    exact: str | None
    weights: str | None
    settings: str | None
    unreadable: str | None = None


@dataclass(frozen=True, eq=False)
class Outline:
    """All of a module but the values of its weights.

    Args:
        unreadable: why it cannot be read, or None.
        letter: SHA-256 over names, classes and settings, to the letter.
        settings: as in `Fingerprint`.
        exact, weights: tensors by name, in the order their digests take them: all, and those it computes with.
        lasts: whether it says all that decides what the module computes, and holds no memory but the module's own.
    """

    unreadable: str | None
    letter: str = ""
    settings: str = ""
    exact: tuple[tuple[str, torch.Tensor], ...] = ()
    weights: tuple[tuple[str, torch.Tensor], ...] = ()
    lasts: bool = False

    def with_weights(self, sums: Mapping[int, bytes]) -> Fingerprint:
        """The fingerprint, by the checksums of its tensors."""
        if self.unreadable:
            return Fingerprint(None, None, None, self.unreadable)
        every = {id(each): each for _, each in (*self.exact, *self.weights)}
        facts = {key: f"{each.dtype}|{tuple(each.shape)}|".encode() + sums[key] for key, each in every.items()}
        exact, weights = (
            _sha(f"{name}|".encode() + facts[id(each)] for name, each in tensors)
            for tensors in (self.exact, self.weights)
        )
        return Fingerprint(_sha([self.letter.encode(), exact.encode()]), weights, self.settings)


def fingerprint(module: torch.nn.Module) -> Fingerprint:
    """The fingerprint of a module, from parameters, buffers and plain attributes.

    It is taken on every call: version counters do not see writes through `.data`, which is how LoRA weights are merged.
    """
    return fingerprints([outline(module)])[0]


def fingerprints(outlines: Sequence[Outline]) -> list[Fingerprint]:
    """Of several modules, their weights as they are now, at the speed of memory; a device is waited for once."""
    every = {id(each): each for one in outlines for _, each in (*one.exact, *one.weights)}
    sums = dict(zip(every, checksums(list(every.values())), strict=True))
    return [one.with_weights(sums) for one in outlines]


def outline(module: torch.nn.Module) -> Outline:
    """What there is to say of a module before its weights are read."""
    why = unreadable(module)
    if why is None and any(each.device.type == "meta" for part in module.modules() for each in _held(part).values()):
        why = "has its weights offloaded"
    if why:
        return Outline(why)
    parts = list(_walk("", "", module))
    meant = [part for part in parts if part.label is not None]
    borrowed = any(_fused(part) for part in module.modules())
    return Outline(
        None,
        letter=_sha(f"{part.name}|{part.kind}|{sorted(part.settings.items())}".encode() for part in parts),
        settings=_sha(sorted(f"{part.label}|{part.meaning}".encode() for part in meant)),
        exact=_ordered((f"{p.name}.{n}", x) for p in parts for n, x in p.tensors.items()),
        weights=_ordered((f"{p.label}.{n}", x) for p in meant for n, x in p.used.items()),
        lasts=not borrowed and all(tells(key, x) for part in module.modules() for key, x in vars(part).items()),
    )


def _ordered(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[tuple[str, torch.Tensor], ...]:
    return tuple(sorted(named, key=lambda pair: pair[0]))


def unreadable(module: torch.nn.Module) -> str | None:
    """Why a module's tensors are not all there is to read, or not as they are; None where they are.

    Tensors of a class of their own (torchao's, bitsandbytes', GGUF's) and sparse ones keep their values elsewhere, as
    do modules with packed weights or an extra state (dynamic quantisation, Transformer Engine).
    """
    for part in module.modules():
        if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
            return f"has a {type(part).__name__} with a state of its own"
        if any(isinstance(value, torch.ScriptObject) for value in vars(part).values()):
            return f"has a {type(part).__name__} with packed weights"
        for tensor in _held(part).values():
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
                return f"has weights of class {type(tensor).__name__}"
            if tensor.layout != torch.strided or tensor.is_quantized:
                return f"has weights of layout {tensor.layout}, {tensor.dtype}"
    return None


@dataclass(frozen=True)
class _Part:
    """A module as it is written down, and as what it counts."""

    name: str
    kind: str
    settings: Mapping[str, str]
    tensors: Tensors
    label: str | None
    """Its name in the function computed; None where it has no part in it."""
    used: Tensors = field(default_factory=dict)
    """The tensors it computes with."""

    @property
    def meaning(self) -> str:
        """Class and settings that shape the result; one that is None is as one that is not there."""
        what = {k: v for k, v in self.settings.items() if k not in NO_EFFECT and v != "None"}
        if "processor" in what:
            what["processor"] = _attention(what["processor"])
        return f"{self.kind}|{sorted(what.items())}"


def _walk(name: str, label: str | None, part: torch.nn.Module, instead: Tensors | None = None) -> Iterator[_Part]:
    """The parts of a module, itself first; `instead` are the tensors it computes with where they are not its own."""
    held = _held(part)
    wraps = isinstance(part, torch._dynamo.OptimizedModule)
    adapts = hasattr(part, "adapter_layer_names") and "base_layer" in part._modules  # a layer of peft's
    plain = vars(part).keys() - OWN - held.keys()
    settings = {key: _setting(part, key, vars(part)[key]) for key in plain}
    own = None if wraps or adapts else label
    yield _Part(name, kind(part), settings, held, own, held if instead is None else instead)
    fused = _fused(part)
    for key, child in part._modules.items():
        if child is None:
            continue
        if wraps or (adapts and key == "base_layer"):
            inner = label
        elif label is None or adapts or (key in _FUSED and fused):
            inner = None
        else:
            inner = f"{label}.{key}"
        yield from _walk(f"{name}.{key}", inner, child, fused.get(key))
    if adapts and label is not None:
        yield from _active(label, part)


def _active(label: str, layer: Any) -> Iterator[_Part]:
    """What each of a layer's adapters adds: nothing where it is switched off, merged, or scaled by zero."""
    scaling = getattr(layer, "scaling", {})
    on = [] if layer.disable_adapters or layer.merged else [a for a in layer.active_adapters if scaling.get(a, 1) != 0]
    every = {key: value for key, value in vars(layer).items() if key not in OWN | _SCALE_SAYS_IT} | layer._modules
    stores = {k: v for k, v in every.items() if isinstance(v, (dict, torch.nn.ModuleDict, torch.nn.ParameterDict))}
    for rank, adapter in enumerate(sorted(on)):
        plain, tensors = {}, {}
        for key, value in ((key, store[adapter]) for key, store in stores.items() if adapter in store):
            if isinstance(value, torch.nn.Module):
                tensors |= {f"{key}.{n}": x for n, x in (*value.named_parameters(), *value.named_buffers())}
            elif isinstance(value, torch.Tensor):
                tensors[key] = value
            elif key not in _SCALE_SAYS_IT:
                plain[key] = of_value(value)
        if tensors:
            yield _Part("", "adapter", plain, {}, f"{label}+{rank}", tensors)


def _fused(attention: torch.nn.Module) -> dict[str, Tensors]:
    """The rows of fused projections by the projection that they stand for; nothing where they are not in use."""
    found: dict[str, Tensors] = {}
    if not getattr(attention, "fused_projections", False):
        return found
    for key, names in _FUSED.items():
        whole, layers = attention._modules.get(key), [attention._modules.get(name) for name in names]
        if whole is None or None in layers:
            continue
        rows = [layer.out_features for layer in layers]
        pieces = {
            n: x.detach().split(rows) for n, x in (("weight", whole.weight), ("bias", whole.bias)) if x is not None
        }
        found |= {name: {n: each[j] for n, each in pieces.items()} for j, name in enumerate(names)}
    return found


def _held(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and tensors kept as plain attributes, by name; not those of its parts."""
    stores = (part._parameters, part._buffers, vars(part))
    return {name: x for store in stores for name, x in store.items() if isinstance(x, torch.Tensor)}


def _setting(part: torch.nn.Module, key: str, value: Any) -> str:
    """A plain attribute as words; "None" where it is what the module has without it."""
    if key == "_diffusers_hook":
        return repr([of_object(hook) for hook in value.hooks.values() if type(hook).__name__ not in _MOVING] or None)
    if key == "forward" and ({"_hf_hook", "_diffusers_hook"} & set(vars(part)) or _is_its_own(part, value)):
        return "None"
    return said(key, value)


def _is_its_own(part: torch.nn.Module, forward: Any) -> bool:
    return getattr(forward, "__func__", None) is type(part).forward


def _attention(said: str) -> str:
    """A processor as what it computes: the fused, sliced and memory-efficient ones compute the same."""
    alike = _ATTENTION.fullmatch(said.partition("|")[0].rpartition(".")[2])
    return alike[1] if alike and said.startswith("diffusers.") else said


def _sha(pieces: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(len(piece).to_bytes(8, "little") + piece)
    return sha.hexdigest()

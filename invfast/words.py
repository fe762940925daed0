"""Attributes of modules as words: what of them decides a result, whether words hold all of it, whether it may change.

A digest of a network is made of such words, and a network that is kept from call to call is recognised by them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from numbers import Number
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict

OWN = frozenset(vars(torch.nn.Module()))
NO_EFFECT = frozenset(
    {
        *(
            "_hf_hook",
            "_old_forward",
            "_hf_peft_config_loaded",
            "peft_config",
            "_is_torch_compile",
            "_compiled_call_impl",
        ),
        *("gradient_checkpointing", "_gradient_checkpointing_func", "use_slicing", "_chunk_size", "_chunk_dim"),
        *("original_attn_processors", "fused_projections", "sliceable_head_dim"),
        *("_conv_num", "_conv_idx", "_feat_map", "_enc_conv_num", "_enc_conv_idx", "_enc_feat_map"),  # of one call
        *("_use_memory_efficient_attention_xformers", "_use_npu_flash_attention", "set_use_memory_efficient_attention"),
    }
)
"""Settings that change how or where a result is computed, or that it was prepared, not what it is."""
ALIKE = (str, Number, type(None), torch.dtype, torch.device, BuiltinFunctionType, type)
"""Kinds of values that words hold, and that do not change in place."""


def said(key: str, value: Any) -> str:
    """A plain attribute of that name as words."""
    return of_object(value) if key == "processor" else of_value(value)


def settled(key: str, value: Any) -> bool:
    """Whether an attribute says the same for as long as it is the same object."""
    if key in OWN or isinstance(value, (*ALIKE, torch.Tensor, FrozenDict)):
        return True
    return isinstance(value, tuple) and all(settled("", each) for each in value)


def tells(key: str, value: Any) -> bool:
    """Whether words hold all of an attribute's value, which is copied with its module; a processor is not.

    A table of rotations follows from plain settings beside it.
    """
    if key in OWN or key in NO_EFFECT or isinstance(value, torch.Tensor) or _is_plain(value):
        return True
    return key in ("processor", "rope_embedder") and kind(value).startswith("diffusers.")


def _is_plain(value: Any) -> bool:
    """Whether words hold it; of tensors in a container they do not."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, ALIKE)


def kind(value: Any) -> str:
    """The class of a value."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def of_object(value: Any) -> str:
    """An object that is no module: its class and, where it is diffusers' own, its scales; counters are no setting."""
    its = kind(value)
    plain = vars(value) if its.startswith("diffusers.") and hasattr(value, "__dict__") else {}
    return f"{its}|{sorted((k, of_value(v)) for k, v in plain.items() if isinstance(v, (float, str, torch.dtype)))}"


def of_value(value: Any) -> str:
    """What a value says without its address."""
    if isinstance(value, (str, Number, type(None))):
        return repr(value.item() if hasattr(value, "item") else value)
    if isinstance(value, Mapping):
        # Private keys of a config say where it came from, and which values are defaults in an order that changes.
        public = ((str(key), of_value(each)) for key, each in value.items() if not str(key).startswith("_"))
        return repr(sorted(public))
    if isinstance(value, (list, tuple)):
        return repr([of_value(each) for each in value])
    if isinstance(value, (set, frozenset)):
        return repr(sorted(of_value(each) for each in value))
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return repr([of_value(value.func), of_value(value.args), of_value(value.keywords)])
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return kind(value)

"""Private networks: a module of our own that shares the caller's weights, or holds converted copies of them."""

from __future__ import annotations

import copy
from itertools import chain

import torch

from invfast.fingerprint import unreadable

COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_hooked(part: torch.nn.Module) -> bool:
    """Whether accelerate or diffusers act around a module; an empty registry is what any call of a pipeline leaves."""
    registry = vars(part).get("_diffusers_hook")
    return "_hf_hook" in vars(part) or (registry is not None and bool(registry.hooks))


def is_managed(module: torch.nn.Module) -> bool:
    """Whether something else moves, casts, patches or compiles the module or a part of it: then it is used as it is.

    Offload and casting hooks (accelerate's, diffusers'), forward hooks (which often record features), a replaced
    `forward`, torch.compile in any of its forms. A clone would lose them, or call the caller's module behind our back.
    """
    if isinstance(module, torch._dynamo.OptimizedModule):
        return True
    return any(
        is_hooked(part)
        or "forward" in vars(part)
        or part._compiled_call_impl is not None
        or part._forward_hooks
        or part._forward_pre_hooks
        for part in module.modules()
    )


def as_it_is(module: torch.nn.Module) -> str | None:
    """Why a module is neither copied nor converted, as the end of a sentence; None where it may be."""
    if is_managed(module):
        return "is offloaded, hooked, patched or compiled"
    return unreadable(module)


def own_dtype(module: torch.nn.Module) -> torch.dtype:
    """The dtype it computes in: of its first such parameter, or what diffusers' layerwise casting casts weights to.

    Quantised weights are stored in others (float8, integers), which nothing here computes in.
    """
    for part in module.modules():
        registry = vars(part).get("_diffusers_hook")
        casting = registry.get_hook("layerwise_casting") if registry is not None else None
        if casting is not None:
            return casting.compute_dtype
    return next((p.dtype for p in module.parameters() if p.dtype in COMPUTED), torch.float32)


def private(module: torch.nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> torch.nn.Module:
    """A structural clone in eval mode: its modules are its own, its tensors and attention processors the caller's.

    Tensors that need another dtype or (the 4-D ones) another layout become real copies; the caller's stay as they are.

    Raises:
        ValueError: the module runs as it is and would have to be converted, or it cannot be copied.
    """
    own, why = own_dtype(module), as_it_is(module)
    if why:
        if own != dtype:
            name = str(own).removeprefix("torch.")
            raise ValueError(f"{type(module).__name__} {why} and stays {name}; pass dtype={name!r} or None")
        return module
    shared = {id(p): p for p in chain(module.parameters(), module.buffers())}
    # Processors without weights may hold a caller's controller: what they record belongs there, not in a copy.
    processors = getattr(module, "attn_processors", {}).values()
    shared |= {id(p): p for p in processors if not isinstance(p, torch.nn.Module)}
    try:
        clone = copy.deepcopy(module, shared).eval()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot be cloned ({error}); it holds something that is neither weight nor module"
        ) from error
    converted: dict[int, torch.Tensor] = {}
    for owner in clone.modules():
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in converted:
                    converted[id(tensor)] = _convert(tensor, own, dtype, memory_format)
                store[name] = converted[id(tensor)]
    return clone


def _convert(
    tensor: torch.Tensor, own: torch.dtype, dtype: torch.dtype, memory_format: torch.memory_format
) -> torch.Tensor:
    new = tensor.detach()
    if new.is_floating_point() and own != dtype:
        new = new.to(dtype)
    if new.ndim == 4 and memory_format is not torch.preserve_format:
        new = new.contiguous(memory_format=memory_format)
    if new.data_ptr() == tensor.data_ptr() and new.dtype == tensor.dtype:
        return tensor
    return torch.nn.Parameter(new, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else new

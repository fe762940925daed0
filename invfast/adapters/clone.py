"""Private networks: a module of our own that shares the caller's weights, or holds converted copies of them."""

from __future__ import annotations

import copy
from itertools import chain

import torch


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether something else moves or compiles the module (offload hooks, torch.compile): then it is used as it is."""
    managed = hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
    return managed or isinstance(module, torch._dynamo.OptimizedModule)


def private(module: torch.nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> torch.nn.Module:
    """A structural clone in eval mode: modules and attention processors are its own, tensors are the caller's.

    Tensors that need another dtype or (the 4-D ones) another layout become real copies; the caller's stay as they are.

    Raises:
        ValueError: the module is managed by hooks and would have to be converted.
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), dtype)
    if is_hooked(module):
        if own != dtype:
            raise ValueError(
                f"{type(module).__name__} is offloaded or compiled and stays {own}; pass dtype={own} or None, "
                "or remove its hooks first"
            )
        return module
    clone = copy.deepcopy(module, {id(p): p for p in chain(module.parameters(), module.buffers())}).eval()
    converted: dict[int, torch.Tensor] = {}
    for owner in clone.modules():
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = converted.setdefault(id(tensor), _convert(tensor, own, dtype, memory_format))
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

"""What an inversion was made with: names, versions, digests; and whether a pipeline still is that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch

from invfast.adapters import Condition
from invfast.methods import Method
from invfast.schedule import Schedule

MEANING = {
    "betas": "the scheduler's betas are",
    "weights": "the network's weights are",
    "vae": "the VAE's weights are",
    "prompt_embeds": "the prompt embeddings are",
    "negative_prompt_embeds": "the negative prompt embeddings are",
}
EMBEDS = "encoder_hidden_states"
PACKAGES = ("invfast", "torch", "diffusers", "transformers")


def record(pipe: Any, grid: Schedule, method: Method, condition: Condition) -> dict[str, Any]:
    """Plain values that say how an inversion was made."""
    return {
        "pipeline": type(pipe).__name__,
        "schedule": grid.digest,
        **{f"schedule.{name}": value for name, value in grid.origin.items()},
        "method": repr(method),
        **{name: _version(name) for name in PACKAGES},
        "embeds_on": _place(condition),
        **_digests(pipe, condition),
    }


def differences(made_with: Mapping[str, Any], pipe: Any, condition: Condition) -> Iterator[str]:
    """Names what a pipeline and condition have otherwise; what either side did not record is passed over."""
    # Embeddings of one text differ in their last bits between devices and versions; only like is compared with like.
    comparable = made_with.get("embeds_on") == _place(condition)
    for name, digest in _digests(pipe, condition).items():
        if "embeds" in name and not comparable:
            continue
        if None not in (made_with.get(name), digest) and made_with[name] != digest:
            yield MEANING[name]


def _digests(pipe: Any, condition: Condition) -> dict[str, str | list[str] | None]:
    positive, negative = condition
    return {
        "betas": _tensor_digest(getattr(pipe.scheduler, "alphas_cumprod", None)),
        "weights": weights_digest(pipe.unet),
        "vae": weights_digest(pipe.vae) if hasattr(pipe, "vae") else None,
        "prompt_embeds": _row_digests(positive.get(EMBEDS)),
        "negative_prompt_embeds": _row_digests((negative or {}).get(EMBEDS)),
    }


@torch.inference_mode()
def weights_digest(module: torch.nn.Module) -> str | None:
    """SHA-256 over names, dtypes, shapes and checksums of all parameters and buffers; None where weights are offloaded.

    The checksums are wrapping sums of each tensor's bits along both sides of a 2-D view: one pass at the speed of
    memory, where hashing every byte of a large network would take seconds. Any one changed value changes them.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.device.type == "meta":
            return None
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        bits = tensor.detach().contiguous().flatten().view(torch.uint8)
        if bits.storage_offset() % 4:
            bits = bits.clone()  # a view at an odd offset cannot be read as words
        whole = len(bits) // 4096 * 4096
        words = bits[:whole].view(torch.int32).reshape(-1, 1024)
        for part in (words.sum(0, dtype=torch.int64), words.sum(1, dtype=torch.int64), bits[whole:]):
            sha.update(part.cpu().numpy().tobytes())
    return sha.hexdigest()


def _tensor_digest(value: Any) -> str | None:
    if not isinstance(value, torch.Tensor):
        return None
    value = value.detach().to("cpu", torch.float64).contiguous()
    return hashlib.sha256(f"{tuple(value.shape)}".encode() + value.numpy().tobytes()).hexdigest()


def _row_digests(rows: torch.Tensor | None) -> list[str] | None:
    """One digest an image."""
    return None if rows is None else [_tensor_digest(row) for row in rows]


def _place(condition: Condition) -> str | None:
    value = condition[0].get(EMBEDS)
    if value is None:
        return None
    return f"{value.device.type}, {str(value.dtype).removeprefix('torch.')}, torch {torch.__version__}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"

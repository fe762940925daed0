"""What an inversion was made with: names, versions, digests; and whether a pipeline still is that."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from invfast.adapters import Adapter
from invfast.ambient import numerics
from invfast.denoiser import EMBEDS, MASK, SCALES, Condition
from invfast.digests import tensor_digest
from invfast.methods import Method
from invfast.schedule import Schedule
from invfast.stored import VERSIONS

MEANING = {
    "betas": "the scheduler's betas are",
    "network.weights": "the network's weights are",
    "network.settings": "the network's settings (an adapter's scale, FreeU, a patched part) are",
    "vae.weights": "the VAE's weights are",
    "vae.settings": "the VAE's settings are",
    "prompt_embeds": "the prompt embeddings are",
    "negative_prompt_embeds": "the negative prompt embeddings are",
    "other_embeds": "the other conditions (pooled embeddings, sizes, labels, images) are",
    "negative_other_embeds": "the other negative conditions (pooled embeddings, sizes, labels, images) are",
    "numerics": "torch's numeric settings (TF32, reduced precision) are",
}

BUNDLED = "invfast:"
"""How the name of a bundled pipeline begins, "invfast:emoji64"; no hub id has a colon."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def record(model: Adapter, grid: Schedule, method: Method, condition: Condition) -> dict[str, Any]:
    """Plain values that say how an inversion is made; taken before it runs, so that nothing here can lose a run.

    A digest is None where there is nothing to read; "network.unreadable" and "vae.unreadable" say why.
    """
    return {
        "pipeline": type(model.pipe).__name__,
        "model": name_of(model.pipe),
        "schedule": grid.digest,
        **{f"schedule.{name}": value for name, value in grid.origin.items()},
        "method": repr(method),
        **{name: _version(name) for name in VERSIONS},
        "embeds_on": _place(condition),
        **_digests(model, condition),
    }


def differences(
    made_with: Mapping[str, Any], model: Adapter, condition: Condition, texts: bool = True
) -> Iterator[str]:
    """Names what a model and condition have otherwise; what either side did not record is passed over.

    With `texts` False other conditions are none: they are what makes an edit one.
    """
    # Embeddings of one text differ in their last bits between devices and versions; only like is compared with like.
    # Settings are attributes, which the library that wrote a module may name otherwise in another version.
    versions = all(made_with.get(name) == _version(name) for name in VERSIONS)
    comparable = {
        "embeds": texts and made_with.get("embeds_on") == _place(condition),
        "settings": versions,
        "numerics": str(made_with.get("numerics")).startswith(f"{model.device.type}:"),
    }
    for name, digest in _digests(model, condition).items():
        if not all(same for kind, same in comparable.items() if kind in name):
            continue
        if name in MEANING and None not in (made_with.get(name), digest) and made_with[name] != digest:
            yield MEANING[name]


def requantised(made_with: Mapping[str, Any], model: Adapter) -> bool:
    """Whether the int8 network that ran is another than the inversion's: other ranges, or made by other versions."""
    then, now = made_with.get("quantised"), model.denoiser.quantised
    return None not in (then, now) and then != now


def name_of(pipe: Any) -> str | None:
    """Where a pipeline was loaded from: a bundled one's name, a folder or file as an absolute path, or a hub id.

    None where it does not say, as one that was put together from parts.
    """
    try:
        name = pipe.config["_name_or_path"]
        if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
            return None
        path, bundled = Path(os.path.abspath(name)), Path(__file__).parent / "demo"
        if path.parent == bundled:
            return f"{BUNDLED}{path.name}"
        local = os.path.isabs(name) or path.exists()
        return str(path) if local else str(name) if HUB_ID.fullmatch(str(name)) else None
    except Exception:  # a pipeline may be anything; its name is a convenience that loses no run
        return None


def _digests(model: Adapter, condition: Condition) -> dict[str, Any]:
    pipe, (positive, negative) = model.pipe, condition
    found = {name: each.fingerprint for name, each in model.read.items()}
    return {
        "betas": tensor_digest(getattr(pipe.scheduler, "alphas_cumprod", None)),
        **{f"{part}.{k}": getattr(of, k) for part, of in found.items() for k in ("weights", "settings", "unreadable")},
        "prompt_embeds": _row_digests(positive.get(EMBEDS), positive.get(MASK)),
        "negative_prompt_embeds": _row_digests((negative or {}).get(EMBEDS), (negative or {}).get(MASK)),
        "other_embeds": _row_digests(_beside(positive)),
        "negative_other_embeds": _row_digests(_beside(negative or {})),
        "numerics": numerics(model.device),
    }


def _beside(branch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What the network is told beside the text, (B, ...); not the guidance, which the way back may have otherwise."""
    found = [
        value.detach().double().flatten(1) if value.ndim > 1 else value.double().unsqueeze(1)
        for name, value in branch.items()
        if name not in (EMBEDS, MASK, *SCALES)
    ]
    return torch.cat([value.cpu() for value in found], 1) if found else None


def _row_digests(rows: torch.Tensor | None, mask: torch.Tensor | None = None) -> list[str] | None:
    """One digest an image, of its words alone: how many tokens are none depends on its batch."""
    if rows is None:
        return None
    each = rows.detach().cpu()
    if mask is not None:
        each = [row[words] for row, words in zip(each, mask.bool().cpu(), strict=True)]
    return [tensor_digest(row) for row in each]


def _place(condition: Condition) -> str | None:
    value = condition[0].get(EMBEDS)
    if value is None:
        return None
    return f"{value.device.type}, {str(value.dtype).removeprefix('torch.')}, torch {torch.__version__}"


@functools.cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"

"""The file of an inversion: one safetensors file, read with mistrust.

Its tensors are the latents, the state, the schedule and what else was recorded; its metadata holds the schema version,
the rest as JSON, and a SHA-256 over all of it, so that a damaged file is noticed. The digest keeps nobody out who wants
to deceive: all values are checked beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import torch

from invfast import plain

if TYPE_CHECKING:
    from invfast.inversion import Inversion

FORMAT, SCHEMA = "invfast.inversion", 1
REAL = (torch.float32, torch.float64)
DTYPES = {
    "latents": REAL,
    "init_latents": REAL,
    "trajectory": REAL,
    "residual": (torch.float64,),
    "schedule.t": (torch.int32, torch.int64, *REAL),
    "schedule.alpha": (torch.float64,),
    "schedule.source_alpha": (torch.float64,),
}
"""The tensors of a file by name, beside those of the state, and what they may be."""

DIGESTS = ("prompt_embeds", "negative_prompt_embeds", "other_embeds", "negative_other_embeds")
"""Provenance that has one entry an image."""
PER_IMAGE = {
    **dict.fromkeys(("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), list[str]),
    "class_labels": list[int],
}
"""Conditions that have one entry an image, and what they are."""
VERSIONS = ("invfast", "torch", "diffusers", "transformers", "peft")
"""Provenance that names what was installed."""

Made = TypeVar("Made")


def metadata(tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> dict[str, str]:
    """What a file of these tensors and plain values says of itself."""
    text = json.dumps(values, sort_keys=True, default=str)  # origin and provenance may hold what a caller put there
    return {"format": FORMAT, "schema": str(SCHEMA), "json": text, "sha256": digest(tensors, text)}


def load(path: Path, make: Callable[[dict[str, torch.Tensor], Any], Made]) -> Made:
    """What `make` makes of the tensors and the JSON of a file.

    Raises:
        FileNotFoundError: no such file. Other OSErrors: it cannot be opened.
        ValueError: it is no inversion file, damaged, or `make` refuses its values; names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"inversion file {str(path)!r} does not exist")
    name = f"inversion file {str(path)!r}"
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{name} cannot be used: it is a folder, or something else that is no file")
    return made(name, lambda: _read(path), make)


def made(
    name: str,
    read: Callable[[], tuple[dict[str, torch.Tensor], Mapping[str, str]]],
    make: Callable[[dict[str, torch.Tensor], Any], Made],
) -> Made:
    """What `make` makes of the tensors and the JSON that `read` found; either is taken with mistrust.

    Args:
        name: what errors call it.
        read: its tensors, and what it says of itself, see `metadata`.
        make: given the tensors and the values of the JSON.

    Raises:
        ValueError: it is no inversion, damaged, or `make` refuses its values.
    """
    try:
        tensors, text = _checked(*read())
        return make(tensors, json.loads(text))
    except KeyError as error:
        raise ValueError(f"{name} cannot be used: it lacks {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} cannot be used: its JSON is nested too deeply") from error
    except (safetensors.SafetensorError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def of_images(values: Mapping[str, Any], index: slice) -> dict[str, Any]:
    """Plain values of a batch for some of its images."""
    each = (*DIGESTS, *PER_IMAGE)
    return {name: value[index] if name in each and value else value for name, value in values.items()}


def digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    """SHA-256 over names, dtypes, shapes and bits of all tensors, and the JSON."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def check_shapes(inversion: Inversion) -> None:
    """What the digest cannot know: a file that was made wrong, rather than damaged."""
    x, node, steps = inversion.latents, inversion.node, inversion.schedule.num_steps
    if x.ndim != 4 or x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"latents must be float32 or float64 (B, C, h, w), got {x.dtype} {tuple(x.shape)}")
    if not 0 <= node <= steps:
        raise ValueError(f"node must lie in 0..{steps}, got {node}")
    for name, other in {"init_latents": inversion.init_latents, **inversion.state}.items():
        if other.dtype != x.dtype or not _fits(name, other, x):
            raise ValueError(f"{name} is {other.dtype} {tuple(other.shape)}, latents are {x.dtype} {tuple(x.shape)}")
    for name, other in {"latents": x, "init_latents": inversion.init_latents, **inversion.state}.items():
        if not other.isfinite().all():
            raise ValueError(f"{name} are not finite")
    _check_records(inversion)


def _fits(name: str, value: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a tensor has the latents' shape; a state may have several of them an image, or texts."""
    if name == "embeds":  # (B, n, tokens, width)
        return value.ndim == 4 and len(value) == len(x) and value.numel() > 0
    several = name != "init_latents" and value.ndim == 5 and value.shape[1] > 0
    return (value[:, 0] if several else value).shape == x.shape


def _check_records(inversion: Inversion) -> None:
    """What was recorded of each image, and of each step."""
    x, residual, trajectory = inversion.latents, inversion.stats.residual, inversion.trajectory
    if "latents" in inversion.state:
        raise ValueError("its state names 'latents', which are no part of it")
    if residual is not None and (residual.dtype != torch.float64 or residual.ndim != 2 or residual.shape[1] != len(x)):
        raise ValueError(f"residual must be float64 (steps, {len(x)}), got {residual.dtype} {tuple(residual.shape)}")
    if trajectory is not None and (
        trajectory.dtype != x.dtype or trajectory.shape[1:] != x.shape or not 1 <= len(trajectory) <= inversion.node + 1
    ):
        raise ValueError(
            f"trajectory must be {x.dtype} (at most {inversion.node + 1}, {', '.join(map(str, x.shape))}), got "
            f"{trajectory.dtype} {tuple(trajectory.shape)}"
        )
    texts = {"prompt": inversion.prompt, "negative_prompt": inversion.negative_prompt}
    for name, each in texts.items():
        if each is not None and len(each) != len(x):
            raise ValueError(f"{name} has {len(each)} texts for {len(x)} images")
    if len(inversion.stats.evaluations) != len(x):
        raise ValueError(f"evaluations has {len(inversion.stats.evaluations)} entries for {len(x)} images")
    found = inversion.stats.decoder_residual
    if found is not None and len(found) != len(x):
        raise ValueError(f"decoder_residual has {len(found)} entries for {len(x)} images")
    for name, kind in PER_IMAGE.items():
        each = inversion.conditions.get(name)
        if each is not None and not (plain.fits(each, kind) and len(each) == len(x)):
            raise ValueError(f"{name} must be {kind} of {len(x)}, got {plain.shown(each)}")
    plain.check(inversion.provenance.get("model"), str | None, "provenance model")
    for name in DIGESTS:
        each = inversion.provenance.get(name)
        if each is not None and not (plain.fits(each, list[str]) and len(each) == len(x)):
            raise ValueError(f"provenance {name} must be one digest an image, got {plain.shown(each)}")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """Tensors of a file, and what it says of itself."""
    with safetensors.safe_open(path, "pt") as file:
        says = file.metadata() or {}
        _check_format(says)
        for name in file.keys():  # noqa: SIM118 (no mapping)
            _check_name(name)
        # Copies: what it gives is the file itself, mapped, and would change with it, or crash where it is cut short.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, says  # noqa: SIM118


def _checked(tensors: dict[str, torch.Tensor], says: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors and JSON that are whole and of this version's schema, the tensors those of an inversion."""
    _check_format(says)
    for name, value in tensors.items():
        _check_name(name)
        if value.dtype not in DTYPES.get(name, REAL):
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.get(name, REAL))
            raise ValueError(f"{name} must be {expected}, got {value.dtype} {tuple(value.shape)}")
    if digest(tensors, says["json"]) != says["sha256"]:
        raise ValueError("its contents do not match its SHA-256, the file is damaged")
    return tensors, says["json"]


def _check_format(says: Mapping[str, str]) -> None:
    if says.get("format") != FORMAT:
        raise ValueError(f"it is no {FORMAT} file (format {says.get('format')!r})")
    if says.get("schema") != str(SCHEMA):
        raise ValueError(f"its schema is {says.get('schema')!r}, this version of invfast reads {SCHEMA}")


def _check_name(name: str) -> None:
    if name not in DTYPES and not (name.startswith("state.") and name != "state."):
        raise ValueError(f"its tensor {plain.shown(name)} is none of {', '.join(DTYPES)} or of a state")

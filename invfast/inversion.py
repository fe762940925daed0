"""The result of `invert`: the latents, everything needed to go back, how the run went; and its file.

A file is one safetensors file. Its tensors are the latents, the state, the schedule and what else was recorded; its
metadata holds the schema version, the rest as JSON, and a SHA-256 over all of it, so that a damaged file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from invfast import methods
from invfast.methods import Method
from invfast.schedule import Schedule

FORMAT, SCHEMA = "invfast.inversion", 1
PER_IMAGE = ("prompt_embeds", "negative_prompt_embeds")
"""Provenance that has one entry an image."""


@dataclass(frozen=True)
class Stats:
    """How a pass over the grid went.

    Args:
        evaluations: network evaluations of each image; under guidance one evaluation runs two samples (EDICT a pair
            of latents, each); null-text and prompt tuning count the branch they tune, of one sample.
        samples: samples the network ran over the whole batch, those of images that were already done included.
        seconds: wall time of the pass, encoding and decoding left out.
        residual: (steps, B) relative residual |f(y) - y| / |f(y)| with which each step of each image ended, float64 on
            the CPU; None for methods that do not measure one.
        runtime: where the network ran, as used, not as asked for.
        dtype: what it computed in.
        device: where its weights were.
        kernels: implementation of the updates between evaluations.
        cuda_graph: whether its steps were captured and replayed as CUDA graphs.
        reason: why it ran in this runtime and dtype.
        precomputed: parts of the network that were computed once, before the loop.
        reached: of each image whether every step taken ended below the tolerance that the method was given, or that its
            target asks for; `residual` says how far off it was. None where there is no tolerance, or a budget decides.
    """

    evaluations: tuple[int, ...]
    samples: int
    seconds: float
    residual: torch.Tensor | None
    runtime: str
    dtype: torch.dtype
    device: str
    kernels: str = "reference"
    cuda_graph: bool = False
    reason: str = ""
    precomputed: tuple[str, ...] = ()
    reached: tuple[bool, ...] | None = None


@dataclass
class Inversion:
    """Latents found by `invert`, with what `reconstruct` needs to return from them.

    Args:
        latents: (B, C, h, w) at node `node`: x_T, the noise, when the run went through. float32 (float64 for a float64
            network), on the network's device.
        init_latents: (B, C, h, w) the encoded images x_0.
        state: what else the method keeps, by name: shaped like the latents (ForwardStart's noise) or several of them an
            image, (B, n, C, h, w) (the maps of NoiseMaps).
        schedule: the grid, shared by both directions.
        method: the Method instance.
        node: how far the run came, `schedule.num_steps` unless it was interrupted.
        prompt: one text an image; None where embeddings were given instead.
        negative_prompt: one text an image, or None.
        guidance_scale: as given.
        stats: how the run went.
        trajectory: (node + 1, B, C, h, w) on the CPU, x_0 first, where it was asked for. With ForwardStart(K) it begins
            at the latent after the jump.
        provenance: names, versions and digests, plain values.

    `len(inversion)` is the number of images; `inversion[2]` and `inversion[:4]` are inversions of some of them, which
    `reconstruct` and `save` take like the whole.
    """

    latents: torch.Tensor
    init_latents: torch.Tensor
    state: dict[str, torch.Tensor]
    schedule: Schedule
    method: Method
    node: int
    prompt: list[str] | None
    negative_prompt: list[str] | None
    guidance_scale: float
    stats: Stats
    trajectory: torch.Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int | slice) -> Inversion:
        """The inversion of some of the images; its tensors are views. Times and counts of samples stay the batch's."""
        if not isinstance(index, slice):
            j = range(len(self))[index]  # also makes a negative one positive, and raises IndexError
            index = slice(j, j + 1)
        stats = self.stats
        residual = None if stats.residual is None else stats.residual[:, index]
        reached = None if stats.reached is None else stats.reached[index]
        return replace(
            self,
            latents=self.latents[index],
            init_latents=self.init_latents[index],
            state={name: value[index] for name, value in self.state.items()},
            prompt=None if self.prompt is None else self.prompt[index],
            negative_prompt=None if self.negative_prompt is None else self.negative_prompt[index],
            stats=replace(stats, evaluations=stats.evaluations[index], residual=residual, reached=reached),
            trajectory=None if self.trajectory is None else self.trajectory[:, index],
            provenance={k: v[index] if k in PER_IMAGE and v else v for k, v in self.provenance.items()},
        )

    def to_tuple(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents, init_latents), what `return_dict=False` returns."""
        return self.latents, self.init_latents

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically: a kill leaves the old file or the new one.

        Raises:
            OSError: the folder does not exist or cannot be written to.
        """
        tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(self).items()}
        text = json.dumps(_plain(self), sort_keys=True)
        metadata = {"format": FORMAT, "schema": str(SCHEMA), "json": text, "sha256": _digest(tensors, text)}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    @torch.inference_mode(False)  # ordinary tensors, whatever is set around
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Inversion:
        """Reads what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an inversion file, a schema this version does not know, damaged, or inconsistent.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"inversion file {str(path)!r} does not exist")
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                _check_metadata(metadata)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if _digest(tensors, metadata["json"]) != metadata["sha256"]:
                raise ValueError("its contents do not match its SHA-256, the file is damaged")
            return _assemble(cls, tensors, json.loads(metadata["json"]), device)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"inversion file {str(path)!r} cannot be used: {error}") from error


def _tensors(inversion: Inversion) -> dict[str, torch.Tensor]:
    schedule = inversion.schedule
    every = {
        "latents": inversion.latents,
        "init_latents": inversion.init_latents,
        "trajectory": inversion.trajectory,
        "residual": inversion.stats.residual,
        "schedule.t": schedule.t,
        "schedule.alpha": schedule.alpha,
        "schedule.source_alpha": schedule.source_alpha,
        **{f"state.{name}": value for name, value in inversion.state.items()},
    }
    return {name: value for name, value in every.items() if value is not None}


def _plain(inversion: Inversion) -> dict[str, Any]:
    schedule, stats = inversion.schedule, inversion.stats
    return {
        "schedule": {
            "prediction_type": schedule.prediction_type,
            "compat": schedule.compat,
            "origin": dict(schedule.origin),
        },
        "method": methods.to_dict(inversion.method),
        "node": inversion.node,
        "prompt": inversion.prompt,
        "negative_prompt": inversion.negative_prompt,
        "guidance_scale": inversion.guidance_scale,
        "stats": {
            **{name: value for name, value in vars(stats).items() if name != "residual"},
            "dtype": str(stats.dtype).removeprefix("torch."),
        },
        "provenance": dict(inversion.provenance),
    }


def _assemble(
    cls: type[Inversion], tensors: dict[str, torch.Tensor], plain: dict[str, Any], device: torch.device | str
) -> Inversion:
    stats = plain["stats"]
    schedule = Schedule(
        tensors["schedule.t"],
        tensors["schedule.alpha"],
        plain["schedule"]["prediction_type"],
        tensors["schedule.source_alpha"],
        plain["schedule"]["compat"],
        plain["schedule"]["origin"],
    )
    state = {name.removeprefix("state."): x.to(device) for name, x in tensors.items() if name.startswith("state.")}
    inversion = cls(
        latents=tensors["latents"].to(device),
        init_latents=tensors["init_latents"].to(device),
        state=state,
        schedule=schedule,
        method=methods.from_dict(plain["method"]),
        node=plain["node"],
        prompt=plain["prompt"],
        negative_prompt=plain["negative_prompt"],
        guidance_scale=plain["guidance_scale"],
        stats=Stats(
            **{
                **stats,
                "evaluations": tuple(stats["evaluations"]),
                "precomputed": tuple(stats.get("precomputed", ())),
                "reached": None if stats.get("reached") is None else tuple(map(bool, stats["reached"])),
                "dtype": _dtype(stats["dtype"]),
                "residual": tensors.get("residual"),
            }
        ),
        trajectory=tensors.get("trajectory"),
        provenance=plain["provenance"],
    )
    _check_shapes(inversion)
    return inversion


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"its stats name {name!r}, which is no dtype of torch")
    return found


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"it is no {FORMAT} file (format {metadata.get('format')!r})")
    if metadata.get("schema") != str(SCHEMA):
        raise ValueError(f"its schema is {metadata.get('schema')!r}, this version of invfast reads {SCHEMA}")


def _check_shapes(inversion: Inversion) -> None:
    """What the digest cannot know: a file that was made wrong, rather than damaged."""
    x, steps = inversion.latents, inversion.schedule.num_steps
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"latents must be float32 or float64 (B, C, h, w), got {x.dtype} {tuple(x.shape)}")
    for name, other in {"init_latents": inversion.init_latents, **inversion.state}.items():
        several = name in inversion.state and other.ndim == 5
        shape = other.shape[:1] + other.shape[2:] if several else other.shape
        if name == "embeds" and other.ndim == 4:  # of texts, (B, n, tokens, width)
            shape = other.shape[:1] + x.shape[1:]
        if shape != x.shape or other.dtype != x.dtype:
            raise ValueError(f"{name} is {other.dtype} {tuple(other.shape)}, latents are {x.dtype} {tuple(x.shape)}")
    if not isinstance(inversion.node, int) or not 0 <= inversion.node <= steps:
        raise ValueError(f"node must lie in 0..{steps}, got {inversion.node!r}")
    for name in ("prompt", "negative_prompt"):
        texts = getattr(inversion, name)
        if texts is not None and len(texts) != len(x):
            raise ValueError(f"{name} has {len(texts)} texts for {len(x)} images")
    if not x.isfinite().all():
        raise ValueError("latents are not finite")


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

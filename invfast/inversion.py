"""The result of `invert`: the latents, everything needed to go back, how the run went; and its file.

A file is one safetensors file, see `stored`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from invfast import batches, methods, plain, preview, stored
from invfast.ambient import neutral
from invfast.files import write_atomically
from invfast.methods import Method
from invfast.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Stats:
    """How a pass over the grid went. Equal are two of the same values, NaN to NaN.

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
        decoder_residual: of each image |E(D(z)) - E(x)| / |E(x)|, how nearly the decoder was inverted; None where
            images were encoded.
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
    decoder_residual: tuple[float, ...] | None = None

    __eq__ = plain.same_fields
    __repr__ = plain.line

    def __hash__(self) -> int:
        return hash((self.evaluations, self.samples, self.seconds))


@dataclass(eq=False)
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
        conditions: what else the network was told, by the names of `invert`'s arguments, plain values: second prompts,
            sizes, class labels.

    `len(inversion)` is the number of images; `inversion[2]` and `inversion[:4]` are inversions of some of them, which
    `reconstruct` and `save` take like the whole. Equal are two whose every field is, bit for bit, on whatever device;
    it can be written to and so has no hash.
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
    conditions: Mapping[str, Any] = field(default_factory=dict)

    __eq__ = plain.same_fields

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int | slice) -> Inversion:
        """The inversion of some of the images; its tensors are views. Times and counts of samples stay the batch's."""
        if not isinstance(index, slice):
            j = range(len(self))[index]  # also makes a negative one positive, and raises IndexError
            index = slice(j, j + 1)
        return batches.some(self, index)

    @classmethod
    def concatenate(cls, inversions: Sequence[Inversion]) -> Inversion:
        """Several inversions as one batch, which `reconstruct` and `save` take like any other.

        Args:
            inversions: of one grid, method, node, guidance scale and network, on one device, their latents of one
                shape and dtype.

        Raises:
            TypeError: no list of inversions.
            ValueError: an empty list, or they differ in what a batch has once; names it.
        """
        return batches.concatenated(cls, inversions)

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Inversion:
        """The same elsewhere: `.to("cuda")`, `.to(torch.float64)`, or both; as with tensors a copy only where needed.

        Stats go on saying how the run went.

        Args:
            device: of latents and state; a dtype may stand in its place, as with tensors.
            dtype: torch.float32 or torch.float64. From float32 to float64 and back is exact.

        Raises:
            ValueError: another dtype.
            RuntimeError: a device that is none, or not there.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return batches.converted(self, device, dtype)

    def __repr__(self) -> str:
        return preview.line(self)

    def _repr_html_(self) -> str:
        return preview.html(self)

    def _each(self, state: Any, condition: Any) -> tuple[Any, Any]:
        """State and condition of every image that `reconstruct` makes of this: one of each."""
        return state, condition

    def to_tuple(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents, init_latents), what `return_dict=False` returns."""
        return self.latents, self.init_latents

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically: a kill leaves the old file or the new one.

        Raises:
            OSError: the folder does not exist or cannot be written to.
        """
        write_atomically(Path(path), save(*self.packed()))

    def packed(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What its file holds: tensors on the CPU, and metadata."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(self).items()}
        return tensors, stored.metadata(tensors, _plain(self))

    @classmethod
    @neutral()
    def unpacked(
        cls, tensors: dict[str, torch.Tensor], says: Mapping[str, str], name: str, device: torch.device | str = "cpu"
    ) -> Inversion:
        """What was `packed`, bit for bit; `name` is what errors call it.

        Raises:
            ValueError: as in `load`.
        """
        return stored.made(name, lambda: (tensors, says), lambda found, values: _assemble(cls, found, values, device))

    @classmethod
    @neutral()
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Inversion:
        """Reads what `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: no such file. Other OSErrors: it cannot be opened.
            ValueError: not an inversion file, a schema this version does not know, damaged, or with values that `save`
                would not have written.
        """
        return stored.load(Path(path), lambda tensors, values: _assemble(cls, tensors, values, device))


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
            "dropped": schedule.dropped,
            "beyond": schedule.beyond,
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
        "conditions": dict(inversion.conditions),
    }


def _assemble(
    cls: type[Inversion], tensors: dict[str, torch.Tensor], values: dict[str, Any], device: torch.device | str
) -> Inversion:
    _check_values(values)
    says, stats = values["schedule"], values["stats"]
    schedule = Schedule(
        tensors["schedule.t"],
        tensors["schedule.alpha"],
        says["prediction_type"],
        tensors["schedule.source_alpha"],
        says["compat"],
        says["origin"],
        says.get("dropped", 0),
        says.get("beyond", 0),
    )
    inversion = cls(
        **{name: value for name, value in values.items() if name not in ("schedule", "method", "stats")},
        latents=tensors["latents"],
        init_latents=tensors["init_latents"],
        state={name.removeprefix("state."): x for name, x in tensors.items() if name.startswith("state.")},
        schedule=schedule,
        method=methods.from_dict(values["method"]),
        stats=Stats(
            **{
                **{name: tuple(value) if isinstance(value, list) else value for name, value in stats.items()},
                "dtype": _dtype(stats["dtype"]),
                "residual": tensors.get("residual"),
            }
        ),
        trajectory=tensors.get("trajectory"),
    )
    stored.check_shapes(inversion)
    return replace(
        inversion,
        latents=inversion.latents.to(device),
        init_latents=inversion.init_latents.to(device),
        state={name: x.to(device) for name, x in inversion.state.items()},
    )


def _check_values(values: Any) -> None:
    """The JSON of a file, by the annotations of what its values are for."""
    plain.check(values, dict, "its JSON")
    plain.check_fields(Inversion, values, "its values")
    for name in ("node", "prompt", "negative_prompt", "guidance_scale", "provenance"):
        if name not in values:
            raise KeyError(name)
    for name in ("schedule", "method", "stats"):
        plain.check(values[name], dict, f"its {name}")
    plain.check_fields(Schedule, values["schedule"], "its schedule")
    plain.check_fields(Stats, values["stats"], "its stats")
    counts = (*values["stats"]["evaluations"], values["stats"]["samples"], values["stats"]["seconds"])
    if min((values["guidance_scale"], *counts)) < 0:
        raise ValueError("guidance_scale, evaluations, samples and seconds cannot be negative")


def _dtype(name: Any) -> torch.dtype:
    found = vars(torch).get(name) if isinstance(name, str) else None  # not getattr, which imports some of torch's parts
    if not isinstance(found, torch.dtype):
        raise ValueError(f"its stats name {plain.shown(name)}, which is no dtype of torch")
    return found

"""Inversion as a task of the batch engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from invfast import api, loading
from invfast.batch.task import Result, Run
from invfast.images import Frame
from invfast.inversion import Inversion
from invfast.methods import spelling


@dataclass(frozen=True)
class Invert:
    """Each image's inversion, as `invert` with these settings finds it.

    Args:
        model: "" for the bundled pipeline, a folder, a .safetensors file, or a hub id.
        method: as on a command line, see `methods.spelling`.
        steps: of the grid.
        guidance: guidance scale.
        size: (width, height) in pixels, or the side of a square; None keeps the images' own, and runs those of one size
            together.
        dtype: the network's, by name; None is the pipeline's.
        seed: for methods that draw noise; every image has noise of its own, by its id.
        device: None is cuda where there is one.
        runtime: where the network runs.
        fit: how images come to that size, see `images.Frame`.
        config: of a model that is a single file: a folder or hub id of a diffusers pipeline of its kind.

    Device and runtime are no part of the ids: a run that was begun on one machine goes on on another.
    """

    model: str = ""
    method: str = "auto"
    steps: int = 50
    guidance: float = 1.0
    size: int | tuple[int, int] | None = None
    dtype: str | None = None
    seed: int = 23530
    device: str | None = None
    runtime: str = "auto"
    fit: str = "crop"
    config: str = ""

    def __post_init__(self) -> None:
        _ = self.frame  # refused here, not at the first image

    @property
    def frame(self) -> Frame | None:
        if self.size is None:
            return None
        return Frame(*((self.size, self.size) if isinstance(self.size, int) else self.size), self.fit)

    def configuration(self) -> dict[str, Any]:
        """Raises ValueError where the method is none."""
        return {
            "task": "invert",
            "model": self.model,
            "files": loading.digest(self.model, self.config),
            "method": repr(spelling.parse(self.method)),
            "steps": self.steps,
            "guidance": float(self.guidance),
            "size": None if self.frame is None else [*self.frame.size, self.fit],
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def memory(self) -> int:
        return total_memory(self.device)

    def prepare(self, check: Callable[[], None]) -> Run:
        pipe = self.load()

        def run(images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]) -> list[Result]:
            found = api.invert(pipe, list(images), list(prompts), **self.options(seeds, check))
            return [_result(found[j]) for j in range(len(found))]

        return run

    def load(self) -> Any:
        """The pipeline."""
        pipe = loading.load(self.model, self.device, self.config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def options(self, seeds: Sequence[int], check: Callable[[], None]) -> dict[str, Any]:
        """What `invert` is told beside pipeline, images and prompts."""
        return {
            "method": spelling.parse(self.method),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": self.frame and self.frame.height,
            "width": self.frame and self.frame.width,
            "dtype": self.dtype,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "runtime": self.runtime,
            "callback_on_step_end": lambda *_: check(),
            "callback_on_step_end_tensor_inputs": (),
        }


def _result(inversion: Inversion) -> Result:
    tensors, says = inversion.packed()
    return Result(tensors, stats_of(inversion), says)


def stats_of(inversion: Inversion) -> dict[str, Any]:
    """Of one image, for the index."""
    stats = inversion.stats
    return {
        "evaluations": stats.evaluations[0],
        "residual": None if stats.residual is None else float(stats.residual.max()),
        "reached": None if stats.reached is None else stats.reached[0],
        "runtime": stats.runtime,
        "dtype": str(stats.dtype).removeprefix("torch."),
    }


def total_memory(device: str | None) -> int:
    """Bytes of a device, all of them, for what is free changes from run to run; None is cuda where there is one."""
    if torch.cuda.is_available() and torch.device(device or "cuda").type == "cuda":
        return torch.cuda.get_device_properties(torch.device(device or "cuda")).total_memory
    if not hasattr(os, "sysconf"):
        return 8 << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

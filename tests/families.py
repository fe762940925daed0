"""Every family of pipelines, by diffusers' classes: small ones of random weights, and what each is tested for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from test_unconditional import pixel_pipeline
from tiny import stable_diffusion, stable_diffusion_xl

BARE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def as_class(cls: type, make: Callable[[], Any] = stable_diffusion) -> Any:
    """A pipeline of another class around the parts of one."""
    return cls(**{**make().components, **BARE})


@dataclass(frozen=True)
class Family:
    """One row of the table in docs/families.md.

    Args:
        pipelines: what makes one of each class that is let in.
        shape: of latents, odd ones where the network takes them.
        scales: of guidance.
        precomputes: what is computed once.
        exports: runtimes that make something of the network, beside eager.
        told: further arguments of `invert`, for a batch of three.
    """

    pipelines: Mapping[type, Callable[[], Any]]
    shape: tuple[int, int, int]
    scales: tuple[float, ...]
    precomputes: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("compile", "openvino", "onnxruntime")
    told: Mapping[str, Any] = field(default_factory=dict)


LCM = functools.partial(stable_diffusion, time_cond_proj_dim=8)
FAMILIES = {
    "Stable Diffusion 1.x, 2.x (Turbo)": Family(
        {
            StableDiffusionPipeline: stable_diffusion,
            StableDiffusionImg2ImgPipeline: lambda: as_class(StableDiffusionImg2ImgPipeline),
            StableDiffusionInpaintPipeline: lambda: as_class(StableDiffusionInpaintPipeline),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("prompt", "times"),
    ),
    "Latent consistency models": Family(
        {
            LatentConsistencyModelPipeline: lambda: as_class(LatentConsistencyModelPipeline, LCM),
            LatentConsistencyModelImg2ImgPipeline: lambda: as_class(LatentConsistencyModelImg2ImgPipeline, LCM),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("prompt",),
    ),
    "Stable Diffusion XL (Turbo, Lightning)": Family(
        {
            StableDiffusionXLPipeline: stable_diffusion_xl,
            StableDiffusionXLImg2ImgPipeline: lambda: stable_diffusion_xl(StableDiffusionXLImg2ImgPipeline),
            StableDiffusionXLInpaintPipeline: lambda: stable_diffusion_xl(StableDiffusionXLInpaintPipeline),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("prompt", "times"),
    ),
    "Pixel space": Family(
        {DDIMPipeline: lambda: pixel_pipeline(DDIMPipeline), DDPMPipeline: lambda: pixel_pipeline(DDPMPipeline)},
        (3, 14, 10),
        (1.0,),
    ),
    "Pixel space, classes and learned variance (ADM)": Family(
        {DDIMPipeline: lambda: pixel_pipeline(DDIMPipeline, out_channels=6, num_class_embeds=10)},
        (3, 14, 10),
        (1.0,),
        told={"class_labels": [1, 2, 3]},
    ),
}


def table() -> str:
    """What docs/families.md says, in Markdown."""
    lines = [
        "| family | classes of diffusers | both ways | guidance | precomputed | runtimes beside eager | graphs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        classes = ", ".join(f"`{cls.__name__}`" for cls in family.pipelines)
        guidance = "yes" if len(family.scales) > 1 else "no"
        lines.append(
            f"| {name} | {classes} | yes | {guidance} | {', '.join(family.precomputes) or 'nothing'} | "
            f"{', '.join(family.exports)} | yes |"
        )
    return "\n".join(lines)

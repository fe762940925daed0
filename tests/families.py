"""Every family of pipelines, by diffusers' classes: small ones of random weights, and what each is tested for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DiTPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    IFPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)
from test_unconditional import pixel_pipeline
from tiny import (
    BARE,
    deepfloyd,
    latent_diffusion,
    seeded,
    stable_diffusion,
    stable_diffusion_xl,
)
from tiny_steering import control_images, image_prompts, several_control_images, with_controlnets, with_image_prompts
from tiny_transformers import dit, flux, pixart, qwen_image, sana, stable_diffusion_3, z_image


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
        told: further arguments of `invert` and `reconstruct`, for some images of a batch and a guidance.
        texts: whether it takes prompts.
    """

    pipelines: Mapping[type, Callable[[], Any]]
    shape: tuple[int, int, int]
    scales: tuple[float, ...]
    precomputes: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("compile", "openvino", "onnxruntime")
    told: Callable[[Sequence[int], float], dict[str, Any]] = lambda images, scale: {}
    texts: bool = False


def labels(images: Sequence[int], scale: float) -> dict[str, Any]:
    return {"class_labels": [j + 1 for j in images]}


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
        texts=True,
    ),
    "Latent consistency models": Family(
        {
            LatentConsistencyModelPipeline: lambda: as_class(LatentConsistencyModelPipeline, LCM),
            LatentConsistencyModelImg2ImgPipeline: lambda: as_class(LatentConsistencyModelImg2ImgPipeline, LCM),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("prompt",),
        texts=True,
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
        texts=True,
    ),
    "Stable Diffusion with an IP-Adapter": Family(
        {
            StableDiffusionPipeline: lambda: with_image_prompts(lambda: as_class(StableDiffusionPipeline)),
            StableDiffusionImg2ImgPipeline: lambda: with_image_prompts(
                lambda: as_class(StableDiffusionImg2ImgPipeline)
            ),
            StableDiffusionInpaintPipeline: lambda: with_image_prompts(
                lambda: as_class(StableDiffusionInpaintPipeline)
            ),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("times",),
        told=image_prompts,
        texts=True,
    ),
    "Stable Diffusion XL with an IP-Adapter": Family(
        {
            StableDiffusionXLPipeline: lambda: with_image_prompts(
                lambda: stable_diffusion_xl(StableDiffusionXLPipeline)
            ),
            StableDiffusionXLImg2ImgPipeline: lambda: with_image_prompts(
                lambda: stable_diffusion_xl(StableDiffusionXLImg2ImgPipeline)
            ),
            StableDiffusionXLInpaintPipeline: lambda: with_image_prompts(
                lambda: stable_diffusion_xl(StableDiffusionXLInpaintPipeline)
            ),
        },
        (4, 9, 7),
        (1.0, 3.0),
        ("times",),
        told=image_prompts,
        texts=True,
    ),
    "Stable Diffusion with a ControlNet": Family(
        {
            StableDiffusionControlNetPipeline: lambda: with_controlnets(StableDiffusionControlNetPipeline),
            StableDiffusionControlNetImg2ImgPipeline: lambda: with_controlnets(
                StableDiffusionControlNetImg2ImgPipeline
            ),
            StableDiffusionControlNetInpaintPipeline: lambda: with_controlnets(
                StableDiffusionControlNetInpaintPipeline
            ),
        },
        (4, 9, 7),
        (1.0, 3.0),
        told=control_images,
        texts=True,
    ),
    "Stable Diffusion XL with a ControlNet": Family(
        {
            StableDiffusionXLControlNetPipeline: lambda: with_controlnets(
                StableDiffusionXLControlNetPipeline, stable_diffusion_xl
            ),
            StableDiffusionXLControlNetImg2ImgPipeline: lambda: with_controlnets(
                StableDiffusionXLControlNetImg2ImgPipeline, stable_diffusion_xl
            ),
            StableDiffusionXLControlNetInpaintPipeline: lambda: with_controlnets(
                StableDiffusionXLControlNetInpaintPipeline, stable_diffusion_xl
            ),
        },
        (4, 9, 7),
        (1.0, 3.0),
        told=control_images,
        texts=True,
    ),
    "Several ControlNets": Family(
        {StableDiffusionControlNetPipeline: lambda: with_controlnets(StableDiffusionControlNetPipeline, count=2)},
        (4, 9, 7),
        (1.0, 3.0),
        told=several_control_images,
        texts=True,
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
        told=labels,
    ),
    "Latent diffusion without text": Family({LDMPipeline: lambda: seeded(latent_diffusion)}, (4, 8, 6), (1.0,)),
    "DeepFloyd IF, first stage": Family(
        {IFPipeline: lambda: seeded(deepfloyd)},
        (3, 14, 10),
        (1.0, 3.0),
        exports=("compile", "onnxruntime"),
        texts=True,
    ),
    "Stable Diffusion 3, 3.5": Family(
        {
            StableDiffusion3Pipeline: stable_diffusion_3,
            StableDiffusion3Img2ImgPipeline: lambda: stable_diffusion_3(StableDiffusion3Img2ImgPipeline),
            StableDiffusion3InpaintPipeline: lambda: stable_diffusion_3(StableDiffusion3InpaintPipeline),
        },
        (16, 10, 6),
        (1.0, 3.0),
        texts=True,
    ),
    "FLUX.1 (dev, schnell)": Family(
        {
            FluxPipeline: flux,
            FluxImg2ImgPipeline: lambda: flux(FluxImg2ImgPipeline),
            FluxInpaintPipeline: lambda: flux(FluxInpaintPipeline, guidance_embeds=False),
        },
        (16, 10, 6),
        (1.0, 3.5),
        texts=True,
    ),
    "Qwen-Image": Family(
        {
            QwenImagePipeline: qwen_image,
            QwenImageImg2ImgPipeline: lambda: qwen_image(QwenImageImg2ImgPipeline),
            QwenImageInpaintPipeline: lambda: qwen_image(QwenImageInpaintPipeline),
        },
        (16, 10, 6),
        (1.0, 4.0),
        exports=("compile",),
        texts=True,
    ),
    "Z-Image (Turbo)": Family(
        {
            ZImagePipeline: z_image,
            ZImageImg2ImgPipeline: lambda: z_image(ZImageImg2ImgPipeline),
            ZImageInpaintPipeline: lambda: z_image(ZImageInpaintPipeline),
        },
        (16, 10, 6),
        (1.0, 4.0),
        exports=("compile",),
        texts=True,
    ),
    "Sana": Family({SanaPipeline: sana}, (16, 9, 7), (1.0, 4.5), exports=("compile", "openvino"), texts=True),
    "PixArt-alpha, -sigma": Family(
        {PixArtSigmaPipeline: pixart, PixArtAlphaPipeline: lambda: pixart(PixArtAlphaPipeline, 128)},
        (4, 10, 6),
        (1.0, 4.5),
        exports=("compile", "openvino"),
        texts=True,
    ),
    "DiT": Family({DiTPipeline: lambda: seeded(dit)}, (4, 8, 8), (1.0, 3.0), told=labels),
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

"""Every family of pipelines, by diffusers' classes: small ones of random weights, and what each is tested for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
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
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    VQModel,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)
from test_unconditional import pixel_pipeline
from tiny import (
    SD,
    TOKENIZER,
    autoencoder,
    contracting,
    pixel_unet,
    seeded,
    stable_diffusion,
    stable_diffusion_xl,
)
from tiny_transformers import flux, pixart, qwen_image, sana, stable_diffusion_3, z_image
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

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
        texts: whether it takes prompts.
    """

    pipelines: Mapping[type, Callable[[], Any]]
    shape: tuple[int, int, int]
    scales: tuple[float, ...]
    precomputes: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("compile", "openvino", "onnxruntime")
    told: Mapping[str, Any] = field(default_factory=dict)
    texts: bool = False


def latent_diffusion(channels: int = 4) -> LDMPipeline:
    unet = pixel_unet(in_channels=channels, out_channels=channels)
    vae = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )
    return LDMPipeline(vqvae=vae.eval(), unet=unet, scheduler=DDIMScheduler(**SD))


def deepfloyd() -> IFPipeline:
    unet = UNet2DConditionModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=32,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        time_embedding_act_fn="gelu",
        class_embed_type=None,
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    text = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()
    return IFPipeline(tokenizer, text, contracting(unet, unet.conv_out), DDIMScheduler(**SD), None, None, None, False)


def dit() -> DiTPipeline:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(contracting(network, network.proj_out_2), autoencoder(), DDIMScheduler(**SD))


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
    "DiT": Family({DiTPipeline: lambda: seeded(dit)}, (4, 8, 8), (1.0, 3.0), told={"class_labels": [1, 2, 3]}),
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

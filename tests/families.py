"""Every family of pipelines, by diffusers' classes: small ones of random weights, and what each is tested for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
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
    MultiControlNetModel,
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
    UNet2DConditionModel,
    VQModel,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)
from diffusers.models.embeddings import IPAdapterPlusImageProjection
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
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

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


def with_image_prompts(make: Callable[[], Any] = stable_diffusion, kinds: Sequence[str] = ("plain",)) -> Any:
    """A pipeline with IP-Adapters of random weights, "plain" or "plus", and an image encoder."""

    def made() -> Any:
        pipe = make()
        pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet) for _ in kinds])
        layers = pipe.unet.encoder_hid_proj.image_projection_layers
        for j, kind in enumerate(kinds):
            if kind == "plus":
                width = pipe.unet.config.cross_attention_dim
                layers[j] = IPAdapterPlusImageProjection(32, width, 64, depth=1, dim_head=32, heads=2, num_queries=4)
        pipe.unet.eval()
        encoder = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        size = {"height": 32, "width": 32}
        pipe.register_modules(
            image_encoder=CLIPVisionModelWithProjection(encoder).eval(),
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        )
        return pipe

    return seeded(made)


WIDTH = 24
"""Of an image's embedding; the encoder's hidden states have 32."""


def ip_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of one, by the names of the published files, random and large enough to be seen."""
    width = unet.config.cross_attention_dim
    layers = [part for name, part in unet.named_modules() if name.endswith("attn2")]
    cross = {
        f"{2 * j + 1}.{each}_ip.weight": torch.randn(layer.inner_dim, width)
        for j, layer in enumerate(layers)
        for each in ("to_k", "to_v")
    }
    proj = {"proj.weight": torch.randn(4 * width, WIDTH), "proj.bias": torch.zeros(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": proj | norm, "ip_adapter": cross}


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """One that steers: the layers that training begins at zero are random."""
    same = unet.config.time_cond_proj_dim is None  # else one layer is another
    channels = {"conditioning_embedding_out_channels": (8, 8, 8, 16)}
    net = ControlNetModel.from_unet(unet, **channels, load_weights_from_unet=same)
    with torch.no_grad():
        for part in (net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block, *net.controlnet_down_blocks):
            torch.nn.init.normal_(part.weight, std=0.1)
    return net.eval()


def with_controlnets(cls: type, make: Callable[[], Any] = stable_diffusion, count: int = 1) -> Any:
    """A pipeline of a class with a ControlNet, or several."""

    def made() -> Any:
        parts = make().components
        nets = [controlnet(parts["unet"]) for _ in range(count)]
        more = BARE if "safety_checker" in parts else {"add_watermarker": False}
        return cls(**{**parts, **more}, controlnet=nets[0] if count == 1 else MultiControlNetModel(nets))

    return seeded(made)


def drawn(images: Sequence[int], *shape: int) -> torch.Tensor:
    """Numbers in [0, 1) for some images of a batch, each image its own."""
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(50 + j)) for j in images])


def image_prompts(images: Sequence[int], scale: float) -> dict[str, Any]:
    """Embeddings of two images to look like for each, the unconditional ones first."""
    shown = drawn(images, 2, WIDTH)
    return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(shown), shown]) if scale > 1 else shown]}


def control_images(images: Sequence[int], scale: float) -> dict[str, Any]:
    return {"control_image": drawn(images, 3, 72, 56), "controlnet_conditioning_scale": 0.75}


def several_control_images(images: Sequence[int], scale: float) -> dict[str, Any]:
    shown = drawn(images, 2, 3, 72, 56)
    return {"control_image": [shown[:, 0], shown[:, 1]], "controlnet_conditioning_scale": [0.75, 0.5]}


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

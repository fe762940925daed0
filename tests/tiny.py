"""Small randomly initialised pipelines built from diffusers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    IFPipeline,
    LDMPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from invfast import demo
from invfast.denoiser import axes
from invfast.fingerprint import fingerprint
from invfast.runtimes import Spec

TOKENIZER = demo.ROOT / "emoji64" / "tokenizer"
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def sdxl_unet(width: int = 32, **config) -> UNet2DConditionModel:
    """Shaped like SDXL's, for pooled embeddings of 16 numbers."""
    return UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 2),
            "cross_attention_dim": width,
            "attention_head_dim": (2, 4, 4),
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
            **config,
        }
    )


def spec(module, example_inputs, dtype=torch.float32, device="cpu", **changes) -> Spec:
    """What a runtime is told of a UNet."""
    factor = 2 ** max(0, len(getattr(getattr(module, "unet", module), "up_blocks", ())) - 1)
    factor = 1 if hasattr(module, "controlnet") else factor  # its control images have sides as well
    given = {"identity": lambda: fingerprint(module).exact, "axes": axes(example_inputs, factor), **changes}
    return Spec(torch.device(device), dtype, **given)


BARE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
QUICK = {"num_inference_steps": 4}
"""Arguments of `invert` for tests that do not care about the grid."""


def seeded(make: Callable[[], Any]) -> Any:
    """A pipeline of weights from a fixed seed, silent; the caller's random numbers stay."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    pipe = make()
    torch.set_rng_state(state)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def contracting(network: torch.nn.Module, last: torch.nn.Module) -> torch.nn.Module:
    """In eval mode, and less steep, as trained networks are; random ones need not contract."""
    with torch.no_grad():
        last.weight *= 0.1
    return network.eval()


def stable_diffusion(
    scheduler=None,
    time_cond_proj_dim: int | None = None,
    in_channels: int = 4,
    force_upcast: bool = True,
    steep: bool = False,
) -> StableDiffusionPipeline:
    """Shaped like Stable Diffusion 1.x (three levels, VAE factor 8); steep, fixed points are hard to find in it."""

    def make() -> StableDiffusionPipeline:
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=in_channels,
            out_channels=4,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        vae, tokenizer = autoencoder(force_upcast=force_upcast), PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            unet=unet if steep else contracting(unet, unet.conv_out),
            scheduler=DDIMScheduler(**SD) if scheduler is None else scheduler,
            **BARE,
        )

    return seeded(make)


def stable_diffusion_xl(cls=StableDiffusionXLPipeline, scheduler=None, vae=None, **config) -> StableDiffusionXLPipeline:
    """Shaped like SDXL: two text encoders, pooled embeddings, sizes."""

    def make() -> StableDiffusionXLPipeline:
        unet, tokenizer = sdxl_unet(64, **config), PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        return cls(
            unet=contracting(unet, unet.conv_out),
            vae=autoencoder(scaling_factor=4.0) if vae is None else vae,
            text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, projection_dim=16)).eval(),
            tokenizer=tokenizer,
            tokenizer_2=PreTrainedTokenizerFast.from_pretrained(TOKENIZER),
            scheduler=DDIMScheduler(**SD) if scheduler is None else scheduler,
            add_watermarker=False,
        )

    return seeded(make)


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


def pixel_unet(**config) -> UNet2DModel:
    """Of two levels, without text."""
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    )
    return contracting(unet, unet.conv_out)


def autoencoder(**config) -> AutoencoderKL:
    """Three halvings, as those of Stable Diffusion."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        **config,
    )


def text_config(tokenizer, **config) -> CLIPTextConfig:
    """Of a text encoder of one layer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        eos_token_id=2,
        **config,
    )

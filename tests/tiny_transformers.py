"""Small randomly initialised pipelines whose networks are transformers, built from diffusers' own classes."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny import SD, TOKENIZER, autoencoder, contracting, seeded, text_config
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)


def text_of(cls, **config):
    """A small text encoder of a class of transformers', with its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    if cls is T5EncoderModel:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, **config}
        return cls(T5Config(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer
    return cls(text_config(tokenizer, **config)).eval(), tokenizer


def flow_vae() -> AutoencoderKL:
    """Of 16 channels, with a shift."""
    return autoencoder(latent_channels=16, scaling_factor=1.5, shift_factor=0.1)


def stable_diffusion_3(
    cls=StableDiffusion3Pipeline, scheduler=None, third: bool = True, **config
) -> StableDiffusion3Pipeline:
    """Shaped like SD3: three text encoders, patches of 2 x 2."""

    def make() -> StableDiffusion3Pipeline:
        network = SD3Transformer2DModel(
            **{
                "sample_size": 16,
                "patch_size": 2,
                "in_channels": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "joint_attention_dim": 64,
                "caption_projection_dim": 32,
                "pooled_projection_dim": 32,
                "out_channels": 16,
                "pos_embed_max_size": 16,
                **config,
            }
        )
        first, second = (text_of(CLIPTextModelWithProjection, projection_dim=16) for _ in range(2))
        last = text_of(T5EncoderModel, d_model=64) if third else (None, None)
        return cls(
            transformer=contracting(network, network.proj_out),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler,
            vae=flow_vae(),
            text_encoder=first[0],
            tokenizer=first[1],
            text_encoder_2=second[0],
            tokenizer_2=second[1],
            text_encoder_3=last[0],
            tokenizer_3=last[1],
        )

    return seeded(make)


FLUX_SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def flux(cls=FluxPipeline, scheduler=None, guidance_embeds: bool = True, layers: int = 1) -> FluxPipeline:
    """Shaped like FLUX.1-dev: T5 and a pooled text, positions by rotation, guidance as an input."""

    def make() -> FluxPipeline:
        network = FluxTransformer2DModel(
            in_channels=64,
            num_layers=layers,
            num_single_layers=layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        text, tokenizer = text_of(CLIPTextModel)
        second, tokenizer_2 = text_of(T5EncoderModel)
        return cls(
            transformer=contracting(network, network.proj_out),
            scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SHIFT) if scheduler is None else scheduler,
            vae=flow_vae(),
            text_encoder=text,
            tokenizer=tokenizer,
            text_encoder_2=second,
            tokenizer_2=tokenizer_2,
        )

    return seeded(make)


def qwen_image(cls=QwenImagePipeline, scheduler=None) -> QwenImagePipeline:
    """Shaped like Qwen-Image: a video's VAE, positions by rotation, texts as long as they are."""

    def make() -> QwenImagePipeline:
        network = QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
        text = {**sizes, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope}
        text |= {"bos_token_id": 1, "eos_token_id": 2}
        sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))
        pipe = cls(
            transformer=contracting(network, network.proj_out),
            scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SHIFT) if scheduler is None else scheduler,
            vae=AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1).eval(),
            text_encoder=encoder.eval(),
            tokenizer=tokenizer,
        )
        pipe.prompt_template_encode_start_idx = 20  # the bundled tokenizer knows few of the template's words
        return pipe

    return seeded(make)


def z_image(cls=ZImagePipeline, scheduler=None) -> ZImagePipeline:
    """Shaped like Z-Image: one stream of image and text, each filled up to multiples of 32."""

    def make() -> ZImagePipeline:
        network = ZImageTransformer2DModel(
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 64, 64],
        )
        with torch.no_grad():  # zeros as they are made
            network.x_pad_token.normal_()
            network.cap_pad_token.normal_()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=len(tokenizer))
        return cls(
            transformer=contracting(network, network.all_final_layer["2-1"].linear),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler,
            vae=flow_vae(),
            text_encoder=Qwen3Model(text).eval(),
            tokenizer=tokenizer,
        )

    return seeded(make)


def sana(scheduler=None) -> SanaPipeline:
    """Shaped like Sana: a deeply compressing VAE, a text encoder that only looks back."""

    def make() -> SanaPipeline:
        network = SanaTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=32,
            patch_size=1,
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=len(tokenizer))
        kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
        vae = AutoencoderDC(
            latent_channels=16,
            encoder_block_out_channels=(8, 8, 16, 16),
            decoder_block_out_channels=(8, 8, 16, 16),
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41,
            **kinds,
        )
        return SanaPipeline(
            transformer=contracting(network, network.proj_out),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler,
            vae=vae.eval(),
            text_encoder=Gemma2Model(text).eval(),
            tokenizer=tokenizer,
        )

    return seeded(make)


def pixart(cls=PixArtSigmaPipeline, sample_size: int = 32) -> PixArtSigmaPipeline:
    """Shaped like PixArt-sigma, or, with a size of 128, like PixArt-alpha at 1024 pixels, which is told of them."""

    def make() -> PixArtSigmaPipeline:
        network = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            norm_num_groups=4,
            cross_attention_dim=24,
            sample_size=sample_size,
            caption_channels=32,
            use_additional_conditions=sample_size == 128,
        )
        text, tokenizer = text_of(T5EncoderModel)
        return cls(
            transformer=contracting(network, network.proj_out),
            scheduler=DDIMScheduler(**SD),
            vae=autoencoder(),
            text_encoder=text,
            tokenizer=tokenizer,
        )

    return seeded(make)


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

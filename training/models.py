"""The networks' shapes, with fresh weights from a seed."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from training.data import words

TOKENS = 12
WIDTH = 128  # of the text encoder
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler(**changes: object) -> DDIMScheduler:
    """Stable Diffusion's schedule, on the grid inversion papers use."""
    return DDIMScheduler(**{**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **changes})


def vae(seed: int = 0) -> AutoencoderKL:
    """Factor 4, 4 channels, no attention."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        force_upcast=False,
    ).to(memory_format=torch.channels_last)


def unet(seed: int = 0) -> UNet2DConditionModel:
    """Latents (4, 16, 16), cross-attention at 16 and 8 px and in the middle."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def pixel_unet(seed: int = 0) -> UNet2DModel:
    """32 px pictures, attention at 8 px."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
    ).to(memory_format=torch.channels_last)


def tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Word level: lower case, one token a word, 12 tokens with begin and end."""
    special = ["<pad>", "<bos>", "<eos>"]
    known = special + sorted({word for caption in captions for word in words(caption)})
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<pad>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9_]+"), "removed")
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=TOKENS, **names)


def text_encoder(vocabulary: int, seed: int = 0) -> CLIPTextModel:
    """Two layers of width 128."""
    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


class Denoiser(torch.nn.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        self.unet = unet(seed)
        self.text_encoder = text_encoder(vocabulary, seed + 1)

    def forward(self, latents: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted noise (n, 4, 16, 16) at integer times (n,) under token ids (n, 12)."""
        return self.unet(latents, times, self.text_encoder(tokens).last_hidden_state).sample

"""The networks' shapes, with fresh weights from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from training.data import words

TOKENS = 12
WIDTH = 128  # of the text encoder
SECOND_WIDTH = 64  # of the flow's second one
NO_T5 = 256  # rows of zeros
FLOW_SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
"""transformers pools a CLIP whose end is token 2 at the largest id instead, which would be any word's."""
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


def transformer(seed: int = 0) -> SD3Transformer2DModel:
    """Latents (4, 16, 16) as 64 tokens, with room for (4, 32, 32); widths as the two text encoders give them."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=4,
        caption_projection_dim=128,
        joint_attention_dim=WIDTH + SECOND_WIDTH,
        pooled_projection_dim=WIDTH + SECOND_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def tokenizer(captions: list[str], special: Sequence[str] = ("<pad>", "<bos>", "<eos>")) -> PreTrainedTokenizerFast:
    """Word level: lower case, one token a word, 12 tokens with begin and end."""
    known = [*special, *sorted({word for caption in captions for word in words(caption)})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<pad>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z0-9_]+"), "removed")
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A $B <eos>",
        special_tokens=[(name, special.index(name)) for name in ("<bos>", "<eos>")],
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=TOKENS, **names)


def text_encoder(vocabulary: int, seed: int = 0) -> CLIPTextModel:
    """Two layers of width 128."""
    torch.manual_seed(seed)
    return CLIPTextModel(_clip(vocabulary, WIDTH, 2, 2))


def _clip(vocabulary: int, width: int, layers: int, end: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=end,
    )


class Denoiser(torch.nn.Module):
    """UNet and text encoder, trained as one; its parts are named as the pipeline's."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        self.unet = unet(seed)
        self.text_encoder = text_encoder(vocabulary, seed + 1)

    def forward(self, latents: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted noise (n, 4, 16, 16) at integer times (n,) under token ids (n, 12)."""
        return self.unet(latents, times, self.text_encoder(tokens).last_hidden_state).sample


class FlowDenoiser(torch.nn.Module):
    """Stable Diffusion 3's transformer and its first two text encoders, trained as one; parts named as the pipeline's.

    Where the third encoder belongs the pipeline puts 256 rows of zeros. The transformer gives text no positions, so
    they stay equal in every block: here one row stands for them, and counts 256 times where tokens attend.
    """

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        self.transformer = transformer(seed)
        end = FLOW_SPECIAL.index("<eos>")
        self.text_encoder = CLIPTextModelWithProjection(_clip(vocabulary, WIDTH, 2, end))
        self.text_encoder_2 = CLIPTextModelWithProjection(_clip(vocabulary, SECOND_WIDTH, 1, end))

    def forward(self, latents: torch.Tensor, times: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted velocity (n, 4, 16, 16) at times 1000 sigma (n,) under token ids (n, 12)."""
        told = [encoder(tokens, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        states = torch.cat([each.hidden_states[-2] for each in told], -1)
        with _LastKeyCounts(NO_T5):
            return self.transformer(
                latents,
                torch.cat([states, torch.zeros_like(states[:, :1])], 1),
                torch.cat([each.text_embeds for each in told], -1),
                times,
                return_dict=False,
            )[0]


class _LastKeyCounts(TorchFunctionMode):
    """Attention as if the last key stood there `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.bias = math.log(times)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            mask = torch.zeros(1, 1, 1, args[1].shape[-2])
            mask[..., -1] = self.bias
            kwargs = {**(kwargs or {}), "attn_mask": mask}
        return func(*args, **(kwargs or {}))

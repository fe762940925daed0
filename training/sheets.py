"""Sample sheets: what a network makes at this point of its training, to be looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DiffusionPipeline

from invfast.figures import grid
from invfast.images import to_pil
from training import models
from training.batches import as_tensor, centred, crop
from training.data import Data

PROMPTS = ["noto peach", "twemoji soccer ball", "noto cat face", "noto tulip", "twemoji slice of pizza"]
PROMPTS += ["twemoji rocket", "noto strawberry", "twemoji owl", "noto red apple", "noto guitar", "photo coffee"]
Sheet = Callable[[torch.nn.Module, int], None]


def round_trip(data: Data, folder: Path) -> Sheet:
    """Pictures above, rebuilt below."""
    rng = np.random.default_rng(7)
    items = [centred(item) for item in data.held_emoji[:4] + data.emoji[:2]]
    pictures = as_tensor(items + [crop(item, rng) for item in data.held_photos + data.photos[:4]])

    def sheet(vae: AutoencoderKL, step: int) -> None:
        with torch.inference_mode():
            rebuilt = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        _save([pictures, rebuilt], folder, step)

    return sheet


def emoji(folder: Path) -> Sheet:
    """Sixteen pictures from noise by the pixel-space network."""

    def sheet(unet: torch.nn.Module, step: int) -> None:
        pipe = DDIMPipeline(unet, models.scheduler())
        pipe.set_progress_bar_config(disable=True)
        made = pipe(16, torch.Generator().manual_seed(7), num_inference_steps=50, output_type="np").images
        rows = torch.from_numpy(made).permute(0, 3, 1, 2) * 2 - 1
        _save([rows[:8], rows[8:]], folder, step)

    return sheet


def prompts(pipe: DiffusionPipeline, folder: Path) -> Sheet:
    """Some captions at guidance 3, from two noises; `pipe` takes the trained networks."""

    def sheet(denoiser: torch.nn.Module, step: int) -> None:
        pipe.register_modules(**dict(denoiser.named_children()))
        rows = []
        for seed in (7, 8):
            noise = torch.Generator().manual_seed(seed)
            made = pipe(PROMPTS, guidance_scale=3, num_inference_steps=50, generator=noise, output_type="pt").images
            rows.append(made * 2 - 1)
        _save(rows, folder, step)

    return sheet


def _save(rows: list[torch.Tensor], folder: Path, step: int) -> None:
    pictures = [to_pil(row.clamp(-1, 1) / 2 + 0.5) for row in rows]
    grid(pictures, [""] * len(pictures[0]), [""] * len(pictures), cell=96).save(folder / f"sheet-{step:06d}.png")

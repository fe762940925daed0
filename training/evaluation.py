"""One table for any weights, so that a new model can be held against the old one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.table import Table

from training.batches import as_tensor, centred, crop, draw
from training.data import Data, Emoji
from training.loop import console
from training.objectives import noise_loss

GUIDANCE, STEPS = 3.0, 50
SEED = 2026


def table(folders: Sequence[Path], data: Data, captions: int) -> dict[str, dict[str, float]]:
    """Prints, and returns, a column a folder."""
    columns = {}
    for folder in folders:
        pipe = load(folder)
        columns[str(folder)] = {
            "round trip, trained emoji, dB": round_trip(pipe, [centred(item) for item in data.emoji[::8]]),
            "round trip, held-out emoji, dB": round_trip(pipe, [centred(item) for item in data.held_emoji]),
            "round trip, held-out photographs, dB": round_trip(pipe, crops(data)),
            "noise prediction, new compositions": (loss := prediction_loss(pipe, data)),
            "the best linear prediction of it": (linear := linear_loss(pipe, data)),
            "noise prediction / best linear": loss / linear,
            f"share of {captions} captions met": caption_share(pipe, data, captions),
        }
    shown = Table("", *columns)
    for name in next(iter(columns.values())):
        shown.add_row(name, *(f"{column[name]:.4g}" for column in columns.values()))
    console.print(shown)
    return columns


def load(folder: Path) -> StableDiffusionPipeline:
    """A pipeline in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, torch_dtype=torch.float32
        )
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)
    return pipe


def crops(data: Data) -> list[np.ndarray]:
    """64 fixed crops of the photographs never trained on."""
    rng = np.random.default_rng(SEED)
    return [crop(data.held_photos[j % 2], rng) for j in range(64)]


@torch.inference_mode()
def round_trip(pipe: StableDiffusionPipeline, pictures: Sequence[np.ndarray]) -> float:
    """Mean PSNR in dB of decode(encode(picture)), peak 1."""
    found = []
    for start in range(0, len(pictures), 32):
        x = as_tensor(pictures[start : start + 32])
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        found.append(-10 * torch.log10(((x - y) / 2).square().mean((1, 2, 3)) + 1e-10))
    return torch.cat(found).mean().item()


@torch.inference_mode()
def prediction_loss(pipe: StableDiffusionPipeline, data: Data, batches: int = 16) -> float:
    """Mean squared error of the predicted noise over pictures composed anew, in the model's own latents."""
    found = []
    for j in range(batches):
        rng, generator = np.random.default_rng((SEED, j)), torch.Generator().manual_seed(SEED + j)
        pictures, captions = draw(data, rng, 64)
        x = pipe.vae.encode(pictures).latent_dist.mode() * pipe.vae.config.scaling_factor
        embeds, _ = pipe.encode_prompt(captions, x.device, 1, False)
        network = lambda x, t, e=embeds: pipe.unet(x, t, e).sample  # noqa: E731
        found.append(noise_loss(network, x, pipe.scheduler.alphas_cumprod, rng, generator)[0])
    return torch.stack(found).mean().item()


@torch.inference_mode()
def linear_loss(pipe: StableDiffusionPipeline, data: Data, batches: int = 80) -> float:
    """What the best linear prediction of the noise would leave, from the covariance of the latents.

    Losses of two models cannot be compared where their autoencoders differ: latents that keep more of a picture are
    nearer to noise and harder to tell from it. This says how hard they are. With eigenvalues v of the covariance it is
    the mean of a v / (a v + 1 - a) over them and over all a = alphas_cumprod.
    """
    found = []
    for j in range(batches):
        pictures, _ = draw(data, np.random.default_rng((SEED, 1000 + j)), 64)
        found.append(pipe.vae.encode(pictures).latent_dist.mode().flatten(1) * pipe.vae.config.scaling_factor)
    variances = torch.linalg.eigvalsh(torch.cov(torch.cat(found).double().T)).clamp(min=0)
    alpha = pipe.scheduler.alphas_cumprod.double()[:, None]
    return (alpha * variances / (alpha * variances + 1 - alpha)).mean().item()


def caption_share(pipe: StableDiffusionPipeline, data: Data, count: int) -> float:
    """The share of generated pictures whose nearest training emoji is the caption's, whatever its vendor or variant."""
    order = np.random.default_rng(SEED).permutation(len(data.emoji))[:count]
    known = torch.from_numpy(np.stack([outline(centred(item)) for item in data.emoji]))
    hits = 0
    for start in range(0, count, 20):
        items: list[Emoji] = [data.emoji[j] for j in order[start : start + 20]]
        generators = [torch.Generator().manual_seed(SEED + start + j) for j in range(len(items))]
        made = pipe(
            [item.caption for item in items],
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            generator=generators,
            output_type="np",
        ).images
        seen = torch.from_numpy(np.stack([outline((image * 255).round().astype(np.uint8)) for image in made]))
        nearest = torch.cdist(seen.flatten(1), known.flatten(1)).argmin(1)
        hits += sum(data.emoji[n].base == item.base for n, item in zip(nearest.tolist(), items, strict=True))
    return hits / count


def outline(picture: np.ndarray) -> np.ndarray:
    """What stands before the plain ground, cut to its bounding box on white, (32, 32, 3) in [0, 1].

    Emoji are drawn anywhere at any size on any colour; nearness must not depend on that.
    """
    pixels = picture.astype(np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    front = np.abs(pixels - ground).max(-1) > 0.12
    if not front.any():
        return np.ones((32, 32, 3), np.float32)
    rows, columns = np.flatnonzero(front.any(1)), np.flatnonzero(front.any(0))
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    shown = np.where(front[..., None], pixels, 1.0)
    cut = Image.fromarray((shown * 255).astype(np.uint8)).crop(box).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(cut, dtype=np.float32) / 255

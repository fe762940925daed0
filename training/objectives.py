"""What each network is trained to do: step -> loss. All randomness is a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from torch.overrides import TorchFunctionMode

from training.batches import PHOTO_SHARE, draw, varied
from training.data import Data
from training.loop import Recipe, console

Loss = Callable[[int], tuple[torch.Tensor, dict[str, float]]]
KL_WEIGHT = 0.01
# Flat emoji are learnt first; fine texture is learnt from photographs, of which there are few: so the autoencoder then
# sees more of them, and at last turned, mirrored and with their colours exchanged.
STAGES = ((0, PHOTO_SHARE, False), (2400, 0.6, False), (4400, 0.75, True))
"""(first step, share of photograph crops, whether pictures are varied)."""
TIMES = 1000
DROPOUT = 0.1  # of captions, for classifier-free guidance


def streams(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The two sources of randomness of a step."""
    return np.random.default_rng((seed, step)), torch.Generator().manual_seed(seed * 1_000_003 + step)


def autoencoder(vae: AutoencoderKL, data: Data, recipe: Recipe) -> Loss:
    """Mean log squared error of each picture, which is what PSNR averages, plus edges, plus a little KL."""

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, generator = streams(recipe.seed, step)
        _, photos, vary = next(stage for stage in reversed(STAGES) if step >= stage[0])
        pictures, _ = draw(data, rng, recipe.batch, photos=photos)
        if vary:
            pictures = varied(pictures, rng)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pictures).latent_dist
        rebuilt = vae.decode(posterior.sample(generator)).sample
        error = (rebuilt - pictures).square().mean((1, 2, 3))
        edges = sum((torch.diff(rebuilt, dim=d) - torch.diff(pictures, dim=d)).abs().mean() for d in (2, 3))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error.detach() / 4 + 1e-10).mean()
        loss = torch.log(error + 1e-4).mean() + 2 * edges + KL_WEIGHT * kl
        return loss, {"psnr": psnr.item(), "kl": kl.item()}

    return loss_of


@torch.inference_mode()
def latent_pool(vae: AutoencoderKL, scaling: float, data: Data, tokenizer, count: int, seed: int) -> dict:
    """What `denoising` draws from: scaled posteriors of `count` pictures, float16, with their captions' tokens."""
    means, stds, captions = [], [], []
    for start in track(range(0, count, 64), description="encoding the pool", console=console, transient=True):
        pictures, words = draw(data, np.random.default_rng((seed, start)), 64)
        posterior = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        means.append((posterior.mean * scaling).half())
        stds.append((posterior.std * scaling).half())
        captions += words
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    return {
        "mean": torch.cat(means).contiguous(),
        "std": torch.cat(stds).contiguous(),
        "tokens": tokens[:-1].clone(),
        "empty": tokens[-1].clone(),
    }


def denoising(
    denoiser: torch.nn.Module,
    pool: dict[str, torch.Tensor],
    alphas: torch.Tensor,
    recipe: Recipe,
    bfloat16: bool = False,
) -> Loss:
    """Mean squared error of the predicted noise, on latents drawn from a pool made beforehand.

    Args:
        denoiser: (latents, times, tokens) -> noise.
        pool: "mean" and "std" (m, 4, 16, 16) of the scaled posteriors, "tokens" (m, 12), "empty" (12,).
        alphas: alphas_cumprod, (1000,).
        recipe: of the run.
        bfloat16: run the network under autocast; its gradient is then 1.5 % off float32's.
    """

    def network(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), _AttentionInFloat32():
            return denoiser(x, t, tokens).float()

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, generator = streams(recipe.seed, step)
        latents, tokens = _drawn(pool, recipe.batch, rng, generator)
        return noise_loss(lambda x, t: network(x, t, tokens), latents, alphas, rng, generator)

    return loss_of


def velocity(denoiser: torch.nn.Module, pool: dict[str, torch.Tensor], recipe: Recipe) -> Loss:
    """Mean squared error of the predicted noise less the clean latents, on the line between the two.

    Rectified flow, Liu et al., arXiv 2209.03003. The arguments are those of `denoising`.
    """

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, generator = streams(recipe.seed, step)
        latents, tokens = _drawn(pool, recipe.batch, rng, generator)
        sigma = torch.from_numpy(_spread(recipe.batch, rng)).float().view(-1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator)
        asked = torch.lerp(latents, noise, sigma), TIMES * sigma.flatten(), tokens
        return F.mse_loss(denoiser(*asked), noise - latents), {}

    return loss_of


def _drawn(
    pool: dict[str, torch.Tensor], count: int, rng: np.random.Generator, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents out of the pool's posteriors, and their captions' tokens, some of them dropped."""
    chosen = torch.from_numpy(rng.integers(len(pool["mean"]), size=count))
    mean, std = pool["mean"][chosen].float(), pool["std"][chosen].float()
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    dropped = torch.from_numpy(rng.random(count) < DROPOUT)
    return latents, torch.where(dropped[:, None], pool["empty"], pool["tokens"][chosen])


def _spread(count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of time in [0, 1), one from each of `count` equal slices, which steadies the gradient."""
    return (np.arange(count) + rng.random(count)) / count


class _AttentionInFloat32(TorchFunctionMode):
    """Keeps attention out of autocast: torch's backward of it on CPUs takes three times as long in bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(x.float() for x in args), **(kwargs or {}))


def pixels(unet: torch.nn.Module, data: Data, alphas: torch.Tensor, recipe: Recipe) -> Loss:
    """Mean squared error of the predicted noise on 32 px emoji."""

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, generator = streams(recipe.seed, step)
        pictures, _ = draw(data, rng, recipe.batch, side=32, photos=0)
        return noise_loss(lambda x, t: unet(x, t).sample, pictures, alphas, rng, generator)

    return loss_of


def noise_loss(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    alphas: torch.Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """E |noise - network(x_t, t)|^2."""
    times = torch.from_numpy((_spread(len(clean), rng) * TIMES).astype(np.int64))
    noise = torch.randn(clean.shape, generator=generator)
    alpha = alphas[times].view(-1, 1, 1, 1)
    noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    loss = F.mse_loss(network(noisy, times), noise)
    return loss, {}

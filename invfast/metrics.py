"""PSNR and SSIM per image, by torchmetrics; the shape of noise."""

from __future__ import annotations

import torch


def psnr(pixels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, C, H, W) in [0, 1]; infinite where they are equal."""
    return _torchmetrics().peak_signal_noise_ratio(
        pixels.double(), target.double(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )


def latent_psnr(latents: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) PSNR in dB of latents (B, C, h, w), the peak being the range of each target latent."""
    peak = target.double().amax((1, 2, 3)) - target.double().amin((1, 2, 3))
    scale = peak.reshape(-1, 1, 1, 1)
    return psnr(latents.double() / scale, target.double() / scale)


def ssim(pixels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) structural similarity of images (B, C, H, W) in [0, 1] (Wang et al., 2004; Gaussian window, sigma 1.5)."""
    value = _torchmetrics().structural_similarity_index_measure(
        pixels.double(), target.double(), data_range=1.0, reduction="none"
    )
    return value.reshape(-1)


def kurtosis(latents: torch.Tensor) -> torch.Tensor:
    """(B,) fourth standardised moment of each latent; 3 for Gaussian noise."""
    x = latents.double().flatten(1)
    x = x - x.mean(1, keepdim=True)
    return (x**4).mean(1) / (x**2).mean(1) ** 2


def _torchmetrics():
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise ImportError(f'metrics need torchmetrics: {error} (pip install "invfast[eval]")') from error
    return image

"""The same network with its output written as velocity or as clean sample.

    x_t = alpha x_0 + sigma eps
    v   = alpha eps - sigma x_0 = (eps - sigma x_t) / alpha
    x_0 = (x_t - sigma eps) / alpha

Salimans and Ho, arXiv 2202.00512, appendix D.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel


class ReparametrisedUNet(UNet2DConditionModel):
    """A UNet2DConditionModel trained on epsilon that answers in another prediction type, exactly."""

    @classmethod
    def wrap(cls, unet: UNet2DConditionModel, alphas_cumprod: torch.Tensor, prediction_type: str) -> ReparametrisedUNet:
        """A network that shares the weights of `unet` and answers as `prediction_type`."""
        new = cls.from_config(unet.config)
        new.load_state_dict(unet.state_dict(), assign=True)
        new.requires_grad_(False)
        # Plain attributes: a buffer would be rounded along when the network is cast to half precision.
        new._alphas_cumprod = alphas_cumprod.double()
        new._prediction_type = prediction_type
        return new.eval()

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | int, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        out = super().forward(sample, timestep, *args, return_dict=True, **kwargs)
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        # not table[times], which compilers take for a number to be read on the host
        level = self._alphas_cumprod.to(sample.device).index_select(0, times).reshape(-1, 1, 1, 1)
        work = torch.promote_types(sample.dtype, torch.float32)
        alpha, sigma = level.sqrt().to(work), (1 - level).sqrt().to(work)
        x, eps = sample.to(work), out.sample.to(work)
        changed = (eps - sigma * x) if self._prediction_type == "v_prediction" else (x - sigma * eps)
        out.sample = (changed / alpha).to(sample.dtype)
        return out if return_dict else (out.sample,)

"""The same network with its output written as velocity, as clean sample, or as the velocity of a rectified flow.

    x_t = alpha x_0 + sigma eps
    v   = alpha eps - sigma x_0 = (eps - sigma x_t) / alpha
    x_0 = (x_t - sigma eps) / alpha

Salimans and Ho, arXiv 2202.00512, appendix D. A flow walks the same line in other variables,

    x' = x_t / (alpha + sigma),   sigma' = sigma / (alpha + sigma),   v' = eps - x_0 = (eps - x') / (1 - sigma')
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from invfast.schedule import FLOW, Schedule

NEAR = 1e-3
"""How far, in trained steps, a time of a flow may lie beside a trained one and mean it: float32 rounds by less."""


class ReparametrisedUNet(UNet2DConditionModel):
    """A UNet2DConditionModel trained on epsilon that answers in another prediction type, exactly.

    Times of a flow are 1000 sigma'; those between two trained ones are asked in between.
    """

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
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        work = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(work)
        if self._prediction_type == FLOW:
            sigma = times.double() / len(self._alphas_cumprod)
            asked, whole = self._asked(sigma)
            alpha = (1 - sigma).reshape(-1, 1, 1, 1).to(work)
            out = super().forward((x * whole.to(work)).to(sample.dtype), asked, *args, return_dict=True, **kwargs)
            changed = (out.sample.to(work) - x) / alpha
        else:
            out = super().forward(sample, timestep, *args, return_dict=True, **kwargs)
            # not table[times], which compilers take for a number to be read on the host
            level = self._alphas_cumprod.to(sample.device).index_select(0, times).reshape(-1, 1, 1, 1)
            alpha, sigma, eps = level.sqrt().to(work), (1 - level).sqrt().to(work), out.sample.to(work)
            changed = ((eps - sigma * x) if self._prediction_type == "v_prediction" else (x - sigma * eps)) / alpha
        out.sample = changed.to(sample.dtype)
        return out if return_dict else (out.sample,)

    def _asked(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The trained time at which a flow's sigma (n,) lies, and by how much x is larger than x', (n, 1, 1, 1)."""
        table = self._alphas_cumprod.to(sigma.device)
        known = 0.5 * ((1 - table) / table).log()
        ratio = sigma / (1 - sigma)
        wanted = ratio.log().clamp(known[0], known[-1])
        above = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        low, high = known.index_select(0, above - 1), known.index_select(0, above)
        time = above - 1 + (wanted - low) / (high - low)
        time = torch.where((time - time.round()).abs() < NEAR, time.round(), time)
        return time.float(), ((1 + ratio) / (1 + ratio**2).sqrt()).reshape(-1, 1, 1, 1)


def as_flow(schedule: Schedule) -> Schedule:
    """The same grid in the variables of a flow, for the same network behind "flow"."""
    whole = schedule.alpha + schedule.sigma
    return Schedule(
        t=1000 * schedule.sigma / whole,
        alpha=schedule.alpha / whole,
        prediction_type=FLOW,
        dropped=schedule.dropped,
        beyond=schedule.beyond,
    )

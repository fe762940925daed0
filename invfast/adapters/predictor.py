"""(x, t) -> o: a prepared network with its condition bound once, before the loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from invfast.runtimes import Network


class Predictor:
    """Calls the network for a batch, or for some of its images where the runtime takes any batch.

    Args:
        network: a runtime's prepared callable.
        static: inputs by name that stay the same over the grid, each (branches * batch, ...).
        batch: images.
        branches: 2 with classifier-free guidance, conditional rows first; both run in one batch.
        dtype: what the network computes in.
        dynamic_batch: whether images that are done may be left out.
        input_dtype: what it takes, latents are cast to it; by default `dtype`.
    """

    def __init__(
        self,
        network: Network,
        static: Mapping[str, torch.Tensor],
        batch: int,
        branches: int,
        dtype: torch.dtype,
        dynamic_batch: bool,
        input_dtype: torch.dtype | None = None,
    ) -> None:
        self.network, self.static, self.branches = network, static, branches
        self.dtype, self.dynamic_batch = dtype, dynamic_batch
        self.input_dtype = input_dtype or dtype
        self.evaluations = [0] * batch
        self.samples = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, samples: list[int] | None = None) -> tuple[torch.Tensor, ...]:
        batch = x.shape[0]
        wanted = range(batch) if samples is None else samples
        for j in wanted:
            self.evaluations[j] += 1
        some = self.dynamic_batch and len(wanted) < batch
        out = self._evaluate(x[samples] if some else x, t, samples if some else None)
        self.samples += sum(len(o) for o in out)
        return tuple(_scatter(o, samples, batch) for o in out) if some else out

    def _evaluate(self, x: torch.Tensor, t: torch.Tensor, rows: list[int] | None) -> tuple[torch.Tensor, ...]:
        static = self.static
        if rows is not None:
            half = len(self.evaluations)
            chosen = [*rows, *(half + r for r in rows)] if self.branches == 2 else rows
            static = {name: value[chosen] for name, value in static.items()}
        x = x.to(self.input_dtype)
        x = torch.cat([x, x]) if self.branches == 2 else x
        return self.network(x, t, **static).chunk(self.branches)


def _scatter(o: torch.Tensor, rows: list[int], batch: int) -> torch.Tensor:
    full = o.new_zeros((batch, *o.shape[1:]))
    full[rows] = o
    return full

"""(x, t) -> o: a prepared network with its condition bound once, before the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Self

import torch

from invfast.counts import Counted, Counts
from invfast.denoiser.precompute import SCALE
from invfast.runtimes import Network


class Predictor(Counted):
    """Calls the network for a batch, or for some of its images where the runtime takes any batch.

    Args:
        network: a runtime's prepared callable.
        static: inputs by name that stay the same over the grid, each (branches * batch, ...).
        batch: images.
        branches: 2 with classifier-free guidance, conditional rows first; both run in one batch.
        dtype: what the network computes in.
        dynamic_batch: whether images that are done may be left out; not where Python of the caller's looks on, whose
            records have a row for every image at every evaluation.
        input_dtype: what it takes, latents are cast to it; by default `dtype`.
        batched_time: whether it takes any number of rows with a time each, t (rows,).
        times: t -> what the network takes in its place, looked up in a table; None where it takes t itself.
        combine: makes one output of two branches', as in `Form`.

    Times are () or (rows,); what `nodes` gave for one, (1, n), is taken as it is.
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
        batched_time: bool = False,
        times: Callable[[torch.Tensor], torch.Tensor] | None = None,
        combine: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.network, self.times, self.combine = network, times, combine
        self.static, self.branches = static, branches
        self.dtype, self.dynamic_batch = dtype, dynamic_batch
        self.input_dtype, self.batched_time = input_dtype or dtype, batched_time
        self.counts = Counts(batch)

    def bound(self, static: Mapping[str, torch.Tensor]) -> Self:
        """The same of another condition, with counts of its own."""
        other = copy.copy(self)
        other.static, other.counts = static, self.counts.anew()
        return other

    def nodes(self, t: torch.Tensor) -> torch.Tensor:
        """What the network is given for each of the times (n,): (n,) themselves, or (n, width)."""
        return t if self.times is None else self.times(t)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, samples: list[int] | None = None) -> tuple[torch.Tensor, ...]:
        batch = x.shape[0]
        some = self.dynamic_batch and samples is not None and len(samples) < batch
        out = self._evaluate(x[samples] if some else x, t, samples if some else None)
        self.counts.add(self.branches * len(out[0]), samples)
        return tuple(scatter(o, samples, batch) for o in out) if some else out

    def many(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The batch at several times: x (n, B, C, h, w), t (n,) -> outputs of x's shape, as many as a call gives.

        One call of the network where it takes a time a row, else one a time.
        """
        if not self.batched_time:
            each = [self(latents, time) for latents, time in zip(x, t, strict=True)]
            return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))
        n, batch = x.shape[:2]
        self.counts.add(n * batch * self.branches, times=n)
        # Rows: branch by branch, in each time by time, in each image by image.
        rows = x.to(self.input_dtype).expand(self.branches, *x.shape).flatten(0, 2)
        static = {name: self._at_every_time(value, n) for name, value in self.static.items()}
        times = t.repeat_interleave(batch).repeat(self.branches)
        return tuple(o.unflatten(0, (n, batch)) for o in self._outputs(rows, times, static))

    def _ask(self, x: torch.Tensor, t: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
        if self.combine:
            static.pop(SCALE, None)
        return self.network(x, t if self.times is None or t.ndim == 2 else self.times(t), **static)

    def _outputs(
        self, rows: torch.Tensor, t: torch.Tensor, static: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Of the rows of all branches: an output a branch, or the one that the family makes of both."""
        outputs = self._ask(rows, t, **static).chunk(self.branches)
        if self.combine is None or self.branches == 1:
            return outputs
        return (self.combine(*outputs, static[SCALE].chunk(2)[0]),)

    def _at_every_time(self, value: torch.Tensor, n: int) -> torch.Tensor:
        branches = value.unflatten(0, (self.branches, -1)).unsqueeze(1)
        return branches.expand(-1, n, *branches.shape[2:]).flatten(0, 2)

    def _evaluate(self, x: torch.Tensor, t: torch.Tensor, rows: list[int] | None) -> tuple[torch.Tensor, ...]:
        static = self.static
        if rows is not None:
            half = len(self.counts.evaluations)
            chosen = [*rows, *(half + r for r in rows)] if self.branches == 2 else rows
            static = {name: value[chosen] for name, value in static.items()}
        x = x.to(self.input_dtype)
        x = torch.cat([x, x]) if self.branches == 2 else x
        return self._outputs(x, t, static)


def outside(network: Network) -> Network:
    """A network that Python of the caller's looks into, kept out of inference mode: what it records can be written to
    and differentiated further, and weights that hooks move stay ordinary ones. No gradients, but where they are on.
    """

    def called(x: torch.Tensor, t: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
        if not torch.is_inference_mode_enabled():
            return network(x, t, **static)
        with torch.inference_mode(False), torch.no_grad():
            return network(x.clone(), t.clone(), **{name: value.clone() for name, value in static.items()})

    return called


def scatter(o: torch.Tensor, rows: list[int], batch: int) -> torch.Tensor:
    """Outputs of some images (n, ...) where they belong in a batch, zeros elsewhere."""
    full = o.new_zeros((batch, *o.shape[1:]))
    full[rows] = o
    return full

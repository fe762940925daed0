"""Networks of a fixed batch, for any number of rows."""

from __future__ import annotations

import torch

from invfast.runtimes.base import Network


def split(network: Network, batch: int) -> Network:
    """Runs rows in groups of `batch`; the last group is filled up with its last row, the extra answers dropped."""

    def any_batch(x: torch.Tensor, t: torch.Tensor, **static_inputs: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if rows == batch:
            return network(x, t, **static_inputs)
        groups = []
        for start in range(0, rows, batch):
            here = slice(start, start + batch)
            missing = max(0, start + batch - rows)
            filled = {name: _fill(value[here], missing) for name, value in static_inputs.items()}
            groups.append(network(_fill(x[here], missing), t, **filled)[: batch - missing])
        return torch.cat(groups)

    return any_batch


def _fill(rows: torch.Tensor, missing: int) -> torch.Tensor:
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows

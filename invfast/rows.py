"""Rows: the coefficients of every update, out[m] = sum_n C[i, m, n] * in[n], one table per schedule, in float64.

With a the cleaner node of a step, b the noisier one and o the network's own output at b, DDIM sampling is one row,

    x_a = p x_b + q o        epsilon:  p = a_a/a_b              q = s_a - s_b a_a/a_b
                             v:        p = a_a a_b + s_a s_b    q = s_a a_b - a_a s_b
                             sample:   p = s_a/s_b              q = a_a - a_b s_a/s_b

where a_ and s_ are alpha and sigma of a node (Song et al., arXiv 2010.02502, eq. 12). Inverting it means solving
x_b = f(x_b). Any f(y) = y + (x_a - DOWN(y)) / d has the same solution; the divisor d is what one holds constant while
iterating. Here it is the predicted noise (d = a_a/a_b), for every prediction type: then the very same network gives the
very same latents whichever way its output is written. Where the target has next to no signal the noise says nothing
about the data and the velocity is held instead (d = a_a a_b + s_a s_b); a model trained on epsilon keeps the noise.

The network's output is always the last input, so that classifier-free guidance can widen it into two (`guided`).
Tables are (N, outputs, inputs).
"""

from __future__ import annotations

import torch

from invfast.schedule import Schedule

VELOCITY_BELOW = 0.05
"""Target alpha under which the velocity is held. Stable Diffusion's betas end at 0.068, zero-terminal-SNR ones at 0."""

HISTORY_WEIGHT_LIMIT = 16.0
"""Extrapolation falls back to the latest noise where its weights sum, in magnitude, to more than this."""

Row = tuple[torch.Tensor, torch.Tensor]


def transfer(
    alpha_from: torch.Tensor, sigma_from: torch.Tensor, alpha_to: torch.Tensor, sigma_to: torch.Tensor, prediction: str
) -> Row:
    """(p, q) with x_to = p x_from + q o, o read at the level of `from`. Any direction, any broadcastable shapes."""
    if prediction == "epsilon":
        p = alpha_to / alpha_from
        return p, sigma_to - sigma_from * p
    if prediction == "v_prediction":
        return alpha_to * alpha_from + sigma_to * sigma_from, sigma_to * alpha_from - alpha_to * sigma_from
    p = sigma_to / sigma_from
    return p, alpha_to - alpha_from * p


def down(schedule: Schedule) -> torch.Tensor:
    """DDIM sampling, (N, 1, 2): inputs (x_b, o) -> x_a."""
    a, b = _levels(schedule)
    return _table(transfer(*b, *a, schedule.prediction_type))


def up(schedule: Schedule) -> torch.Tensor:
    """One fixed-point iteration of DDIM inversion, (N, 1, 3): inputs (x_a, y, o(y)) -> f(y)."""
    a, b = _levels(schedule)
    if schedule.compat:  # DDIMInverseScheduler reads the output with the source's level
        p, q = transfer(*a, *b, schedule.prediction_type)
        return _table((p, torch.zeros_like(p), q))
    p, q = transfer(*b, *a, schedule.prediction_type)
    held = a[0] / b[0]
    if schedule.prediction_type != "epsilon":
        held = torch.where(b[0] < VELOCITY_BELOW, a[0] * b[0] + a[1] * b[1], held)
    return _table((1 / held, 1 - p / held, -q / held))


def explicit(table: torch.Tensor) -> torch.Tensor:
    """The row of one iteration from y = x_a, (N, 1, 2): inputs (x_a, o(x_a)). With `up`, this is DDIM inversion."""
    return torch.cat([table[..., :1] + table[..., 1:2], table[..., 2:]], -1)


def with_residual(table: torch.Tensor) -> torch.Tensor:
    """Adds f(y) - y as second output to a table of `up`, (N, 2, 3)."""
    return torch.cat([table, table - torch.tensor([0.0, 1.0, 0.0], dtype=table.dtype)], 1)


def noise(schedule: Schedule) -> torch.Tensor:
    """The predicted noise, (N, 1, 2): inputs (y, o(y)) at the target -> epsilon."""
    _, (alpha, sigma) = _levels(schedule)
    if schedule.prediction_type == "epsilon":
        return _table((torch.zeros_like(alpha), torch.ones_like(alpha)))
    if schedule.prediction_type == "v_prediction":
        return _table((sigma, alpha))
    return _table((1 / sigma, -alpha / sigma))


def forecast(schedule: Schedule, order: int, start: int = 0) -> torch.Tensor:
    """Where step i lands if the noise goes on as it did, (N, 1, 1 + order): inputs (x_a, eps_{i-1}, eps_{i-2}, ...).

    The noise of the last `order` targets, extrapolated to this step's target by the polynomial through them in
    sigma/alpha (order 1 repeats the last one: Uni-Inv's predictor; 2 and 3 are its Adams-Bashforth-like extensions).
    Steps right after `start` have a shorter history and leave the columns they miss at zero.
    """
    a, b = _levels(schedule)
    p, q = transfer(*a, *b, "epsilon")
    ratio = schedule.sigma / schedule.alpha
    table = torch.zeros(schedule.num_steps, 1, 1 + order, dtype=torch.float64)
    table[:, 0, 0] = p
    for i in range(start + 1, schedule.num_steps):
        table[i, 0, 1:] = q[i] * _extrapolation(ratio[start + 1 : i + 1].flip(0)[:order], ratio[i + 1], order)
    return table


def damp(table: torch.Tensor, eta: float, steps: range) -> torch.Tensor:
    """EasyInv's blend after the step, eta * row(x, o) + (1 - eta) * x, at `steps` of an explicit table."""
    damped = table.clone()
    damped[steps] *= eta
    damped[steps, :, 0] += 1 - eta
    return damped


def blend_before(table: torch.Tensor, eta: float, steps: range) -> torch.Tensor:
    """EasyInv's blend before the step, from a table of `up`, (N, 2, 3): inputs (x, last, o(x)) -> (x', last').

    At `steps` the latent is z = eta x + (1 - eta) last, else z = x; x' steps from z with the noise predicted at x, and
    last' is z.
    """
    z = torch.zeros(len(table), 3, dtype=table.dtype)
    z[:, 0] = 1
    z[steps, :2] = torch.tensor([eta, 1 - eta], dtype=table.dtype)
    source, iterate, output = table[:, 0].unsqueeze(2).unbind(1)
    step = source * z
    step[:, :1] += iterate
    step[:, 2:] += output
    return torch.stack([step, z], 1)


def jump(schedule: Schedule, node: int) -> torch.Tensor:
    """Forward diffusion of clean data to a node, the source of step `node`, (1, 1, 2): inputs (x_0, noise)."""
    last = node == schedule.num_steps
    alpha = schedule.alpha[-1] if last else schedule.source_alpha[node]
    return torch.stack([alpha, (1 - alpha**2).sqrt()]).reshape(1, 1, 2)


def guided(table: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance folded in: the last column o becomes (o_cond, o_uncond) with weights (g, 1 - g)."""
    weights = torch.tensor([scale, 1 - scale], dtype=table.dtype)
    return torch.cat([table[..., :-1], table[..., -1:] * weights], -1)


def _levels(schedule: Schedule) -> tuple[Row, Row]:
    return (schedule.source_alpha, schedule.source_sigma), (schedule.alpha[1:], schedule.sigma[1:])


def _table(columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack(columns, -1).unsqueeze(1)


def _extrapolation(known: torch.Tensor, wanted: torch.Tensor, order: int) -> torch.Tensor:
    """Lagrange weights at `wanted` for values at `known` (latest first), padded with zeros to `order`."""
    weights = torch.zeros(order, dtype=torch.float64)
    for j in range(len(known)):
        others = torch.cat([known[:j], known[j + 1 :]])
        weights[j] = ((wanted - others) / (known[j] - others)).prod()
    if not bool(weights.isfinite().all()) or float(weights.abs().sum()) > HISTORY_WEIGHT_LIMIT:
        weights = torch.zeros(order, dtype=torch.float64)
        weights[0] = 1
    return weights

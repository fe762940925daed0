"""Rows: the coefficients of every update, out[m] = sum_n C[i, m, n] * in[n], one table per schedule, in float64.

With a the cleaner node of a step, b the noisier one and o the network's own output at b, DDIM sampling is one row,

    x_a = p x_b + q o        epsilon:  p = a_a/a_b              q = s_a - s_b a_a/a_b
                             v:        p = a_a a_b + s_a s_b    q = s_a a_b - a_a s_b
                             sample:   p = s_a/s_b              q = a_a - a_b s_a/s_b
                             flow:     p = 1                    q = s_a - s_b

where a_ and s_ are alpha and sigma of a node (Song et al., arXiv 2010.02502, eq. 12). Inverting it means solving
x_b = f(x_b). Any f(y) = y + (x_a - DOWN(y)) / d has the same solution; the divisor d is what one holds constant while
iterating. Here it is the predicted noise (d = a_a/a_b), for every prediction type: then the very same network gives the
very same latents whichever way its output is written. Where the target has next to no signal the noise says nothing
about the data and the velocity is held instead (d = a_a a_b + s_a s_b); a model trained on epsilon keeps the noise.
Of a flow its own velocity is held (d = 1), as `python -m benchmarks.held` measured on an exact one.

The network's output is always the last input, so that classifier-free guidance can widen it into two (`guided`).
Tables are (N, outputs, inputs).
"""

from __future__ import annotations

import torch

from invfast.schedule import FLOW, ROUNDING, Schedule

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
    if prediction == FLOW:  # levels that sum to another number than 1 are read too, as where noise is added
        whole = alpha_from + sigma_from
        return (alpha_to + sigma_to) / whole, (sigma_to * alpha_from - alpha_to * sigma_from) / whole
    p = sigma_to / sigma_from
    return p, alpha_to - alpha_from * p


def down(schedule: Schedule) -> torch.Tensor:
    """DDIM sampling, (N, 1, 2): inputs (x_b, o) -> x_a."""
    a, b = levels(schedule)
    return as_table(transfer(*b, *a, schedule.prediction_type))


def up(schedule: Schedule) -> torch.Tensor:
    """One fixed-point iteration of DDIM inversion, (N, 1, 3): inputs (x_a, y, o(y)) -> f(y)."""
    a, b = levels(schedule)
    if schedule.compat:  # DDIMInverseScheduler reads the output with the source's level
        p, q = from_source(schedule).unbind(-1)
        return torch.stack([p, torch.zeros_like(p), q], -1)
    p, q = transfer(*b, *a, schedule.prediction_type)
    held = a[0] / b[0]
    if schedule.prediction_type == FLOW:
        held = torch.ones_like(p)
    elif schedule.prediction_type != "epsilon":
        held = torch.where(b[0] < VELOCITY_BELOW, a[0] * b[0] + a[1] * b[1], held)
    return as_table((1 / held, 1 - p / held, -q / held))


def explicit(table: torch.Tensor) -> torch.Tensor:
    """The row of one iteration from y = x_a, (N, 1, 2): inputs (x_a, o(x_a)). With `up`, this is DDIM inversion."""
    return torch.cat([table[..., :1] + table[..., 1:2], table[..., 2:]], -1)


def from_source(schedule: Schedule) -> torch.Tensor:
    """A step up with the output at its source, read by the source's level, (N, 1, 2): inputs (x_a, o(x_a))."""
    a, b = levels(schedule)
    return as_table(transfer(*a, *b, schedule.prediction_type))


def with_residual(table: torch.Tensor) -> torch.Tensor:
    """Adds f(y) - y as second output to a table of `up`, (N, 2, 3)."""
    return torch.cat([table, table - torch.tensor([0.0, 1.0, 0.0], dtype=table.dtype)], 1)


def noise(schedule: Schedule) -> torch.Tensor:
    """The predicted noise, (N, 1, 2): inputs (y, o(y)) at the target -> epsilon."""
    return _noise_at(schedule, *levels(schedule)[1])


def _noise_at(schedule: Schedule, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    if schedule.prediction_type == "epsilon":
        return as_table((torch.zeros_like(alpha), torch.ones_like(alpha)))
    if schedule.prediction_type == FLOW:
        return as_table((1 / (alpha + sigma), alpha / (alpha + sigma)))
    if schedule.prediction_type == "v_prediction":
        return as_table((sigma, alpha))
    return as_table((1 / sigma, -alpha / sigma))


def slope(schedule: Schedule, at_source: bool = False) -> torch.Tensor:
    """What one step hands to the next, (N, 1, 2): inputs (y, o(y)) -> the noise, or the velocity of a flow.

    y is at the step's target, or `at_source`.
    """
    if schedule.prediction_type != FLOW:
        return _noise_at(schedule, *levels(schedule)[0 if at_source else 1])
    return torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(schedule.num_steps, 1, 2)


def forecast(schedule: Schedule, order: int, start: int = 0) -> torch.Tensor:
    """Where step i lands if the noise goes on as it did, (N, 1, 1 + order): inputs (x_a, eps_{i-1}, eps_{i-2}, ...).

    The noise of the last `order` targets, of a flow the velocity, extrapolated to this step's target by the polynomial
    through them in sigma (order 1 repeats the last one: Uni-Inv's predictor; 2 and 3 are its Adams-Bashforth-like
    extensions). In t the guess is as good on 20 and 50 steps and worse on 10, in sigma / alpha or its logarithm worse
    on 20 too (docs/methods/auto.md). Steps right after `start` have a shorter history and leave the columns they miss
    at zero.
    """
    a, b = levels(schedule)
    p, q = transfer(*a, *b, carried(schedule))
    level = schedule.sigma
    table = torch.zeros(schedule.num_steps, 1, 1 + order, dtype=torch.float64)
    table[:, 0, 0] = p
    steps = torch.arange(schedule.num_steps)[start + 1 :]
    for length in range(1, order + 1):
        i = steps[steps - start == length] if length < order else steps[steps - start >= order]
        known = level[i.unsqueeze(-1) - torch.arange(length)]
        table[i, 0, 1 : 1 + length] = q[i].unsqueeze(-1) * extrapolation(known, level[i + 1])
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
    every = [torch.cat([source, target[-1:]]) for source, target in zip(*levels(schedule), strict=True)]
    return torch.stack([level[node] for level in every]).reshape(1, 1, 2)


def noise_maps(schedule: Schedule, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """DDPM with its noise solved for, up (N, 2, 3): (x_a, x_b, o) -> (x_b, z), down (N, 1, 3): (x_b, z, o) -> x_a.

    x_a = mu(x_b) + s z with s^2 = eta^2 sigma_a^2 / sigma_b^2 (sigma_b^2 - (alpha_b / alpha_a)^2 sigma_a^2), the
    posterior's variance for levels of any kind. Where s = 0 (a = clean data), or less than float32 rounds away, z is
    the difference itself.
    """
    require_chain(schedule, "NoiseMaps")
    a, b = levels(schedule)
    scale = eta * a[1] / b[1] * (b[1] ** 2 - (b[0] / a[0] * a[1]) ** 2).clamp(min=0).sqrt()
    scale = torch.where(scale <= ROUNDING, 0.0, scale)
    p, q = transfer(*b, a[0], (a[1] ** 2 - scale**2).clamp(min=0).sqrt(), schedule.prediction_type)
    scale = torch.where(scale == 0, 1.0, scale)
    # x_b passes through with a zero for o: an output that is not finite shows in the latents.
    through = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(len(p), 3)
    z = torch.stack([1 / scale, -p / scale, -q / scale], -1)
    return torch.stack([through, z], 1), as_table((p, scale, q))


def moved(schedule: Schedule) -> torch.Tensor:
    """A latent whose step is taken with another noise, (N, 1, 3): inputs (x_b, noise, the one before) -> x_b'."""
    a, b = levels(schedule)
    _, q = transfer(*a, *b, "epsilon")
    return as_table((torch.ones_like(q), q, -q))


def diffuse(schedule: Schedule, start: int = 0) -> torch.Tensor:
    """Forward diffusion to each step's target, (N, 1, 2): inputs (x_0, or the latents of node `start`, and noise)."""
    alpha, sigma = (schedule.alpha[start], schedule.sigma[start]) if start else (1.0, 0.0)
    ratio = schedule.alpha[1:] / alpha
    return as_table((ratio, (schedule.sigma[1:] ** 2 - ratio**2 * sigma**2).clamp_min(0).sqrt()))


def from_mean(schedule: Schedule, start: int = 0) -> torch.Tensor:
    """How far a latent lies from where `diffuse` has its mean, in deviations, (N, 1, 2): inputs (x_b, x_0)."""
    ratio, spread = diffuse(schedule, start)[:, 0].unbind(-1)
    return as_table((1 / spread, -ratio / spread))


def guided(table: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance folded in: the last column o becomes (o_cond, o_uncond) with weights (g, 1 - g)."""
    weights = torch.tensor([scale, 1 - scale], dtype=table.dtype)
    return torch.cat([table[..., :-1], table[..., -1:] * weights], -1)


def carried(schedule: Schedule) -> str:
    """As which prediction `slope` moves a latent."""
    return FLOW if schedule.prediction_type == FLOW else "epsilon"


def require_chain(schedule: Schedule, name: str) -> None:
    if not torch.equal(schedule.source_alpha, schedule.alpha[:-1]):
        raise ValueError(
            f"{name} needs steps that begin where the last one ended, unlike those of this grid, compat="
            f"{schedule.compat!r}; leave compat out, or use a 'leading' grid"
        )


def levels(schedule: Schedule) -> tuple[Row, Row]:
    return (schedule.source_alpha, schedule.source_sigma), (schedule.alpha[1:], schedule.sigma[1:])


def as_table(columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack(columns, -1).unsqueeze(1)


def extrapolation(known: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(n, k) Lagrange weights at `wanted` (n,) for values at `known` (n, k), latest first."""
    columns = []
    for j, own in enumerate(known.unbind(-1)):
        others = torch.cat([known[:, :j], known[:, j + 1 :]], -1)
        columns.append(((wanted.unsqueeze(-1) - others) / (own.unsqueeze(-1) - others)).prod(-1))
    weights = torch.stack(columns, -1)
    usable = weights.isfinite().all(-1) & (weights.abs().sum(-1) <= HISTORY_WEIGHT_LIMIT)
    latest = torch.eye(known.shape[-1], dtype=torch.float64)[0]
    return torch.where(usable.unsqueeze(-1), weights, latest)

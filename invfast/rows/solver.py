"""Rows of DPM-Solver++(2M), both ways (Lu et al., arXiv 2211.01095). `methods.solver` says how they are used.

With a the cleaner node of step i, b the noisier one and c the one behind it, D the data prediction at a node and
lambda = log(alpha / sigma), sampling is

    x_a = A x_b + B (D_b + w (D_b - D_c)),    A = s_a/s_b,    B = a_a - a_b A,
    w = (lambda_a - lambda_b) / 2 (lambda_b - lambda_c)

and w = 0, which is DDIM, in the first step from the noise and in the last where diffusers has it so.
"""

from __future__ import annotations

import torch

from invfast.multistep import SHORT
from invfast.rows.base import VELOCITY_BELOW, Row, as_table, carried, extrapolation, levels, require_chain, transfer
from invfast.schedule import FLOW, NEGLIGIBLE, Schedule

KNOWN = 2
"""Data predictions before a step's own from which the one behind it is extrapolated."""


def multistep(schedule: Schedule, start: int | None = None) -> torch.Tensor:
    """Sampling from node `start`, (N, 2, 3): inputs (x_b, D_c, o) -> x_a, D_b."""
    require_chain(schedule, "DPMSolver")
    kept, ahead = _shares(schedule)
    weight, (state, output) = _weights(schedule, start), _clean(schedule, schedule.prediction_type)
    own = ahead * (1 + weight)
    moved = torch.stack([kept + own * state, -ahead * weight, own * output], -1)
    return torch.stack([moved, torch.stack([state, torch.zeros_like(state), output], -1)], 1)


def multistep_up(schedule: Schedule, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What undoes a step from node `start` on, where D_c is not known: two tables, (N, 1, 3) each.

    D_c is extrapolated by the polynomial in lambda through D_b and up to `KNOWN` data predictions before it. What those
    give stays the same while a step is iterated and goes to x_a once: inputs (x_a, D_a, the one before it) -> x. What
    D_b gives is part of the iteration: inputs (x, y, o(y)) -> f(y), the noise held as in `up`, of a flow the velocity.
    """
    require_chain(schedule, "DPMSolver")
    _, (alpha, _) = levels(schedule)
    kept, ahead = _shares(schedule)
    weight, among = _weights(schedule), _among(schedule, start)
    (state, output), kind = _clean(schedule, schedule.prediction_type), schedule.prediction_type
    own = ahead * (1 + weight * (1 - among[:, 0]))
    noise_held = torch.ones_like(own) if kind == FLOW else 1 / alpha
    if kind not in ("epsilon", FLOW):
        noise_held = torch.where(alpha < VELOCITY_BELOW, alpha, noise_held)
    held = kept + own * noise_held
    shift = torch.cat([torch.ones_like(own).unsqueeze(1), (ahead * weight).unsqueeze(1) * among[:, 1:]], 1)
    return shift.unsqueeze(1), as_table((1 / held, 1 - (kept + own * state) / held, -own * output / held))


def clean(schedule: Schedule) -> torch.Tensor:
    """The data prediction of a noise, of a flow a velocity, (N, 1, 2): inputs (x_b, noise) -> D_b; zero where the
    latent is all noise, which tells nothing.
    """
    p, q = _clean(schedule, carried(schedule))
    told = levels(schedule)[1][0] ** 2 > NEGLIGIBLE
    return as_table((torch.where(told, p, 0.0), torch.where(told, q, 0.0)))


def _clean(schedule: Schedule, prediction: str) -> Row:
    """D_b of x_b and an output of some kind."""
    _, (alpha, sigma) = levels(schedule)
    return transfer(alpha, sigma, torch.ones_like(alpha), torch.zeros_like(sigma), prediction)


def _shares(schedule: Schedule) -> Row:
    """A and B of each step."""
    a, b = levels(schedule)
    kept = a[1] / b[1]
    return kept, a[0] - b[0] * kept


def _half_log_snr(schedule: Schedule) -> torch.Tensor:
    """lambda of each node; infinite at data without noise, and at noise without data."""
    return schedule.alpha.log() - schedule.sigma.log()


def _weights(schedule: Schedule, start: int | None = None) -> torch.Tensor:
    """w of each step, where sampling begins at node `start`."""
    h = -_half_log_snr(schedule).diff()
    weight = torch.zeros_like(h)
    weight[:-1] = h[:-1] / h[1:] / 2
    weight[(len(h) if start is None else max(start, 1)) - 1 :] = 0
    if float(schedule.sigma[0]) == 0 or len(h) < SHORT:
        weight[0] = 0
    return weight


def _among(schedule: Schedule, start: int) -> torch.Tensor:
    """(N, 1 + KNOWN) weights in D_c of D_b, D_a and the one before it, so far as the inversion made them."""
    at, found = _half_log_snr(schedule), torch.zeros(schedule.num_steps, 1 + KNOWN, dtype=torch.float64)
    found[:, 0] = 1
    for i in range(start, schedule.num_steps - 1):
        known = at[max(start, i - KNOWN) + 1 : i + 2].flip(0)  # none is made at the node where it begins
        if bool(at[i + 2].isfinite()):
            found[i, : len(known)] = extrapolation(known.unsqueeze(0), at[i + 2 : i + 3])[0]
    return found

"""Rows of samplers that can be run backwards exactly. `methods.reversible` says how they are used."""

from __future__ import annotations

import torch

from invfast.rows.base import (
    VELOCITY_BELOW,
    Row,
    carried,
    explicit,
    from_source,
    levels,
    require_chain,
    slope,
    transfer,
    up,
)
from invfast.schedule import FLOW, NEGLIGIBLE, Schedule


def obelm(
    schedule: Schedule, start: int = 0, at_source: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """O-BELM: tables up (N, 2, 3), below (N, 1, 2) and down (N, 1, 3), `methods.reversible` says how they are used.

    With h_i the length of step i in sigma/alpha, r = h_i / h_{i-1}, and e_i the noise predicted at x_i, the two-step
    formula for x_{i+1} is a DDIM step with the noise n_i = (1 + r) e_i - r n_{i-1}, begun by n = e in step `start`,
    asked at that step's target, or `at_source`.
    Carrying n in place of x_{i-1} is the same formula without its difference of nearly equal latents times r^2. In a
    flow h is in sigma and the velocity takes the noise's place.
    """
    require_chain(schedule, "O-BELM")
    flow = schedule.prediction_type == FLOW
    if not flow and float(schedule.alpha[-1]) ** 2 <= NEGLIGIBLE:
        raise ValueError(
            f"O-BELM divides by alpha, which is {float(schedule.alpha[-1]):.2g} at t={schedule.t[-1].item()} (zero "
            "terminal SNR); use BDIA, or a 'leading' grid"
        )
    a, b = levels(schedule)
    p, q = transfer(*a, *b, carried(schedule))
    h = (schedule.sigma if flow else schedule.sigma / schedule.alpha).diff()
    ratio = torch.cat([torch.ones_like(h[:1]), h[1:] / h[:-1]])
    if float(torch.minimum(ratio, 1 / ratio).min()) ** 2 <= NEGLIGIBLE:
        raise ValueError(
            f"O-BELM amplifies errors by how much longer a step is than the one before it, here up to "
            f"{float(torch.maximum(ratio, 1 / ratio).max()):.2g} times; use BDIA, or steps more alike"
        )
    read = slope(schedule)[:, 0]
    state, output = read.roll(1, 0).unbind(-1)  # read at each step's source
    following = torch.stack([(1 + ratio) * state, -ratio, (1 + ratio) * output], -1)
    begun = slice(start, start + 1)  # none where a jump went all the way
    following[begun, 0], following[begun, 2] = slope(schedule, at_source)[begun, 0].unbind(-1)
    following[begun, 1] = 0
    ahead = q.unsqueeze(1) * following
    ahead[:, 0] += p
    below = torch.stack([1 / p, -q / p], -1)
    before = torch.cat([(state * (1 + 1 / ratio)).unsqueeze(1) * below, ((1 + 1 / ratio) * output).unsqueeze(1)], 1)
    before[:, 1] -= 1 / ratio
    return torch.stack([ahead, following], 1), below.unsqueeze(1), before.unsqueeze(1)


def bdia(
    schedule: Schedule, gamma: float, start: int = 0, at_source: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BDIA, gamma x_{i+1} = x_{i-1} - DOWN(x_i) + gamma UP(x_i): tables as for `obelm`, x_{i-1} is what it carries."""
    require_chain(schedule, "BDIA")
    last = schedule.num_steps - 1
    below, here, above = ((schedule.alpha[k : k + last], schedule.sigma[k : k + last]) for k in range(3))
    p_down, q_down = transfer(*here, *below, schedule.prediction_type)
    p_up, q_up = transfer(*here, *above, schedule.prediction_type)
    ahead = torch.zeros(schedule.num_steps, 3, dtype=torch.float64)
    ahead[:, [0, 2]] = (from_source(schedule) if at_source else explicit(up(schedule)))[:, 0]  # the first step
    two = torch.stack([p_up - p_down / gamma, torch.full_like(p_up, 1 / gamma), q_up - q_down / gamma], -1)
    ahead[start + 1 :] = two[start:]
    before = torch.zeros_like(ahead)
    before[1:] = torch.stack([torch.full_like(p_up, gamma), p_down - gamma * p_up, q_down - gamma * q_up], -1)
    unit = torch.eye(3, dtype=torch.float64).expand(len(ahead), 3, 3)
    return torch.stack([ahead, unit[:, 0]], 1), unit[:, 1:2, :2], before.unsqueeze(1)


def edict(schedule: Schedule, mix: float, alternate: bool = True) -> tuple[torch.Tensor, ...]:
    """EDICT's two tables upwards and its two downwards, (N, 1, 3) and (N, 2, 3) each; `methods.reversible` says how.

    In step i one latent of the pair leads: x where N - 1 - i is even, else y; x in all where they do not `alternate`.
    Mixing is x first whoever leads. The last step down hands over (x, y), mixed once more for every step that was
    dropped, which would have moved nothing but mixed.
    """
    c = _partnered(schedule)
    steps = torch.arange(schedule.num_steps)
    x_leads = ((steps.flip(0) % 2) == 0).unsqueeze(1) | torch.tensor(not alternate)

    def swap(a: torch.Tensor, b: torch.Tensor) -> Row:  # (leader, follower) to (x, y) and back
        return torch.where(x_leads, a, b), torch.where(x_leads, b, a)

    unit = torch.eye(3, dtype=torch.float64)
    # Down: over (follower, leader', o(leader')), the leader already moved.
    x, y = swap(unit[1].expand_as(c), c)
    x, y = _mixed(x, y, mix)
    leader, follower = swap(x, y)
    down_second = torch.stack([follower, leader] if alternate else [leader, follower], 1)
    last = x[0], y[0]
    for _ in range(schedule.dropped):
        last = _mixed(*last, mix)
    down_second[0] = torch.stack(last)
    # Up: the pair before it was mixed, over (follower, leader), and both moved back.
    x, y = swap(unit[1, :2].expand(len(c), 2), unit[0, :2].expand(len(c), 2))
    y = (y - (1 - mix) * x) / mix
    leader, follower = swap((x - (1 - mix) * y) / mix, y)
    p, partner, output = c.unsqueeze(-1).unbind(1)
    unmixed = follower - partner * leader
    up_first = torch.cat([unmixed if alternate else unmixed.flip(1), -output], -1) / p
    moved = torch.cat([torch.ones_like(p), -partner, -output], -1) / p
    following = leader.roll(-1, 0)  # of the next step, in which the roles are swapped where they alternate
    next_follower, next_leader = (moved, unit[1]) if alternate else (unit[1], moved)
    asked = following[:, :1] * next_follower + following[:, 1:] * next_leader
    return up_first.unsqueeze(1), torch.stack([moved, asked], 1), c.unsqueeze(1), down_second


def _mixed(x: torch.Tensor, y: torch.Tensor, mix: float) -> Row:
    x = mix * x + (1 - mix) * y
    return x, mix * y + (1 - mix) * x


def _partnered(schedule: Schedule) -> torch.Tensor:
    """DDIM of one latent with the noise (the velocity where `up` holds it) at another, (N, 3): (x_b, y_b, o(y_b))."""
    a, b = levels(schedule)
    own = schedule.prediction_type
    p, q = transfer(*b, *a, carried(schedule))
    state, output = slope(schedule)[:, 0].unbind(-1)
    table = torch.stack([p, q * state, q * output], -1)
    if own in ("epsilon", FLOW):
        return table
    p, q = transfer(*b, *a, "v_prediction")
    state, output = torch.zeros_like(q), torch.ones_like(q)
    if schedule.prediction_type == "sample":
        state, output = b[0] / b[1], -1 / b[1]
    velocity = torch.stack([p, q * state, q * output], -1)
    return torch.where((b[0] < VELOCITY_BELOW).unsqueeze(1), velocity, table)

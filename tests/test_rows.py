"""Coefficients: exact inverses, blends, forecasts, guidance."""

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from toy import distance

from invfast import Schedule, rows
from invfast.methods import EasyInv


@st.composite
def schedules(draw):
    """Random levels that descend by more than rounding, anything from nearly clean to nearly pure noise."""
    levels = draw(st.lists(st.integers(1_000, 999_900), min_size=2, max_size=12, unique=True))
    alpha = torch.tensor(sorted(levels, reverse=True), dtype=torch.float64) / 1e6
    prediction = draw(st.sampled_from(["epsilon", "v_prediction", "sample"]))
    return Schedule(t=torch.arange(len(levels)), alpha=alpha, prediction_type=prediction)


def combine(table, i, *inputs):
    return sum(c * x for c, x in zip(table[i, 0], inputs, strict=True))


@given(schedules(), st.integers(0, 2**31))
def test_up_after_down_is_the_identity(schedule, seed):
    generator = torch.Generator().manual_seed(seed)
    x, o = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    up, down = rows.up(schedule), rows.down(schedule)
    for i in range(schedule.num_steps):
        cleaner = combine(down, i, x, o)
        # The row's own rounding is its largest term: close levels divide differences of nearly equal numbers.
        size = max(abs(float(c)) for c in up[i, 0]) * max(1.0, max(abs(float(c)) for c in down[i, 0]))
        assert float((combine(up, i, cleaner, x, o) - x).abs().max()) < 1e-13 * max(size, 1.0) * 8


@given(schedules(), st.integers(0, 2**31))
def test_every_prediction_type_takes_the_same_step(schedule, seed):
    """The same noise, written as velocity or clean sample, gives the same f(y)."""
    if float(schedule.alpha[1:].min()) < 2 * rows.VELOCITY_BELOW:
        return
    generator = torch.Generator().manual_seed(seed)
    x, y, eps = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    for i in range(schedule.num_steps):
        alpha, sigma = schedule.alpha[i + 1], schedule.sigma[i + 1]
        outputs = {
            "epsilon": eps,
            "v_prediction": (eps - sigma * y) / alpha,
            "sample": (y - sigma * eps) / alpha,
        }
        results = []
        for prediction, o in outputs.items():
            twin = Schedule(schedule.t, schedule.alpha, prediction)
            results.append(combine(rows.up(twin), i, x, y, o))
            assert distance(combine(rows.noise(twin), i, y, o), eps) < 1e-9
        assert max(distance(r, results[0]) for r in results) < 1e-9


def test_velocity_is_held_where_there_is_no_signal():
    schedule = Schedule(t=[0, 1, 2], alpha=[0.9, 0.4, 0.0], prediction_type="v_prediction")
    up = rows.up(schedule)
    assert up.isfinite().all()
    assert up[0, 0, 1] != 0  # noise held: depends on the iterate itself
    assert up[1, 0, 1] == 0
    x, v = torch.randn(2, 8, dtype=torch.float64)
    assert distance(combine(up, 1, x, torch.zeros(8), v), (x + 0.4 * v) / (1 - 0.16) ** 0.5) < 1e-14


def test_first_step_at_offset_zero_is_a_no_op_in_diffusers_and_absent_here():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", set_alpha_to_one=False, clip_sample=False)
    scheduler.set_timesteps(50)
    x = torch.randn(8)
    assert torch.allclose(scheduler.step(torch.randn(8), 0, x).prev_sample, x)
    assert 0 not in Schedule.from_scheduler(scheduler, 50).t[1:].tolist()


@pytest.mark.parametrize(
    ("method", "steps", "window"),
    [
        (EasyInv(), 50, range(3, 13)),
        (EasyInv.sdxl(), 50, range(43, 48)),
        (EasyInv.sdxl(), 20, range(18, 19)),
        (EasyInv(start=0.0, length=1.0), 5, range(1, 5)),
        (EasyInv(length=0.0), 50, range(3, 3)),
    ],
)
def test_easyinv_windows(method, steps, window):
    assert list(method.window(steps)) == list(window)


@given(schedules(), st.floats(0.1, 1.0))
def test_damping(schedule, eta):
    table, steps = rows.explicit(rows.up(schedule)), range(1, schedule.num_steps)
    x, o = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    damped = rows.damp(table, eta, steps)
    for i in range(schedule.num_steps):
        plain = combine(table, i, x, o)
        wanted = eta * plain + (1 - eta) * x if i in steps else plain
        assert torch.allclose(combine(damped, i, x, o), wanted, rtol=1e-10)


def test_guidance_with_equal_outputs_is_no_guidance(x0):
    schedule = Schedule(t=[0, 1], alpha=[0.9, 0.5])
    table = rows.down(schedule)
    guided = rows.guided(table, 7.5)
    assert guided.shape == (1, 1, 3)
    assert torch.allclose(combine(guided, 0, x0, x0, x0), combine(table, 0, x0, x0), rtol=1e-13)
    assert guided[0, 0, 1] / table[0, 0, 1] == pytest.approx(7.5)


def test_forecast_is_exact_on_polynomials():
    alpha = torch.tensor([0.99, 0.95, 0.9, 0.85, 0.79, 0.74], dtype=torch.float64)
    schedule = Schedule(t=torch.arange(6), alpha=alpha)
    level, x = schedule.sigma, torch.tensor(0.3, dtype=torch.float64)
    for order, noise in ((1, lambda r: 2 + 0 * r), (2, lambda r: 2 - r), (3, lambda r: 2 - r + 3 * r**2)):
        table = rows.forecast(schedule, order)
        for i in range(order, 5):
            eps = [noise(level[i - j]) for j in range(order)]
            step = rows.transfer(alpha[i], schedule.sigma[i], alpha[i + 1], schedule.sigma[i + 1], "epsilon")
            wanted = step[0] * x + step[1] * noise(level[i + 1])
            assert float(combine(table, i, x, *eps)) == pytest.approx(float(wanted), rel=1e-12)


def test_forecast_keeps_to_the_latest_noise_where_extrapolation_is_unsafe():
    schedule = Schedule(t=torch.arange(4), alpha=[0.9, 0.5, 0.499, 0.0], prediction_type="v_prediction")
    table = rows.forecast(schedule, 3)
    assert table.isfinite().all()
    assert table[2, 0, 2:].abs().max() == 0
    assert table[2, 0, 1] != 0
    assert rows.forecast(schedule, 3, start=1)[2, 0, 2:].abs().max() == 0


def test_jump_level():
    schedule = Schedule(t=torch.arange(4), alpha=[0.99, 0.9, 0.6, 0.3])
    for k, alpha in enumerate((0.99, 0.9, 0.6, 0.3)):
        assert rows.jump(schedule, k).flatten().tolist() == pytest.approx([alpha, (1 - alpha**2) ** 0.5])

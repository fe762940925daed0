"""The rule of tests/exact.py fails where it should: on wrong numbers, not on another machine's rounding."""

from functools import partial

import pytest
import torch
from exact import FLOOR, as_exact_as_eager, error, steps, steps_as_exact_as_eagers
from tiny import QUICK, stable_diffusion

from invfast import invert

EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def exact():
    return torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(x, by):
    return x.double() * (1 + by)


def test_twice_eagers_error_is_allowed_and_no_more(exact):
    eager = moved(exact, 1e-3)
    as_exact_as_eager(moved(exact, -1.9e-3), eager, exact)
    for wrong in (moved(exact, 2.1e-3), exact * torch.nan, exact.flip(0)):
        with pytest.raises(AssertionError, match=r"from float64; eager is 1\.00e-03 from it, which allows 2\.00e-03"):
            as_exact_as_eager(wrong, eager, exact)


def test_an_eager_run_that_is_right_by_luck_allows_a_few_roundings(exact):
    exact = exact.float().double()
    eager = exact.float()
    as_exact_as_eager(moved(exact, (FLOOR - 1) * EPS).float(), eager, exact)
    with pytest.raises(AssertionError, match=r"eager is 0\.00e\+00"):
        as_exact_as_eager(moved(exact, (FLOOR + 1) * EPS).float(), eager, exact)


def test_several_results_count_together(exact):
    several = [exact, 100 * exact]
    eager = [moved(exact, 1e-3), 100 * exact]  # one is right by luck
    as_exact_as_eager([exact, moved(100 * exact, 1e-3)], eager, several)
    assert error(eager, several) == pytest.approx(1e-3 / 2**0.5)
    with pytest.raises(AssertionError):
        as_exact_as_eager([moved(exact, 3e-3), 100 * exact], eager, several)
    with pytest.raises(ValueError, match="shorter"):
        error(eager, several[:1])
    with pytest.raises(AssertionError):
        error(eager, [x.float() for x in several])  # nothing is exact but float64


def test_a_network_that_is_slightly_another_is_found(tiny, peach):
    other = stable_diffusion()
    other.unet.conv_out.weight.data.mul_(1 + 1e-4)
    calls = (partial(invert, pipe, peach, method="ddim", **QUICK) for pipe in (other, tiny))
    with pytest.raises(AssertionError, match="from float64"):
        steps_as_exact_as_eagers(*calls)


def test_steps_begin_where_float64_was(tiny, peach):
    inverting = partial(invert, tiny, peach, method="ddim", **QUICK)
    path, exact = steps(partial(inverting, dtype="float64"))
    found, inv = steps(partial(inverting, save_trajectory=True), path)
    assert torch.equal(inv.trajectory[1:-1], torch.stack(path[:-1]).float())
    assert torch.equal(inv.latents, found[-1])
    assert exact.latents.dtype == torch.float64

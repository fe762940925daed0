"""The budget of `auto`; its steps are held to their twin in test_methods.py."""

import pytest
import torch
from test_methods import schedule
from toy import predictor

from invfast.executors import Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import Auto, Problem


@pytest.mark.parametrize(("budget", "steps"), [(1, 12), (1.1, 12), (1.5, 12), (3, 7)])
def test_a_budget_is_kept_by_every_image(budget, steps, x0):
    grid = schedule(steps)
    stepper = Auto(budget=budget).inverter(Problem(grid, dtype=torch.float64))
    predict = predictor(len(x0), torch.float64)
    integrate(Plain(stepper, predict), {"latents": x0}, grid, Hooks())
    most = steps + int((budget - 1) * steps)
    assert all(steps <= count <= most for count in predict.evaluations)
    if budget == 1.1:
        assert max(predict.evaluations) == most


@pytest.mark.parametrize("budget", [0.9, float("inf"), float("nan"), "1.5"])
def test_budgets_that_cannot_be(budget):
    with pytest.raises(ValueError, match="Auto budget must be a finite number of evaluations a step, at least 1"):
        Auto(budget=budget)


def test_a_budget_is_charged_for_what_was_asked():
    grid, predict = schedule(12), predictor(3, torch.float64)
    x0 = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stepper = Auto(budget=2, iterations=2).inverter(Problem(grid, dtype=torch.float64))
    integrate(Plain(stepper, predict), {"latents": x0}, grid, Hooks())
    assert predict.evaluations == [24, 24, 24]  # no step settles, each may ask twice, and the budget is for all of it

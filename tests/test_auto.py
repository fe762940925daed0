"""The budget of `auto`; its steps are held to their twin in test_methods.py."""

import pytest
import torch
from test_methods import schedule
from toy import predictor

from invfast.integrate import Hooks, integrate
from invfast.methods import Auto, Problem


@pytest.mark.parametrize(("budget", "steps"), [(1, 12), (1.1, 12), (1.5, 12), (3, 7)])
def test_a_budget_is_kept_by_every_image(budget, steps, x0):
    grid = schedule(steps)
    stepper = Auto(budget=budget).inverter(Problem(grid, dtype=torch.float64))
    predict = predictor(len(x0), torch.float64)
    integrate(stepper, {"latents": x0}, predict, grid, Hooks())
    most = steps + int((budget - 1) * steps)
    assert all(steps <= count <= most for count in predict.evaluations)
    if budget == 1.1:
        assert max(predict.evaluations) == most


@pytest.mark.parametrize("budget", [0.9, float("inf"), float("nan"), "1.5"])
def test_budgets_that_cannot_be(budget):
    with pytest.raises(ValueError, match="Auto budget must be a finite number of evaluations a step, at least 1"):
        Auto(budget=budget)

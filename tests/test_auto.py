"""The budget of `auto`, and its grids of few steps; its steps are held to their twin in test_methods.py."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from test_methods import schedule
from toy import predictor

from invfast import invert, metrics, reconstruct
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


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_grids_of_few_steps_take_what_they_need(steps, pipe, peach, caplog):
    own = copy.copy(pipe)
    own.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    found = []
    for method in (Auto(iterations=12), Auto()):
        there = invert(own, peach, "a peach", method=method, num_inference_steps=steps, runtime="eager")
        back = reconstruct(own, there, output_type="latent", runtime="eager")
        found.append(float(metrics.latent_psnr(back.latents, there.init_latents)))
        said = "did not reach the tolerance" in caplog.text
        assert said is not all(there.stats.reached)
        assert max(there.stats.evaluations) <= 60 * steps
        caplog.clear()
    assert found[1] > found[0] + 6


def test_evaluations_of_a_step_by_the_grid():
    assert [Auto().solver(n).iterations for n in (1, 4, 5, 9, 10, 50)] == [60, 60, 48, 26, 12, 12]
    assert Auto(iterations=7).solver(2).iterations == 7
    assert Auto().solver(1).tolerance < Auto().solver(2).tolerance < Auto().solver(4).tolerance

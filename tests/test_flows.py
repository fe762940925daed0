"""Grids of rectified flow: the scheduler's own, as its pipeline sets it."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from invfast import Schedule
from invfast.schedule import FLOW

SCHEDULERS = {
    "plain": FlowMatchEulerDiscreteScheduler(),
    "static": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "linear": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    "terminal": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    "karras": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    "exponential": FlowMatchEulerDiscreteScheduler(use_exponential_sigmas=True),
    "beta": FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
}


@pytest.mark.parametrize("sigmas", [None, [1.0, 0.7, 0.3]])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_grids_are_the_schedulers_own(name, sigmas):
    if name == "beta":
        pytest.importorskip("scipy")
    scheduler = SCHEDULERS[name]
    mu = 0.8 if scheduler.config.use_dynamic_shifting else None
    before = (scheduler.sigmas.clone(), scheduler.timesteps.clone())
    grid = Schedule.from_scheduler(scheduler, 7, sigmas=sigmas, mu=mu)
    assert torch.equal(scheduler.sigmas, before[0])
    assert torch.equal(scheduler.timesteps, before[1])
    own = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    given_mu = {} if mu is None else {"mu": mu}
    own.set_timesteps(**({"sigmas": sigmas} if sigmas else {"num_inference_steps": 7}), **given_mu)
    assert torch.equal(grid.sigma.float(), own.sigmas.flip(0))
    assert torch.equal(grid.t[1:], own.timesteps.flip(0))
    assert grid.prediction_type == FLOW
    assert torch.allclose(grid.alpha + grid.sigma, torch.ones(len(grid.t)).double(), atol=1e-15)


def test_a_shift_set_later_counts():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(5.0)
    scheduler.set_timesteps(4)
    assert torch.equal(Schedule.from_scheduler(scheduler, 4).sigma.float(), scheduler.sigmas.flip(0))


def test_other_solvers_give_their_sigmas():
    heun = FlowMatchHeunDiscreteScheduler(shift=3.0)
    grid = Schedule.from_scheduler(heun, 6)
    assert grid.num_steps == 6  # visits each node but the ends twice
    heun.set_timesteps(6)
    assert torch.equal(grid.sigma.float().flip(0), heun.sigmas.unique_consecutive())
    dpm = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    grid = Schedule.from_scheduler(dpm, 6)
    dpm.set_timesteps(6)
    assert torch.equal(grid.sigma.float().flip(0), dpm.sigmas)
    assert torch.equal(grid.t[1:].flip(0).long(), dpm.timesteps)


@pytest.mark.parametrize(
    ("scheduler", "settings", "error", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), {}, ValueError, "has invert_sigmas=True"),
        (SCHEDULERS["dynamic"], {}, ValueError, "shifts by the image's size .* pass mu"),
        (SCHEDULERS["plain"], {"timesteps": [1, 2]}, ValueError, "pass sigmas in place of timesteps"),
        (SCHEDULERS["plain"], {"sigmas": [0.5, 0.0]}, ValueError, r"in \(0, 1\], without the last 0"),
        (SCHEDULERS["plain"], {"sigmas": [0.5, 0.7, 0.6]}, ValueError, "strictly monotonic"),
        (SCHEDULERS["plain"], {"sigmas": "half"}, TypeError, "sequence of numbers"),
        (SCHEDULERS["plain"], {"num_inference_steps": 0}, ValueError, "from 1 to 1000, got 0"),
        (SCHEDULERS["plain"], {"num_inference_steps": 2.5}, TypeError, "an integer from 1 to 1000"),
        (FlowMatchHeunDiscreteScheduler(), {"sigmas": [1.0, 0.5]}, ValueError, "takes no sigmas"),
        (DDIMScheduler(), {"sigmas": [1.0, 0.5]}, ValueError, "sigmas are for schedulers of rectified flow"),
    ],
)
def test_what_no_grid_can_be_made_of(scheduler, settings, error, message):
    with pytest.raises(error, match=message):
        Schedule.from_scheduler(scheduler, **settings)

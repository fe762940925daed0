"""Grids: which nodes, which levels, and what is refused."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import SD

from invfast import Schedule


def ddim(**config):
    return DDIMScheduler(**{**SD, **config})


def test_nodes_of_stable_diffusion():
    scheduler = ddim()
    schedule = Schedule.from_scheduler(scheduler, 50)
    abar = scheduler.alphas_cumprod.double()
    assert schedule.t.tolist() == [0, *range(1, 1000, 20)]
    assert torch.equal(schedule.alpha, torch.cat([abar[:1], abar[1::20]]).sqrt())
    assert schedule.alpha.dtype == torch.float64
    assert torch.allclose(schedule.alpha**2 + schedule.sigma**2, torch.ones(51).double(), atol=1e-15)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 30, 50])
def test_visits_what_ddim_visits(beta_schedule, spacing, steps):
    # The cosine table ends at 2.4e-9, where no noise prediction can be read.
    kind = "v_prediction" if beta_schedule == "squaredcos_cap_v2" else "epsilon"
    scheduler = ddim(beta_schedule=beta_schedule, timestep_spacing=spacing, prediction_type=kind)
    if (spacing, steps) == ("linspace", 1):
        with pytest.raises(ValueError, match=r"visits t=\[0\] only.*nothing to invert"):
            Schedule.from_scheduler(scheduler, steps)
        return
    schedule = Schedule.from_scheduler(scheduler, steps)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()[::-1]
    assert schedule.origin["timesteps"] == visited
    assert schedule.t[1:].tolist() == [t for t in visited if scheduler.alphas_cumprod[t] < scheduler.alphas_cumprod[0]]


def test_final_level():
    assert Schedule.from_scheduler(ddim(set_alpha_to_one=True), 10).alpha[0] == 1
    assert Schedule.from_scheduler(ddim(), 10).alpha[0] == ddim().alphas_cumprod[0].double().sqrt()


def test_repeated_node_is_dropped_and_remembered():
    schedule = Schedule.from_scheduler(ddim(steps_offset=0), 50)
    assert schedule.num_steps == 49
    assert schedule.t.tolist() == [0, *range(20, 1000, 20)]
    assert schedule.origin["timesteps"][0] == 0
    assert len(schedule.origin["timesteps"]) == 50
    # With alpha = 1 at the data end the same step goes somewhere and stays.
    assert Schedule.from_scheduler(ddim(steps_offset=0, set_alpha_to_one=True), 50).num_steps == 50


def test_explicit_timesteps_either_way():
    down = Schedule.from_scheduler(ddim(), timesteps=[981, 500, 20])
    up = Schedule.from_scheduler(ddim(), timesteps=np.array([20, 500, 981]))
    assert down.t.tolist() == up.t.tolist() == [0, 20, 500, 981]
    assert down.digest == up.digest
    assert Schedule.from_scheduler(ddim(), timesteps=[500, 500, 20]).num_steps == 2


@pytest.mark.parametrize(
    "name",
    ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler", "LMSDiscreteScheduler"],
)
def test_other_schedulers_lend_their_betas(name):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedule = Schedule.from_scheduler(getattr(diffusers, name)(**config, timestep_spacing="leading"), 50)
    assert schedule.origin["scheduler"] == name
    assert schedule.origin["grid"] == "DDIM"
    assert schedule.alpha[-1] == ddim().alphas_cumprod[schedule.t[-1]].double().sqrt()


def test_scheduler_is_not_changed():
    scheduler = diffusers.EulerDiscreteScheduler(**{k: SD[k] for k in ("beta_start", "beta_end", "beta_schedule")})
    scheduler.set_timesteps(13)
    before = scheduler.timesteps.clone(), dict(scheduler.config)
    Schedule.from_scheduler(scheduler, 50)
    assert torch.equal(scheduler.timesteps, before[0])
    assert dict(scheduler.config) == before[1]


def test_zero_terminal_snr():
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert Schedule.from_scheduler(ddim(**zero, prediction_type="v_prediction"), 10).alpha[-1] == 0
    with pytest.raises(ValueError, match="epsilon prediction cannot be read at alpha = 0"):
        Schedule.from_scheduler(ddim(**zero), 10)
    assert 0 < Schedule.from_scheduler(ddim(rescale_betas_zero_snr=True), 50).alpha[-1] < 0.01


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_inference_steps": 0}, ValueError, "from 1 to 1000, got 0"),
        ({"num_inference_steps": -3}, ValueError, "from 1 to 1000, got -3"),
        ({"num_inference_steps": 1001}, ValueError, "from 1 to 1000, got 1001"),
        ({"num_inference_steps": "fifty"}, TypeError, "must be an integer"),
        ({"num_inference_steps": True}, TypeError, "must be an integer"),
        ({"num_inference_steps": 1000}, ValueError, "visits t=1000"),
        ({"timesteps": []}, ValueError, "timesteps is empty"),
        ({"timesteps": [1, 500, 20]}, ValueError, "monotonic"),
        ({"timesteps": [1, 1000]}, ValueError, r"0\.\.999, got 1000"),
        ({"timesteps": [1.5]}, TypeError, "must be integers"),
        ({"timesteps": [0]}, ValueError, "nothing to invert"),
        ({"compat": "old"}, ValueError, "unknown compat"),
        ({"compat": "diffusers", "timesteps": [5]}, ValueError, "no explicit timesteps"),
    ],
)
def test_refusals(kwargs, error, message):
    with pytest.raises(error, match=message):
        Schedule.from_scheduler(ddim(), **kwargs)


def test_sample_prediction_from_alpha_one_is_refused():
    with pytest.raises(ValueError, match="set_alpha_to_one=False"):
        Schedule.from_scheduler(ddim(prediction_type="sample", set_alpha_to_one=True), 10)


def test_velocity_from_alpha_one_to_zero_is_refused():
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    with pytest.raises(ValueError, match="from alpha = 1 to alpha = 0 cannot be inverted"):
        Schedule.from_scheduler(ddim(**zero, prediction_type="v_prediction"), 1)


def test_a_schedule_owns_its_levels():
    alpha = torch.tensor([0.9, 0.5], dtype=torch.float64)
    schedule = Schedule([0, 1], alpha)
    digest = schedule.digest
    alpha[0] = 0.8
    assert schedule.digest == digest


def test_scheduler_without_table():
    said = "scheduler EDMEulerScheduler has no table of alphas_cumprod and is none of rectified flow; pass schedule="
    with pytest.raises(ValueError, match=said):
        Schedule.from_scheduler(diffusers.EDMEulerScheduler(), 10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": [0.5, 0.9]}, "descend strictly"),
        ({"alpha": [0.9, float("nan")]}, r"lie in \[0, 1\]"),
        ({"alpha": [0.9]}, "one length"),
        ({"alpha": [0.9, 0.5], "prediction_type": "score"}, "unknown prediction_type 'score'"),
        ({"t": [0.0, float("nan")], "alpha": [0.9, 0.5]}, "ascend strictly"),
        ({"t": [0, 5, 5], "alpha": [0.9, 0.5, 0.4]}, "ascend strictly"),
    ],
)
def test_own_levels_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"t": torch.arange(len(kwargs["alpha"])), **kwargs})


def test_digest_tells_grids_apart():
    schedules = [
        Schedule.from_scheduler(ddim(), 10),
        Schedule.from_scheduler(ddim(), 11),
        Schedule.from_scheduler(ddim(prediction_type="v_prediction"), 10),
        Schedule.from_scheduler(ddim(set_alpha_to_one=True), 10),
        Schedule.from_scheduler(ddim(), 10, compat="diffusers"),
    ]
    assert len({schedule.digest for schedule in schedules}) == len(schedules)
    assert Schedule.from_scheduler(ddim(), 10).digest == schedules[0].digest

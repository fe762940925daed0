"""Every step of the compat grid against diffusers' own schedulers, on equal inputs."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from toy import distance

from invfast import Schedule, rows
from invfast.ops import lincomb

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
STEPS = [1, 4, 7, 10, 30, 50, 999]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def pair(seed):
    x, o = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, o


def check(scheduler, steps, table):
    """`table` against scheduler.step at every kept node; dropped nodes must be steps that move nothing."""
    scheduler.set_timesteps(steps)
    if scheduler.timesteps.tolist() == [0] and not scheduler.config.set_alpha_to_one:
        with pytest.raises(ValueError, match="nothing to invert"):
            Schedule.from_scheduler(scheduler, steps, compat="diffusers")
        return
    schedule = Schedule.from_scheduler(scheduler, steps, compat="diffusers")
    kept = {t: i for i, t in enumerate(schedule.t[1:].tolist())}
    placed = table(schedule).float()
    worst = 0.0
    for t in scheduler.timesteps.tolist():
        x, o = pair(t)
        theirs = scheduler.step(o, t, x)[0]
        if t in kept:
            worst = max(worst, distance(lincomb((x, o), placed, kept[t])[0], theirs))
        else:
            assert distance(theirs, x) < 1e-6
    assert worst < 1e-6
    assert len(kept) >= len(scheduler.timesteps) - 1


# sample with set_alpha_to_one is refused: diffusers divides by sigma = 0 there and returns NaN (test_schedule)
@pytest.mark.parametrize(
    ("prediction", "set_alpha_to_one"),
    [(p, one) for p in PREDICTIONS for one in (False, True) if (p, one) != ("sample", True)],
)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", STEPS)
def test_inverse_scheduler(steps, spacing, prediction, offset, set_alpha_to_one):
    scheduler = DDIMInverseScheduler(
        **CONFIG,
        steps_offset=offset,
        timestep_spacing=spacing,
        prediction_type=prediction,
        set_alpha_to_one=set_alpha_to_one,
    )
    check(scheduler, steps, lambda schedule: rows.explicit(rows.up(schedule)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
def test_sampling_scheduler(steps, spacing, prediction):
    scheduler = DDIMScheduler(
        **CONFIG, steps_offset=1, timestep_spacing=spacing, prediction_type=prediction, set_alpha_to_one=False
    )
    check(scheduler, steps, rows.down)


def test_chained_grid_is_the_compat_grid_where_diffusers_chains():
    """Leading grids always do; linspace does not, and that is why compat exists."""
    for steps in STEPS:
        scheduler = DDIMScheduler(**CONFIG, steps_offset=1, set_alpha_to_one=False)
        ours, theirs = (Schedule.from_scheduler(scheduler, steps, compat=c) for c in (None, "diffusers"))
        assert torch.equal(ours.source_alpha, theirs.source_alpha)
    scheduler = DDIMScheduler(**CONFIG, timestep_spacing="linspace", set_alpha_to_one=False)
    ours, theirs = (Schedule.from_scheduler(scheduler, 50, compat=c) for c in (None, "diffusers"))
    assert int((ours.source_alpha != theirs.source_alpha).sum()) == 19

"""Steps as published settings count them: with the one that moves nothing at steps_offset=0."""

import pytest
import torch
from diffusers import DDIMScheduler
from toy import distance, grid, network, noise_for, run

from invfast import Schedule
from invfast.methods import DDIM, EasyInv, ForwardStart
from invfast.reference import easyinv, forward_start
from invfast.reference.ddim import invert as ddim

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False}
SD14 = {"eta": 0.5, "start": 0.05, "length": 0.2}


def schedule(steps, offset=0):
    return Schedule.from_scheduler(DDIMScheduler(**SD, steps_offset=offset), steps)


def whole(nodes):
    """The grid as published code walks it, its first step from the data's level to the data's level."""
    abar = float(nodes.alpha[0] ** 2)
    return [(0, abar, abar)] * nodes.dropped + grid(nodes)


def test_the_step_that_moves_nothing_is_counted():
    assert (schedule(50).num_steps, schedule(50).dropped, schedule(50).length) == (49, 1, 50)
    assert (schedule(50, 1).num_steps, schedule(50, 1).dropped, schedule(50, 1).length) == (50, 0, 50)
    assert schedule(50) != Schedule(schedule(50).t, schedule(50).alpha)  # what counts differs
    repeated = Schedule.from_scheduler(DDIMScheduler(**SD), timesteps=[0, 0, 20, 500, 500])
    assert (repeated.num_steps, repeated.dropped) == (2, 2)
    with pytest.raises(ValueError, match="dropped must be an integer of at least 0, got -1"):
        Schedule([0, 1], [0.9, 0.5], dropped=-1)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_a_forward_start_jumps_as_published(steps, x0):
    """To the target level of step K - 1 of the whole grid, after which every further step is taken."""
    nodes = schedule(12)
    method, path = ForwardStart(steps), whole(nodes)
    noise, abar = noise_for(x0.shape, method.seed).double(), path[steps - 1][2]
    jumped = abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
    assert distance(run(method, nodes, x0).state["latents"], ddim(network, jumped, path[steps:])) < 1e-10
    if steps < 12:
        twin = forward_start.invert(network, x0, path, steps=steps, noise=noise, inner=ddim)
        assert distance(run(method, nodes, x0).state["latents"], twin) < 1e-10


def test_a_forward_start_beyond_the_grid_is_refused(x0):
    with pytest.raises(ValueError, match="steps=13 is more than the 12 steps of the grid"):
        run(ForwardStart(13), schedule(12), x0)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(("variant", "twin"), [("after", easyinv.invert_after), ("before", easyinv.invert_before)])
def test_easyinv_blends_the_published_steps(variant, twin, steps, x0):
    nodes = schedule(steps)
    wanted = twin(network, x0, whole(nodes), **SD14)
    assert distance(run(EasyInv(variant=variant), nodes, x0).state["latents"], wanted) < 1e-10
    uncounted = twin(network, x0, grid(nodes), **SD14)
    assert distance(wanted, uncounted) > 1e-3  # it is another window


def test_a_method_that_counts_nothing_does_not_mind(x0):
    nodes = schedule(12)
    bare = Schedule(nodes.t, nodes.alpha)
    assert torch.equal(run(DDIM(), nodes, x0).state["latents"], run(DDIM(), bare, x0).state["latents"])

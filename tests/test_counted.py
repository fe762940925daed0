"""Steps as published settings count them: with the one that moves nothing at steps_offset=0; and parts of a grid."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from tiny import QUICK
from toy import distance, grid, network, noise_for, predictor, run

from invfast import Inversion, Schedule, invert, reconstruct
from invfast.executors import Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import DDIM, METHODS, EasyInv, ForwardStart, NoiseMaps, Problem
from invfast.reference import easyinv, forward_start, noise_maps
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


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("strength", [0.2, 0.3, 0.58, 0.999, 1.0])
def test_strength_takes_the_steps_of_img2img(strength, offset):
    scheduler = DDIMScheduler(**SD, steps_offset=offset)
    scheduler.set_timesteps(50)
    times, _ = StableDiffusionImg2ImgPipeline.get_timesteps(SimpleNamespace(scheduler=scheduler), 50, strength, "cpu")
    part = schedule(50, offset).cleaner(strength)
    assert part.t[1:].tolist() == [t for t in times.tolist()[::-1] if t]
    assert (part.length, part.dropped) == (50, 1 - offset)
    assert torch.equal(part.alpha, schedule(50, offset).alpha[: part.num_steps + 1])
    assert part.origin.get("strength", 1.0) == strength


@pytest.mark.parametrize("strength", [0.2, 0.3, 0.58, 0.95])
def test_strength_takes_the_steps_of_a_flows_img2img(strength):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    pipe = SimpleNamespace(scheduler=scheduler)
    times, _ = StableDiffusion3Img2ImgPipeline.get_timesteps(pipe, 28, strength, "cpu")
    part = Schedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 28).cleaner(strength)
    assert part.t[1:].tolist() == times.tolist()[::-1]


def test_a_part_of_a_part_and_what_is_no_part():
    nodes = schedule(50, 1)
    assert nodes.cleaner(0.5).cleaner(0.25) == nodes.cleaner(0.25)  # of the whole grid, both times
    assert nodes.cleaner(1) is nodes
    assert nodes.cleaner(0.5) != Schedule(nodes.t[:26], nodes.alpha[:26])
    for wrong in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"strength must lie in \(0, 1\]"):
            nodes.cleaner(wrong)
    with pytest.raises(TypeError, match="strength must be a number"):
        nodes.cleaner("half")
    with pytest.raises(ValueError, match=r"strength=0\.019 takes none of the 50 steps"):
        nodes.cleaner(0.019)
    with pytest.raises(ValueError, match="takes none of the 50 steps"):
        schedule(50).cleaner(0.02)  # the one that moves nothing


@pytest.mark.parametrize("name", ["ddim", "easyinv", "anderson", "warm_start", "edict", "bdia", "obelm", "gnri"])
def test_a_part_is_the_beginning_of_the_whole(name, x0):
    """Also of what counts steps of the whole grid; and the way back returns where the method does."""
    whole, part, method = schedule(12), schedule(12).cleaner(0.5), METHODS[name]
    found = run(method, part, x0)
    path = run(method, whole, x0, trajectory=True).trajectory
    if name != "edict":  # whose pair takes turns from the noise end
        assert distance(found.state["latents"], path[5]) < 1e-12
    stepper = method.sampler(Problem(part, dtype=x0.dtype), 5)
    state = {n: found.state[n] for n in ("latents", *method.inverter(Problem(part)).keep)}
    back = integrate(Plain(stepper, predictor(3)), state, part, Hooks()).state["latents"]
    assert distance(back, x0) < (1e-10 if name in ("edict", "bdia", "obelm") else 0.5)


def test_noise_maps_skip_what_strength_leaves_out(x0):
    nodes = schedule(100, 1).cleaner(0.64)
    assert nodes.num_steps == 64
    noise = noise_for((3, 64, *x0.shape[1:]), 0).double()
    wanted, maps = noise_maps.invert(network, x0, grid(nodes), noise=noise)
    found = run(NoiseMaps(), nodes, x0).state
    assert distance(found["latents"], wanted) < 1e-10
    assert distance(found["maps"], maps) < 1e-10


def test_methods_of_which_a_part_leaves_nothing_say_so(x0):
    part = schedule(50, 1).cleaner(0.5)
    with pytest.raises(ValueError, match="EasyInv blends steps 43 to 47 of 50, and this part of the grid has only the"):
        run(EasyInv.sdxl(), part, x0)
    with pytest.raises(ValueError, match="steps=26 is more than the 25 steps"):
        run(ForwardStart(26), part, x0)
    assert run(EasyInv(), part, x0).steps_taken == 25


def test_strength_through_a_call_and_a_file(tiny, peach, tmp_path):
    inv = invert(tiny, peach, method="obelm", strength=0.5, dtype="float64", **QUICK)
    assert (inv.node, inv.schedule.num_steps, inv.schedule.beyond) == (2, 2, 2)
    inv.save(tmp_path / "x")
    again = Inversion.load(tmp_path / "x")
    assert again.schedule == inv.schedule
    back = reconstruct(tiny, again, output_type="latent", dtype="float64")
    assert distance(back.latents, inv.init_latents) < 1e-10
    with pytest.raises(ValueError, match=r"strength=0\.1 takes none of the 4 steps"):
        invert(tiny, peach, strength=0.1, **QUICK)

"""Levels next to 0, to 1 and to each other: what float32 writes for a limit is that limit."""

import re

import diffusers
import pytest
import torch
from tiny import SD
from toy import distance, noise_for, predictor, rewritten, run, sample

from invfast import Schedule, rows
from invfast.executors import Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import BDIA, DDIM, EDICT, OBELM, FixedPoint, ForwardStart, NoiseMaps, Problem
from invfast.schedule import NEGLIGIBLE

BETAS = {name: SD[name] for name in ("beta_schedule", "beta_start", "beta_end")}
ZERO = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NEAR_ZERO = ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler"]


def levels(*alpha, dtype=torch.float64, prediction="epsilon", **given):
    return Schedule(torch.arange(len(alpha)), torch.tensor(alpha, dtype=dtype), prediction, **given)


@pytest.mark.parametrize("name", [*NEAR_ZERO, "EulerAncestralDiscreteScheduler", "DDPMScheduler"])
def test_zero_terminal_snr_however_it_is_written(name):
    scheduler = getattr(diffusers, name)(**ZERO)
    assert float(scheduler.alphas_cumprod[-1]) in (0, 2**-24)
    with pytest.raises(ValueError, match="epsilon prediction cannot be read at alpha = 0"):
        Schedule.from_scheduler(scheduler, 10)
    velocity = Schedule.from_scheduler(getattr(diffusers, name)(**ZERO, prediction_type="v_prediction"), 10)
    assert velocity.num_steps == 10


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ({"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}, {}, r"4\.93e-05 \(t=999"),
        (ZERO, {"timesteps": [998, 500, 1]}, r"0\.000444 \(t=998"),
        ({**ZERO, "timestep_spacing": "leading", "steps_offset": 17}, {"num_inference_steps": 50}, r"t=997"),
    ],
)
def test_what_is_left_of_the_signal_must_be_readable(config, given, message):
    scheduler = diffusers.EulerDiscreteScheduler(**config)
    with pytest.raises(ValueError, match=f"cannot be read at alpha = .*{message}"):
        Schedule.from_scheduler(scheduler, **given)


def test_a_little_signal_is_enough():
    linear = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)  # diffusers' own betas
    grid = Schedule.from_scheduler(linear, 50, timesteps=[*range(1, 982, 20)])
    assert 1e-6 < float(grid.alpha[-1]) ** 2 < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("alpha", "prediction", "message"),
    [
        ((0.99, 0.5, 2**-12), "epsilon", "cannot be read at alpha = 0.000244"),
        ((0.99, 0.5, 1e-30), "epsilon", "cannot be read at alpha = 1e-30"),
        ((1.0, 2**-12), "v_prediction", "from alpha = 1 to alpha = 0 cannot be inverted"),
        ((1 - 2**-24, 0.0), "v_prediction", "from alpha = 1 to alpha = 0 cannot be inverted"),
        ((1 - 2**-24, 0.5), "sample", r"cannot be inverted from alpha = 1 .*forgets its input"),
        ((1 - 2**-22, 0.5, 0.1), "sample", r"cannot be inverted from alpha = 1 .*forgets its input"),
    ],
)
def test_a_schedule_of_ones_own_is_held_to_the_same(alpha, prediction, message, dtype):
    with pytest.raises(ValueError, match=message):
        levels(*alpha, dtype=dtype, prediction=prediction)


def test_what_passes_is_rebuilt_in_float32(x0):
    """The toy network on grids that end just inside the bounds."""
    edge = NEGLIGIBLE**0.5 * 1.05
    x, solver = x0.float(), FixedPoint(100, "anderson", tolerance=1e-7)
    ends = {"epsilon": (0.99, 0.8, 0.4, 0.1, edge), "sample": ((1 - edge**2) ** 0.5, 0.8, 0.4, 0.1)}
    for prediction, alpha in ends.items():
        grid = levels(*alpha, prediction=prediction)
        function = rewritten(grid)
        found = run(solver, grid, x, predictor(len(x), x.dtype, function=function)).state["latents"]
        assert distance(sample(DDIM(), grid, found, function), x) < 1e-3, prediction


@pytest.mark.parametrize("end", [0.0, 2**-12, 1e-20])
def test_obelm_divides_by_alpha(end, x0):
    grid = levels(0.99, 0.8, 0.4, end, prediction="v_prediction")
    with pytest.raises(ValueError, match=r"O-BELM divides by alpha, which is .* use BDIA"):
        run(OBELM(), grid, x0)
    for method in (BDIA(), EDICT(), NoiseMaps()):
        assert run(method, grid, x0).state["latents"].isfinite().all()


@pytest.mark.parametrize("alpha", [(0.9, 0.8, 0.8 - 2e-7, 0.3), (0.9, 0.9 - 2e-7, 0.3), (0.9, 0.5, 0.5 - 3e-7, 0.002)])
def test_obelm_needs_steps_of_like_lengths(alpha, x0):
    with pytest.raises(ValueError, match=r"O-BELM amplifies errors by how much longer a step is.*use BDIA"):
        run(OBELM(), levels(*alpha), x0)
    assert run(BDIA(), levels(*alpha), x0).state["latents"].isfinite().all()


@pytest.mark.parametrize("end", [0.0, 2**-12])
def test_a_jump_into_noise_alone_is_refused(end, x0):
    grid = levels(0.99, 0.8, 0.4, end, prediction="v_prediction")
    with pytest.raises(ValueError, match=r"steps=3 jumps to alpha = .*nothing of the image is left; use fewer"):
        run(ForwardStart(3), grid, x0)
    assert run(ForwardStart(2), grid, x0).state["latents"].isfinite().all()


@pytest.mark.parametrize(("clean", "eta"), [(1 - 1e-15, 1.0), (1 - 6e-16, 0.5), (0.99, 1e-8), (0.99, 1e-42)])
def test_noise_that_float32_rounds_away_is_none(clean, eta, x0):
    grid, x = levels(clean, 0.8, 0.4), x0.float()
    up, down = rows.noise_maps(grid, eta)
    assert up.float().isfinite().all()
    assert float(down[0, 0, 1]) == 1  # z is the difference itself
    method = NoiseMaps(eta)
    found = run(method, grid, x).state
    assert found["maps"].abs().max() < 1e3
    problem = Problem(grid, dtype=x.dtype, draw=lambda shape, seed: noise_for(shape, seed).to(x.dtype))
    back = integrate(Plain(method.sampler(problem, 2), predictor(len(x), x.dtype)), found, grid, Hooks()).state[
        "latents"
    ]
    assert distance(back, x) < 1e-5


@pytest.mark.parametrize("ulps", [1, -1, 2])
@pytest.mark.parametrize("compat", [None, "diffusers"])
def test_a_level_repeated_up_to_rounding_is_dropped(ulps, compat):
    scheduler = diffusers.DDIMScheduler(**SD)
    wanted = Schedule.from_scheduler(scheduler, 50, compat=compat)
    table = scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
    for t in (501, 981):
        near = table[t - 20].clone()
        for _ in range(abs(ulps)):
            near = torch.nextafter(near, torch.tensor(2.0 if ulps > 0 else 0.0))
        table[t] = near
    found = Schedule.from_scheduler(scheduler, 50, compat=compat)
    assert found.t.tolist() == [t for t in wanted.t.tolist() if t not in (501, 981)]
    assert (found.alpha.diff() < -1e-6).all()


def test_levels_that_only_rounding_tells_apart_are_refused():
    for alpha in ((0.9, 0.5, 0.5 - 1e-9), (0.9, 0.9 - 3e-8, 0.5), (0.5, 0.01, 0.01 - 1e-12)):
        with pytest.raises(ValueError, match="descend strictly from data to noise, by more than float32 rounds away"):
            levels(*alpha)
    # Next to clean data the noise level still tells them apart.
    assert levels(1 / (1 + 2e-3**2) ** 0.5, 1 / (1 + 2.1e-3**2) ** 0.5, 0.5).num_steps == 2


def test_a_source_rounded_on_another_way_is_still_the_node(x0):
    exact = torch.tensor([0.99, 0.8, 0.4, 0.1], dtype=torch.float64)
    rounded = exact[:-1].float()
    grid = Schedule(torch.arange(4), exact, source_alpha=rounded)
    assert torch.equal(grid.source_alpha, exact[:-1])
    for method in (OBELM(), BDIA(), NoiseMaps()):
        assert run(method, grid, x0).state["latents"].isfinite().all()
    with pytest.raises(ValueError, match="O-BELM needs steps that begin where the last one ended"):
        run(OBELM(), Schedule(torch.arange(4), exact, source_alpha=exact[:-1] + 1e-3), x0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.clone().fill_(float("nan")), "must be floats in [0, 1], got torch.float32 with others"),
        (lambda table: table.clone().index_fill_(0, torch.tensor(3), float("inf")), "must be floats in [0, 1]"),
        (lambda table: -table, "must be floats in [0, 1]"),
        (lambda table: table * 2, "must be floats in [0, 1]"),
        (lambda table: (table * 10).long(), "must be floats in [0, 1], got torch.int64"),
        (lambda table: table.to(torch.complex64), "must be floats in [0, 1], got torch.complex64"),
    ],
)
def test_tables_that_are_none(change, message):
    scheduler = diffusers.DDIMScheduler(**SD)
    scheduler.alphas_cumprod = change(scheduler.alphas_cumprod)
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.from_scheduler(scheduler, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_table_in_half_precision(dtype):
    """Levels it cannot tell apart are one node, and the rest is what it was."""
    scheduler = diffusers.DDIMScheduler(**SD)
    exact = Schedule.from_scheduler(scheduler, 50)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    found = Schedule.from_scheduler(scheduler, 50)
    assert set(found.t.tolist()) <= set(exact.t.tolist())
    assert found.num_steps > 45
    assert distance(found.alpha[-40:], exact.alpha[-40:]) < torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compat": "old"}, "unknown compat 'old'"),
        ({"alpha": torch.tensor([0.9, 0.5], dtype=torch.complex64)}, "alpha must be real numbers"),
        ({"alpha": torch.tensor([True, False])}, "alpha must be real numbers"),
        ({"source_alpha": torch.tensor([0.9j])}, "source_alpha must be real numbers"),
        ({"t": torch.tensor([0j, 1])}, "t must be numbers that ascend"),
        ({"alpha": [0.9, float("inf")]}, "must lie in"),
    ],
)
def test_what_is_no_schedule(given, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"t": [0, 1], "alpha": [0.9, 0.5], **given})


def test_a_schedule_takes_levels_that_require_gradients():
    alpha = torch.tensor([0.9, 0.5], requires_grad=True)
    assert Schedule([0, 1], alpha) == Schedule([0, 1], alpha.detach())

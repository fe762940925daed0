"""Each method against its long-hand twin, alone and in batches; costs; composition."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from toy import distance, grid, network, noise_for, predictor, rewritten, run, sample

from invfast import Schedule, methods
from invfast.methods import (
    BDIA,
    DDIM,
    EDICT,
    GNRI,
    METHODS,
    OBELM,
    Auto,
    EasyInv,
    FixedPoint,
    ForwardStart,
    NoiseMaps,
    ReNoise,
)
from invfast.methods.whiten import draws
from invfast.reference import ddim, easyinv, fixed_point, forward_start, noise_maps, renoise, reversible

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False}
SDXL = {"eta": 0.8, "start": 0.85, "length": 0.1}
SD14 = {"eta": 0.5, "start": 0.05, "length": 0.2}


def one_by_one(function, **settings):
    """A reference that takes single images, over a batch."""

    def batched(model, x, nodes, prediction_type="epsilon"):
        return torch.cat([function(model, row, nodes, prediction_type, **settings) for row in x.split(1)])

    return batched


def jumped(steps, inner):
    def batched(model, x, nodes, prediction_type="epsilon"):
        noise = noise_for(x.shape, ForwardStart().seed).to(x.dtype)
        return forward_start.invert(model, x, nodes, prediction_type, steps=steps, noise=noise, inner=inner)

    return batched


def budgeted(model, x, nodes, prediction_type="epsilon"):
    """Auto under a budget of one and a half evaluations a step."""
    return solved(Auto(budget=1.5), extra=len(nodes) // 2)(model, x, nodes, prediction_type)


def solved(method, **settings):
    """Auto, to the tolerance and by the evaluations of a step that it takes on a grid."""

    def batched(model, x, nodes, prediction_type="epsilon"):
        solver = method.solver(len(nodes))
        own = {"iterations": solver.iterations, "tolerance": solver.tolerance, **settings}
        every = one_by_one(fixed_point.invert, mixing="anderson", history=2, cold_first=True, **own)
        return every(model, x, nodes, prediction_type)

    return batched


def first(function, **settings):
    """The latents of a reference that returns what it keeps beside them."""
    return lambda *given: function(*given, **settings)[0]


def mapped(model, x, nodes, prediction_type="epsilon"):
    noise = noise_for((len(x), len(nodes), *x.shape[1:]), 0).to(x.dtype)
    return noise_maps.invert(model, x, nodes, prediction_type, noise=noise)[0]


def renoised(model, x, nodes, prediction_type="epsilon", channels=None, **settings):
    """Image by image, with the noise and the shifts that the method draws."""
    shifts, noise = draws(len(nodes), settings["iterations"] + 2, channels), noise_for(x.shape, 7865).to(x.dtype)
    each = zip(x.split(1), noise.split(1), strict=True)
    return torch.cat(
        [renoise.invert(model, row, nodes, prediction_type, noise=n, uniform=shifts, **settings) for row, n in each]
    )


fixed = partial(one_by_one, fixed_point.invert)

# (method, its long-hand twin, tolerance of a whole run in float64)
TWINS = {
    "ddim": (DDIM(), ddim.invert, 1e-10),
    "easyinv after": (EasyInv(), partial(easyinv.invert_after, **SD14), 1e-10),
    "easyinv before": (EasyInv(variant="before"), partial(easyinv.invert_before, **SD14), 1e-10),
    "easyinv sdxl after": (EasyInv.sdxl(), partial(easyinv.invert_after, **SDXL), 1e-10),
    "easyinv sdxl before": (EasyInv.sdxl("before"), partial(easyinv.invert_before, **SDXL), 1e-10),
    "plain": (FixedPoint(3), fixed(iterations=3), 1e-10),
    "averaged": (FixedPoint(4, "averaged"), fixed(iterations=4, mixing="averaged"), 1e-10),
    "anderson": (FixedPoint(3, "anderson"), fixed(iterations=3, mixing="anderson"), 1e-8),
    "anderson 6 window 4": (
        FixedPoint(6, "anderson", window=4),
        fixed(iterations=6, mixing="anderson", window=4),
        1e-8,
    ),
    "warm start": (FixedPoint(1, warm_start="constant"), fixed(iterations=1, history=1), 1e-10),
    "warm linear": (FixedPoint(1, warm_start="linear"), fixed(iterations=1, history=2), 1e-10),
    "warm quadratic 2": (FixedPoint(2, warm_start="quadratic"), fixed(iterations=2, history=3), 1e-10),
    "warm anderson": (
        FixedPoint(3, "anderson", "linear"),
        fixed(iterations=3, mixing="anderson", history=2),
        1e-8,
    ),
    "tolerance": (FixedPoint(30, tolerance=1e-4), fixed(iterations=30, tolerance=1e-4), 1e-10),
    "tolerance warm anderson": (
        FixedPoint(9, "anderson", "constant", tolerance=1e-5),
        fixed(iterations=9, mixing="anderson", history=1, tolerance=1e-5),
        1e-8,
    ),
    "auto": (
        Auto(50),
        solved(Auto(50)),
        1e-8,
    ),
    "auto budget": (
        Auto(budget=1.5),
        budgeted,
        1e-8,
    ),
    "forward start": (ForwardStart(2), jumped(2, ddim.invert), 1e-10),
    "forward start warm": (
        ForwardStart(3, FixedPoint(2, warm_start="linear")),
        jumped(3, fixed(iterations=2, history=2)),
        1e-10,
    ),
    "renoise": (ReNoise(2, 0.02, 2.0), partial(renoised, iterations=2, lambda_kl=0.02, lambda_ac=2.0), 1e-10),
    "renoise 9, not regularised": (
        ReNoise(9, lambda_kl=0, lambda_ac=0),
        one_by_one(renoise.invert, iterations=9),
        1e-10,
    ),
    "gnri": (GNRI(3), one_by_one(renoise.invert_by_sign, iterations=3), 1e-10),
    "gnri, guided": (GNRI(3, 0.1), one_by_one(renoise.invert_by_sign, iterations=3, prior=0.1), 1e-10),
    "renoise, last iterate by channel": (
        ReNoise(1, 0.0, 2.0, average=False, shifts="channel"),
        partial(renoised, iterations=1, lambda_ac=2.0, average=False, channels=4),
        1e-10,
    ),
    "edict": (EDICT(), first(reversible.edict_invert), 1e-10),
    "edict, x first": (EDICT(alternate=False), first(reversible.edict_invert, alternate=False), 1e-10),
    "bdia": (BDIA(), first(reversible.bdia_invert), 1e-10),
    "bdia .9": (BDIA(0.9), first(reversible.bdia_invert, gamma=0.9), 1e-10),
    "obelm": (OBELM(), first(reversible.obelm_invert), 1e-10),
    "ddim, at the source": (DDIM("source"), partial(ddim.invert_from_source, first_t=0), 1e-10),
    "warm start, published": (
        FixedPoint(1, warm_start="constant", first="source"),
        fixed(iterations=1, history=1, first_t=0),
        1e-10,
    ),
    "bdia, published": (BDIA(0.9, "source"), first(reversible.bdia_invert, gamma=0.9, first_t=0), 1e-10),
    "bdia .5": (BDIA(0.5), first(reversible.bdia_invert, gamma=0.5), 1e-10),
    "obelm, published": (OBELM("source"), first(reversible.obelm_invert, first_t=0), 1e-10),
    "noise maps": (NoiseMaps(), mapped, 1e-10),
    "forward start edict": (ForwardStart(3, EDICT()), jumped(3, first(reversible.edict_invert)), 1e-10),
    "forward start bdia": (ForwardStart(3, BDIA()), jumped(3, first(reversible.bdia_invert)), 1e-10),
    "forward start obelm": (ForwardStart(3, OBELM()), jumped(3, first(reversible.obelm_invert)), 1e-10),
}


def schedule(steps=12, prediction="epsilon", **config):
    scheduler = DDIMScheduler(**{**SD, "steps_offset": 1, "prediction_type": prediction, **config})
    return Schedule.from_scheduler(scheduler, steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", TWINS)
def test_equals_its_reference(name, prediction, x0):
    method, twin, tolerance = TWINS[name]
    nodes = schedule(prediction=prediction)
    wanted = twin(network, x0, grid(nodes), prediction)
    found = run(method, nodes, x0)
    assert found.state["latents"].dtype == torch.float64
    assert distance(found.state["latents"], wanted) < tolerance
    rounded = run(method, nodes, x0.float()).state["latents"]
    assert rounded.dtype == torch.float32
    assert distance(rounded, wanted) < 1e-5 * nodes.num_steps


@pytest.mark.parametrize("name", [name for name in TWINS if not name.startswith("forward start")])
def test_a_step_in_float32(name, x0):
    """One step from the data, where differences of nearly equal levels are at their smallest."""
    method, twin, _ = TWINS[name]
    nodes = Schedule.from_scheduler(DDIMScheduler(**SD, steps_offset=1), timesteps=[1])
    assert distance(run(method, nodes, x0.float()).state["latents"], twin(network, x0, grid(nodes))) < 1e-5


@pytest.mark.parametrize("dynamic_batch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TWINS)
def test_a_batch_equals_its_images_bit_for_bit(name, dtype, dynamic_batch, x0):
    method, nodes = TWINS[name][0], schedule()
    x0 = torch.stack([x0[0] * 0.1, x0[1], x0[2] * 3]).to(dtype)  # so that they stop at different iterations
    predict = predictor(3, dtype, dynamic_batch)
    together = run(method, nodes, x0, predict).state["latents"]
    for j, row in enumerate(x0.split(1)):
        single = predictor(1, dtype)
        seeded = replace(method, seed=method.seed + j) if hasattr(method, "seed") else method
        assert torch.equal(run(seeded, nodes, row, single).state["latents"][0], together[j])
        assert single.evaluations[0] == predict.evaluations[j]


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        (DDIM(), 12),
        (EasyInv(), 12),
        (FixedPoint(1), 12),
        (FixedPoint(3, "anderson"), 36),
        (FixedPoint(1, warm_start="constant"), 13),
        (FixedPoint(2, warm_start="quadratic"), 25),
        (ForwardStart(2), 10),
        (ForwardStart(12), 0),
        (ForwardStart(2, FixedPoint(1, warm_start="linear")), 11),
        (EDICT(), 24),
        (BDIA(), 12),
        (OBELM(), 12),
        (NoiseMaps(), 12),
        (ForwardStart(2, OBELM()), 10),
    ],
)
def test_cost(method, evaluations, x0):
    predict = predictor(3)
    run(method, schedule(), x0, predict)
    assert predict.evaluations == [evaluations] * 3
    assert predict.samples == 3 * evaluations


def test_a_dropped_node_costs_nothing(x0):
    nodes, predict = schedule(50, steps_offset=0), predictor(3)
    run(DDIM(), nodes, x0, predict)
    assert predict.evaluations == [49] * 3


def test_one_cold_iteration_is_ddim(x0):
    a, b = (run(method, schedule(), x0).state["latents"] for method in (FixedPoint(1), DDIM()))
    assert distance(a, b) < 1e-14


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("mixing", ["plain", "averaged", "anderson"])
def test_a_converged_inversion_is_undone_by_sampling(mixing, prediction, x0):
    nodes = schedule(prediction=prediction)
    function = rewritten(nodes)
    found = run(FixedPoint(60, mixing, "constant", tolerance=1e-13), nodes, x0, predictor(3, function=function))
    assert float(found.residual.max()) < 1e-12
    assert distance(sample(DDIM(), nodes, found.state["latents"], function), x0) < 1e-9


@pytest.mark.parametrize("name", TWINS)
def test_the_way_a_network_writes_its_output_changes_nothing(name, x0):
    found = {}
    for prediction in ("epsilon", "v_prediction", "sample"):
        nodes = schedule(prediction=prediction)
        found[prediction] = run(TWINS[name][0], nodes, x0, predictor(3, function=rewritten(nodes))).state["latents"]
    assert distance(found["v_prediction"], found["epsilon"]) < 1e-8
    assert distance(found["sample"], found["epsilon"]) < 1e-8


def test_sampling_equals_its_reference(x0):
    for prediction in ("epsilon", "v_prediction", "sample"):
        nodes = schedule(prediction=prediction)
        wanted = ddim.sample(network, x0, grid(nodes), prediction)
        assert distance(sample(DDIM(), nodes, x0), wanted) < 1e-10


def test_images_that_are_done_are_left_out_or_counted(x0):
    x0 = torch.stack([x0[0] * 1e-3, x0[1], x0[2] * 3])
    method, nodes = FixedPoint(40, tolerance=1e-6), schedule()
    dynamic, static = predictor(3), predictor(3, dynamic_batch=False)
    run(method, nodes, x0, dynamic)
    run(method, nodes, x0, static)
    assert len(set(dynamic.evaluations)) > 1
    assert dynamic.evaluations == static.evaluations
    assert dynamic.samples == sum(dynamic.evaluations)
    assert static.samples > sum(static.evaluations)  # what masking wastes


def test_forward_start_jumps_to_the_source_level_of_its_step(x0):
    nodes = schedule(50)
    for k in (1, 2, 50):
        found = run(ForwardStart(k), nodes, x0, trajectory=True)
        noise = found.state["noise"]
        alpha, sigma = nodes.alpha[k], nodes.sigma[k]
        assert distance(found.trajectory[0], alpha * x0 + sigma * noise) < 1e-14
        assert len(found.trajectory) == 50 - k + 1


def test_velocity_model_at_zero_terminal_snr(x0):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    nodes = schedule(10, prediction="v_prediction", **config)
    assert nodes.alpha[-1] == 0
    for method in (DDIM(), FixedPoint(50, "anderson", "quadratic", tolerance=1e-12), EasyInv.sdxl()):
        found = run(method, nodes, x0)
        assert found.state["latents"].isfinite().all()
    found = run(FixedPoint(50, "anderson", tolerance=1e-12), nodes, x0)
    assert distance(sample(DDIM(), nodes, found.state["latents"]), x0) < 1e-8


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EasyInv(eta=0), ValueError, r"eta must lie in \(0, 1\], got 0"),
        (lambda: EasyInv(start=2), ValueError, "start must lie"),
        (lambda: EasyInv(variant="during"), ValueError, "unknown EasyInv variant 'during'"),
        (lambda: FixedPoint(0), ValueError, "at least 1, got 0"),
        (lambda: FixedPoint(2.5), ValueError, "integer of at least 1"),
        (lambda: FixedPoint(mixing="newton"), ValueError, "unknown FixedPoint mixing 'newton'"),
        (lambda: FixedPoint(warm_start="cubic"), ValueError, "unknown warm_start 'cubic'"),
        (lambda: FixedPoint(tolerance=float("nan")), ValueError, r"tolerance must lie in \[0, 1\), got nan"),
        (lambda: FixedPoint(tolerance="a"), ValueError, "tolerance must lie"),
        (lambda: FixedPoint(window=2.5), ValueError, "window must be 2, 3 or 4"),
        (lambda: FixedPoint(window=5), ValueError, "window must be 2, 3 or 4"),
        (lambda: FixedPoint(first="data"), ValueError, "unknown FixedPoint first 'data'; expected one of"),
        (lambda: FixedPoint(first="source"), ValueError, "first='source' is how a warm start begins; pass warm_start"),
        (lambda: DDIM("both"), ValueError, "unknown DDIM asked 'both'"),
        (lambda: BDIA(first=1), ValueError, "unknown BDIA first 1"),
        (lambda: OBELM(""), ValueError, "unknown OBELM first ''"),
        (lambda: ForwardStart(0), ValueError, "at least 1, got 0"),
        (lambda: ForwardStart(2, "ddim"), TypeError, "must be a Method instance"),
        (lambda: methods.resolve("easy-inv"), ValueError, "unknown method 'easy-inv'; expected one of 'ddim'"),
        (lambda: methods.resolve(DDIM), TypeError, "must be a name or a Method instance"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("method", [Auto(budget=1.2), *METHODS.values()], ids=lambda m: type(m).__name__)
def test_a_forward_start_may_jump_all_the_way(method, x0):
    if isinstance(method, ForwardStart | NoiseMaps) or method.guidance_scale or method.flow_only:
        pytest.skip("needs the latents of every node, or a flow")
    assert run(ForwardStart(12, method), schedule(), x0).state["latents"].std() > 0.5


def test_forward_start_refuses_grids_it_does_not_fit(x0):
    with pytest.raises(ValueError, match="more than the 12 steps"):
        run(ForwardStart(13), schedule(), x0)
    with pytest.raises(ValueError, match="inside another ForwardStart"):
        run(ForwardStart(2, ForwardStart(1)), schedule(), x0)

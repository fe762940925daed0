"""Tolerances that rounding keeps out of reach: given up early, and said; what is within reach stays as it was."""

import itertools
import json
import logging
import math

import pytest
import torch
from recorded import Recorder
from test_methods import schedule
from tiny import QUICK, stable_diffusion
from toy import distance, grid, noise_for

from invfast import Inversion, invert, reconstruct
from invfast import inversion as files
from invfast.denoiser.predictor import Predictor
from invfast.executors import Captured, Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import DDIM, Auto, Direct, FixedPoint, ForwardStart, NegativePrompt, Problem
from invfast.methods.fixed_point import rounding
from invfast.reference import fixed_point
from invfast.run import reached

MOST = 30
OUT_OF_REACH = {
    "auto": Auto(140, iterations=MOST),
    "plain": FixedPoint(MOST, tolerance=1e-7),
    "averaged": FixedPoint(MOST, "averaged", tolerance=1e-7),
    "anderson": FixedPoint(MOST, "anderson", tolerance=1e-7),
    "anderson, window 4": FixedPoint(MOST, "anderson", "quadratic", tolerance=1e-7, window=4),
    "plain, warm": FixedPoint(MOST, warm_start="constant", tolerance=1e-7),
    "forward start": ForwardStart(2, Auto(140, iterations=MOST)),
    "direct": Direct(7.5, Auto(140, iterations=MOST)),
    "negative prompt": NegativePrompt(7.5, FixedPoint(MOST, "anderson", "linear", tolerance=1e-7)),
}
MIXED = ("auto", "plain", "averaged", "anderson")
DTYPES = (torch.bfloat16, torch.float16, torch.int8)


@pytest.fixture
def latents():
    """Large enough that no step lands on a fixed point of the rounded network by luck."""
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(3))


def network(dtype):
    """toy.network rounded to a dtype, int8 in steps of 1/64; it runs inside a recording. A shift tells two branches."""

    def function(x, t, shift=0.0):
        eps = 0.5 * x + 0.4 * torch.sin(2 * x + t / 200 + shift)
        return (eps * 64).round() / 64 if dtype == torch.int8 else eps.to(dtype)

    return function


def solve(method, dtype, x, nodes=None, *, guidance=1.0, captured=False, dynamic=False):
    """(run, executor, stepper): inverted in x's dtype by the rounded network."""
    nodes, static = nodes or schedule(3), {}
    if guidance > 1:
        static = {"shift": torch.tensor([0.0, 0.1], dtype=x.dtype).repeat_interleave(len(x)).reshape(-1, 1, 1, 1)}
    predict = Predictor(network(dtype), static, len(x), 1 + bool(static), dtype, dynamic, x.dtype)
    given = {"draw": lambda shape, seed: noise_for(shape, seed).to(x.dtype), "embeds": (torch.zeros(len(x), 2, 5),)}
    stepper = method.inverter(Problem(nodes, guidance, dtype=x.dtype, **given))
    take = Captured(stepper, predict, nodes, "cpu", Recorder()) if captured else Plain(stepper, predict)
    return integrate(take, {"latents": x}, nodes, Hooks()), take, stepper


@pytest.mark.parametrize(
    ("name", "dtype"), [*itertools.product(OUT_OF_REACH, [torch.bfloat16]), *itertools.product(MIXED, DTYPES[1:])]
)
def test_an_image_closes_where_rounding_stops_it(name, dtype, latents):
    run, predict, stepper = solve(OUT_OF_REACH[name], dtype, latents)
    spent = max(predict.evaluations) / len(stepper.steps)
    assert 2 < spent < 25
    assert stepper.tolerance < run.residual.max() < rounding(dtype, latents) / 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixing", ["plain", "anderson"])
def test_nothing_is_lost_by_it(mixing, dtype, latents):
    """The solution is as near to the exact network's as that of many more iterations, up to a factor of two."""
    exact = solve(FixedPoint(60, mixing, tolerance=1e-12), torch.float64, latents.double())[0].state["latents"]
    closed = solve(FixedPoint(30, mixing, tolerance=1e-9), dtype, latents)[0].state["latents"]
    longer = solve(FixedPoint(30), dtype, latents)[0].state["latents"]
    assert distance(closed, exact) < 2 * distance(longer, exact)


@pytest.mark.parametrize(("guidance", "dtype"), [(3.0, torch.bfloat16), (7.5, torch.bfloat16), (7.5, torch.float16)])
def test_and_under_guidance(guidance, dtype, latents):
    run, predict, stepper = solve(FixedPoint(40, "anderson", "linear", 1e-7), dtype, latents, guidance=guidance)
    assert max(predict.evaluations) / len(stepper.steps) < 20
    assert stepper.tolerance < run.residual.max() < rounding(dtype, latents)


def test_float32_has_an_end_too(latents):
    run, predict, stepper = solve(FixedPoint(60, "anderson", "linear", tolerance=1e-9), torch.float32, latents)
    assert max(predict.evaluations) / len(stepper.steps) < 40  # of 60
    assert stepper.tolerance < run.residual.max() < 1e-6


@pytest.mark.parametrize(
    ("name", "dtype", "dynamic"),
    [
        ("auto", torch.bfloat16, True),
        ("plain", torch.float16, True),
        ("averaged", torch.int8, False),
        ("anderson", torch.float16, False),
        ("forward start", torch.bfloat16, False),
    ],
)
def test_captured_steps_close_alike(name, dtype, dynamic, latents):
    x = torch.cat([latents, 1e-3 * latents[:1]])
    plain, counts, _ = solve(OUT_OF_REACH[name], dtype, x, dynamic=dynamic)
    taken, recounted, _ = solve(OUT_OF_REACH[name], dtype, x, captured=True)
    assert torch.equal(plain.state["latents"], taken.state["latents"])
    assert torch.equal(plain.residual, taken.residual)
    assert counts.evaluations == recounted.evaluations
    assert len(set(counts.evaluations)) > 1 or name == "averaged"


@pytest.mark.parametrize("mixing", ["plain", "averaged", "anderson"])
def test_rounded_steps_equal_their_twin(mixing, x0):
    """In float64, the output rounded to bfloat16: both close at the same iteration, with the same value."""
    asked, nodes = [0], schedule(6)
    rounded = network(torch.bfloat16)

    def model(x, t):
        asked[0] += 1
        return rounded(x, torch.tensor(t)).to(x.dtype)

    floor = rounding(torch.bfloat16, x0)
    for row in x0.split(1):
        asked[0] = 0
        wanted = fixed_point.invert(
            model, row, grid(nodes), iterations=MOST, mixing=mixing, tolerance=1e-9, floor=floor
        )
        run, predict, _ = solve(FixedPoint(MOST, mixing, tolerance=1e-9), torch.bfloat16, row, nodes)
        assert predict.evaluations == [asked[0]]
        assert distance(run.state["latents"], wanted) < 1e-8


def test_a_rise_far_above_rounding_ends_nothing(x0):
    """An iteration that swings before it settles goes on: only residuals down at the rounding are doubted."""

    def swings(x, t, **_):
        return 3 * torch.sin(4 * x)

    predict = Predictor(swings, {}, 3, 1, torch.float32, True)
    stepper = FixedPoint(9, tolerance=1e-4).inverter(Problem(schedule(3)))
    run = integrate(Plain(stepper, predict), {"latents": x0.float()}, schedule(3), Hooks())
    assert (run.residual[1:] > 1e-2).all()
    assert predict.evaluations[0] > 2 * 9


@pytest.mark.parametrize("target", [70, 95])
def test_what_is_within_reach_costs_what_it_did(target, x0):
    """The rule may only act below 16 eps, and these tolerances end a step before."""
    tolerance = Auto(target).solver(50).tolerance
    assert tolerance > rounding(torch.float32, x0.float())
    assert min(Auto(budget=b).solver(n).tolerance for b in (1.05, 2, 5) for n in (10, 20, 50)) > rounding(
        torch.float32, x0.float()
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_iterations_that_run_out_on_few_steps_are_said(steps, latents, caplog):
    run, predict, stepper = solve(FixedPoint(2, "anderson", tolerance=1e-5), torch.float32, latents, schedule(steps))
    found, warned = said(run, predict, stepper, caplog)
    assert found == (False, False)
    assert f"2 of 2 images did not reach the tolerance of 1.0e-05: up to {steps} of {steps} steps" in warned
    assert "float32" in warned


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_what_rounding_kept_from_its_tolerance_is_said(name, latents, caplog):
    found, warned = said(*solve(OUT_OF_REACH[name], torch.bfloat16, latents), caplog)
    assert found == (False, False)
    assert "bfloat16" in warned


def test_each_image_is_told_by_itself(latents, caplog):
    method = FixedPoint(6, tolerance=1e-5)
    easy = torch.cat([latents[:1], 1e-6 * latents[:1] + 0.3])
    run, predict, stepper = solve(method, torch.float32, easy)
    found, warned = said(run, predict, stepper, caplog)
    below = (run.residual < 1e-5).all(0).tolist()
    assert found == tuple(below)
    assert ("1 of 2" in warned) == (sum(below) == 1)


@pytest.mark.parametrize(
    "method",
    [DDIM(), FixedPoint(3, "anderson"), Auto(budget=1.1), Auto(budget=2), ForwardStart(2, Auto(budget=1.5))],
    ids=repr,
)
def test_where_nothing_was_promised_nothing_is_missed(method, latents, caplog):
    """A budget is spent, not missed; fixed numbers of iterations have no tolerance."""
    assert said(*solve(method, torch.bfloat16, latents), caplog) == (None, "")


def test_what_was_reached_is_not_warned_of(latents, caplog):
    for method in (FixedPoint(40, tolerance=1e-5), Auto(60), ForwardStart(1, Auto(60)), Direct(3.0, Auto(60))):
        assert said(*solve(method, torch.float32, latents), caplog) == ((True, True), "")


def said(run, predict, stepper, caplog):
    """What stats and log make of a run."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "invfast"):
        return reached(stepper, run.residual, predict.dtype), caplog.text


def test_a_call_says_it_and_its_file_keeps_it(tmp_path, caplog):
    pipe, x = stable_diffusion(steep=True), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    there = invert(pipe, x, method=FixedPoint(2, tolerance=1e-6), **QUICK)
    assert there.stats.reached == (False, False)
    assert "2 of 2 images did not reach the tolerance of 1.0e-06: up to 4 of 4 steps" in caplog.text
    caplog.clear()
    assert reconstruct(pipe, there, output_type="latent").stats.reached is None
    assert there[1].stats.reached == (False,)
    there.save(tmp_path / "a")
    assert Inversion.load(tmp_path / "a").stats.reached == (False, False)
    assert invert(pipe, x, method="ddim", **QUICK).stats.reached is None
    assert not caplog.text


def test_files_of_before_still_load(tmp_path, monkeypatch):
    pipe, x = stable_diffusion(), torch.zeros(1, 4, 8, 8) + 0.5
    made = files._plain

    def older(inversion):
        values = json.loads(json.dumps(made(inversion)))
        del values["stats"]["reached"]
        return values

    monkeypatch.setattr(files, "_plain", older)
    invert(pipe, x, method=FixedPoint(2, tolerance=1e-6), **QUICK).save(tmp_path / "a")
    loaded = Inversion.load(tmp_path / "a")
    assert loaded.stats.reached is None
    assert loaded.stats.residual.shape == (4, 1)
    assert math.isfinite(loaded.stats.seconds)

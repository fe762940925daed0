"""Methods on rectified flow: long-hand references, and the exact flow model."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import distance

from invfast import Schedule, demo, invert, reconstruct, rows
from invfast.demo.reparametrised import as_flow
from invfast.executors import Plain
from invfast.integrate import Hooks, integrate
from invfast.methods import (
    BDIA,
    DDIM,
    EDICT,
    METHODS,
    OBELM,
    Auto,
    Direct,
    Euler,
    FireFlow,
    FixedPoint,
    ForwardStart,
    NoiseMaps,
    Problem,
    RFInversion,
    RFSolver,
)
from invfast.reference import flow
from invfast.schedule import FLOW

SHIFTED = [3 * s / (1 + 2 * s) for s in (0.0, 0.05, 0.2, 0.35, 0.6, 0.8, 1.0)]


def grid_of(sigmas):
    sigmas = torch.tensor(sigmas, dtype=torch.float64)
    return Schedule(t=1000 * sigmas, alpha=1 - sigmas, prediction_type=FLOW)


def velocity(x, sigma):
    """Smooth, curved and contracting."""
    s = torch.as_tensor(sigma, dtype=x.dtype)
    return torch.sin(1.3 * x + s) * 0.4 - 0.3 * x.roll(1, -1) * (1 - s) + 0.2


class Asked:
    """A predictor around a velocity, which notes when it was asked."""

    dtype, static = torch.float64, {}

    def __init__(self, branches=1):
        self.times, self.branches = [], branches

    def __call__(self, x, t, samples=None):
        self.times.append(float(t))
        v = velocity(x, t / 1000)
        return (v,) if self.branches == 1 else (v, velocity(x + 0.1, t / 1000))

    def many(self, x, t):
        return tuple(map(torch.stack, zip(*(self(each, time) for each, time in zip(x, t, strict=True)), strict=True)))


def drawn(shape, seed):
    each = (torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed + j)) for j in range(shape[0]))
    return torch.stack(list(each)).double()


def walk(stepper, state, grid, predict):
    return integrate(Plain(stepper, predict), state, grid, Hooks()).state


def both_ways(method, sigmas=SHIFTED, scale=1.0, x=None):
    grid = grid_of(sigmas)
    problem = Problem(grid, scale, dtype=torch.float64, draw=drawn)
    x, up, down = drawn((2, 4, 5, 3), 1) if x is None else x, Asked(1 + (scale > 1)), Asked(1 + (scale > 1))
    stepper = method.inverter(problem)
    found = walk(stepper, {"latents": x}, grid, up)
    kept = {name: found[name] for name in ("latents", *stepper.keep) if name in found}
    back = walk(method.sampler(problem, grid.num_steps), kept, grid, down)
    return x, found["latents"], back["latents"], up.times, down.times


CASES = {
    "ddim": (DDIM(), lambda x: flow.implicit_invert(velocity, x, SHIFTED), flow.euler_sample),
    "euler": (Euler(), lambda x: flow.euler_invert(velocity, x, SHIFTED), flow.euler_sample),
    "fixed point": (FixedPoint(4), lambda x: flow.implicit_invert(velocity, x, SHIFTED, 4), flow.euler_sample),
    "uni-inv": (
        FixedPoint(1, warm_start="constant"),
        lambda x: flow.implicit_invert(velocity, x, SHIFTED, warm=True),
        flow.euler_sample,
    ),
    "rf-solver": (RFSolver(), lambda x: flow.rf_solver_invert(velocity, x, SHIFTED), flow.rf_solver_sample),
    "fireflow": (FireFlow(), lambda x: flow.fireflow_invert(velocity, x, SHIFTED), flow.fireflow_sample),
    "edict": (EDICT(0.9), lambda x: flow.edict_invert(velocity, x, SHIFTED, 0.9), None),
    "bdia": (BDIA(0.8), lambda x: flow.bdia_invert(velocity, x, SHIFTED, 0.8), None),
    "obelm": (OBELM(), lambda x: flow.obelm_invert(velocity, x, SHIFTED), None),
}


@pytest.mark.parametrize("case", CASES)
def test_is_the_long_hand_method(case):
    method, up, down = CASES[case]
    x, noise, back, *_ = both_ways(method)
    assert distance(noise, up(x)) < 1e-12
    if down is not None:
        assert distance(back, down(velocity, up(x), SHIFTED)) < 1e-12
    else:  # keeps what undoes it
        assert distance(back, x) < 1e-10


def test_guidance_is_folded_in():
    """Two outputs, weighed (g, 1 - g), are one velocity."""
    for name in ("rf-solver", "fireflow", "euler", "obelm"):
        method = CASES[name][0]
        x, noise, *_ = both_ways(method, scale=2.5)

        def guided(y, sigma):
            return 2.5 * velocity(y, sigma) - 1.5 * velocity(y + 0.1, sigma)

        wanted = {
            "rf-solver": flow.rf_solver_invert,
            "fireflow": flow.fireflow_invert,
            "euler": flow.euler_invert,
            "obelm": flow.obelm_invert,
        }[name](guided, x, SHIFTED)
        assert distance(noise, wanted) < 1e-12


def test_rf_inversion_is_the_long_hand_one():
    method = RFInversion(0.4, 0.7, 0.5, seed=3)
    x, found, back, *_ = both_ways(method)
    noise = drawn((2, 4, 5, 3), 3)
    wanted = flow.rf_inversion_invert(velocity, x, SHIFTED, noise, 0.4)
    assert distance(found, wanted) < 1e-12
    assert distance(back, flow.rf_inversion_sample(velocity, wanted, SHIFTED, x, 0.7, 3)) < 1e-12
    pulled = both_ways(RFInversion(1.0, 1.0, 1.0))  # straight to noise, straight back
    assert distance(pulled[1], drawn((2, 4, 5, 3), 0)) < 1e-12
    assert distance(pulled[2], x) < 1e-12
    assert distance(both_ways(RFInversion(0.0, 0.0, 0.0))[1], flow.euler_invert(velocity, x, SHIFTED)) < 1e-12


@pytest.mark.parametrize(("method", "up", "down"), [(RFSolver(), 12, 12), (FireFlow(), 7, 7), (Euler(), 6, 6)])
def test_evaluations(method, up, down):
    *_, there, back = both_ways(method)
    assert (len(there), len(back)) == (up, down)


def test_what_solves_or_keeps_comes_back():
    for method in (Auto(140), FixedPoint(40, "anderson", tolerance=1e-13), NoiseMaps(), Direct(3.0)):
        x, _, back, *_ = both_ways(method)
        assert distance(back, x) < (1e-6 if isinstance(method, Auto) else 1e-10)


def test_forward_start_draws_on_the_line():
    """At sigma the data weigh 1 - sigma, not sqrt(1 - sigma^2)."""
    x = drawn((1, 4, 5, 3), 1)
    found = both_ways(ForwardStart(2, Euler(), seed=9), x=x)[1]
    s = SHIFTED[2]
    started = (1 - s) * x + s * drawn((1, 4, 5, 3), 9)
    assert distance(found, flow.euler_invert(velocity, started, SHIFTED[2:])) < 1e-12


levels = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=12, unique=True).map(sorted)


@given(levels)
def test_down_is_the_inverse_of_up(sigmas):
    if min(b - a for a, b in itertools.pairwise([0.0, *sigmas])) < 1e-5:
        return
    grid = grid_of([0.0, *sigmas])
    up, down = rows.explicit(rows.up(grid))[:, 0], rows.down(grid)[:, 0]
    # x -> p x + q o and back with the same output
    assert torch.allclose(down[:, 0] * up[:, 0], torch.ones(len(up)).double(), atol=1e-12)
    assert torch.allclose(down[:, 0] * up[:, 1] + down[:, 1], torch.zeros(len(up)).double(), atol=1e-12)
    noise = rows.noise(grid)[:, 0]
    data, eps = 0.7, -1.3  # read from x on the line and its velocity
    x = grid.alpha[1:] * data + grid.sigma[1:] * eps
    assert torch.allclose(noise[:, 0] * x + noise[:, 1] * (eps - data), torch.full_like(x, eps), atol=1e-12)


@pytest.fixture(scope="module")
def models():
    return demo.load_pipeline(), demo.load_pipeline("flow")


SLOWER = [pytest.param(each, marks=pytest.mark.slow) for each in ("anderson", "edict", "bdia", "euler", "rf_solver")]


@pytest.mark.parametrize("name", ["ddim", "obelm", "fireflow", *SLOWER])
def test_on_the_exact_flow_of_the_bundled_model(name, models, samples):
    """In its own variables each method comes back; what is solved is the same x_T as in the VP form."""
    vp, pipe = models
    grid = Schedule.from_scheduler(vp.scheduler, 20 if name == "anderson" else 10)
    line = as_flow(grid)
    x = invert(vp, [samples["peach"].image], method="ddim", num_inference_steps=1).init_latents.double()
    whole = (grid.alpha + grid.sigma)[[0, -1]]
    method = FixedPoint(60, "anderson", tolerance=1e-10) if name == "anderson" else METHODS[name]
    settings = {"dtype": "float64", "method": method}
    found = invert(pipe, x / whole[0], "a peach", schedule=line, **settings)
    back = reconstruct(pipe, found, output_type="latent").latents * whole[0]
    error = distance(back, x)
    if name in ("edict", "obelm", "bdia"):
        assert error < 1e-8
    if name == "anderson":  # DDIM's line and Euler's are one; the tolerance of each step is amplified by the rest
        there = invert(vp, x, "a peach", schedule=grid, **settings)
        assert error < 1e-6
        assert distance(found.latents * whole[1], there.latents) < 1e-5
    if name in ("rf_solver", "fireflow"):  # of second order; ddim and euler end .35 and .51 off
        assert error < 0.05
    assert error < 0.6


def test_flow_methods_are_for_flow(pipe, peach):
    for name in ("euler", "rf_solver", "fireflow", "rf_inversion"):
        with pytest.raises(ValueError, match="is for rectified flow, and this network predicts 'epsilon'; take 'auto'"):
            invert(pipe, peach, method=name, num_inference_steps=2)


def test_rf_inversion_begins_at_the_data():
    with pytest.raises(ValueError, match=r"leads back to the data it began at .* use it without ForwardStart"):
        both_ways(ForwardStart(2, RFInversion()))


@pytest.mark.parametrize("name", ["gamma", "eta", "share"])
def test_rf_inversion_refuses(name):
    with pytest.raises(ValueError, match=f"RFInversion {name} must lie in"):
        RFInversion(**{name: 1.5})

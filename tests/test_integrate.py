"""The loop: what it records, how it stops."""

import sys

import pytest
import torch
from diffusers import DDIMScheduler
from toy import network, predictor, run

from invfast import Schedule
from invfast.methods import DDIM, FixedPoint

loop = sys.modules["invfast.integrate"]
SCHEDULE = Schedule.from_scheduler(DDIMScheduler(set_alpha_to_one=False, steps_offset=1), 10)


def test_trajectory_holds_every_node(x0):
    found = run(DDIM(), SCHEDULE, x0, trajectory=True)
    assert found.trajectory.shape == (11, *x0.shape)
    assert torch.equal(found.trajectory[0], x0)
    assert torch.equal(found.trajectory[-1], found.state["latents"])


def test_residuals_are_those_of_the_steps(x0):
    found = run(FixedPoint(2), SCHEDULE, x0)
    assert found.residual.shape == (10, 3)
    assert found.residual.dtype == torch.float64
    assert (run(FixedPoint(6), SCHEDULE, x0).residual < found.residual).all()
    assert run(DDIM(), SCHEDULE, x0).residual is None


def test_results_can_be_differentiated_through(x0):
    latents = run(DDIM(), SCHEDULE, x0).state["latents"]
    latents.requires_grad_()
    (latents**2).sum().backward()
    assert torch.equal(latents.grad, 2 * latents.detach())


def test_interrupt(x0):
    asked = iter([False, False, False, True])
    found = run(DDIM(), SCHEDULE, x0, interrupted=lambda: next(asked))
    assert found.steps_taken == 3


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.float16, "try dtype=torch.float32"), (torch.float32, "check the image and the weights")],
)
def test_non_finite_latents_stop_the_run(dtype, remedy, x0):
    def broken(x, t, **_):
        out = network(x, t)
        if t == 201:
            out[1] = torch.inf
        return out

    predict = predictor(3, dtype, function=broken)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(FloatingPointError, match=rf"step 3 of 10 \(t=201\) in image 2 of 3, dtype {name}; {remedy}"):
        run(DDIM(), SCHEDULE, x0.float(), predict)
    assert predict.evaluations == [3, 3, 3]


def test_on_step_may_replace_the_state(x0):
    seen = []

    def on_step(taken, t, state):
        seen.append((taken, t))
        return {"latents": torch.zeros_like(x0)} if taken == 10 else None

    found = run(DDIM(), SCHEDULE, x0, on_step=on_step)
    assert seen == list(zip(range(1, 11), range(1, 1000, 100), strict=True))
    assert found.state["latents"].abs().max() == 0


class Event:
    """Of a copy that is there once it was asked for twice, or waited for."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return self.asked > 1

    def synchronize(self):
        self.asked = 2


@pytest.mark.parametrize(("device", "noticed"), [("cuda", loop.EVERY + 1), ("mps", 10)])
def test_a_device_reports_the_step_later_and_names_it(device, noticed, x0, monkeypatch):
    """By a device that only calls itself another: sums come back every few steps, or at the end, and none is lost."""
    real = loop._FiniteCheck.__init__

    def elsewhere(self, _, *given):
        real(self, torch.device(device), *given)

    monkeypatch.setattr(loop._FiniteCheck, "__init__", elsewhere)
    monkeypatch.setattr(loop, "_on_its_way", lambda x: (x.clone(), Event()))
    asked = []

    def failing(x, t):
        asked.append(1)
        return x * (float("nan") if len(asked) == bad else 0.5)

    for bad in (3, 8, 9, 10):
        asked.clear()
        with pytest.raises(FloatingPointError, match=f"step {bad} of 10"):
            run(DDIM(), SCHEDULE, x0, predictor(3, function=failing))
        assert len(asked) == (noticed if bad <= loop.EVERY else 10)
    asked.clear()
    bad = None  # this time nothing is wrong
    assert run(DDIM(), SCHEDULE, x0, predictor(3, function=failing)).steps_taken == 10

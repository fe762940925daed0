"""Results compare by value, tensors included; a hash agrees with it or there is none."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import QUICK

from invfast import Inversion, Schedule, invert, reconstruct
from invfast.adapters import Prompts
from invfast.integrate import Run
from invfast.methods import Problem
from invfast.methods.base import Linear
from invfast.ops import REFERENCE
from invfast.plain import same
from invfast.schedule import Step


@pytest.fixture(scope="module")
def found(tiny, samples):
    return invert(tiny, [samples[n].image for n in ("peach", "cat")], method="direct", save_trajectory=True, **QUICK)


@pytest.fixture(scope="module")
def copied(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "x"
    found.save(path)
    return Inversion.load(path)


def test_an_inversion_equals_what_is_loaded(found, copied):
    assert found == copied
    assert found == found[:]
    assert found != found[:1]
    assert found != 3
    assert found in [None, copied]
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_every_field_counts(found):
    for name, other in {
        "latents": found.latents + 1e-6,
        "init_latents": found.init_latents.double(),
        "state": {},
        "schedule": Schedule([0, 1], [0.9, 0.5]),
        "node": 3,
        "prompt": ["a", "b"],
        "stats": dataclasses.replace(found.stats, seconds=0.0),
        "trajectory": None,
        "provenance": {},
    }.items():
        assert dataclasses.replace(found, **{name: other}) != found, name


def test_stats(found, copied):
    assert found.stats == copied.stats
    assert hash(found.stats) == hash(copied.stats)
    residual = torch.tensor([[torch.nan, 1.0]])
    a, b = (dataclasses.replace(found.stats, residual=residual.clone()) for _ in range(2))
    assert a == b  # NaN and all
    assert len({a, b, found.stats}) == 2
    assert a != found.stats


def test_schedules(tiny):
    a, b = (Schedule.from_scheduler(tiny.scheduler, 10) for _ in range(2))
    assert a == b
    assert len({a, b}) == 1
    assert a != Schedule.from_scheduler(tiny.scheduler, 9)
    assert a != Schedule(a.t, a.alpha, "v_prediction")
    assert a == Schedule(a.t, a.alpha)  # origin is words
    assert a != 10


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_reconstructions(kind, tiny, found):
    a = reconstruct(tiny, found, output_type=kind)
    other = reconstruct(tiny, found[:1], output_type=kind)
    assert a == dataclasses.replace(a, latents=a.latents.clone())
    assert a != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


def test_what_holds_tensors_inside_compares_too():
    """As the one it is: nothing asks for more."""
    x = torch.ones(2)
    for make in (
        lambda: Prompts(embeds=x),
        lambda: Run({"latents": x}, 1, x, None, 0.0),
        lambda: Step(0, 0, x, x, x),
        lambda: Linear(REFERENCE, x, range(1)),
        lambda: Problem(Schedule([0, 1], [0.9, 0.5]), embeds=(x,)),
    ):
        a, b = make(), make()
        assert a in {a}
        assert a not in [b.__class__, dataclasses.replace(b)]


def test_same():
    one = {"a": [torch.tensor([1.0, torch.nan]), np.array([1, 2])], "b": (1, float("nan"), None)}
    assert same(one, {"a": [torch.tensor([1.0, torch.nan]), np.array([1, 2])], "b": [1, float("nan"), None]})
    for other in (1, torch.tensor([1.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan]).double(), None):
        assert not same(one["a"][0], other)
    assert not same(one, {"a": one["a"]})

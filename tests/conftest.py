"""Shared fixtures: the bundled pipeline, one per worker, and single-threaded torch beside other workers."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from hypothesis import settings
from tiny import stable_diffusion

from invfast import demo

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two spinning pools on two cores slow each other tenfold. What tests start has one thread too: with more of them
    # rounding is another, and random networks amplify it.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache of exported networks for all workers of this run, away from the user's own."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "invfast-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["INVFAST_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def pipe():
    return demo.load_pipeline()


@pytest.fixture(scope="session")
def samples():
    return demo.load_images()


@pytest.fixture(scope="session")
def tiny():
    """A random pipeline for tests that only read it."""
    return stable_diffusion()


@pytest.fixture(scope="session")
def peach(samples):
    return samples["peach"].image


@pytest.fixture(scope="session")
def own_modules(tmp_path_factory):
    """Where diffusers copies code that it is told to trust: a folder of this run's instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture
def eager_switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def x0():
    """A batch of three small latents, float64."""
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

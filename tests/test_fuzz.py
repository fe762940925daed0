"""Whatever is asked of `invert`: finite latents, or an error that says what was wrong."""

import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import stable_diffusion

import invfast
from invfast import invert
from invfast.methods import DDIM, EasyInv, FixedPoint, ForwardStart

PACKAGE = Path(invfast.__file__).parent

SCHEDULERS = st.builds(
    DDIMScheduler,
    num_train_timesteps=st.sampled_from([10, 50, 1000]),
    beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    prediction_type=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    timestep_spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    steps_offset=st.integers(0, 1),
    set_alpha_to_one=st.booleans(),
    rescale_betas_zero_snr=st.booleans(),
)
INNER = st.one_of(
    st.just(DDIM()),
    st.builds(EasyInv, eta=st.floats(0.1, 1), start=st.floats(0, 1), variant=st.sampled_from(["after", "before"])),
    st.builds(
        FixedPoint,
        iterations=st.integers(1, 3),
        mixing=st.sampled_from(["plain", "averaged", "anderson"]),
        warm_start=st.sampled_from([None, "constant", "linear", "quadratic"]),
        tolerance=st.sampled_from([0, 1e-2, 1e-5]),
        window=st.integers(2, 4),
    ),
)
METHODS = st.one_of(INNER, st.builds(ForwardStart, steps=st.integers(1, 4), method=INNER))
IMAGES = st.builds(
    lambda batch, height, width, kind, seed: [
        np.random.default_rng(seed + j).random((height, width, 3), np.float32)
        if kind == "noise"
        else np.full((height, width, 3), kind, np.float32)
        for j in range(batch)
    ],
    batch=st.integers(1, 3),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    kind=st.sampled_from(["noise", 0.0, 1.0]),
    seed=st.integers(0, 1000),
)
CASE = {
    "scheduler": SCHEDULERS,
    "method": METHODS,
    "image": IMAGES,
    "steps": st.integers(0, 4) | st.just(11),
    "dtype": st.sampled_from([None, torch.float32, torch.bfloat16, torch.float16, "float64"]),
    "guidance_scale": st.sampled_from([0.0, 1.0, 3.0]),
}


@pytest.fixture(scope="module")
def own():
    return stable_diffusion()


def check(pipe, scheduler, method, image, steps, dtype, guidance_scale):
    pipe.scheduler = scheduler
    options = {"method": method, "num_inference_steps": steps, "dtype": dtype, "guidance_scale": guidance_scale}
    refused = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            inv = invert(pipe, image, **options)
        except (ValueError, FloatingPointError) as error:
            refused = error
    if refused is not None:  # by us, not by whatever the argument ran into
        assert Path(traceback.extract_tb(refused.__traceback__)[-1].filename).is_relative_to(PACKAGE)
        return
    assert inv.latents.isfinite().all()
    assert inv.latents.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert len(inv.latents) == len(image)
    assert inv.node == inv.schedule.num_steps


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**CASE)
def test_a_few(own, **case):
    check(own, **case)


@pytest.mark.slow
@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**CASE)
def test_two_thousand(own, **case):
    check(own, **case)

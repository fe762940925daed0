"""The way back follows the inversion: runtime, dtype and what was precomputed; and what torch is set to around it."""

import contextlib
import dataclasses
import warnings

import pytest
import torch
from tiny import QUICK, stable_diffusion

from invfast import Inversion, Schedule, invert, prepare, reconstruct, runtimes
from invfast.ambient import numerics
from invfast.runtimes import selftest

CPU = torch.device("cpu")


ASKED = ({"dtype": "bfloat16"}, {"dtype": "float64"}, {"precompute": ("times",)}, {"precompute": ()})


@pytest.mark.parametrize("asked", [*ASKED, pytest.param({"runtime": "openvino"}, marks=pytest.mark.slow)], ids=str)
def test_none_and_auto_are_the_inversions_own(asked, peach, tmp_path):
    pipe = stable_diffusion()
    inversion = invert(pipe, peach, method="ddim", **QUICK, **asked)
    inversion.save(tmp_path / "one.safetensors")
    back = reconstruct(pipe, Inversion.load(tmp_path / "one.safetensors"), output_type="latent").stats
    names = ("runtime", "dtype", "precomputed")
    assert [getattr(back, n) for n in names] == [getattr(inversion.stats, n) for n in names]


@pytest.mark.parametrize(
    ("was", "why"),
    [
        ({"runtime": "tensorrt"}, "runtime 'tensorrt' is unavailable"),
        ({"runtime": "a runtime of tomorrow"}, "unknown runtime"),
        ({"runtime": "openvino_gpu"}, "OpenVINO finds no GPU here"),
        ({"dtype": torch.float16, "device": "cuda:0"}, "float16 is slow on a CPU and overflows"),
        ({"runtime": "onnxruntime", "dtype": torch.bfloat16}, "on cpu it computes in float32, not in torch.bfloat16"),
    ],
)
def test_what_cannot_run_here_is_said(was, why, tiny, peach):
    inversion = invert(tiny, peach, method="ddim", **QUICK)
    inversion = dataclasses.replace(inversion, stats=dataclasses.replace(inversion.stats, **was))
    with pytest.warns(UserWarning, match=why) as caught:
        back = reconstruct(tiny, inversion, output_type="latent").stats
    assert "is rebuilt in eager, float32" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert (back.runtime, back.dtype) == ("eager", torch.float32)


def test_what_the_caller_names_counts(tiny, peach, caplog):
    inversion = invert(tiny, peach, method="ddim", **QUICK)
    back = reconstruct(tiny, inversion, dtype="bfloat16", runtime="eager", precompute=("times",), output_type="latent")
    assert (back.stats.dtype, back.stats.precomputed) == (torch.bfloat16, ("times",))
    assert "rebuilding in bfloat16 what was inverted in float32" in caplog.text
    with pytest.raises(RuntimeError, match="'tensorrt' is unavailable"):
        reconstruct(tiny, inversion, runtime="tensorrt")
    with pytest.raises(ValueError, match="unknown dtype 'float31'"):
        reconstruct(tiny, inversion, dtype="float31")


AROUND = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def plain(tiny, peach):
    inversion = invert(tiny, peach, "a", num_inference_steps=5)
    return inversion, reconstruct(tiny, inversion, output_type="pt").images


@pytest.mark.parametrize("method", ["auto", "null_text"])
@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_a_call_changes_nothing(around, method, tiny, peach, plain, tmp_path):
    if method == "null_text":
        from invfast.methods import NullText

        method = NullText(iterations=1)
        inversion = invert(tiny, peach, "a", method=method, num_inference_steps=2)
        wanted = inversion, reconstruct(tiny, inversion, output_type="pt").images
        steps = 2
    else:
        wanted, steps = plain, 5
    with AROUND[around]():
        found = invert(tiny, peach, "a", method=method, num_inference_steps=steps)
        found.save(tmp_path / "one.safetensors")
        images = reconstruct(tiny, Inversion.load(tmp_path / "one.safetensors"), output_type="pt").images
        ready = prepare(tiny, height=64, width=64)
    assert torch.equal(found.latents, wanted[0].latents)
    assert torch.equal(images, wanted[1])
    assert found.stats.dtype == ready.dtype == torch.float32
    assert not any(x.is_inference() for x in (found.latents, found.init_latents, images))


@pytest.mark.parametrize("around", AROUND)
def test_a_schedule_is_the_same_whatever_is_set_around(around, tiny):
    wanted = Schedule.from_scheduler(tiny.scheduler, 7)
    with AROUND[around]():
        found = Schedule.from_scheduler(tiny.scheduler, 7)
        given = Schedule([0, 500, 900], [0.99, 0.5, 0.1])
        assert found.digest == wanted.digest
        assert given.digest == Schedule([0, 500, 900], [0.99, 0.5, 0.1]).digest
    assert given.digest == Schedule([0, 500, 900], [0.99, 0.5, 0.1]).digest


@contextlib.contextmanager
def precision(value):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_numeric_settings_are_recorded_and_compared(tiny, peach):
    inversion = invert(tiny, peach, method="ddim", **QUICK)
    assert inversion.provenance["numerics"] == "cpu: matmul ieee, conv ieee"
    with precision("medium"):
        assert numerics(CPU) == "cpu: matmul bf16, conv ieee"
        with pytest.warns(UserWarning, match="numeric settings"):
            reconstruct(tiny, inversion, output_type="latent")
    elsewhere = dataclasses.replace(inversion, provenance={**inversion.provenance, "numerics": "cuda: matmul tf32"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(tiny, elsewhere, output_type="latent")
    assert "allow_fp16_accumulation=" in numerics(torch.device("cuda"))


def test_the_self_tests_verdict_is_kept(cache, monkeypatch):
    selftest.bfloat16_on_cpu.cache_clear()
    found = runtimes.bfloat16_on_cpu()
    selftest.bfloat16_on_cpu.cache_clear()
    monkeypatch.setattr(selftest, "_measure", lambda: pytest.fail("it was measured already"))
    assert runtimes.bfloat16_on_cpu() == found
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")  # another verdict's
    selftest.bfloat16_on_cpu.cache_clear()
    monkeypatch.setattr(selftest, "_measure", lambda: selftest.Measured(1.0, 0.5))
    assert runtimes.bfloat16_on_cpu() == (1.0, 0.5)
    selftest.bfloat16_on_cpu.cache_clear()

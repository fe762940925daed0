"""Null-text, prompt tuning, negative-prompt and direct inversion of images: files, counts, a pipeline left alone."""

import dataclasses
import hashlib
from functools import partial

import pytest
import torch
from exact import steps_as_exact_as_eagers
from tiny import stable_diffusion
from toy import distance

from invfast import invert, metrics, reconstruct
from invfast.inversion import Inversion
from invfast.methods import DDIM, Direct, ForwardStart, NegativePrompt, NullText, PromptTuning, ReNoise

ALL = [NullText(iterations=2), PromptTuning(iterations=2), NegativePrompt(), Direct(), NullText(method=ReNoise())]


@pytest.fixture(scope="module")
def inversions(tiny, peach):
    return [
        invert(tiny, [peach] * 2, ["noto peach", "photo cat"], method=method, num_inference_steps=3) for method in ALL
    ]


def test_files_keep_what_the_way_back_needs(inversions, tiny, tmp_path):
    for inv in inversions:
        wanted = reconstruct(tiny, inv, output_type="latent")
        inv.save(tmp_path / "x")
        again = Inversion.load(tmp_path / "x")
        assert again.method == inv.method
        assert torch.equal(reconstruct(tiny, again, output_type="latent").latents, wanted.latents)
        both, alone = (reconstruct(tiny, each, output_type="latent", dtype="float64").latents for each in (inv, inv[1]))
        assert distance(alone[0], both[1]) < 1e-10


def test_the_way_up_under_a_guidance_of_its_own(tiny, peach):
    """0 is the negative prompt alone, above 1 what `invert` warns of; the way back still leads to the image."""
    given = {"num_inference_steps": 2, "dtype": "float64"}
    say = partial(invert, tiny, peach, "noto peach", negative_prompt="photo cat", **given)
    none = say(method=Direct(inverse_guidance=0.0))
    assert distance(none.latents, invert(tiny, peach, "photo cat", method="ddim", **given).latents) < 1e-10
    with pytest.warns(UserWarning, match="amplifies"):
        plain = say(method="ddim", guidance_scale=3.0)
    inv = say(method=ForwardStart(1, DDIM()))
    assert inv.method.inverse_guidance is None
    inv = say(method=Direct(inverse_guidance=3.0))
    assert distance(inv.latents, plain.latents) < 1e-10
    assert distance(reconstruct(tiny, inv, output_type="latent", dtype="float64").latents, inv.init_latents) < 1e-10
    half = say(method=Direct(inverse_guidance=0.5)).latents
    assert distance(half, none.latents) > 1e-3


def test_reconstruct_takes_the_methods_guidance(inversions, tiny):
    for inv in inversions:
        assert inv.guidance_scale == 1.0
        default = reconstruct(tiny, inv, output_type="latent")
        assert default.stats.samples == 2 * 2 * 3
        given = reconstruct(tiny, inv, guidance_scale=7.5, output_type="latent")
        assert torch.equal(given.latents, default.latents)
        other = reconstruct(tiny, inv, guidance_scale=1.0, output_type="latent")
        assert other.stats.samples == 2 * 3


@pytest.mark.slow  # exports the network
def test_reconstruct_runs_where_nothing_can_be_differentiated(inversions, tiny):
    for inv in inversions[:2]:
        back = (partial(reconstruct, tiny, inv, output_type="latent", runtime=name) for name in ("openvino", "eager"))
        exported, eager, _ = steps_as_exact_as_eagers(*back)
        assert exported.stats.runtime == "openvino"
        untuned = dataclasses.replace(inv, method=DDIM())
        assert (
            distance(reconstruct(tiny, untuned, guidance_scale=7.5, output_type="latent").latents, eager.latents) > 0.01
        )


def test_the_passes_are_counted_together(inversions):
    for inv in inversions[:2]:
        assert inv.stats.evaluations == (3 + 3 * 4,) * 2
        assert inv.stats.samples == 2 * (3 + 3 * 4)


def test_a_forward_start_may_stand_around_negative_prompt(tiny, peach):
    method = ForwardStart(1, NegativePrompt())
    inv = invert(tiny, peach, "noto peach", method=method, num_inference_steps=3, dtype="float64")
    assert set(inv.state) == {"noise", "embeds"}
    guided = reconstruct(tiny, inv, output_type="latent", dtype="float64")
    assert guided.stats.samples == 2 * 3
    plain = reconstruct(tiny, inv, guidance_scale=1.0, output_type="latent", dtype="float64")
    assert distance(guided.latents, plain.latents) < 1e-10


def fingerprint(module):
    sha = hashlib.sha256()
    for name, value in module.state_dict(keep_vars=True).items():
        sha.update(repr((name, id(value), value.requires_grad, value.grad is None, value.data_ptr())).encode())
        sha.update(value.detach().numpy().tobytes())
    parts = [(name, part.training, len(part._forward_hooks)) for name, part in module.named_modules()]
    sha.update(repr(parts).encode())
    return sha.hexdigest()


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
def test_the_pipeline_is_untouched(dtype, peach):
    pipe = stable_diffusion()
    for j, parameter in enumerate(pipe.unet.parameters()):
        parameter.requires_grad_(j % 2 == 0)
    first = next(pipe.unet.parameters())
    first.grad = torch.ones_like(first)
    before = [fingerprint(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder)]
    inv = invert(pipe, peach, method=NullText(iterations=2), num_inference_steps=2, dtype=dtype)
    reconstruct(pipe, inv, dtype=dtype)
    assert [fingerprint(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder)] == before
    assert torch.equal(first.grad, torch.ones_like(first))
    assert not inv.state["embeds"].requires_grad


def test_null_text_on_the_bundled_model(pipe, peach):
    def quality(method, **options):
        inv = invert(pipe, peach, "noto peach", method=method, num_inference_steps=3)
        latents = reconstruct(pipe, inv, output_type="latent", **options).latents
        return float(metrics.latent_psnr(latents, inv.init_latents))

    assert quality(NullText(iterations=5)) > quality(DDIM(), guidance_scale=7.5) + 3


@pytest.mark.parametrize("runtime", ["compile", "openvino"])
def test_a_runtime_that_cannot_differentiate_is_refused_at_once(runtime, tiny, peach, monkeypatch):
    from invfast import runtimes

    monkeypatch.setattr(type(runtimes.RUNTIMES[runtime]), "unavailable", lambda self: None)
    with pytest.raises(ValueError, match=f"'{runtime}' cannot run this network: NullText differentiates through it"):
        invert(tiny, peach, method=NullText(), num_inference_steps=2, runtime=runtime)


def test_what_runs_without_gradients_is_named(peach):
    pipe = stable_diffusion()
    forward = pipe.unet.forward
    pipe.unet.forward = torch.no_grad()(forward)
    with pytest.raises(RuntimeError, match="does not depend on its embeddings as far as autograd can see"):
        invert(pipe, peach, method=NullText(), num_inference_steps=2)


def test_refusals(tiny, peach):
    with (
        pytest.raises(ValueError, match=r"NullText inverts at guidance_scale=1 .* give guidance_scale=3 to the method"),
        pytest.warns(UserWarning, match="amplifies"),
    ):
        invert(tiny, peach, method=NullText(), guidance_scale=3.0)
    with pytest.raises(
        ValueError, match="NullText needs the latents of every node; ForwardStart leaves out the first 1"
    ):
        invert(tiny, peach, method=ForwardStart(1, NullText()), num_inference_steps=3)
    with pytest.raises(ValueError, match="Direct is for classifier-free guidance"):
        invert(stable_diffusion(time_cond_proj_dim=8), peach, method=Direct(), num_inference_steps=3)
    inv = invert(tiny, peach, method=NullText(iterations=1), num_inference_steps=2)
    for name in ("embeds", "path"):
        method = NullText() if name == "embeds" else Direct()
        broken = dataclasses.replace(inv, method=method, state={})
        with pytest.raises(ValueError, match=f"expected state '{name}' of shape .* got none"):
            reconstruct(tiny, broken)


def test_an_interrupted_inversion_is_kept_as_far_as_it_came(tiny, peach):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 1

    inv = invert(tiny, peach, method=NullText(), num_inference_steps=4, callback_on_step_end=stop)
    assert inv.node == 2
    assert inv.stats.evaluations == (2,)
    start = inv.state["embeds"]
    assert torch.equal(start, start[:, :1].expand_as(start))  # nothing was tuned
    assert reconstruct(tiny, inv, output_type="latent").stats.evaluations == (2,)

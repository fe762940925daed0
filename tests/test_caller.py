"""The caller's callbacks, modules and pipeline: heard, used as they are, left as they were."""

import dataclasses
import hashlib
from functools import partial

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from exact import steps_as_exact_as_eagers
from tiny import QUICK, stable_diffusion

from invfast import demo, invert, metrics, reconstruct
from invfast.denoiser.clone import is_managed
from invfast.methods import FixedPoint, ForwardStart


def test_trajectory(tiny, peach):
    inv = invert(tiny, peach, **QUICK, save_trajectory=True)
    assert inv.trajectory.shape == (5, 1, 4, 8, 8)
    assert torch.equal(inv.trajectory[0], inv.init_latents)
    assert torch.equal(inv.trajectory[-1], inv.latents)
    assert invert(tiny, peach, **QUICK).trajectory is None


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"callback_on_step_end": 3}, TypeError, "must be callable, got 3"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, TypeError, "must be a list of names, got 'latents'"),
        (
            {"callback_on_step_end": lambda *a: torch.zeros(1)},
            TypeError,
            "must return a dict of tensors or None, got Tensor",
        ),
        (
            {"callback_on_step_end": lambda *a: {"latents": None}},
            ValueError,
            "returned NoneType for 'latents'; expected",
        ),
        (
            {"callback_on_step_end": lambda p, i, t, x: {"latents": x["latents"].half()}},
            ValueError,
            r"returned torch.float16 \(1, 4, 8, 8\) for 'latents'; expected torch.float32",
        ),
        (
            {"callback_on_step_end": lambda p, i, t, x: {"latents": x["latents"] * (torch.nan if i == 3 else 1)}},
            FloatingPointError,
            "step 4 of 4",
        ),
    ],
)
def test_callbacks_are_checked(kwargs, error, message, tiny, peach):
    with pytest.raises(error, match=message):
        invert(tiny, peach, **QUICK, **kwargs)


def test_trajectory_holds_what_the_callback_left(tiny, peach):
    inv = invert(
        tiny,
        peach,
        **QUICK,
        save_trajectory=True,
        callback_on_step_end=lambda p, i, t, x: {"latents": x["latents"] + i},
    )
    assert torch.equal(inv.trajectory[-1], inv.latents)


def test_callback(tiny, peach):
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append((pipe is tiny, step, t, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    names = ("latents", "noise")
    inv = invert(
        tiny,
        peach,
        method=ForwardStart(1),
        num_inference_steps=5,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )
    assert seen == [(True, i, t, ["latents", "noise"]) for i, t in enumerate((201, 401, 601, 801))]
    assert inv.latents.abs().max() == 0
    with pytest.raises(ValueError, match=r"\['prompt_embeds'\] are not in the state \['latents'\]"):
        invert(
            tiny,
            peach,
            method="ddim",
            **QUICK,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_an_interrupted_inversion_can_be_reconstructed(pipe, peach):
    def stop(pipe, step, t, tensors):
        pipe._interrupt = step == 2
        return {}

    before = fingerprint(pipe)
    inv = invert(pipe, peach, method=FixedPoint(4, "anderson"), num_inference_steps=20, callback_on_step_end=stop)
    assert fingerprint(pipe) == before
    assert inv.node == 3
    assert inv.stats.evaluations == (12,)
    out = reconstruct(pipe, inv, output_type="latent")
    assert out.stats.evaluations == (3,)
    assert metrics.latent_psnr(out.latents, inv.init_latents).min() > 45


def test_progress_bar_is_the_pipelines_own(peach, capsys):
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(desc="inverting")
    invert(pipe, peach, **QUICK)
    shown = capsys.readouterr().err
    assert "inverting" in shown
    assert "4/4" in shown
    pipe.set_progress_bar_config(disable=True)
    invert(pipe, peach, **QUICK)
    assert capsys.readouterr().err == ""


def as_it_is(pipe):
    """Under hooks that do nothing: in its own layout, as offloaded modules run too; another layout rounds otherwise."""
    for part in (pipe.unet, pipe.vae):
        part.register_forward_hook(lambda *given: None)
    return pipe


def test_offloaded_pipelines_keep_their_modules(peach):
    from accelerate import cpu_offload

    pipe, plain, exact = demo.load_pipeline(), as_it_is(demo.load_pipeline()), demo.load_pipeline()
    exact.vae.double()
    cpu_offload(pipe.unet, "cpu")
    cpu_offload(pipe.vae, "cpu")
    inverting = partial(invert, image=peach, prompt="noto peach", method="ddim", **QUICK)
    calls = (partial(inverting, each) for each in (pipe, plain))
    inv, *_ = steps_as_exact_as_eagers(*calls, partial(inverting, exact, dtype="float64"))
    assert hasattr(pipe.unet, "_hf_hook")
    assert reconstruct(pipe, inv).images[0].size == (64, 64)
    with pytest.raises(ValueError, match="is offloaded, hooked, patched or compiled and stays"):
        invert(pipe, peach, **QUICK, dtype="bfloat16")


def test_an_offloaded_float16_vae_stays_what_it_is(peach):
    from accelerate import cpu_offload

    pipe = demo.load_pipeline(dtype=torch.float16)
    cpu_offload(pipe.vae, "cpu")
    assert invert(pipe, peach, **QUICK).latents.isfinite().all()
    assert pipe.vae.dtype == torch.float16


def test_group_offloaded_pipelines_run(peach):
    pipe, plain = stable_diffusion(), as_it_is(stable_diffusion())
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    inverting = partial(invert, image=peach, method="ddim", **QUICK)
    calls = (partial(inverting, each) for each in (pipe, plain))
    steps_as_exact_as_eagers(*calls, partial(inverting, stable_diffusion(), dtype="float64"))


def test_compiled_and_patched_networks_are_recognised():
    unet = stable_diffusion().unet
    assert not is_managed(unet)
    assert is_managed(torch.compile(unet))
    unet.mid_block.compile()
    assert is_managed(unet)
    patched = stable_diffusion().unet
    patched.mid_block.forward = patched.mid_block.forward
    assert is_managed(patched)


def test_a_callers_attention_processor_is_the_one_that_runs(peach):
    class Store:
        def __init__(self, pipe):
            self.inner, self.pipe, self.seen = AttnProcessor2_0(), pipe, []

        def __call__(self, attn, hidden_states, *args, **kwargs):
            out = self.inner(attn, hidden_states, *args, **kwargs)
            self.seen.append(out)
            return out

    pipe = stable_diffusion()
    store = Store(pipe)
    pipe.unet.set_attn_processor(store)
    store.seen.append(torch.ones(1, requires_grad=True) * 2)  # a tensor no deepcopy can copy
    invert(pipe, peach, **QUICK, dtype="bfloat16")
    assert len(store.seen) > 4


def test_a_float16_vae_on_a_cpu_runs_in_float32(peach):
    pipe = stable_diffusion(force_upcast=False)
    pipe.vae.half()
    assert invert(pipe, peach, **QUICK).latents.isfinite().all()


def test_a_broken_vae_is_named(peach):
    pipe = stable_diffusion()
    inv = invert(pipe, peach, **QUICK)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(torch.nan)
        pipe.vae.encoder.conv_out.bias.fill_(torch.nan)
    inv = dataclasses.replace(inv, provenance={})
    with pytest.raises(FloatingPointError, match="VAE's output became non-finite decoding image 1 of 1, dtype float32"):
        reconstruct(pipe, inv)
    with pytest.raises(FloatingPointError, match="VAE's output became non-finite encoding image 1, 2 of 2"):
        invert(pipe, [peach] * 2, method=ForwardStart(4), **QUICK)


def fingerprint(pipe) -> str:
    """A hash over whatever a call could leave changed."""
    sha = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        sha.update(f"{name} {type(part)} {id(part)} {getattr(part, 'training', None)}".encode())
        if hasattr(part, "config"):
            sha.update(
                repr(sorted(dict(part.config).items()) if not hasattr(part.config, "to_dict") else part.config).encode()
            )
        if isinstance(part, torch.nn.Module):
            for key, value in part.state_dict(keep_vars=True).items():
                facts = (
                    key,
                    id(value),
                    value.dtype,
                    value.stride(),
                    value.device,
                    value.requires_grad,
                    value.data_ptr(),
                )
                sha.update(repr(facts).encode())
                sha.update(value.detach().numpy().tobytes())
            marks = [(k, id(m), len(m._forward_hooks), sorted(vars(m))) for k, m in part.named_modules()]
            sha.update(repr(marks).encode())
    processors = getattr(getattr(pipe, "unet", None), "attn_processors", {})
    sha.update(repr([(k, id(v)) for k, v in sorted(processors.items())]).encode())
    sha.update(repr(sorted((k, repr(v)) for k, v in vars(pipe.scheduler).items())).encode())
    own = {
        k: v for k, v in vars(pipe).items() if k not in pipe.components
    }  # repr of a scheduler writes into its config
    sha.update(repr(sorted((k, repr(v)) for k, v in own.items())).encode())
    return sha.hexdigest()


def broken_callback(pipe, step, t, tensors):
    pipe._interrupt = True
    raise RuntimeError("stop here")


@pytest.mark.filterwarnings("ignore:float16 on a CPU", "ignore:inverting at guidance_scale")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"method": "anderson", "guidance_scale": 3.0},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"dtype": "float64", "method": ForwardStart(2, FixedPoint(2, warm_start="quadratic"))},
        {"callback_on_step_end": broken_callback},
        {"method": "nonsense"},
        {"num_inference_steps": 0},
        {"prompt": ["a", "b"]},
        {"height": 7},
    ],
)
def test_pipeline_is_untouched(kwargs, peach):
    pipe = stable_diffusion()
    pipe.unet.train()  # even what the caller forgot
    before = fingerprint(pipe)
    try:
        inv = invert(pipe, peach, **{**QUICK, **kwargs})
        reconstruct(pipe, inv)
    except (RuntimeError, ValueError):
        assert set(kwargs) & {"callback_on_step_end", "method", "num_inference_steps", "prompt", "height"}
    assert fingerprint(pipe) == before


def test_pipeline_is_untouched_when_latents_blow_up(peach):
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.inf)
    before = fingerprint(pipe)
    with pytest.raises(FloatingPointError, match=r"step 1 of 4 \(t=1\) in image 1 of 1, dtype float32"):
        invert(pipe, peach, **QUICK)
    assert fingerprint(pipe) == before


@pytest.mark.parametrize(
    "part", ["mid_block", "time_embedding", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
)
def test_a_callers_hook_sees_every_evaluation(peach, part):
    pipe, seen = stable_diffusion(), []

    class Recorder:
        def __call__(self, module, args, out):
            seen.append(out)

    handle = pipe.unet.get_submodule(part).register_forward_hook(Recorder())
    assert is_managed(pipe.unet)
    invert(pipe, peach, method="ddim", **QUICK)
    assert len(seen) == QUICK["num_inference_steps"]
    handle.remove()
    assert not is_managed(pipe.unet)

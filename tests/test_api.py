"""`invert` and `reconstruct` on pipelines: inputs, conditions, results, and a pipeline left as it was."""

import dataclasses
import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import SD, stable_diffusion
from toy import distance, grid

from invfast import Inversion, Schedule, demo, invert, methods, metrics, reconstruct
from invfast.adapters import StableDiffusion
from invfast.adapters.clone import is_managed
from invfast.methods import DDIM, EasyInv, FixedPoint, ForwardStart
from invfast.reference import ddim, fixed_point

QUICK = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def tiny():
    return stable_diffusion()


@pytest.fixture(scope="module")
def peach(samples):
    return samples["peach"].image


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
            sha.update(repr([(k, id(m), len(m._forward_hooks)) for k, m in part.named_modules()]).encode())
    sha.update(repr([(k, id(v)) for k, v in sorted(pipe.unet.attn_processors.items())]).encode())
    sha.update(repr(sorted((k, repr(v)) for k, v in vars(pipe.scheduler).items())).encode())
    own = {
        k: v for k, v in vars(pipe).items() if k not in pipe.components
    }  # repr of a scheduler writes into its config
    sha.update(repr(sorted((k, repr(v)) for k, v in own.items())).encode())
    return sha.hexdigest()


# --- the model as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_on_white_black_and_a_picture(name, pipe, peach):
    from PIL import Image

    images = [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black"), peach]
    inv = invert(pipe, images, method=name, num_inference_steps=6)
    assert inv.latents.isfinite().all()
    assert inv.latents.shape == inv.init_latents.shape == (3, 4, 16, 16)
    out = reconstruct(pipe, inv, output_type="pt")
    assert out.images.isfinite().all()
    assert metrics.latent_psnr(out.latents, inv.init_latents).min() > 10


def test_whole_run_against_the_reference_in_float64(pipe, samples):
    """The bundled network itself in float64, a batch with its own prompts, against the twin image by image."""
    names = ("peach", "cat")
    images, prompts = [samples[n].image for n in names], [samples[n].prompt for n in names]
    adapter = StableDiffusion(pipe, dtype=torch.float64)
    x0 = adapter.encode(images, None, None)
    for method, twin, tolerance in (
        (DDIM(), ddim.invert, 1e-10),
        (FixedPoint(2, "anderson", "linear"), fixed_point.invert, 1e-8),
    ):
        settings = {} if method == DDIM() else {"iterations": 2, "mixing": "anderson", "history": 2}
        inv = invert(pipe, images, prompts, method=method, num_inference_steps=5, dtype="float64")
        assert inv.latents.dtype == torch.float64
        assert distance(inv.init_latents, x0) == 0
        for j, prompt in enumerate(prompts):
            condition, _ = adapter.condition(1, [prompt], None, None, None, 1.0)
            predict = adapter.predictor(x0[:1], condition, None)
            with torch.inference_mode():
                wanted = twin(
                    lambda x, t, p=predict: p(x, torch.tensor(t))[0], x0[j : j + 1], grid(inv.schedule), **settings
                )
            assert distance(inv.latents[j : j + 1], wanted) < tolerance
        # float32 against it: 1e-5 a step, and the network amplifies what a step leaves to the next
        single = invert(pipe, images, prompts, method=method, num_inference_steps=5)
        assert distance(single.latents, inv.latents) < 1e-5 * 5


@pytest.mark.parametrize("method", [DDIM(), EasyInv(), FixedPoint(2, "anderson", "linear"), ForwardStart(1)])
def test_prediction_types_give_the_same_latents(method, pipe, samples):
    images, prompts = [samples[n].image for n in ("peach", "coffee")], ["noto peach", "photo coffee"]
    kwargs = {"method": method, "num_inference_steps": 10}
    wanted = invert(pipe, images, prompts, **kwargs)
    exact = invert(pipe, images, prompts, **kwargs, dtype="float64")
    for prediction in ("v_prediction", "sample"):
        other = demo.load_pipeline(prediction)
        assert other.scheduler.config.prediction_type == prediction
        inv = invert(other, images, prompts, **kwargs)
        assert inv.schedule.prediction_type == prediction
        assert distance(inv.latents, wanted.latents) < 1e-5 * 10
        assert distance(invert(other, images, prompts, **kwargs, dtype="float64").latents, exact.latents) < 1e-8
        back = [reconstruct(p, i, output_type="latent").latents for p, i in ((pipe, wanted), (other, inv))]
        assert distance(back[1], back[0]) < 1e-3


def test_a_batch_equals_its_images(pipe, samples):
    names = ("peach", "astronaut", "soccer_ball")
    images, prompts = [samples[n].image for n in names], [samples[n].prompt for n in names]
    method = FixedPoint(4, "anderson", "constant", tolerance=1e-3)
    together = invert(pipe, images, prompts, method=method, num_inference_steps=6)
    for j in range(3):
        alone = invert(pipe, images[j], prompts[j], method=method, num_inference_steps=6)
        assert distance(alone.latents, together.latents[j : j + 1]) < 1e-4
        assert abs(alone.stats.evaluations[0] - together.stats.evaluations[j]) <= 1


def test_more_evaluations_reconstruct_better(pipe, samples):
    """The order of the prototype's table, on two pictures."""
    images, prompts = [samples[n].image for n in ("peach", "cat")], ["noto peach", "photo cat"]
    quality = []
    for method in (EasyInv(), DDIM(), FixedPoint(1, warm_start="constant"), FixedPoint(5, "anderson")):
        inv = invert(pipe, images, prompts, method=method, num_inference_steps=20)
        latents = reconstruct(pipe, inv, output_type="latent").latents
        quality.append(float(metrics.latent_psnr(latents, inv.init_latents).mean()))
    assert quality == sorted(quality)
    assert quality[1] > 28
    assert quality[3] > 55


def test_forward_start_restores_the_statistics_of_noise(pipe, samples):
    images, prompts = zip(*[samples[n] for n in ("peach", "soccer_ball", "tulip", "pizza")], strict=True)
    plain, jumped = (invert(pipe, list(images), list(prompts), method=m).latents for m in (DDIM(), ForwardStart(2)))
    assert abs(float(jumped.std()) - 1) < 0.06 < abs(float(plain.std()) - 1)
    assert abs(float(metrics.kurtosis(jumped).mean()) - 3) < 0.3 < abs(float(metrics.kurtosis(plain).mean()) - 3)


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_is_the_same_image(tiny, peach, tmp_path):
    peach.save(tmp_path / "peach.png")
    array = np.asarray(peach)
    tensor = torch.tensor(array).permute(2, 0, 1).float() / 255
    wanted = invert(tiny, peach, **QUICK)
    assert wanted.latents.shape == (1, 4, 8, 8)
    kinds = [
        tmp_path / "peach.png",
        str(tmp_path / "peach.png"),
        [peach],
        array,
        array[None],
        array / np.float32(255),
        tensor,
        tensor[None],
        2 * tensor - 1,
        wanted.init_latents,
    ]
    for image in kinds:
        assert distance(invert(tiny, image, **QUICK).latents, wanted.latents) < 1e-5


def test_sizes(tiny, peach):
    wide = peach.resize((90, 65))
    assert invert(tiny, wide, **QUICK).latents.shape == (1, 4, 8, 11)
    assert invert(tiny, wide, **QUICK, height=40, width=24).latents.shape == (1, 4, 5, 3)
    assert invert(tiny, peach.resize((1, 1)), **QUICK).latents.shape == (1, 4, 1, 1)
    inv = invert(tiny, [wide, peach], **QUICK, height=40, width=24)
    assert [image.size for image in reconstruct(tiny, inv).images] == [(24, 40)] * 2


def test_output_types(tiny, peach):
    inv = invert(tiny, [peach, peach], **QUICK)
    pil = reconstruct(tiny, inv).images
    arrays = reconstruct(tiny, inv, output_type="np").images
    tensors = reconstruct(tiny, inv, output_type="pt").images
    latents = reconstruct(tiny, inv, output_type="latent")
    assert [image.size for image in pil] == [(64, 64)] * 2
    assert arrays.shape == (2, 64, 64, 3)
    assert tensors.shape == (2, 3, 64, 64)
    assert np.abs(np.asarray(pil[0]) / 255 - arrays[0]).max() < 1 / 254
    assert torch.equal(latents.images, latents.latents)
    assert len(reconstruct(tiny, inv, return_dict=False)) == 1
    latents, init = invert(tiny, peach, **QUICK, return_dict=False)
    assert torch.equal(latents, inv.latents[:1]) or distance(latents, inv.latents[:1]) < 1e-5
    assert latents.requires_grad_().is_leaf
    assert init.shape == (1, 4, 8, 8)


def test_schedulers_of_other_samplers_are_read_on_the_ddim_grid(peach):
    wanted = invert(stable_diffusion(), peach, **QUICK)
    betas = {name: SD[name] for name in ("beta_schedule", "beta_start", "beta_end")}
    for scheduler in (
        PNDMScheduler(**betas, steps_offset=1, skip_prk_steps=True),
        EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
        DPMSolverMultistepScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
    ):
        scheduler.register_to_config(set_alpha_to_one=False)
        inv = invert(stable_diffusion(scheduler), peach, **QUICK)
        assert inv.provenance["schedule.scheduler"] == type(scheduler).__name__
        assert inv.provenance["schedule.grid"] == "DDIM"
        assert distance(inv.latents, wanted.latents) < 1e-6


def test_a_schedule_of_ones_own(tiny, peach):
    own = Schedule.from_scheduler(tiny.scheduler, 4, compat="diffusers")
    assert distance(invert(tiny, peach, schedule=own).latents, invert(tiny, peach, **QUICK).latents) < 1e-6
    explicit = invert(tiny, peach, timesteps=[751, 501, 251, 1])
    assert distance(explicit.latents, invert(tiny, peach, **QUICK).latents) < 1e-6


# --- conditions -----------------------------------------------------------------------------------------------------


def count_samples(pipe):
    seen = []
    handle = pipe.unet.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen, handle


def test_guidance_one_runs_one_sample_an_image(pipe, peach):
    seen, handle = count_samples(pipe)
    try:
        inv = invert(pipe, [peach] * 2, **QUICK)
        assert seen == [2] * 4
        assert inv.stats.samples == 8
        seen.clear()
        with pytest.warns(UserWarning, match="guidance_scale=3"):
            inv = invert(pipe, [peach] * 2, **QUICK, guidance_scale=3)
        assert seen == [4] * 4
        assert inv.stats.samples == 16
        assert inv.stats.evaluations == (4, 4)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
@pytest.mark.parametrize("method", [DDIM(), EasyInv(variant="before"), FixedPoint(2, "anderson", "linear")])
def test_guidance_with_equal_prompts_is_guidance_one(method, pipe, peach):
    """Also with a method that keeps the predicted noise, and with the guided run's own reconstruction."""
    one = invert(pipe, peach, "noto peach", method=method, **QUICK)
    seven = invert(pipe, peach, "noto peach", negative_prompt="noto peach", guidance_scale=7.5, method=method, **QUICK)
    assert distance(seven.latents, one.latents) < 1e-4
    a, b = (reconstruct(pipe, inv, output_type="latent").latents for inv in (one, seven))
    assert distance(b, a) < 1e-3
    different = invert(pipe, peach, "noto peach", guidance_scale=7.5, method=method, **QUICK)
    assert distance(different.latents, one.latents) > 1e-3


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_images_that_are_done_are_left_out_under_guidance(pipe, samples):
    images, prompts = [samples[n].image for n in ("peach", "cat")], ["noto peach", "photo cat"]
    method = FixedPoint(6, tolerance=2e-3)
    kwargs = {"method": method, "num_inference_steps": 5, "guidance_scale": 1.5}
    together = invert(pipe, images, prompts, **kwargs)
    assert together.stats.samples == 2 * sum(together.stats.evaluations)
    for j in range(2):
        assert distance(invert(pipe, images[j], prompts[j], **kwargs).latents, together.latents[j : j + 1]) < 1e-4


def test_guidance_below_one_is_one(tiny, peach):
    assert torch.equal(invert(tiny, peach, guidance_scale=0.5, **QUICK).latents, invert(tiny, peach, **QUICK).latents)


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_prompt_embeddings_replace_texts(pipe, peach):
    prompts, negative = ["noto peach", "photo cat"], ["", "noto tulip"]
    embeds, negative_embeds = pipe.encode_prompt(prompts, "cpu", 1, True, negative_prompt=negative)
    by_text = invert(pipe, [peach] * 2, prompts, negative_prompt=negative, guidance_scale=2, **QUICK)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    by_embeds = invert(pipe, [peach] * 2, **given, guidance_scale=2, **QUICK)
    assert distance(by_embeds.latents, by_text.latents) < 1e-5
    assert by_embeds.prompt is None
    with pytest.raises(ValueError, match="pass the same prompt_embeds to reconstruct"):
        reconstruct(pipe, by_embeds)
    a = reconstruct(pipe, by_text, output_type="latent").latents
    b = reconstruct(pipe, by_embeds, **given, output_type="latent").latents
    assert distance(b, a) < 1e-5
    with pytest.warns(UserWarning, match="embeddings are not what the inversion was made with"):
        reconstruct(pipe, by_embeds, prompt_embeds=embeds.flip(0), negative_prompt_embeds=negative_embeds)


def test_generators(pipe, peach):
    def draw(seed):
        return torch.Generator().manual_seed(seed)

    method = ForwardStart(2)
    both = invert(pipe, [peach] * 2, method=method, generator=[draw(5), draw(6)], **QUICK)
    alone = invert(pipe, peach, method=method, generator=draw(6), **QUICK)
    assert distance(alone.latents, both.latents[1:]) < 1e-5
    assert torch.equal(alone.state["noise"], both.state["noise"][1:])
    seeded = [invert(pipe, peach, method=ForwardStart(2, seed=s), **QUICK).latents for s in (0, 0, 1)]
    assert torch.equal(seeded[0], seeded[1])
    assert distance(seeded[2], seeded[0]) > 0.1
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        invert(pipe, [peach] * 2, method=method, generator=[draw(5)], **QUICK)


def test_a_distilled_network_takes_its_guidance_as_input(peach):
    pipe = stable_diffusion(LCMScheduler(**{**SD, "steps_offset": 0}), time_cond_proj_dim=8)
    seen, handle = count_samples(pipe)
    with pytest.warns(UserWarning, match="guidance_scale=4"):
        inv = invert(pipe, peach, **QUICK, guidance_scale=4)
    handle.remove()
    assert set(seen) == {1}
    assert distance(inv.latents, invert(pipe, peach, **QUICK).latents) > 1e-6


# --- precision ------------------------------------------------------------------------------------------------------


def test_dtypes(tiny, peach):
    wanted = invert(tiny, peach, **QUICK)
    assert wanted.stats.dtype == torch.float32
    half = invert(tiny, peach, **QUICK, dtype=torch.bfloat16)
    assert half.latents.dtype == torch.float32
    assert half.stats.dtype == torch.bfloat16
    # As far from float32 as the network itself in bfloat16, float32 latents around it, and not exactly equal.
    unet, condition = stable_diffusion().unet.bfloat16(), tiny.encode_prompt("", "cpu", 1, False)[0].bfloat16()

    def network(x, t):
        return unet(x.bfloat16(), t, encoder_hidden_states=condition).sample.float()

    with torch.inference_mode():
        eager = ddim.invert(network, wanted.init_latents, grid(wanted.schedule))
    assert 0 < distance(half.latents, wanted.latents) < 2 * distance(eager, wanted.latents)
    with pytest.warns(UserWarning, match="float16 on a CPU"):
        assert invert(tiny, peach, **QUICK, dtype="float16").stats.dtype == torch.float16
    with pytest.raises(ValueError, match="unknown dtype 'int8'; expected one of float32"):
        invert(tiny, peach, **QUICK, dtype="int8")


def test_a_float16_pipeline_is_not_run_in_float16_on_a_cpu(peach):
    pipe = demo.load_pipeline(dtype=torch.float16)
    inv = invert(pipe, peach, "noto peach", **QUICK)
    assert inv.stats.dtype == torch.float32
    assert distance(inv.latents, invert(demo.load_pipeline(), peach, "noto peach", **QUICK).latents) < 1e-2
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float16


# --- hooks of the caller --------------------------------------------------------------------------------------------


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
            tiny, peach, **QUICK, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"]
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


# --- pipelines somebody else manages ---------------------------------------------------------------------------------


def test_offloaded_pipelines_keep_their_modules(peach):
    from accelerate import cpu_offload

    wanted = invert(demo.load_pipeline(), peach, "noto peach", **QUICK)
    pipe = demo.load_pipeline()
    cpu_offload(pipe.unet, "cpu")
    cpu_offload(pipe.vae, "cpu")
    inv = invert(pipe, peach, "noto peach", **QUICK)
    assert distance(inv.latents, wanted.latents) < 1e-4
    assert hasattr(pipe.unet, "_hf_hook")
    assert reconstruct(pipe, inv).images[0].size == (64, 64)
    with pytest.raises(ValueError, match="is offloaded, patched or compiled and stays"):
        invert(pipe, peach, **QUICK, dtype="bfloat16")


def test_an_offloaded_float16_vae_stays_what_it_is(peach):
    from accelerate import cpu_offload

    pipe = demo.load_pipeline(dtype=torch.float16)
    cpu_offload(pipe.vae, "cpu")
    assert invert(pipe, peach, **QUICK).latents.isfinite().all()
    assert pipe.vae.dtype == torch.float16


def test_group_offloaded_pipelines_run(peach):
    pipe, wanted = stable_diffusion(), invert(stable_diffusion(), peach, **QUICK)
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert distance(invert(pipe, peach, **QUICK).latents, wanted.latents) < 1e-4


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


# --- the pipeline is left as it was ---------------------------------------------------------------------------------


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


@pytest.mark.filterwarnings("error")
def test_raising_the_guidance_is_no_mismatch(pipe, peach):
    inv = invert(pipe, peach, "noto peach", **QUICK)
    reconstruct(pipe, inv, guidance_scale=3, output_type="latent")


def test_another_pipeline_is_noticed(peach):
    pipe = stable_diffusion()
    inv = invert(pipe, peach, **QUICK)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
        pipe.vae.quant_conv.bias[1] += 1
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.011)
    with pytest.warns(UserWarning, match="not what the inversion was made with") as caught:
        reconstruct(pipe, inv, output_type="latent")
    assert {str(w.message).split(" are ")[0] for w in caught} == {
        "the network's weights",
        "the VAE's weights",
        "the scheduler's betas",
    }


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_diffusers_regenerates_the_image_from_the_noise(guidance_scale, pipe, peach):
    """The package's promise, kept by the pipeline itself."""
    inv = invert(pipe, peach, "noto peach", method="anderson", num_inference_steps=10)
    ours = reconstruct(pipe, inv, guidance_scale=guidance_scale, output_type="latent").latents
    args = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "output_type": "latent"}
    theirs = pipe("noto peach", latents=inv.latents, **args).images
    assert distance(ours, theirs) < 1e-5


def test_stats_and_provenance_say_what_ran(tiny, peach):
    inv = invert(tiny, peach, method="warm_start", **QUICK)
    stats = inv.stats
    assert (stats.runtime, stats.device, stats.kernels) == ("eager", "cpu", "reference")
    assert stats.evaluations == (5,)
    assert stats.seconds > 0
    assert stats.residual.shape == (4, 1)
    assert inv.provenance["method"] == repr(methods.METHODS["warm_start"])
    assert inv.provenance["schedule"] == inv.schedule.digest
    assert isinstance(inv, Inversion)
    pickle.dump(inv.provenance, io.BytesIO())  # plain values only


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"image": []}, ValueError, "the list is empty"),
        ({"image": "no/such.png"}, FileNotFoundError, "'no/such.png' does not exist"),
        ({"image": 3}, TypeError, "must be a PIL image, path, numpy array or torch tensor, got int"),
        ({"image": torch.full((1, 4, 8, 8), torch.nan)}, ValueError, "latents must be finite"),
        ({"image": torch.zeros(1, 5, 8, 8)}, ValueError, "needs 1, 3 or 4"),
        ({"method": "easy-inv"}, ValueError, "unknown method 'easy-inv'; expected one of 'ddim'"),
        ({"runtime": "warp"}, ValueError, "unknown runtime 'warp'; expected 'auto' or one of 'eager'"),
        ({"num_inference_steps": 1001}, ValueError, "from 1 to 1000, got 1001"),
        ({"num_inference_steps": "fifty"}, TypeError, "must be an integer"),
        ({"timesteps": [1, 500, 20]}, ValueError, "monotonic"),
        ({"prompt": ["a", "b"]}, ValueError, "prompt has 2 texts for 1 images"),
        ({"prompt": None}, TypeError, "prompt must be a text"),
        ({"negative_prompt": [3]}, TypeError, "negative_prompt must be a text"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 12, 32)}, ValueError, "not both"),
        ({"prompt_embeds": torch.zeros(3, 12, 32)}, ValueError, r"shape \(1, tokens, 32\), got \(3, 12, 32\)"),
        ({"prompt_embeds": torch.zeros(1, 12, 31)}, ValueError, r"shape \(1, tokens, 32\), got \(1, 12, 31\)"),
        ({"prompt_embeds": [1.0]}, ValueError, "prompt_embeds must be a tensor"),
        ({"prompt_embeds": torch.full((1, 12, 32), torch.nan)}, ValueError, "prompt_embeds has non-finite values"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 12, 32)}, ValueError, "not both"),
        ({"image": torch.zeros(1, 4, 8, 8), "height": 64}, ValueError, "latents keep their size"),
        ({"generator": 42}, TypeError, "generator must be a torch.Generator or a list of them, got 42"),
        ({"timesteps": 50}, TypeError, "timesteps must be a sequence of integers, got 50"),
        ({"runtime": ["eager"]}, ValueError, "unknown runtime"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a finite number"),
        ({"guidance_scale": "high"}, ValueError, "guidance_scale must be a finite number"),
        ({"height": 63}, ValueError, "height must be a positive multiple of 8, got 63"),
        ({"cuda_graph": True}, ValueError, "captures no graphs"),
        ({"schedule": 50}, TypeError, "must be an invfast.Schedule"),
        ({"schedule": Schedule([0, 1], [0.9, 0.5], "v_prediction")}, ValueError, "network predicts 'epsilon'"),
        ({"schedule": Schedule([0, 1], [0.9, 0.5]), "timesteps": [1]}, ValueError, "schedule or timesteps, not both"),
    ],
)
def test_invert_refuses(kwargs, error, message, tiny, peach):
    with pytest.raises(error, match=message):
        invert(tiny, **{"image": peach, **QUICK, **kwargs})


def test_reconstruct_refuses(tiny, peach):
    inv = invert(tiny, peach, **QUICK)
    with pytest.raises(ValueError, match="unknown output_type 'jpeg'"):
        reconstruct(tiny, inv, output_type="jpeg")
    with pytest.raises(TypeError, match="must be what invert"):
        reconstruct(tiny, inv.latents)
    with pytest.raises(ValueError, match="2 texts in prompt for 1 latents"):
        reconstruct(tiny, dataclasses.replace(inv, prompt=["", ""]))
    with pytest.raises(ValueError, match="network predicts 'v_prediction', the schedule is for 'epsilon'"):
        reconstruct(demo.load_pipeline("v_prediction"), inv)


def test_other_pipelines_are_refused(peach):
    with pytest.raises(
        TypeError, match="pipeline StableDiffusionPipeline is not supported; expected one of: Stable Diff"
    ):
        invert(stable_diffusion(in_channels=9), peach, **QUICK)
    with pytest.raises(TypeError, match="pipeline object is not supported"):
        invert(object(), peach)

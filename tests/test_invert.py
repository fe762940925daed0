"""`invert` and `reconstruct` on pipelines: whole runs, conditions, precision, and what the result says."""

import io
import pickle

import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image
from tiny import QUICK, SD, stable_diffusion
from toy import distance, grid

from invfast import Inversion, demo, invert, methods, metrics, reconstruct
from invfast.adapters import Prompts, StableDiffusion
from invfast.methods import DDIM, EasyInv, FixedPoint, ForwardStart
from invfast.ops import resolve
from invfast.reference import ddim, fixed_point


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_on_white_black_and_a_picture(name, pipe, peach):
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
            condition, _ = adapter.condition(1, Prompts([prompt]), 1.0)
            predict = adapter.predictor(x0[:1], inv.schedule.t, (condition, None))
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
        assert torch.equal(alone.init_latents, together.init_latents[j : j + 1])
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


def count_samples(pipe):
    seen = []
    handle = pipe.unet.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen, handle


def test_guidance_one_runs_one_sample_an_image(pipe, peach):
    seen, handle = count_samples(pipe)
    try:
        inv = invert(pipe, [peach] * 2, method="ddim", **QUICK)
        assert seen == [2] * 4
        assert inv.stats.samples == 8
        seen.clear()
        with pytest.warns(UserWarning, match="guidance_scale=3"):
            inv = invert(pipe, [peach] * 2, method="ddim", **QUICK, guidance_scale=3)
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
    with pytest.raises(ValueError, match="unknown dtype 'int4'; expected one of float32"):
        invert(tiny, peach, **QUICK, dtype="int4")


def test_a_float16_pipeline_is_not_run_in_float16_on_a_cpu(peach):
    pipe = demo.load_pipeline(dtype=torch.float16)
    inv = invert(pipe, peach, "noto peach", **QUICK)
    assert inv.stats.dtype == torch.float32
    assert distance(inv.latents, invert(demo.load_pipeline(), peach, "noto peach", **QUICK).latents) < 1e-2
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float16


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
    assert (stats.runtime, stats.device, stats.kernels) == ("eager", "cpu", resolve("cpu").name)
    assert stats.evaluations == (5,)
    assert stats.seconds > 0
    assert stats.residual.shape == (4, 1)
    assert inv.provenance["method"] == repr(methods.METHODS["warm_start"])
    assert invert(tiny, peach, **QUICK).provenance["method"] == repr(methods.METHODS["auto"])
    assert inv.provenance["schedule"] == inv.schedule.digest
    assert isinstance(inv, Inversion)
    pickle.dump(inv.provenance, io.BytesIO())  # plain values only

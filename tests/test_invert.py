"""`invert` and `reconstruct` on pipelines: whole runs, conditions, precision, and what the result says."""

import io
import pickle
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import LCMScheduler
from exact import as_exact_as_eager, error, steps, steps_as_exact_as_eagers
from PIL import Image
from tiny import QUICK, SD, stable_diffusion
from toy import distance, grid

from invfast import Inversion, demo, invert, methods, metrics, reconstruct
from invfast.adapters import Prompts, StableDiffusion
from invfast.methods import DDIM, EasyInv, FixedPoint, ForwardStart
from invfast.ops import resolve
from invfast.reference import ddim, fixed_point

TUNED = ("null_text", "prompt_tuning")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in TUNED else [])
    for name, each in methods.METHODS.items()
    if not each.flow_only
]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_on_white_black_and_a_picture(name, pipe, peach):
    images = [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black"), peach]
    inv = invert(pipe, images, method=name, num_inference_steps=4)
    assert inv.latents.isfinite().all()
    assert inv.latents.shape == inv.init_latents.shape == (3, 4, 16, 16)
    out = reconstruct(pipe, inv, output_type="pt")
    assert out.images.isfinite().all()
    assert metrics.latent_psnr(out.latents, inv.init_latents).min() > 10


def test_whole_run_against_the_reference_in_float64(pipe, samples):
    """The bundled network itself in float64, a batch with its own prompts, against the twin image by image."""
    names = ("peach", "cat")
    images, prompts = [samples[n].image for n in names], [samples[n].prompt for n in names]
    adapter, eager = (StableDiffusion(pipe, dtype=each) for each in (torch.float64, torch.float32))
    x0 = adapter.encode(images, None, None)

    def by_hand(adapter, x, nodes, prompt, twin, settings):
        condition, _ = adapter.condition(x[:1], Prompts([prompt]), 1.0)
        predict = adapter.denoiser.predictor(x, nodes.t, (condition, None))
        with torch.inference_mode():
            return twin(lambda x, t: predict(x, torch.tensor(t))[0], x, grid(nodes), **settings)

    for method, twin, tolerance in (
        (DDIM(), ddim.invert, 1e-10),
        (FixedPoint(2, "anderson", "linear"), fixed_point.invert, 1e-8),
    ):
        settings = {} if method == DDIM() else {"iterations": 2, "mixing": "anderson", "history": 2}
        inv = invert(pipe, images, prompts, method=method, num_inference_steps=5, dtype="float64")
        assert inv.latents.dtype == torch.float64
        assert distance(inv.init_latents, x0) == 0
        rows = [(row, inv.schedule, prompt, twin, settings) for row, prompt in zip(x0.split(1), prompts, strict=True)]
        exact = [by_hand(adapter, *row) for row in rows]
        for latents, wanted in zip(inv.latents.split(1), exact, strict=True):
            assert distance(latents, wanted) < tolerance
        given = zip(images, prompts, strict=True)  # a batch would round otherwise
        single = [invert(pipe, *one, method=method, num_inference_steps=5).latents for one in given]
        as_exact_as_eager(single, [by_hand(eager, row.float(), *more) for row, *more in rows], exact)


OTHERS = (EasyInv(), ForwardStart(1), DDIM())


@pytest.mark.parametrize(
    "method",
    [FixedPoint(2, "anderson", "linear"), *(pytest.param(method, marks=pytest.mark.slow) for method in OTHERS)],
)
def test_prediction_types_give_the_same_latents(method, pipe, samples):
    images, prompts = [samples[n].image for n in ("peach", "coffee")], ["noto peach", "photo coffee"]
    inverting = partial(invert, image=images, prompt=prompts, method=method, num_inference_steps=5)
    path, _ = steps(partial(inverting, pipe, dtype="float64"))
    eager, inv = steps(partial(inverting, pipe), path)
    back = partial(reconstruct, output_type="latent")
    path_back, _ = steps(partial(back, pipe, inv, dtype="float64"))
    eager_back, _ = steps(partial(back, pipe, inv), path_back)
    for prediction in ("v_prediction", "sample"):
        other = demo.load_pipeline(prediction)
        assert other.scheduler.config.prediction_type == prediction
        same, _ = steps(partial(inverting, other, dtype="float64"), path)
        assert error(same, path) < 1e-8
        found, own = steps(partial(inverting, other), path)
        assert own.schedule.prediction_type == prediction
        as_exact_as_eager(found, eager, path)
        found, _ = steps(partial(back, other, replace(own, latents=inv.latents)), path_back)
        as_exact_as_eager(found, eager_back, path_back)


def test_a_batch_equals_its_images(pipe, samples):
    names = ("peach", "astronaut", "soccer_ball")
    images, prompts = [samples[n].image for n in names], [samples[n].prompt for n in names]
    options = {"method": FixedPoint(4, "anderson", "constant", tolerance=1e-3), "num_inference_steps": 6}
    together, alone = a_batch_and_each(pipe, images, prompts, **options)
    assert torch.equal(torch.cat([one.init_latents for one in alone]), together.init_latents)
    assert [one.stats.evaluations[0] for one in alone] == list(together.stats.evaluations)


def a_batch_and_each(pipe, images, prompts, **options):
    """The result of a batch, and those of its images, equal to it. In float64: batches round otherwise than images."""
    inverting = partial(invert, pipe, dtype="float64", **options)
    together = inverting(images, prompts)
    alone = [inverting(*given) for given in zip(images, prompts, strict=True)]
    assert distance(torch.cat([one.latents for one in alone]), together.latents) < 1e-10
    return together, alone


@pytest.mark.slow
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


@pytest.mark.slow
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
    inverting = partial(invert, pipe, peach, "noto peach", method=method, dtype="float64", **QUICK)
    one, seven = inverting(), inverting(negative_prompt="noto peach", guidance_scale=7.5)
    assert distance(seven.latents, one.latents) < 1e-10
    a, b = (reconstruct(pipe, inv, output_type="latent", dtype="float64").latents for inv in (one, seven))
    assert distance(b, a) < 1e-10
    assert distance(inverting(guidance_scale=7.5).latents, one.latents) > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_images_that_are_done_are_left_out_under_guidance(pipe, samples):
    images, prompts = [samples[n].image for n in ("peach", "cat")], ["noto peach", "photo cat"]
    options = {"method": FixedPoint(6, tolerance=2e-3), "num_inference_steps": 5, "guidance_scale": 1.5}
    together, _ = a_batch_and_each(pipe, images, prompts, **options)
    assert together.stats.samples == 2 * sum(together.stats.evaluations)


def test_guidance_below_one_is_one(tiny, peach):
    assert torch.equal(invert(tiny, peach, guidance_scale=0.5, **QUICK).latents, invert(tiny, peach, **QUICK).latents)


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_prompt_embeddings_replace_texts(pipe, peach):
    prompts, negative = ["noto peach", "photo cat"], ["", "noto tulip"]
    texts = zip(prompts, negative, strict=True)  # each alone, as `invert` encodes them
    rows = [pipe.encode_prompt(text, "cpu", 1, True, negative_prompt=other) for text, other in texts]
    embeds, negative_embeds = map(torch.cat, zip(*rows, strict=True))
    options = {"method": "ddim", "guidance_scale": 2, "dtype": "float64", **QUICK}
    by_text = invert(pipe, [peach] * 2, prompts, negative_prompt=negative, **options)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    by_embeds = invert(pipe, [peach] * 2, **given, **options)
    assert distance(by_embeds.latents, by_text.latents) < 1e-10
    assert by_embeds.prompt is None
    with pytest.raises(ValueError, match="pass the same prompt_embeds to reconstruct"):
        reconstruct(pipe, by_embeds)
    a = reconstruct(pipe, by_text, output_type="latent", dtype="float64").latents
    b = reconstruct(pipe, by_embeds, **given, output_type="latent", dtype="float64").latents
    assert distance(b, a) < 1e-10
    with pytest.warns(UserWarning, match="embeddings are not what the inversion was made with"):
        reconstruct(pipe, by_embeds, prompt_embeds=embeds.flip(0), negative_prompt_embeds=negative_embeds)


def test_generators(pipe, peach):
    def draw(seed):
        return torch.Generator().manual_seed(seed)

    method = ForwardStart(2)
    both = invert(pipe, [peach] * 2, method=method, generator=[draw(5), draw(6)], dtype="float64", **QUICK)
    alone = invert(pipe, peach, method=method, generator=draw(6), dtype="float64", **QUICK)
    assert distance(alone.latents, both.latents[1:]) < 1e-10
    assert torch.equal(alone.state["noise"], both.state["noise"][1:])
    seeded = [invert(pipe, peach, method=ForwardStart(2, seed=s), **QUICK).latents for s in (0, 0, 1)]
    assert torch.equal(seeded[0], seeded[1])
    assert distance(seeded[2], seeded[0]) > 0.1
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        invert(pipe, [peach] * 2, method=method, generator=[draw(5)], **QUICK)


def test_a_distilled_network_takes_its_guidance_as_input(peach):
    pipe = stable_diffusion(LCMScheduler(**{**SD, "steps_offset": 0}), time_cond_proj_dim=8)
    seen, handle = count_samples(pipe)
    invert(pipe, peach, **QUICK)  # says once how such a pipeline samples
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an input amplifies nothing
        inv = invert(pipe, peach, **QUICK, guidance_scale=4)
    handle.remove()
    assert set(seen) == {1}
    assert distance(inv.latents, invert(pipe, peach, **QUICK).latents) > 1e-6


def test_dtypes(tiny, peach):
    assert invert(tiny, peach, **QUICK).stats.dtype == torch.float32
    inverting = partial(invert, tiny, peach, method="ddim", **QUICK)
    path, exact = steps(partial(inverting, dtype="float64"))
    found, half = steps(partial(inverting, dtype=torch.bfloat16), path)
    assert half.latents.dtype == torch.float32
    assert half.stats.dtype == torch.bfloat16
    # As exact as the network itself in bfloat16, float32 latents around it, and not the float32 run.
    unet, condition = stable_diffusion().unet.bfloat16(), tiny.encode_prompt("", "cpu", 1, False)[0].bfloat16()

    def network(x, t):
        return unet(x.bfloat16(), t, encoder_hidden_states=condition).sample.float()

    starts = [exact.init_latents, *path[:-1]]
    with torch.inference_mode():
        nodes = [[node] for node in grid(exact.schedule)]
        eager = [ddim.invert(network, x.float(), node) for x, node in zip(starts, nodes, strict=True)]
    as_exact_as_eager(found, eager, path)
    assert error(found, path) > torch.finfo(torch.bfloat16).eps / 16
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
    ours = partial(reconstruct, pipe, inv, guidance_scale=guidance_scale, output_type="latent")
    # Weights as the eager runtime lays them out: torch's own kernels round 2.4 times as much in it with AVX-512.
    own = demo.load_pipeline()
    own.unet.to(memory_format=torch.channels_last)
    theirs = partial(own, "noto peach", latents=inv.latents, num_inference_steps=10, guidance_scale=guidance_scale)
    steps_as_exact_as_eagers(ours, partial(theirs, output_type="latent"), partial(ours, dtype="float64"))


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

"""Stable Diffusion XL: its conditions are diffusers' own, its steps a loop on diffusers' scheduler."""

import dataclasses

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from exact import as_exact_as_eager
from test_caller import fingerprint
from test_runtimes import EXPORTING
from tiny import SD, stable_diffusion_xl
from toy import distance

from invfast import Inversion, Schedule, invert, metrics, reconstruct
from invfast.denoiser.precompute import PARTS
from invfast.methods import EasyInv, FixedPoint

PROMPTS = ["a peach", "a cat"]
EXACT = {"method": FixedPoint(60, "anderson", tolerance=1e-13), "num_inference_steps": 4, "dtype": "float64"}


@pytest.fixture(scope="module")
def pipe():
    return stable_diffusion_xl()


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_hand(pipe, x, prompts, steps, scale=1.0, **sizes):
    """A loop on diffusers' scheduler and the pipeline's own pieces, as its __call__ has them; every latent."""
    guided = scale > 1
    others, negative = sizes.pop("prompt_2", prompts), sizes.pop("negative_prompt", [None] * len(prompts))
    encoded = [  # one by one: rounding depends on the batch
        pipe.encode_prompt(text, other, "cpu", 1, guided, no)
        for text, other, no in zip(prompts, others, negative, strict=True)
    ]
    branches = zip(*encoded, strict=True)
    cond, uncond, pooled, unpooled = (None if rows[0] is None else torch.cat(rows) for rows in branches)
    own = tuple(8 * side for side in x.shape[2:])
    said = sizes.get("original_size", own), sizes.get("crops_coords_top_left", (0, 0)), sizes.get("target_size", own)
    ids = pipe._get_add_time_ids(*said, dtype=cond.dtype, text_encoder_projection_dim=16)
    embeds, texts = (torch.cat([uncond, cond]), torch.cat([unpooled, pooled])) if guided else (cond, pooled)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    for name in ("alphas_cumprod", "initial_alpha_cumprod", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.as_tensor(getattr(scheduler, name)).to(x.dtype))
    scheduler.set_timesteps(steps)
    dtype, found = x.dtype, [x]
    unet = pipe.unet.to(dtype)
    try:
        for t in scheduler.timesteps:
            rows = torch.cat([x] * 2) if guided else x
            added = {"text_embeds": texts.to(dtype), "time_ids": ids.to(dtype).repeat(len(rows), 1)}
            with torch.no_grad():
                out = unet(rows, t, embeds.to(dtype), added_cond_kwargs=added).sample
            if guided:
                without, given = out.chunk(2)
                out = without + scale * (given - without)
            x = scheduler.step(out, t, x).prev_sample
            found.append(x)
    finally:
        pipe.unet.to(torch.float32)
    return torch.stack(found)


CASES = {
    "plain": ({}, 1.0),
    "guided": ({}, 5.0),
    "second prompts": ({"prompt_2": ["a face", "a dog"]}, 1.0),
    "one second prompt": ({"prompt_2": ["a face", ""]}, 1.0),
    "negative": ({"negative_prompt": ["blurred", "red"]}, 3.0),
    "sizes": ({"original_size": (512, 300), "crops_coords_top_left": (7, 5), "target_size": (64, 64)}, 1.0),
}


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
@pytest.mark.parametrize("case", CASES)
def test_is_a_loop_on_diffusers_own_pieces(case, pipe, latents):
    conditions, scale = CASES[case]
    grid = Schedule.from_scheduler(pipe.scheduler, 5, compat="diffusers")
    wanted = by_hand(pipe, latents, PROMPTS, 5, scale, **conditions)
    given = {"method": "ddim", "schedule": grid, "guidance_scale": scale, "save_trajectory": True, **conditions}
    # Whole: sinusoids are float32's in any network, and their last bits depend on how many are taken at once.
    found = invert(pipe, latents, PROMPTS, dtype="float64", precompute=(), **given)
    for a, b in zip(found.trajectory, wanted, strict=True):
        assert distance(a, b) < 1e-10
    single = invert(pipe, latents.float(), PROMPTS, runtime="eager", **given)
    for a, b in zip(single.trajectory, wanted, strict=True):
        assert distance(a, b) < 1e-5
    assert len(set(found.provenance["other_embeds"])) == 2


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
@pytest.mark.parametrize("cls", [StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_there_and_back_and_through_the_pipeline_itself(scale, cls, samples, tmp_path):
    pipe = stable_diffusion_xl(cls)
    pictures = [samples["peach"].image.resize((80, 64)), samples["cat"].image.resize((80, 64))]
    there = invert(pipe, pictures, PROMPTS, prompt_2="both", guidance_scale=scale, **EXACT)
    assert there.latents.shape == (2, 4, 8, 10)
    assert there.conditions == {"prompt_2": ["both", "both"]}
    there.save(tmp_path / "two")
    there = Inversion.load(tmp_path / "two")
    back = reconstruct(pipe, there, output_type="pt")
    assert distance(back.latents, there.init_latents) < 1e-8
    one = reconstruct(pipe, there[1], output_type="pt")
    assert distance(one.latents[0], there.init_latents[1]) < 1e-8
    if cls is StableDiffusionXLPipeline:
        own = pipe(
            prompt=PROMPTS, prompt_2=["both"] * 2, latents=there.latents.float(), guidance_scale=scale,
            num_inference_steps=4, height=64, width=80, output_type="pt",
        ).images  # fmt: skip
        assert metrics.psnr(own, back.images).min() > 50


def test_the_pipeline_is_untouched(pipe, latents):
    pipe.encode_prompt("")  # transformers notes something in its config
    before = fingerprint(pipe)
    invert(pipe, latents, PROMPTS, dtype="bfloat16", num_inference_steps=2)
    assert fingerprint(pipe) == before


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_embeddings_in_place_of_prompts(pipe, latents):
    encoded = lambda text, other: pipe.encode_prompt(text, None, "cpu", 1, True, other)  # noqa: E731
    given = dict(
        zip(
            ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
            (torch.cat(rows) for rows in zip(*map(encoded, PROMPTS, ["blurred", "red"]), strict=True)),
            strict=True,
        )
    )
    settings = {"method": "ddim", "num_inference_steps": 3, "runtime": "eager", "guidance_scale": 2.0}
    found = invert(pipe, latents, None, **given, **settings)
    wanted = invert(pipe, latents, PROMPTS, negative_prompt=["blurred", "red"], **settings)
    assert torch.equal(found.latents, wanted.latents)
    assert found.conditions == {}
    back = reconstruct(pipe, found, **given, output_type="latent").latents
    assert torch.equal(back, reconstruct(pipe, wanted, output_type="latent").latents)
    with pytest.raises(ValueError, match=r"prompt_embeds needs pooled_prompt_embeds beside it, \(1 or 2, 16\)"):
        reconstruct(pipe, found, prompt_embeds=given["prompt_embeds"])
    with pytest.warns(
        UserWarning, match=r"the other conditions \(pooled embeddings, sizes, labels, images\) are not what"
    ):
        reconstruct(pipe, wanted, original_size=(8, 8), output_type="latent")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [*EXPORTING, "onnxruntime"])
def test_every_runtime(runtime, pipe, latents):
    settings = {"method": "ddim", "num_inference_steps": 2, "save_trajectory": True}
    exact = invert(pipe, latents, PROMPTS, dtype="float64", **settings).trajectory
    eager, found = (
        invert(pipe, latents.float(), PROMPTS, dtype="float32", runtime=name, **settings) for name in ("eager", runtime)
    )
    assert found.stats.runtime == runtime
    as_exact_as_eager(found.latents, eager.latents, exact[-1])


@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS), PARTS])
def test_what_is_computed_beforehand_changes_nothing(parts, pipe, latents):
    settings = {"num_inference_steps": 3, "method": "ddim"}
    exact = invert(pipe, latents, PROMPTS, dtype="float64", precompute=(), **settings).latents
    assert (
        distance(invert(pipe, latents, PROMPTS, dtype="float64", precompute=parts, **settings).latents, exact) < 1e-12
    )
    found = invert(pipe, latents.float(), PROMPTS, runtime="eager", precompute=parts, **settings)
    assert found.stats.precomputed == parts
    assert distance(found.latents, exact) < 1e-5


def test_latents_normalised_by_channel(samples):
    """As Playground v2.5's: pipelines take off a mean and divide by a deviation of each channel."""
    from tiny import autoencoder

    torch.manual_seed(0)
    plain = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0], "scaling_factor": 0.5}
    pipe = stable_diffusion_xl(StableDiffusionXLImg2ImgPipeline, vae=autoencoder(**plain))
    picture = samples["peach"].image
    x = invert(pipe, picture, num_inference_steps=1, method="ddim").init_latents
    own = pipe.vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
    mean, std = (torch.tensor(plain[name]).reshape(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    assert distance(x, (own - mean) * 0.5 / std) < 1e-6
    back = reconstruct(pipe, invert(pipe, picture, num_inference_steps=4), output_type="pt").images
    decoded = (pipe.vae.decode(own).sample / 2 + 0.5).clamp(0, 1)
    assert metrics.psnr(back, decoded.detach()).min() > 30


def test_easyinvs_settings_for_sdxl(pipe, latents):
    found = invert(pipe, latents, PROMPTS, method=EasyInv.sdxl(), num_inference_steps=20)
    assert found.latents.isfinite().all()
    assert found.stats.evaluations == (20, 20)


REFUSED = {
    "argument": ({"prompt_3": "x"}, TypeError, "unknown argument 'prompt_3': .*StableDiffusionXL takes prompt_2, "),
    "size": ({"original_size": (1,)}, ValueError, "original_size must be two integers of at least 0.*got \\(1,\\)"),
    "one negative": ({"negative_target_size": (8, 8)}, ValueError, "go together; pass both or neither"),
    "texts": ({"prompt_2": ["a"] * 3}, ValueError, "prompt_2 has 3 texts for 2 images"),
    "texts twice": (
        {"prompt": None, "prompt_embeds": torch.zeros(2, 12, 64), "prompt_2": "a"},
        ValueError,
        "prompt_2 is a text and prompt_embeds stands in place of texts; pass one of them",
    ),
    "negative pooled alone": (
        {"negative_pooled_prompt_embeds": torch.zeros(2, 16), "guidance_scale": 2.0},
        ValueError,
        "negative_pooled_prompt_embeds goes with negative_prompt_embeds; pass both",
    ),
    "pooled alone": ({"pooled_prompt_embeds": torch.zeros(2, 16)}, ValueError, "goes with prompt_embeds; pass both"),
}


@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(case, pipe, latents):
    given, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        invert(pipe, latents, **{"prompt": PROMPTS, **given})


def test_pipelines_that_would_go_wrong_are_refused(pipe, latents):
    refiner = stable_diffusion_xl(StableDiffusionXLImg2ImgPipeline)
    refiner.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(ValueError, match="it is the refiner"):
        invert(refiner, latents, PROMPTS)
    with pytest.raises(ValueError, match="takes 9 channels and its latents have 4"):
        invert(stable_diffusion_xl(StableDiffusionXLInpaintPipeline, in_channels=9), latents, PROMPTS)
    other = stable_diffusion_xl(projection_class_embeddings_input_dim=20 + 6 * 8)
    with pytest.raises(ValueError, match="its second text encoder pools to 16 numbers, its network takes 20"):
        invert(other, latents, PROMPTS)
    bare = StableDiffusionXLPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None})
    with pytest.raises(ValueError, match="has no text_encoder and no tokenizer; pass prompt_embeds and pooled_prompt"):
        invert(bare, latents, PROMPTS)


def test_sizes_travel_with_an_inversion(pipe, latents):
    found = invert(pipe, latents, PROMPTS, original_size=(512, 300), num_inference_steps=2)
    assert found.conditions == {"original_size": [512, 300]}
    other = dataclasses.replace(found, conditions={})
    with pytest.warns(UserWarning, match="the other conditions"):
        wrong = reconstruct(pipe, other, output_type="latent").latents
    assert not torch.equal(reconstruct(pipe, found, output_type="latent").latents, wrong)
    assert SD["steps_offset"] == 1

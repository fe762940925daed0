"""What `invert` and `reconstruct` take, and what they refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from tiny import QUICK, SD, stable_diffusion
from toy import distance

from invfast import Schedule, demo, invert, reconstruct


def test_every_kind_of_image_is_the_same_image(peach, tmp_path):
    """Through a VAE and a network in float64: what is left is how pixels round, which IEEE 754 says."""
    pipe, options = stable_diffusion(), {"method": "ddim", "dtype": "float64", **QUICK}
    pipe.vae.double()
    peach.save(tmp_path / "peach.png")
    array = np.asarray(peach)
    tensor = torch.tensor(array).permute(2, 0, 1).float() / 255
    wanted = invert(pipe, peach, **options)
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
        assert distance(invert(pipe, image, **options).latents, wanted.latents) < 1e-5


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
    latents, init = invert(tiny, [peach, peach], **QUICK, return_dict=False)
    assert torch.equal(latents, inv.latents)
    assert latents.requires_grad_().is_leaf
    assert init.shape == (2, 4, 8, 8)


def test_schedulers_of_other_samplers_are_read_on_the_ddim_grid(peach):
    wanted = invert(stable_diffusion(), peach, **QUICK, dtype="float64")
    betas = {name: SD[name] for name in ("beta_schedule", "beta_start", "beta_end")}
    for scheduler in (
        PNDMScheduler(**betas, steps_offset=1, skip_prk_steps=True),
        EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
        DPMSolverMultistepScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
    ):
        scheduler.register_to_config(set_alpha_to_one=False)
        inv = invert(stable_diffusion(scheduler), peach, **QUICK, dtype="float64")
        assert inv.provenance["schedule.scheduler"] == type(scheduler).__name__
        assert inv.provenance["schedule.grid"] == "DDIM"
        assert distance(inv.latents, wanted.latents) < 1e-10


def test_a_schedule_of_ones_own(tiny, peach):
    own = Schedule.from_scheduler(tiny.scheduler, 4, compat="diffusers")
    exact = {"method": "ddim", "dtype": "float64"}
    wanted = invert(tiny, peach, **QUICK, **exact).latents
    for grid in ({"schedule": own}, {"timesteps": [751, 501, 251, 1]}):
        assert distance(invert(tiny, peach, **grid, **exact).latents, wanted) < 1e-10


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
        ({"cuda_graph": True}, ValueError, "need a CUDA device, the pipeline is on cpu"),
        ({"schedule": 50}, TypeError, "must be an invfast.Schedule"),
        ({"schedule": Schedule([0, 1], [0.9, 0.5], "v_prediction")}, ValueError, "network predicts 'epsilon'"),
        (
            {"schedule": Schedule([0, 1], [0.9, 0.5]), "timesteps": [1]},
            ValueError,
            "pass one of schedule, timesteps and sigmas",
        ),
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
    with pytest.raises(ValueError, match="StableDiffusionPipeline cannot be inverted: its network takes 9 channels"):
        invert(stable_diffusion(in_channels=9), peach, **QUICK)
    with pytest.raises(TypeError, match="pipeline object is not supported"):
        invert(object(), peach)

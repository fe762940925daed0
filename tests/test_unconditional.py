"""Pixel-space pipelines without a condition."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from toy import distance, grid

from invfast import Inversion, invert, reconstruct
from invfast.methods import DDIM, METHODS, FixedPoint
from invfast.reference import ddim


def pixel_pipeline(cls=DDPMPipeline, **config):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    ).eval()
    torch.set_rng_state(state)
    with torch.no_grad():
        unet.conv_out.weight *= 0.1  # a trained network contracts; a random one need not
    pipe = cls(unet=unet, scheduler=DDPMScheduler() if cls is DDPMPipeline else DDIMScheduler(set_alpha_to_one=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def picture(samples):
    return samples["peach"].image.resize((16, 16))


@pytest.mark.parametrize("cls", [DDPMPipeline, DDIMPipeline])
def test_there_and_back(cls, picture, tmp_path):
    pipe = pixel_pipeline(cls)
    method = FixedPoint(60, "anderson", tolerance=1e-12)
    inv = invert(pipe, [picture] * 2, method=method, num_inference_steps=20, dtype="float64")
    assert inv.latents.shape == (2, 3, 16, 16)
    assert inv.provenance["schedule.scheduler"] == type(pipe.scheduler).__name__
    inv.save(tmp_path / "x")
    out = reconstruct(pipe, Inversion.load(tmp_path / "x"), output_type="pt", dtype="float64")
    assert distance(out.latents, inv.init_latents) < 1e-7
    assert (out.images - (inv.init_latents / 2 + 0.5)).abs().max() < 1e-3


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method(name, picture):
    if METHODS[name].guidance_scale:
        with pytest.raises(ValueError, match="is unconditional"):
            invert(pixel_pipeline(), picture, method=name, num_inference_steps=5)
        return
    assert invert(pixel_pipeline(), picture, method=name, num_inference_steps=5).latents.isfinite().all()


def test_against_the_reference_in_float64(picture):
    pipe = pixel_pipeline()
    inv = invert(pipe, picture, method=DDIM(), num_inference_steps=5, dtype="float64")
    unet = pixel_pipeline().unet.double()
    with torch.inference_mode():
        wanted = ddim.invert(lambda x, t: unet(x, t).sample, inv.init_latents, grid(inv.schedule))
    assert distance(inv.latents, wanted) < 1e-10


@pytest.mark.parametrize(
    "kwargs",
    [
        {"prompt": "peach"},
        {"negative_prompt": "peach"},
        {"prompt_embeds": torch.zeros(1, 2, 3)},
        {"guidance_scale": 2.0},
    ],
)
@pytest.mark.filterwarnings("ignore:inverting at guidance_scale")
def test_a_condition_is_refused(kwargs, picture):
    with pytest.raises(ValueError, match="DDPMPipeline is unconditional: pass no prompt"):
        invert(pixel_pipeline(), picture, **kwargs)


def test_networks_it_does_not_know_are_refused(picture):
    with pytest.raises(ValueError, match=r"DDPMPipeline cannot be inverted: its network takes 1 channels.* have 3"):
        invert(pixel_pipeline(in_channels=1), picture)

"""Autoencoders of other kinds: what an encoder gives is asked, and images come back as it has them itself."""

import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, VQModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from test_caller import fingerprint
from tiny import stable_diffusion
from toy import distance

from invfast import invert, reconstruct
from invfast.methods import FixedPoint

EXACT = {"method": FixedPoint(60, "anderson", tolerance=1e-12), "num_inference_steps": 4, "dtype": "float64"}


def tiny_one():
    """As TAESD: no distribution, latents as they are."""
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    return AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, **blocks)


def quantised():
    return VQModel(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )


def asymmetric():
    """A larger decoder, which may be shown a mask and is not."""
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(8, 8, 8, 8),
        layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(8, 8, 8, 8),
        layers_per_up_block=1,
        norm_num_groups=4,
    )


@pytest.fixture(params=[tiny_one, quantised, asymmetric], ids=lambda make: make.__name__)
def pipe(request):
    pipe = stable_diffusion()
    torch.manual_seed(0)
    pipe.vae = request.param().eval()
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.1  # a trained network contracts; a random one need not
    pipe.register_modules(vae=pipe.vae)
    pipe.vae_scale_factor = 8
    return pipe


def test_there_and_back(pipe, samples):
    pictures = [samples[name].image for name in ("peach", "cat")]
    with torch.no_grad():
        pixels = torch.cat([pipe.image_processor.preprocess(picture) for picture in pictures])
        wanted = torch.cat([retrieve_latents(pipe.vae.encode(row), sample_mode="argmax") for row in pixels.split(1)])
        shown = [pipe.vae.decode(row, return_dict=False)[0] for row in wanted.split(1)]
    scale = 1 / float(wanted.std())  # random weights make them small
    pipe.vae.register_to_config(scaling_factor=scale)
    before = fingerprint(pipe)
    there = invert(pipe, pictures, **EXACT)
    assert distance(there.init_latents, scale * wanted) < 1e-6
    back = reconstruct(pipe, there, output_type="pt")
    assert distance(back.latents, there.init_latents) < 1e-6
    assert distance(back.images, (torch.cat(shown) / 2 + 0.5).clamp(0, 1)) < 1e-3
    assert fingerprint(pipe) == before


def test_a_float16_one_runs_in_float32_on_a_cpu(pipe, peach):
    pipe.vae.half()
    found = reconstruct(pipe, invert(pipe, peach, num_inference_steps=2), output_type="pt").images
    assert found.isfinite().all()


def test_what_gives_something_else_is_named(peach):
    pipe = stable_diffusion()
    pipe.vae.encode = lambda x: object()
    with pytest.raises(TypeError, match="the VAE's encoder gives object, with neither latent_dist nor latents"):
        invert(pipe, peach)

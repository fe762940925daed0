"""The bundled pipeline and `make demo`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy import distance

from invfast import demo, invert, metrics, reconstruct
from invfast.methods import FixedPoint


def test_images_and_prompts(samples, pipe):
    assert {"peach", "soccer_ball", "astronaut", "cat", "coffee"} <= set(samples)
    for name, sample in samples.items():
        assert (sample.image.size, sample.image.mode) == ((64, 64), "RGB"), name
        ids = pipe.tokenizer(sample.prompt).input_ids
        assert pipe.tokenizer.pad_token_id not in ids, f"{sample.prompt!r} has words the model never saw"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_pipeline_generates(prediction):
    """diffusers' own call on each form of the network, the same picture from the same noise."""
    pipe, plain = (demo.load_pipeline(each, dtype=torch.float64) for each in (prediction, "epsilon"))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    args = {"latents": noise, "num_inference_steps": 5, "guidance_scale": 1.0, "output_type": "latent"}
    found = pipe("noto peach", **args).images
    assert found.dtype == torch.float64
    wanted = plain("noto peach", **args).images
    assert distance(found, wanted) < 5e-6  # 1e-6 a step: diffusers' coefficients are float32


def test_the_flow_is_trained_and_its_own_pipeline_regenerates():
    pipe, (image, prompt) = demo.load_flow_pipeline(torch.float64), demo.load_images()["peach"]
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    inversion = invert(pipe, image, prompt, method="anderson", num_inference_steps=6)
    back = reconstruct(pipe, inversion, output_type="latent").latents
    args = {"num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "latent", "height": 64, "width": 64}
    assert distance(pipe(prompt, latents=inversion.latents, **args).images, back) < 1e-5
    clean, noise = (
        inversion.init_latents,
        torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)).double(),
    )
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False)
    many = {"encoder_hidden_states": embeds.expand(8, -1, -1), "pooled_projections": pooled.expand(8, -1)}
    with torch.no_grad():
        found = pipe.transformer((clean + noise) / 2, **many, timestep=torch.full((8,), 500.0), return_dict=False)[0]
    assert (found - (noise - clean)).square().mean() < 0.5 * (noise - clean).square().mean()


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="unknown prediction_type 'score'"):
        demo.load_pipeline("score")


def test_the_early_pipeline_is_an_imprecise_one(pipe):
    early = demo.load_pipeline(early=True)
    assert early.vae.config == pipe.vae.config
    x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    embeds, _ = early.encode_prompt("noto peach", "cpu", 4, False)
    with torch.no_grad():
        errors = [float((p.unet(x, 999, embeds).sample - x).square().mean()) for p in (pipe, early)]
    assert errors[0] < errors[1] < 0.2  # at the noisiest level the noise is nearly the input


def test_the_pixel_pipeline_is_inverted_and_rebuilt(samples):
    pipe = demo.load_pixel_pipeline()
    image = samples["peach"].image.resize((32, 32))
    inv = invert(pipe, image, method=FixedPoint(5, "anderson"), num_inference_steps=20)
    assert abs(float(inv.latents.std()) - 1) < 0.2
    assert float(metrics.latent_psnr(reconstruct(pipe, inv, output_type="latent").latents, inv.init_latents)) > 40


def test_card_names_its_sources():
    card = (demo.ROOT / "emoji64" / "README.md").read_text()
    for word in ("Noto Emoji", "Apache-2.0", "Twemoji", "CC-BY 4.0"):
        assert word in card


def test_the_demo_prints_a_table_and_writes_a_picture(tmp_path):
    picture = tmp_path / "new" / "demo.png"
    command = [sys.executable, "-m", "invfast.demo", "--steps", "3", "-o", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    for word in ("VAE round trip", "DDIM", "EasyInv", "warm start", "auto", "Anderson", "forward start"):
        assert word in done.stdout
    image = Image.open(picture)
    assert image.size[0] > 14 * 96
    assert image.size[1] > 5 * 96

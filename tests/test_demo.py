"""The bundled pipeline and `make demo`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from invfast import demo


def test_images_and_prompts(samples, pipe):
    assert {"peach", "soccer_ball", "astronaut", "cat", "coffee"} <= set(samples)
    for name, sample in samples.items():
        assert (sample.image.size, sample.image.mode) == ((64, 64), "RGB"), name
        ids = pipe.tokenizer(sample.prompt).input_ids
        assert pipe.tokenizer.pad_token_id not in ids, f"{sample.prompt!r} has words the model never saw"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_pipeline_generates(prediction):
    """diffusers' own call on each form of the network, the same picture from the same noise."""
    pipe = demo.load_pipeline(prediction)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    args = {"latents": noise, "num_inference_steps": 5, "guidance_scale": 1.0, "output_type": "latent"}
    found = pipe("noto peach", **args).images
    wanted = demo.load_pipeline()("noto peach", **args).images
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        demo.load_pipeline("flow")


def test_card_names_its_sources():
    card = (demo.ROOT / "emoji64" / "README.md").read_text()
    for word in ("Noto Emoji", "Apache-2.0", "Twemoji", "CC-BY 4.0"):
        assert word in card


def test_the_demo_prints_a_table_and_writes_a_picture(tmp_path):
    picture = tmp_path / "new" / "demo.png"
    command = [sys.executable, "-m", "invfast.demo", "--steps", "4", "-o", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    for word in ("VAE round trip", "DDIM", "EasyInv", "warm start", "auto", "Anderson", "forward start"):
        assert word in done.stdout
    image = Image.open(picture)
    assert image.size[0] > 14 * 96
    assert image.size[1] > 5 * 96

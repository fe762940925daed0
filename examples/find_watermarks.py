"""Looks for a key in a folder of images: python examples/find_watermarks.py photos key.json --model MODEL

Without arguments it makes a key, two images with its watermark and two without, and looks for it there.
"""

import argparse
from pathlib import Path

import torch

from invfast import batch, demo
from invfast.watermark import GaussianShading, load_key, sample, save_key, shape_of

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?")
parser.add_argument("key", nargs="?", default="key.json")
parser.add_argument("--model", default="", help="the one that drew the images; a folder or a hub id")
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()

if asked.folder is None:
    asked.folder, pipe = "drawn", demo.load_pipeline()
    Path(asked.folder).mkdir()
    save_key(GaussianShading.new(shape_of(pipe), copies=(1, 4, 4)), asked.key)
    latents = torch.cat([load_key(asked.key).embed(2), torch.randn(2, *shape_of(pipe))])
    images = sample(pipe, latents, "noto peach", num_inference_steps=asked.steps, guidance_scale=3).images
    for image, name in zip(images, ("marked-1", "marked-2", "plain-1", "plain-2"), strict=True):
        image.save(f"{asked.folder}/{name}.png")

task = batch.Detect((load_key(asked.key),), batch.Invert(model=asked.model, method="ddim", steps=asked.steps))
batch.run(asked.folder, "found", task)
for name, row in sorted(batch.open("found").rows.items()):
    print(name, row["error"] or f"p = {row['stats']['p_value']:.1e}")

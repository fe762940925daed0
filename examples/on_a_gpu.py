"""Any pipeline of diffusers on a fast runtime: python examples/on_a_gpu.py MODEL photo.png "a photo" --runtime compile

Without arguments the bundled model, on a GPU where there is one. docs/runtimes.md has the runtimes.
"""

import argparse

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from invfast import demo, invert, reconstruct

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", help="a folder or a hub id")
parser.add_argument("image", nargs="?", default=demo.ROOT / "images" / "peach.png")
parser.add_argument("prompt", nargs="?", default="noto peach")
parser.add_argument("--runtime", default="auto")
parser.add_argument("--method", default="auto")
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()

gpu = torch.cuda.is_available()
dtype = torch.float16 if gpu else torch.float32
pipe = DiffusionPipeline.from_pretrained(asked.model, dtype=dtype) if asked.model else demo.load_pipeline(dtype=dtype)
pipe.to("cuda" if gpu else "cpu")

image = Image.open(asked.image).convert("RGB")
how = {"method": asked.method, "num_inference_steps": asked.steps, "runtime": asked.runtime}
for call in ("first", "second"):  # the first also compiles and captures, where the runtime does
    inversion = invert(pipe, image, asked.prompt, **how)
    print(f"{call}: {inversion.stats.seconds:.2f} s, {inversion.stats.runtime}: {inversion.stats.reason}")
reconstruct(pipe, inversion).images[0].save("again.png")

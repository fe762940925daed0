"""Inverts a folder of images and rebuilds the first: python examples/invert_folder.py photos noise --model MODEL

Without arguments the sample images by the bundled model. The same command again goes on where it ended.
"""

import argparse

from invfast import batch, demo, reconstruct

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?", default=demo.ROOT / "images")
parser.add_argument("output", nargs="?", default="noise")
parser.add_argument("--model", default="", help="a folder of a diffusers pipeline or a hub id")
parser.add_argument("--method", default="auto")
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()

task = batch.Invert(model=asked.model, method=asked.method, steps=asked.steps)
done = batch.run(asked.folder, asked.output, task)
print(f"{done.done} inverted now, {done.before} before, {len(done.errors)} failed")

results = batch.open(asked.output)
for name, message in results.errors.items():
    print(f"{name}: {message}")
for name in list(results)[:1]:
    reconstruct(task.load(), results[name]).images[0].save(f"{asked.output}/again.png")
    print(f"{name}: {results[name]}")

"""What the batch engine adds to the network: python -m benchmarks.batch [METHOD ...].

A folder of 64 images, PNG, JPEG and WebP of 64 px (the samples, mirrored and rolled), inverted by
`invfast.batch.run` in 50 steps of the bundled pipeline, eager, into a fresh folder; then the same call again, which
finds all of it done. The network's own time is summed within the same run, so both are of one moment of the machine.
Per method the images a second, what they would be were there nothing but the network, by how much the engine is
behind, and what lies in between: all around the loop in `invert` (VAE, texts, digests), and the engine's own
(reading, decoding, shards, index). Rows go to benchmarks/results/batch.jsonl, the table to docs/batch.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from benchmarks.outside import watched
from invfast import api, batch, demo

COUNT, STEPS, ROUNDS = 64, 50, 3
METHODS = ("ddim", "auto")
HEAD = (
    "method",
    "images a second",
    "network alone",
    "behind",
    "of that `invert`",
    "the engine",
    "all done already",
)


def fill(folder: Path, count: int) -> None:
    """So many different images of three formats."""
    samples = [sample.image for sample in demo.load_images().values()]
    for j in range(count):
        image = ImageChops.offset(samples[j % len(samples)], 3 * (j // len(samples)), 0)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if j // len(samples) % 2 else image
        image.save(folder / f"{j:04d}.{('png', 'jpg', 'webp')[j % 3]}")


def measure(images: Path, method: str, count: int = COUNT, steps: int = STEPS) -> dict[str, float]:
    """Seconds of one run: all of it, within `invert`, inside the network, and of the same call again."""
    task = batch.Invert(method=method, steps=steps, device="cpu", runtime="eager")
    invert, inside = api.invert, [0.0]

    def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return invert(*given, **named)
        finally:
            inside[0] += time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder, watched() as spent:
        api.invert = timed
        try:
            began = time.perf_counter()
            at = batch.run(images, folder, task)
            whole = time.perf_counter() - began
        finally:
            api.invert = invert
        if at.done != count:
            raise RuntimeError(f"{at.done} of {count} images were done: {at.errors}")
        network, began = spent[0], time.perf_counter()
        batch.run(images, folder, task)
        return {
            "whole": whole,
            "invert": inside[0],
            "network": network,
            "again": time.perf_counter() - began,
        }


def row(method: str, found: list[dict[str, float]], count: int = COUNT, steps: int = STEPS) -> dict[str, Any]:
    """The round whose share of the network is the median, so that its parts are of one run."""
    median = sorted(found, key=lambda each: each["whole"] / each["network"])[len(found) // 2]
    return {
        "case": f"{count} images of 64 px, {steps} steps, eager float32",
        "runner": method,
        **median,
        "again": statistics.median(each["again"] for each in found),
        "images_a_second": count / median["whole"],
        "behind": 1 - median["network"] / median["whole"],
        "rounds": len(found),
        **rows.place(),
    }


def table(found: list[dict[str, Any]]) -> str:
    """The rows as the page has them."""
    lines = []
    for each in found:
        whole, network, invert = each["whole"], each["network"], each["invert"]
        count = each["images_a_second"] * whole
        speeds = (f"{count / seconds:.2f}" for seconds in (whole, network))
        shares = (f"{share:.1%}" for share in (each["behind"], (invert - network) / whole, (whole - invert) / whole))
        lines.append([f"`{each['runner']}`", *speeds, *shares, f"{each['again']:.2f} s"])
    place = f"on {found[0]['machine']}, commit {found[0]['commit']} (`python -m benchmarks.batch`)"
    return f"{found[0]['case']}, {place}:\n\n{markdown.table(HEAD, lines)}"


def main() -> None:
    """Measures, and writes rows and table."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), COUNT)
        for method in sys.argv[1:] or METHODS:
            measure(Path(folder), method, steps=2)  # what is made once a process
            found.append(row(method, [measure(Path(folder), method) for _ in range(ROUNDS)]))
            print(table(found[-1:]))
    rows.write(rows.RESULTS / "batch.jsonl", found)
    markdown.write(DOCS / "batch.md", "batch", f"{table(found)}\n")


if __name__ == "__main__":
    main()

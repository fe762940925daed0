"""A small set in PIE-Bench's layout, of the bundled images: python -m benchmarks.pie.small DIR.

Sixteen images of 64 px. Each is to become the next one of its style (noto, twemoji, photo) that shows something else.
The mask is what either emoji covers, whatever is not white; of photographs it is all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.pie.layout import IMAGES, MAPPING, encode
from invfast import demo
from invfast.demo import Sample

WHITE = 250
"""From this level on, in all channels, a pixel is paper."""


def write(folder: Path) -> None:
    """Images and mapping file; what is there of the same name is replaced."""
    samples, mapping = demo.load_images(), {}
    for j, (name, sample) in enumerate(samples.items()):
        style, thing = sample.prompt.split(" ", 1)
        target = partner(name, samples)
        path = f"1_change_object/{style}/{name}.png"
        (folder / IMAGES / path).parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / IMAGES / path)
        other = samples[target].prompt.split(" ", 1)[1]
        mapping[f"{j:012}"] = {
            "image_path": path,
            "original_prompt": f"{style} [{thing}]",
            "editing_prompt": f"{style} [{other}]",
            "editing_instruction": f"Change the {thing} to a {other}",
            "editing_type_id": "1",
            "blended_word": "",
            "mask": encode(covered(sample) | covered(samples[target])),
        }
    (folder / MAPPING).write_text(json.dumps(mapping, indent=1) + "\n")


def partner(name: str, samples: Mapping[str, Sample]) -> str:
    """The next image, around the end, of the same style and of another prompt."""
    names = list(samples)
    place = names.index(name)
    for other in names[place + 1 :] + names[:place]:
        first, second = samples[name].prompt, samples[other].prompt
        if first != second and first.split()[0] == second.split()[0]:
            return other
    raise ValueError(f"the bundled images have no other one of the style of {name!r}")


def covered(sample: Sample) -> np.ndarray:
    """(64, 64) bool, what an emoji covers; all of a photograph."""
    if sample.prompt.startswith("photo "):
        return np.ones(sample.image.size[::-1], bool)
    return (np.asarray(sample.image) < WHITE).any(2)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.pie.small DIR")
    write(Path(sys.argv[1]))

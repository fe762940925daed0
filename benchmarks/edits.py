"""Editors and inversions side by side: python -m benchmarks.edits [INVERSION ...]. Needs `invfast[train]` and npm.

Fifty fixed pairs of emoji of the training set: a picture of the one, centred on white, is inverted under its caption on
20 steps at guidance 1, and edited to the other's at guidance 3. Background is what neither covers. Rows are medians of
its PSNR in dB beside the picture as the autoencoder gives it; the share of edits whose nearest emoji of all is the
target's, whatever its vendor; and the share that is still nearest to the source's. "fresh noise" knows nothing of the
source: what the model draws by itself. Rows: results/edits.jsonl, where those of inversions that are not named stay;
table and picture: docs/editing.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from invfast import Inversion, demo, edit, editing, invert
from invfast.figures import grid
from training import data as training_data
from training.batches import centred
from training.evaluation import outline

FILE, RUNS = rows.RESULTS / "edits.jsonl", Path("training/runs")
PAIRS, STEPS, GUIDANCE, SHOWN = 50, 20, 3.0, (0, 3, 4, 7, 11, 12, 17, 21)
FRESH = "fresh noise"
INVERSIONS = (FRESH, "ddim", "easyinv", "forward_start", "auto", "noise_maps")
EDITORS = {
    "prompt": editing.Prompt(),
    "prompt_to_prompt": editing.PromptToPrompt(),
    "masactrl": editing.MasaCtrl(step=2),
    "direct, masactrl": editing.Direct(editing.MasaCtrl(step=2)),
    "direct, prompt_to_prompt": editing.Direct(editing.PromptToPrompt()),
}
"""MasaCtrl from step 2 of 20, as from 4 of 50."""


def pairs(data: training_data.Data) -> list[tuple[training_data.Emoji, training_data.Emoji]]:
    """Source and target, both of one vendor, and not the same thing."""
    order = np.random.default_rng(2026).permutation(len(data.emoji))
    found, left = [], [data.emoji[j] for j in order]
    while len(found) < PAIRS:
        source = left.pop()
        vendor = source.caption.split()[0]
        place = next(j for j, e in enumerate(left) if e.caption.startswith(vendor) and e.base != source.base)
        found.append((source, left.pop(place)))
    return found


def background(pair: Sequence[training_data.Emoji]) -> np.ndarray:
    """(64, 64), where neither emoji is as the pictures show it."""
    covered = np.zeros((64, 64), bool)
    for item in pair:
        alpha = Image.fromarray(item.pixels[..., 3]).resize((56, 56))
        covered[4:60, 4:60] |= np.asarray(alpha) > 0
    return ~covered


class Nearest:
    """Which emoji of all is nearest to a picture, by what it shows."""

    def __init__(self, data: training_data.Data) -> None:
        self.bases = [item.base for item in data.emoji]
        self.known = torch.from_numpy(np.stack([outline(centred(item)) for item in data.emoji])).flatten(1)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        seen = torch.from_numpy(np.stack([outline(np.asarray(picture)) for picture in pictures])).flatten(1)
        return [self.bases[j] for j in torch.cdist(seen, self.known).argmin(1).tolist()]


def row(
    method: str, editor: str, pictures: list[Any], before: np.ndarray, chosen: list[Any], nearest: Nearest
) -> dict[str, Any]:
    """What came of an editor on an inversion."""
    after = np.stack([np.asarray(picture, np.float64) / 255 for picture in pictures])
    outside = [background(pair) for pair in chosen]
    kept = [-10 * np.log10(np.mean((a[m] - b[m]) ** 2)) for a, b, m in zip(after, before, outside, strict=True)]
    found = nearest(pictures)
    return {
        "inversion": method,
        "editor": editor,
        "background_psnr": float(np.median(kept)),
        "target": sum(name == target.base for name, (_, target) in zip(found, chosen, strict=True)) / len(chosen),
        "source": sum(name == source.base for name, (source, _) in zip(found, chosen, strict=True)) / len(chosen),
        **rows.place(),
    }


def inverted(pipe: Any, method: str, chosen: list[Any]) -> Inversion:
    pictures = [Image.fromarray(centred(source)) for source, _ in chosen]
    prompts = [source.caption for source, _ in chosen]
    options: Mapping[str, Any] = {"num_inference_steps": STEPS, "runtime": "eager"}
    if method == FRESH:
        found = invert(pipe, pictures, prompts, method="ddim", **options)
        return replace(found, latents=torch.randn(found.latents.shape, generator=torch.Generator().manual_seed(2026)))
    return invert(pipe, pictures, prompts, method=method, save_trajectory=method != "forward_start", **options)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line an editor and inversion."""
    lines = []
    for each in sorted(found, key=lambda one: (list(EDITORS).index(one["editor"]), INVERSIONS.index(one["inversion"]))):
        figures = (f"{each['background_psnr']:.1f}", f"{each['target']:.0%}", f"{each['source']:.0%}")
        lines.append([each["editor"], each["inversion"], *figures])
    return markdown.table(
        ["editor", "inversion", "background PSNR", "nearest is the target", "still the source"], lines
    )


def main() -> None:
    """Prints the table, writes its rows and the picture."""
    data, pipe = training_data.fetch(RUNS / "data"), demo.load_pipeline()
    chosen, nearest = pairs(data), Nearest(data)
    asked = sys.argv[1:] or INVERSIONS
    known = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    targets, found = [target.caption for _, target in chosen], [row for row in known if row["inversion"] not in asked]
    shown = [[Image.fromarray(centred(chosen[j][0])) for j in SHOWN]]
    for method in asked:
        there = inverted(pipe, method, chosen)
        flat = pipe.vae.decode(there.init_latents / pipe.vae.config.scaling_factor).sample.detach()
        before = (flat / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()
        for name, editor in EDITORS.items():
            if (editor.corrected and there.trajectory is None) or (method == FRESH and name != "prompt"):
                continue
            made = edit(pipe, there, targets, method=editor, guidance_scale=GUIDANCE, runtime="eager").images
            found.append(row(method, name, made, before, chosen, nearest))
            print(table(found[-1:]).splitlines()[-1], flush=True)
            if method == "auto":
                shown.append([made[j] for j in SHOWN])
    rows.write(FILE, found)
    markdown.write(DOCS / "editing.md", "edits", f"{table(found)}\n\n{found[0]['machine']}\n")
    if len(shown) > 1:
        grid(shown, [targets[j] for j in SHOWN], ["source", *EDITORS], cell=96).save(DOCS / "edits.png")


if __name__ == "__main__":
    main()

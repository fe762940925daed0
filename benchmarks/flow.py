"""Rectified flow: python -m benchmarks.flow [exact] [trained]. Rows: results/flow.jsonl, results/flow-trained.jsonl;
the tables: docs/methods/flow.md.

Two flows: the bundled model as the flow that it exactly is in other variables (demo.load_pipeline("flow")), on DDIM's
leading grid in those, sigma .03 to .936; and the bundled flow that was trained as one (demo.load_flow_pipeline()), on
its scheduler's grid, sigma 0 to 1. Eight sample images of the one, four of the other, guidance 1, float32: evaluations
a step against median and least latent PSNR, each method's way back its own sampler.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from benchmarks.short import measured, table
from invfast import Schedule, demo, invert
from invfast.demo.reparametrised import as_flow
from invfast.methods import METHODS, Auto, FixedPoint, ForwardStart, Method

GRIDS, IMAGES, TRAINED = (8, 20, 28, 50), 8, 4
NAMES = ("ddim", "euler", "warm_start", "fixed_point", "anderson", "rf_solver", "fireflow", "obelm", "bdia", "edict")


def methods() -> dict[str, Method | str]:
    """By name."""
    return {
        **{name: METHODS[name] for name in NAMES},
        "auto, budget 1.05": Auto(budget=1.05),
        "auto, budget 2": Auto(budget=2),
        "auto": Auto(),
        "warm start, linear": FixedPoint(1, warm_start="linear"),
        **{name: METHODS[name] for name in ("noise_maps", "easyinv", "renoise")},
        "forward_start, 2": ForwardStart(2),
        "rf_inversion": METHODS["rf_inversion"],
    }


def exact() -> list[dict[str, Any]]:
    """Rows of the exact flow."""
    pipe, bundled = demo.load_pipeline("flow"), demo.load_pipeline()
    images, prompts = samples(IMAGES)
    clean = invert(bundled, images, prompts, method="ddim", num_inference_steps=1).init_latents
    found = []
    for steps in GRIDS:
        vp = Schedule.from_scheduler(bundled.scheduler, steps)
        latents = clean / float(vp.alpha[0] + vp.sigma[0])
        case = f"{steps} steps of the exact flow, {len(images)} images"
        found += measured(pipe, latents, prompts, case, methods(), schedule=as_flow(vp))
    return found


def trained() -> list[dict[str, Any]]:
    """Rows of the trained flow."""
    pipe, (images, prompts), found = demo.load_flow_pipeline(), samples(TRAINED), []
    for steps in GRIDS:
        case = f"{steps} steps of the trained flow, {len(images)} images"
        found += measured(pipe, images, prompts, case, methods(), num_inference_steps=steps)
    return found


def samples(count: int) -> tuple[list[Any], list[str]]:
    """Images and what they show."""
    images, prompts = (list(each[:count]) for each in zip(*demo.load_images().values(), strict=True))
    return images, prompts


def main(asked: Sequence[str]) -> None:
    """Prints the tables and writes their rows."""
    for name, measure, mark in (("flow", exact, "flow"), ("flow-trained", trained, "trained")):
        if asked and measure.__name__ not in asked:
            continue
        torch.manual_seed(0)
        found = measure()
        rows.write(rows.RESULTS / f"{name}.jsonl", found)
        text = f"{table(found)}\n\n{found[0]['machine']}\n"
        markdown.write(DOCS / "methods" / "flow.md", mark, text)
        print(f"\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Grids of few steps, as distilled models run them: python -m benchmarks.short. Rows: benchmarks/results/short.jsonl.

The sample images of the bundled model, trailing spacing, guidance 1, float32: evaluations a step against median
and least latent PSNR, the residual of each image's worst step, relative, and how many images were solved to the
tolerance that the method promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler

from benchmarks import markdown, rows
from invfast import demo, invert, metrics, reconstruct
from invfast.methods import Auto, FixedPoint, Method, ReNoise

GRIDS = (1, 2, 4)
FILE = rows.RESULTS / "short.jsonl"
HEAD = (
    "N",
    "method",
    "evaluations a step",
    "latent PSNR, median",
    "least",
    "residual, median",
    "images solved",
)


def methods(steps: int) -> dict[str, Method | str]:
    """By name; ReNoise with its settings for Turbo models, which are for 4 steps."""
    found: dict[str, Method | str] = {
        "ddim": "ddim",
        "auto, 12 iterations at most": Auto(iterations=12),
        "auto": "auto",
        "anderson, 12": FixedPoint(12, "anderson"),
        "plain, 60": FixedPoint(60),
    }
    return {**found, "renoise, K = 9": ReNoise(iterations=9)} if steps == 4 else found


def measured(
    pipe: Any, images: Any, prompts: list[str], case: str, methods: Mapping[str, Method | str], **grid: Any
) -> list[dict[str, Any]]:
    """A row a method, on a grid of `invert`."""
    found = []
    for name, method in methods.items():
        there = invert(pipe, images, prompts, method=method, runtime="eager", **grid)
        back = reconstruct(pipe, there, output_type="latent", runtime="eager")
        psnr = metrics.latent_psnr(back.latents, there.init_latents).double()
        solved, residual = there.stats.reached, there.stats.residual
        found.append(
            {
                "case": case,
                "method": name,
                "evaluations": sum(there.stats.evaluations) / len(images) / there.schedule.num_steps,
                "latent_psnr": float(psnr.median()),
                "latent_psnr_min": float(psnr.min()),
                "residual": None if residual is None else float(residual.amax(0).median()),
                "solved": None if solved is None else sum(solved),
                **rows.place(),
            }
        )
        print(table([found[-1]]).splitlines()[-1], flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a line a row."""
    lines = []
    for row in found:
        solved = "" if row["solved"] is None else row["solved"]
        residual = "" if row["residual"] is None else f"{row['residual']:.0e}"
        psnr = (f"{row[name]:.1f}" for name in ("latent_psnr", "latent_psnr_min"))
        lines.append([row["case"].split()[0], row["method"], f"{row['evaluations']:.2f}", *psnr, residual, solved])
    return markdown.table(HEAD, lines)


def main() -> None:
    """Prints the table and writes its rows."""
    torch.manual_seed(0)
    pipe = demo.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    images, prompts = (list(each) for each in zip(*demo.load_images().values(), strict=True))
    found = []
    for steps in GRIDS:
        case = f"{steps} steps, trailing, {len(images)} images"
        found += measured(pipe, images, prompts, case, methods(steps), num_inference_steps=steps)
    rows.write(FILE, found)
    print(f"\n{table(found)}\n\n{found[0]['machine']}")


if __name__ == "__main__":
    main()

"""Whole SDXL inversions on a CPU beside diffusers' own loop: python -m benchmarks.sdxl. 15 GiB of memory, some minutes.

SDXL's architecture at 256 px, random weights, float32, guidance 1, latents in, four steps of DDIM inversion, prompts
encoded within the call; in turns, walls of whole calls. Error is ||d|| / ||ref|| of the latents against diffusers'.
Rows: benchmarks/results/sdxl.jsonl; the table: docs/runtimes.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, StableDiffusionXLPipeline

from benchmarks import markdown, networks, rows
from benchmarks.markdown import DOCS
from invfast import Schedule, invert

STEPS, ROUNDS, SIDE, PROMPT = 4, 5, 256, "a photo"
FILE = rows.RESULTS / "sdxl.jsonl"


def diffusers_loop(pipe: StableDiffusionXLPipeline, x: torch.Tensor) -> torch.Tensor:
    """The loop people write, with what the pipeline's own call tells its network."""
    embeds, _, pooled, _ = pipe.encode_prompt(PROMPT, device=x.device, do_classifier_free_guidance=False)
    told = (SIDE, SIDE), (0, 0), (SIDE, SIDE)
    width = pipe.text_encoder_2.config.projection_dim
    sizes = pipe._get_add_time_ids(*told, dtype=embeds.dtype, text_encoder_projection_dim=width)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        added = {"text_embeds": pooled, "time_ids": sizes}
        noise = pipe.unet(x, t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]
        x = scheduler.step(noise, t, x).prev_sample
    return x


def runners(pipe: StableDiffusionXLPipeline, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """By name, each a whole call."""
    grid = Schedule.from_scheduler(pipe.scheduler, STEPS, compat="diffusers")

    def ours() -> torch.Tensor:
        return invert(pipe, x, PROMPT, method="ddim", schedule=grid, runtime="eager", dtype="float32").latents

    return {"diffusers eager float32": torch.no_grad()(lambda: diffusers_loop(pipe, x)), "invfast eager float32": ours}


def measured(calls: dict[str, Callable[[], torch.Tensor]]) -> list[dict[str, Any]]:
    """A row a runner, in turns after one call each that counts for nothing."""
    outputs, walls = {name: call() for name, call in calls.items()}, {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            walls[name].append(time.perf_counter() - begin)
    wanted, base = next(iter(outputs.values())), statistics.median(next(iter(walls.values())))
    return [
        {
            "case": f"SDXL {SIDE} px, whole calls of {STEPS} steps",
            "runner": name,
            "seconds": sorted(walls[name]),
            "speed": base / statistics.median(walls[name]),
            "error": float((outputs[name] - wanted).norm() / wanted.norm()),
            **rows.place(),
        }
        for name in calls
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a line a row."""
    lines = []
    for row in found:
        least, most = row["seconds"][0], row["seconds"][-1]
        wall = f"{statistics.median(row['seconds']):.1f} ({least:.1f} to {most:.1f})"
        lines.append([row["runner"], wall, f"{row['speed']:.2f} x", f"{row['error']:.0e}"])
    head = ["", "s (least to most)", "speed", "error"]
    return f"**{found[0]['case']}**, batch 1\n\n{markdown.table(head, lines)}"


def main() -> None:
    """Prints the table and writes its rows."""
    pipe = networks.sdxl_pipeline()
    x = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    found = measured(runners(pipe, x))
    rows.write(FILE, found)
    text = f"{table(found)}\n\n{found[0]['machine']}\n"
    markdown.write(DOCS / "runtimes.md", "sdxl", text)
    print(text)


if __name__ == "__main__":
    main()

"""How much of the noise a generated picture gives back: python -m benchmarks.recovered. Rows: results/recovered.jsonl.

`python -m benchmarks.recovered DDIM` measures one sampler anew and keeps the rows of the others.

The bundled pipeline samples pictures from known noise, by DDIM and by DPM-Solver++(2M); they are decoded and rounded to
the 8 bits of a PNG, or, of DDIM's, also kept as floats. From a picture and its prompt the noise is looked for: latents
by the encoder or by decoder inversion (or the sampled ones themselves are given), then an inversion. The figure is the
error of the noise, 20 log10 ||d|| / ||noise|| in dB, the median over the pictures: 0 dB is nothing found. Guidance 1,
20 steps, float32, eager. DDIM runs on its own grid, as one inverts today, and "same grid" is the sampler's.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from benchmarks import markdown, rows
from benchmarks.markdown import DOCS
from invfast import DecoderInversion, Schedule, adapters, demo, invert

COUNT, STEPS, DRAWN = 32, 20, 5_110_000
FILE = rows.RESULTS / "recovered.jsonl"
SOLVER = DPMSolverMultistepScheduler.__name__
SAMPLERS = {
    "DDIM": (DDIMScheduler, {}),
    "DPM-Solver++(2M), Karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DPM-Solver++(2M), default": (DPMSolverMultistepScheduler, {}),
}
"""Each a scheduler made of the bundled pipeline's config; diffusers' default ends on a step to sigma = 0."""
DECODER = DecoderInversion()


def sampled(pipe: Any) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Noise, the latents that the pipeline's own call makes of it, and the prompts."""
    known = [each.prompt for each in demo.load_images().values()]
    prompts = [known[j % len(known)] for j in range(COUNT)]
    each = [torch.randn((4, 16, 16), generator=torch.Generator().manual_seed(DRAWN + j)) for j in range(COUNT)]
    noise = torch.stack(each)
    options = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    return noise, pipe(prompts, latents=noise, **options).images, prompts


def given(pipe: Any, latents: torch.Tensor, floats: bool) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """What the noise is looked for from, by name, and how `invert` is to read it."""
    yield "latents themselves", latents, {}
    pixels = adapters.resolve(pipe)(pipe, "eager").decode(latents)
    pictures = {"float": pixels} if floats else {}
    for name, picture in {**pictures, "8 bits": (pixels * 255).round() / 255}.items():
        yield f"{name}, encoder", picture, {}
        yield f"{name}, decoder", picture, {"encode": DECODER}


def inversions(sampler: str, scheduler: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Methods by what a row calls them."""
    yield "ddim", "ddim", {}
    if sampler == "DDIM":
        yield "auto", "auto", {}
    else:
        same = Schedule.from_scheduler(scheduler, STEPS, sampler=SOLVER)
        for name in ("ddim", "auto"):
            yield f"{name}, same grid", name, {"schedule": same}
        yield "dpm_solver", "dpm_solver", {}


def decibel(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B,) error of each image against what it ought to be."""
    error = (found.double() - wanted.double()).flatten(1).norm(dim=1) / wanted.double().flatten(1).norm(dim=1)
    return 20 * error.log10()


def measured(pipe: Any, sampler: str) -> Iterator[dict[str, Any]]:
    """A row for what is given and how it is inverted."""
    scheduler, config = SAMPLERS[sampler]
    pipe.scheduler = scheduler.from_config(demo.load_pipeline().scheduler.config, **config)
    noise, latents, prompts = sampled(pipe)
    for name, picture, how in given(pipe, latents, sampler == "DDIM"):
        x = None  # encoded once for all methods
        for called, method, grid in inversions(sampler, pipe.scheduler):
            source, options = (picture, how) if x is None else (x, {})
            options = {**options, **grid, "method": method, "num_inference_steps": STEPS, "runtime": "eager"}
            found = invert(pipe, source, prompts, **options)
            x = found.init_latents
            error = decibel(found.latents, noise)
            yield {
                "case": sampler,
                "given": name,
                "method": called,
                "latents": float(decibel(x, latents).clamp_min(-200).median()),
                "noise": float(error.median()),
                "noise_worst": float(error.max()),
                "evaluations": sum(found.stats.evaluations) / COUNT / STEPS,
                **rows.place(),
            }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a table a sampler: a line for what is given, a column a method."""
    parts = []
    for sampler in dict.fromkeys(row["case"] for row in found):
        own = [row for row in found if row["case"] == sampler]
        names = list(dict.fromkeys(row["method"] for row in own))
        cost = {row["method"]: row["evaluations"] for row in own[::-1]}
        head = ["given", "its latents", *(f"{name} ({cost[name]:.2f})" for name in names)]
        lines = []
        for given in dict.fromkeys(row["given"] for row in own):
            line = {row["method"]: row for row in own if row["given"] == given}
            latents = f"{next(iter(line.values()))['latents']:.1f}" if "themselves" not in given else ""
            lines.append([given, latents, *(f"{line[name]['noise']:.1f}" for name in names)])
        parts.append(f"**Sampled by {sampler}**\n\n{markdown.table(head, lines)}")
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables, writes their rows and the page."""
    warnings.simplefilter("ignore")  # samplers that are not followed are what is measured
    pipe, found = demo.load_pipeline(), []
    pipe.set_progress_bar_config(disable=True)
    asked = sys.argv[1:] or list(SAMPLERS)
    for sampler in asked:
        for row in measured(pipe, sampler):
            found.append(row)
            print(f"{row['case']} | {row['given']} | {row['method']} | {row['noise']:.1f}", flush=True)
    before = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    found += [row for row in before if row["case"] not in asked]
    found.sort(key=lambda row: list(SAMPLERS).index(row["case"]))
    rows.write(FILE, found)
    text = f"{table(found)}\n\n{found[0]['machine']}; {COUNT} pictures, {DECODER!r}.\n"
    markdown.write(DOCS / "accuracy.md", "recovered", text)


if __name__ == "__main__":
    main()

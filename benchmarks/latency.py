"""Whole calls on a GPU beside diffusers' own loop, interleaved in one process: python -m benchmarks.latency [PART ...].

SD1.5's architecture at 512 px, random weights, float16, guidance 1, 50 steps, latents in, for batches of 1, 4 and 16;
SDXL's network at 1024 px, evaluations alone; and the bundled model, which is bound by launches. A part lasts at most
nine minutes, most of it torch.compile's, so give each a process of its own. Times are walls of whole calls, the device
idle before and after, from the third call on. Error is ||d|| / ||ref|| of the latents against those of `invert` in
float32 by the same method; for SDXL of one evaluation. Rows go to out/bench/gpu.jsonl.
Without a CUDA device it says so and measures nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks, report, rows
from benchmarks.calls import GRAPHS, Task, diffusers_loop, network_of, ours, plain, prepared
from benchmarks.rounds import ALONE, EAGER, TREES, Case, measured
from invfast import demo, release
from invfast.methods import Auto

STEPS = 50
BUDGET = Auto(budget=1.05)
DEFAULT, COMPILED, AUTO = "diffusers torch.compile", "invfast compile", "invfast compile, auto 1.05"


def of_pipeline(name: str, pipe: Any, x: torch.Tensor, dtype: torch.dtype, steps: int = STEPS) -> Case:
    """Whole calls of a pipeline in float32, which is moved to `dtype` once the references are there."""
    task = Task(pipe, x, "a photo", steps)
    wanted = {"auto": ours(task, "eager", BUDGET)().output, "": ours(task, "eager")().output}
    release()
    task = Task(pipe.to(dtype), x, task.prompt, steps)
    runners = {
        EAGER: lambda: diffusers_loop(task),
        TREES: lambda: diffusers_loop(task, GRAPHS),
        COMPILED: lambda: ours(task, "compile"),
        AUTO: lambda: ours(task, "compile", BUDGET),
        f"{ALONE}, compile": lambda: network_of(task, "compile"),
        "invfast eager": lambda: ours(task, "eager"),
        "invfast eager, auto 1.05": lambda: ours(task, "eager", BUDGET),
        f"{ALONE}, eager": lambda: network_of(task, "eager"),
        DEFAULT: lambda: diffusers_loop(task, "default"),
    }
    embeds = pipe.encode_prompt([task.prompt] * len(x), x.device, 1, False)[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.unet(x.to(dtype), torch.tensor(501, device=x.device), embeds)
    return Case(name, len(x), steps, dtype, runners, wanted, counter.get_total_flops())


def of_network(name: str, made: Any, dtype: torch.dtype, device: torch.device, count: int = 20) -> Case:
    """Evaluations of a network alone, batch 1; `made` is its `networks.Case`."""
    with torch.device(device):
        module = made.network()
    inputs = {key: value.to(device) for key, value in made.inputs().items()}
    with FlopCounterMode(display=False) as counter:
        wanted = plain(module, inputs, 1)().output
    module = module.to(dtype)
    inputs = {key: value if key == "t" else value.to(dtype) for key, value in inputs.items()}
    runners = {
        EAGER: lambda: plain(module, inputs, count),
        TREES: lambda: plain(module, inputs, count, GRAPHS),
        COMPILED: lambda: prepared(module, inputs, count, "compile"),
        "invfast eager": lambda: prepared(module, inputs, count, "eager"),
        DEFAULT: lambda: plain(module, inputs, count, "default"),
    }
    return Case(name, 1, count, dtype, runners, {"": wanted}, counter.get_total_flops())


def sd15(batch: int, device: torch.device) -> Case:
    """SD1.5 at 512 px."""
    x = _latents(batch, 64, device)
    name = f"SD1.5 512 px, batch {batch}, float16, {STEPS} steps"
    return of_pipeline(name, networks.sd15_pipeline(device), x, torch.float16)


def bundled(device: torch.device) -> Case:
    """The bundled model at 64 px."""
    pipe = demo.load_pipeline().to(device)
    pipe.set_progress_bar_config(disable=True)
    return of_pipeline(f"bundled 64 px, batch 1, float16, {STEPS} steps", pipe, _latents(1, 16, device), torch.float16)


def sdxl(device: torch.device) -> Case:
    """SDXL's network at 1024 px."""
    return of_network("SDXL 1024 px, batch 1, float16, evaluations", networks.SDXL_1024, torch.float16, device)


def _latents(batch: int, side: int, device: torch.device) -> torch.Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)).to(device)


PARTS: dict[str, Callable[[torch.device], Case]] = {
    "bundled": bundled,
    "sd15-b1": lambda device: sd15(1, device),
    "sd15-b4": lambda device: sd15(4, device),
    "sd15-b16": lambda device: sd15(16, device),
    "sdxl": sdxl,
}


def verdicts(part: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """What a part's rows say of what was promised, a sentence each; of what was not measured nothing."""
    of = {row["runner"]: row for row in found if "p50" in row}
    own, auto, alone = (of.get(name) for name in (COMPILED, AUTO, f"{ALONE}, compile"))
    said = []

    def say(what: str, value: float, limit: float, met: bool) -> None:
        said.append(f"{what}: {value:.2f}, promised {limit:g}, {'met' if met else 'MISSED'}")

    limits = {"sd15-b1": 4.8, "sd15-b16": 2.0, "sdxl": 18.5}
    if own and part in limits:
        ms = own["p50"] / own["steps"] / own["batch"] * 1e3
        say("ms an image and step", ms, limits[part], ms <= limits[part])
    if own and TREES in of and part == "sd15-b1":
        say(f"times as fast as {GRAPHS}", own["speed_graphs"], 1.25, own["speed_graphs"] >= 1.25)
    if own and auto:
        ratio = auto["p50"] / own["p50"]
        say("auto 1.05 over ddim", ratio, 1.1, ratio <= 1.1)
    if own and alone:
        ratio = own["p50"] / alone["p50"]
        say("whole call over its network", ratio, 1.05, ratio <= 1.05)
    return said


def main() -> None:
    """Measures the named parts, by default all; prints a table and what it says."""
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        sys.exit(f"latency: unknown part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        sys.exit("latency: not run, there is no CUDA device here")
    device = torch.device("cuda", torch.cuda.current_device())
    for part in wanted:
        began = time.monotonic()
        found = measured(PARTS[part](device), device, began)
        rows.append("gpu", found)
        print(report.call_tables(found))
        print(f"{part}: {'; '.join(verdicts(part, found)) or 'measured'}", flush=True)
        release()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""What a process pays before its first step: time from its start and peak memory, conversion and serving apart.

python -m benchmarks.start --side 512
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

import psutil
import typer

from benchmarks import rows
from benchmarks.memory import Memory


def serve(folder: str, side: int, runtime: str, dtype: str, compute: str) -> None:
    """One step of `invert` in a process of its own; prints seconds since its start, and GiB."""
    with Memory() as memory:
        figures = _one_step(folder, side, runtime, dtype, compute)
    print(json.dumps({**figures, **{name: round(value, 2) for name, value in memory.peaks.items()}}))


def _one_step(folder: str, side: int, runtime: str, dtype: str, compute: str) -> dict[str, Any]:
    import torch
    from diffusers import StableDiffusionPipeline

    from invfast import invert

    born = psutil.Process().create_time()
    stamps = {"imported": time.time()}
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), safety_checker=None)
    stamps["loaded"] = time.time()

    def first_step(pipe, step, t, tensors):
        stamps["first_step"] = time.time()

    x = torch.randn(1, 4, side // 8, side // 8)
    given = {"method": "ddim", "runtime": runtime, "dtype": compute or None, "callback_on_step_end": first_step}
    found = invert(pipe, x, num_inference_steps=2, **given)
    seconds = {name: at - born for name, at in stamps.items()}
    seconds["one_step"] = found.stats.seconds / 2
    conversion = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest child, the converter
    figures = {name: round(value, 2) for name, value in {**seconds, "conversion_gib": conversion}.items()}
    return {**figures, "dtype": str(found.stats.dtype).removeprefix("torch.")}


def main(
    side: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 512,
    runtime: Annotated[str, typer.Option(help="A runtime's name.")] = "openvino",
    dtype: Annotated[str, typer.Option(help="The pipeline's, as loaded.")] = "float32",
    compute: Annotated[str, typer.Option(help="The network's dtype. (default: what `invert` takes)")] = "",
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Starts twice on SD1.5's shapes: with a cold cache and with a warm one."""
    if child:
        serve(child, side, runtime, dtype, compute)
        return
    from benchmarks.networks import sd15_pipeline

    with tempfile.TemporaryDirectory() as folder:
        sd15_pipeline().save_pretrained(f"{folder}/model")
        env = {**os.environ, "INVFAST_CACHE": f"{folder}/cache"}
        for what in ("cold", "warm"):
            options = ["--child", f"{folder}/model", "--side", str(side), "--runtime", runtime, "--dtype", dtype]
            options += ["--compute", compute] if compute else []
            command = [sys.executable, "-m", "benchmarks.start", *options]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            measured = json.loads(done.stdout.splitlines()[-1])
            found = {
                "case": f"SD1.5 {side} px",
                "runner": f"{runtime} {measured['dtype']}, from {dtype} weights, {what} cache",
                "cache": what,
                **measured,
            }
            rows.append("start", [{**found, **rows.place()}])
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    typer.run(main)

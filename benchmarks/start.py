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
from typing import Annotated

import psutil
import typer

from benchmarks import rows


def serve(side: int, runtime: str) -> None:
    """One step of `invert` on SD1.5's shapes in a process of its own; prints seconds since its start, and GiB."""
    import torch

    from benchmarks.networks import sd15_pipeline
    from invfast import invert

    pipe = sd15_pipeline()
    made = time.time()
    stamps: list[float] = []

    def first_step(pipe, step, t, tensors):
        stamps.append(time.time())

    x = torch.randn(1, 4, side // 8, side // 8)
    invert(pipe, x, num_inference_steps=1, runtime=runtime, callback_on_step_end=first_step)
    peak, children = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    born = psutil.Process(os.getpid()).create_time()
    found = {"weights_made": made - born, "first_step": stamps[0] - born, "peak_gib": peak, "child_peak_gib": children}
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


def main(
    side: Annotated[int, typer.Option(help="Of the images, in pixels.")] = 512,
    runtime: Annotated[str, typer.Option(help="A runtime's name.")] = "openvino",
    cache: Annotated[str, typer.Option(help="Folder of the cache; by default a fresh one.")] = "",
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Starts twice: with a cold cache and with a warm one."""
    if child:
        return serve(side, runtime)
    with tempfile.TemporaryDirectory() as fresh:
        for what in ("cold", "warm"):
            command = [sys.executable, "-m", "benchmarks.start", "--child", "--side", str(side), "--runtime", runtime]
            env = {**os.environ, "INVFAST_CACHE": cache or fresh}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            found = {"case": f"SD1.5 {side} px", "runtime": runtime, "cache": what, **measured}
            rows.append("start", [found])
            print(json.dumps(found), flush=True)
    return None


if __name__ == "__main__":
    typer.run(main)

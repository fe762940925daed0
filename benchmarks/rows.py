"""Rows of results: one JSON line a runner, with machine, versions and commit."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "out" / "bench"
"""Every run's rows."""
RESULTS = Path(__file__).with_name("results")
"""Committed rows: those that figures in README and docs are made of."""
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bfloat16",
    "amx_bf16": "AMX",
}
"""What sets CPUs of one name apart, as the kernel names it and as rows do."""


def row(
    case: str,
    runner: str,
    dtype: str,
    seconds: Sequence[float],
    error: float,
    flops: int,
    peak: float,
    own_gib: float,
) -> dict[str, Any]:
    """One runner's result.

    Args:
        case: what was run.
        runner: by what.
        dtype: in what.
        seconds: of every round.
        error: ||d|| / ||ref|| of one evaluation against eager float32.
        flops: of one evaluation.
        peak: FLOP/s this machine reached in that dtype in the same rounds.
        own_gib: peak of the memory it took beside the float32 weights it was given, without mapped files.
    """
    figures = percentiles(seconds)
    share = flops / figures["p50"] / peak
    return {
        "case": case,
        "runner": runner,
        "dtype": dtype,
        **figures,
        "error": error,
        "share_of_peak": share,
        "own_gib": own_gib,
        **place(),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80 of the rounds, and how many there were."""
    p20, p50, p80 = (float(each) for each in np.percentile(seconds, [20, 50, 80]))
    return {"p20": p20, "p50": p50, "p80": p80, "rounds": len(seconds)}


def skipped(case: str, runner: str, dtype: str, why: str, device: str = "cpu") -> dict[str, Any]:
    """A runner that was not run, and why."""
    return {"case": case, "runner": runner, "dtype": dtype, "skipped": why, **place(device)}


def append(suite: str, found: Sequence[dict[str, Any]]) -> None:
    """Adds rows to a suite's file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{suite}.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in found)


def newest(suite: str) -> list[dict[str, Any]]:
    """The newest row of each case and runner, committed ones and those of runs since.

    A case's rows are of one machine, the one it was run on last, in the order of their runs; cases in the order they
    came. Runners that a run left out are not in it.
    """
    files = [path for folder in (RESULTS, FOLDER) if (path := folder / f"{suite}.jsonl").exists()]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    machines: dict[str, str] = {}
    for line in (line for path in files for line in path.read_text().splitlines()):
        each = json.loads(line)
        machines[each["case"]] = each["machine"]
        if "left out" not in each.get("skipped", ""):
            found.pop((each["case"], each["runner"]), None)
            found[each["case"], each["runner"]] = each
    kept = [each for each in found.values() if each["machine"] == machines[each["case"]]]
    return sorted(kept, key=lambda each: list(machines).index(each["case"]))


def write(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """A committed file of rows, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in found))


def gemm_flops(dtype: torch.dtype, device: str | torch.device = "cpu") -> float:
    """FLOP/s of a matrix product, the best of three: what this device can do right now."""
    device = torch.device(device)
    # Large enough to fill a GPU, whose clock falls with the bits that flip: random ones there.
    side, count, make = (8192, 10, torch.randn) if device.type == "cuda" else (1536, 1, torch.ones)
    a, b = (make(side, side, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 * count / min(times)


@functools.cache
def place(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions and commit; for rows of a "cuda" device the machine begins with the GPU and its driver.

    A checkout without git, such as a copy on a rented machine, is told its commit by the variable COMMIT.
    """
    said = dict(line.split(":", 1) for line in _cpuinfo() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in said.items()}
    has = [name for flag, name in INSTRUCTIONS.items() if flag in facts.get("flags", "").split()]
    machine = (
        f"{facts.get('model name', platform.processor())}, {', '.join([*has, f'{torch.get_num_threads()} threads'])}"
    )
    names = ["invfast", "torch", "diffusers", "openvino"]
    if device == "cuda":
        machine, names = f"{_gpu()}; {machine}", [*names[:-1], "triton"]
    versions = {name: metadata.version(name) for name in names if _is_installed(name)}
    if device == "cuda":
        versions["CUDA"] = torch.version.cuda
    return {"machine": machine, "versions": versions, "commit": os.environ.get("COMMIT") or _commit()}


def _is_installed(name: str) -> bool:
    # A module may come with a package of another name, as triton did with some builds of torch.
    return any(metadata.distributions(name=name))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1]).stdout.strip()
    except FileNotFoundError:
        return ""


def _gpu() -> str:
    """Its name, and its driver where nvidia-smi is there to say it."""
    name, command = torch.cuda.get_device_name(), shutil.which("nvidia-smi")
    if command is None:
        return name
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return f"{name}, driver {lines[0]}" if lines else name


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

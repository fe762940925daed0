"""What nvcc makes of csrc/core: registers, spills, shared memory and widths of global accesses, per kernel and target.

No GPU is needed. Registers, spills and shared memory are ptxas's own report, widths are counted in the SASS. A kernel
has paths for tensors that are not aligned too, so narrow accesses stand beside the 16-byte ones.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.kernels import read_ptx

CORE = Path(__file__).parents[1] / "csrc" / "core"
TARGETS = ("sm_80", "sm_90", "sm_100")
TEMPLATE = re.compile(r"\d(combine|finish|gram|mix)I([fd])((?:L[ib]\d+E)*)E")
WORDS = 7
"""16-byte loads in the code of a tensor's eight elements: one of 2-byte types, two of float32, four of float64."""


def unavailable() -> str | None:
    """Why the kernels cannot be compiled and read here, with the remedy; None where they can."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH; install the CUDA toolkit, 12.8 or later for sm_100"
    if _tool("cuobjdump") is None or _tool("nvdisasm") is None:
        return "cuobjdump and nvdisasm are neither on PATH nor in an installed triton; pip install triton brings both"
    return None


def rows() -> list[dict]:
    """A row per kernel instance and target, in the form of benchmarks/kernels.py.

    `loads` and `stores` count the global accesses in SASS by their bytes, {16: 4, 2: 8}; `problem` says what breaks the
    rules: a spill, a stack, or no 16-byte access where one is due.

    Raises:
        RuntimeError: no nvcc or no disassembler, or nvcc fails; says why.
    """
    why = unavailable()
    if why is not None:
        raise RuntimeError(f"the CUDA kernels cannot be compiled here: {why}")
    jobs = [(source, target) for target in TARGETS for source in sorted(CORE.glob("*.cu"))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda job: _compile(*job, Path(folder)), jobs))
    return [row for each in found for row in each]


def problem(row: dict, kind: str, letter: str, numbers: list[int]) -> str:
    """What breaks the rules in a row; empty where nothing does.

    On the aligned path all of a whole tensor goes 16 bytes at a time; `finish` only adds up parts.
    """
    # The product of one input is the output itself, rounded as it is stored.
    if row["unfused"] and not (kind == "combine" and numbers[0] == 1):
        return f"an addition takes a product that was rounded before: {row['unfused'][0]}"
    if row["spills"] or row["stack"]:
        return f"{row['spills']} bytes spilled, {row['stack']} bytes of stack"
    inputs, outputs, sums = {"combine": numbers, "gram": [*numbers, 0, 0], "mix": [*numbers, 1, 0]}.get(kind, (0, 0, 0))
    loads, stores = WORDS * (inputs + sums), outputs * (4 if letter == "d" else 2)
    if row["loads"].get(16, 0) < loads:
        return f"{row['loads'].get(16, 0)} 16-byte loads of {loads}"
    if row["stores"].get(16, 0) < stores:
        return f"{row['stores'].get(16, 0)} 16-byte stores of {stores}"
    return ""


def _tool(name: str) -> str | None:
    found = shutil.which(name)
    spec = None if found else importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return found
    own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(own) if own.exists() else None


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(str(command[0])).name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout + done.stderr


def _compile(source: Path, target: str, folder: Path) -> list[dict]:
    cubin = folder / f"{source.stem}.{target}.cubin"
    # As CMakeLists.txt has it.
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-arch={target}"]
    said = _run("nvcc", *flags, "-cubin", "-Xptxas", "-v", source, "-o", cubin)
    _run("nvcc", *flags, "-ptx", source, "-o", cubin.with_suffix(".ptx"))
    unfused = {
        part.split("(", 1)[0].strip(): read_ptx(part)
        for part in cubin.with_suffix(".ptx").read_text().split(".entry ")[1:]
    }
    widths = _widths(cubin)
    found = []
    for name, use in _usage(said).items():
        kind, letter, numbers = _parts(name)
        row = {"language": "CUDA C++", "kernel": kind, "variant": _variant(kind, letter, numbers), "target": target}
        row |= use | widths[name] | {"unfused": unfused[name]}
        found.append({**row, "problem": problem(row, kind, letter, numbers)})
    return found


def _parts(mangled: str) -> tuple[str, str, list[int]]:
    match = TEMPLATE.search(mangled)
    if match is None:
        raise RuntimeError(f"{mangled} is a kernel that benchmarks/cuda_kernels.py does not know; add it to TEMPLATE")
    return match[1], match[2], [int(value) for value in re.findall(r"L[ib](\d+)E", match[3])]


def _variant(kind: str, letter: str, numbers: list[int]) -> str:
    accumulate = {"f": "float32", "d": "float64"}[letter]
    if kind == "combine":
        inputs, outputs, sums = numbers
        return f"{inputs} in, {outputs} out; {accumulate}{', with sums' if sums else ''}"
    return "; ".join([*(f"{columns} columns" for columns in numbers), accumulate])


def _usage(said: str) -> dict[str, dict[str, int]]:
    """Mangled name -> what `ptxas -v` reports."""
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        numbers = {
            "registers": r"Used (\d+) registers",
            "stack": r"(\d+) bytes stack frame",
            "spills": r"(\d+) bytes spill stores",
            "shared": r"(\d+) bytes smem",
        }
        matches = {name: re.search(pattern, part) for name, pattern in numbers.items()}
        found[part.split("'", 1)[0]] = {name: int(match[1]) if match else 0 for name, match in matches.items()}
    return found


def _widths(cubin: Path) -> dict[str, dict[str, dict[int, int]]]:
    """Mangled name -> global loads and stores by width in bytes."""
    found = {}
    for part in _run(_tool("cuobjdump"), "-sass", cubin).split("Function : ")[1:]:
        counts: dict[str, Counter[int]] = {"loads": Counter(), "stores": Counter()}
        for kind, flags in re.findall(r"\b(LDG|STG)\.([A-Z0-9.]+)", part):
            width = re.search(r"\b(?:[US])?(8|16|64|128|256)\b", flags.replace(".", " "))
            counts["loads" if kind == "LDG" else "stores"][int(width[1]) // 8 if width else 4] += 1
        found[part.split(None, 1)[0]] = {name: dict(sorted(each.items())) for name, each in counts.items()}
    return found


if __name__ == "__main__":
    for each in rows():
        print(*each.values(), sep="  ")

"""What every compiled kernel is made of, read from its machine code; no GPU is needed: python -m benchmarks.kernels

The Triton launchers are called with tensors that have no data, what they would launch is recorded, and that is compiled
ahead of time for each target. --write puts the tables into docs/kernels.md. It fails where registers spill, where an
aligned stream is not read or written 16 bytes at a time, and where an addition takes a product that is rounded before.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import markdown
from benchmarks.markdown import DOCS

FIGURES = ("registers", "spills", "shared", "loads", "stores")
TARGETS = (80, 90, 100)
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
POINTERS[torch.int64] = "*i64"
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
STREAMS = re.compile(r"in\d|y|f\d|r\d|out\d?")
SMALL, LARGE = 2**11, 2**17  # a sample for one program, and for several
Launch = tuple[Any, dict[str, Any], int]


def cases() -> Iterator[tuple[str, Any]]:
    """(variant, call): calls of the ops that together launch every variant of every kernel."""
    from invfast import kernels

    ops = kernels.load()
    half = [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
    for first, last in [(torch.float32, torch.float32), *half, (torch.float64, torch.float64)]:
        dtype = NAMES[first] if first == last else f"{NAMES[first]}, last input {NAMES[last]}"
        for size, m in itertools.product((SMALL, SMALL + 1, LARGE, LARGE + 1), (1, 2, 3, 4)):
            note = f"; {dtype}; unaligned" if size % 16 else f"; {dtype}"
            y = [_blank(size, first) for _ in range(m)]
            if m > 1 and first == last:
                yield f"{m} columns{note}", functools.partial(ops.anderson_mix, y, y)
            if (size % 16 and m < 4) or (m == 1 and first != last):
                continue
            for outputs in (1, 2):
                given = [*y[1:], _blank(size, last)], torch.empty(50, outputs, m, dtype=first, device="meta")
                index = _blank(1, torch.int64)[0]
                yield f"{m} in, {outputs} out{note}", functools.partial(ops.lincomb, *given, index)
                yield f"{m} in, {outputs} out{note}", functools.partial(ops.lincomb_residual, *given, index, y[0])


def _blank(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(1, size, dtype=dtype, device="meta")


def recorded(call: Any) -> list[Launch]:
    """(kernel, arguments by name, warps) of what an op would launch."""
    from invfast.kernels import launch

    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def take(*given: Any, num_warps: int, enable_fp_fusion: bool, **named: Any) -> None:
                assert not enable_fp_fusion
                found.append((self.kernel, dict(zip(self.kernel.arg_names, given, strict=False)) | named, num_warps))

            return take

    kernels = {name: Recorder(value) for name, value in vars(launch).items() if name.endswith("_kernel")}
    with mock.patch.multiple(launch, **kernels):
        call()
    return found


def jobs() -> list[dict[str, Any]]:
    """What to compile, in plain data: one entry for each kernel and specialisation that Triton would make."""
    unique: dict[str, dict[str, Any]] = {}
    for variant, call in cases():
        for kernel, arguments, warps in recorded(call):
            signature, constants, divisible = {}, {}, []
            for p in kernel.params:
                value = arguments[p.name]
                if p.is_constexpr or value is None:
                    signature[p.name], constants[p.name] = "constexpr", value
                    continue
                tensor = isinstance(value, torch.Tensor)
                signature[p.name] = POINTERS[value.dtype] if tensor else "i32"
                loose = p.do_not_specialize or p.do_not_specialize_on_alignment
                if not loose and (tensor or value % 16 == 0):
                    divisible.append(p.name)
            made = {"module": kernel.fn.__module__, "kernel": kernel.fn.__name__, "warps": warps}
            made |= {"signature": signature, "constants": constants, "divisible": divisible}
            key = repr(made)
            streams = {name: arguments[name] for name in signature if STREAMS.fullmatch(name)}
            each = constants.get("BLOCK", 0) // (32 * warps)
            moved = {n: each * t.dtype.itemsize for n, t in streams.items() if t is not None}
            unique.setdefault(key, made | {"variant": variant, "moved": moved})
    return list(unique.values())


def compiled(job: dict[str, Any], target: int) -> dict[str, Any]:
    """One row: a kernel in one variant for one target."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from invfast.kernels.launch import EXACT

    kernel = getattr(importlib.import_module(job["module"]), job["kernel"])
    place = kernel.arg_names.index
    constants = {(place(name),): value for name, value in job["constants"].items()}
    hints = {(place(name),): [["tt.divisibility", 16]] for name in job["divisible"]}
    source = ASTSource(kernel, job["signature"], constants, hints)
    options = {"num_warps": job["warps"], **EXACT}
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    row = {"kernel": job["kernel"], "variant": job["variant"], "target": f"sm_{target}"}
    row |= read_binary(binary.asm["cubin"]) | {"shared": binary.metadata.shared, "language": "Triton"}
    row["unfused"] = read_ptx(binary.asm["ptx"])
    row["problem"] = problem(row, job)
    return row


def read_binary(cubin: bytes) -> dict[str, Any]:
    """Registers, spilled bytes, and {bytes: number} of global loads and stores, from SASS."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        code = _output(tools / "nvdisasm", file.name)
    return {"registers": int(re.search(r"REG:(\d+)", usage)[1])} | read_sass(code)


def read_sass(code: str) -> dict[str, Any]:
    """{bytes: number} of global loads and stores, and the bytes of local ones, which are spills."""
    found: dict[str, Counter[int]] = {name: Counter() for name in ("LDG", "STG", "LDL", "STL")}
    for name, suffix in re.findall(r"\b(LDG|STG|LDL|STL)((?:\.\w+)*)\b", code):
        narrow = re.search(r"\.[US](8|16)\b", suffix)
        wide = re.search(r"\.(64|128|256)\b", suffix)
        found[name][int((narrow or wide)[1]) // 8 if narrow or wide else 4] += 1
    spills = sum(width * count for name in ("LDL", "STL") for width, count in found[name].items())
    return {"loads": dict(found["LDG"]), "stores": dict(found["STG"]), "spills": spills}


def read_ptx(code: str) -> list[str]:
    """Products that an addition takes: fused by one compiler and rounded twice by another, where it is not said.

    Followed from register to register, through moves and selections.
    """
    products: dict[str, str] = {}
    found = []
    for line in code.splitlines():
        match = re.match(r"\s*(?:@!?%p\d+ )?(\w+)((?:\.\w+)*)\s+(%\w+), (.*);", line)
        if match is None:
            continue
        name, kind, to, given = match.groups()
        taken = [products[each] for each in re.findall(r"%\w+", given) if each in products]
        if name == "mul" and re.search(r"\.f(32|64)$", kind):
            products[to] = line.strip()
        elif name in ("mov", "selp") and taken:
            products[to] = taken[0]
        elif name in ("add", "sub") and re.search(r"\.f(32|64)$", kind) and taken:
            found.append(f"{taken[0]} {line.strip()}")
    return found


def problem(row: dict[str, Any], job: dict[str, Any]) -> str:
    """What is wrong with a compiled kernel; empty where nothing is.

    A thread moves `moved` bytes of each stream a block. All of them must go in accesses of 16 bytes or more; nothing
    narrower may remain but scalars: coefficients, step, sums and the partial sums of chunks.
    """
    if row["spills"]:
        return f"{row['spills']} bytes spilled"
    # The product of one input is the output itself, rounded as it is stored.
    if row["unfused"] and job["constants"].get("K") != 1:
        return f"an addition takes a product that was rounded before: {row['unfused'][0]}"
    if "unaligned" in job["variant"] or not job["moved"]:
        return ""
    m, k = job["constants"].get("M", 0), job["constants"].get("K", 0)
    pairs = m * (m + 1) // 2
    scalars = {"lincomb_kernel": (m * k + 1, 0), "residual_kernel": (m * k + 1, 3), "whole_kernel": (0, 0)}
    scalars |= {"gram_kernel": (0, pairs), "mix_kernel": (pairs, 0)}
    for kind, allowed in zip(("loads", "stores"), scalars[job["kernel"]], strict=True):
        expected = sum(moved for name, moved in job["moved"].items() if name.startswith("out") == (kind == "stores"))
        wide = sum(width * count for width, count in row[kind].items() if width >= 16)
        narrow = sum(count for width, count in row[kind].items() if width < 16)
        if wide < expected or narrow > allowed:
            return f"{kind} {row[kind]}: {expected} bytes must be in 16-byte accesses, {allowed} may be narrower"
    return ""


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def triton_rows() -> list[dict[str, Any]]:
    """A row for each Triton kernel, variant and target."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.9 does; it warns where nothing is said
    work = [(job, target) for job in jobs() for target in TARGETS]
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(compiled, *zip(*work, strict=True), chunksize=4))


def cuda_rows() -> tuple[list[dict[str, Any]], str]:
    """The rows of the CUDA C++ kernels, or none and the reason."""
    try:
        from benchmarks.cuda_kernels import rows

        return rows(), ""
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return [], f"The CUDA C++ kernels were not compiled: {error}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each kernel, a line for each variant, the targets side by side where they differ."""
    parts = []
    for kernel in dict.fromkeys((row["language"], row["kernel"]) for row in rows):
        group = [row for row in rows if (row["language"], row["kernel"]) == kernel]
        lines = []
        for variant in dict.fromkeys(row["variant"] for row in group):
            same = [row for row in group if row["variant"] == variant]
            lines.append([variant, *(_merged([_cell(row[figure]) for row in same]) for figure in FIGURES)])
        parts.append(f"\n**{kernel[1]}** ({kernel[0]})\n\n{markdown.table(['variant', *FIGURES], lines)}")
    return "\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{count} of {width}" for width, count in sorted(value.items(), reverse=True)) or "none"


def _merged(cells: list[str]) -> str:
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def main() -> int:
    """Prints the tables; with --write also into docs/kernels.md. The exit status says whether every check held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/kernels.md")
    write = parser.parse_args().write
    cuda, missing = cuda_rows()
    rows = [*triton_rows(), *cuda]
    import triton

    wrong = [row for row in rows if row.get("problem")]
    text = table(rows) + f"\nTriton {triton.__version__} and its ptxas. {missing}".rstrip() + "\n"
    print(text)
    for row in wrong:
        print(f"{row['kernel']}, {row['variant']}, {row['target']}: {row['problem']}", file=sys.stderr)
    print(f"{len(rows)} compiled, {len(wrong)} with a problem", file=sys.stderr)
    if write and not wrong:
        markdown.write(DOCS / "kernels.md", "kernels", text)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

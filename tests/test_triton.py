"""The Triton kernels, without a GPU: run by Triton's interpreter, traced by torch on tensors without data, compiled."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from invfast import kernels
from invfast.ops.registry import implement

if importlib.util.find_spec("triton") is None:
    pytest.skip('triton is not installed (pip install "invfast[triton]")', allow_module_level=True)

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # `make kernels` runs it too
@pytest.mark.timeout(900)  # half a minute alone, many on a busy machine
def test_interpreter():
    """In a child process, for the interpreter must be chosen before triton is imported."""
    command = [sys.executable, "-m", "pytest", "tests/triton_interpreted.py", "-q", "-p", "no:xdist"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = kept | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_importing_takes_no_triton_along():
    code = (
        "import sys; sys.modules['triton'] = None; from invfast import kernels\n"
        "try: kernels.load()\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "the Triton kernels need triton: " in done.stdout
    assert 'pip install "invfast[triton]"' in done.stdout


CALLS = {
    "lincomb": lambda x, y, table, index: torch.ops.invfast_triton.lincomb([x, y], table, index),
    "lincomb_residual": lambda x, y, table, index: torch.ops.invfast_triton.lincomb_residual([x, y], table, index, x),
    "anderson_mix": lambda x, y, table, index: torch.ops.invfast_triton.anderson_mix([x, y], [x, y]),
}


@pytest.fixture
def traced():
    """Arguments on a GPU that is not there: (size) -> x, y, table, index."""
    from torch._subclasses import FakeTensorMode

    implement("invfast_triton", "CUDA", kernels.load())
    torch._dynamo.reset()
    with FakeTensorMode():
        yield lambda size: (
            torch.empty(2, size, device="cuda"),
            torch.empty(2, size, device="cuda"),
            torch.empty(5, 2, 2, device="cuda"),
            torch.empty((), dtype=torch.int64, device="cuda"),
        )


@pytest.mark.parametrize("op", CALLS)
def test_shapes_without_data(traced, op):
    found = CALLS[op](*traced(65537))
    shapes = [(2, 65537)] if op == "anderson_mix" else [(2, 65537)] * 2 + [(2, 3)] * (op == "lincomb_residual")
    found = [found] if op == "anderson_mix" else found
    assert [(tuple(x.shape), x.dtype, x.device.type) for x in found] == [(s, torch.float32, "cuda") for s in shapes]


@pytest.mark.parametrize("op", CALLS)
def test_compile_keeps_the_op(traced, op):
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(CALLS[op], backend=backend, fullgraph=True)(*traced(64))
    assert f"invfast_triton.{op}" in " ".join(seen)


@pytest.mark.parametrize("op", CALLS)
def test_export_keeps_the_op(traced, op):
    class Module(torch.nn.Module):
        forward = staticmethod(CALLS[op])

    nodes = torch.export.export(Module(), traced(64)).graph.nodes
    assert [str(node.target) for node in nodes if "invfast" in str(node.target)] == [f"invfast_triton.{op}.default"]


@pytest.mark.parametrize("size", [4096, 16384, 65536, 2**20])
@pytest.mark.parametrize("block", [512, 1024])
def test_a_sample_is_spread_over_programs_by_its_size_alone(size, block):
    """16 blocks in one program took three times as long as two launches."""
    from invfast.kernels.launch import CHUNKS, plan

    chunks, blocks = plan(size, block)
    assert min(size // block, 64) <= chunks <= CHUNKS
    assert chunks * blocks * block >= size
    assert plan(1024, block)[0] == 1


def test_the_reader_of_machine_code():
    from benchmarks.kernels import problem, read_ptx, read_sass

    said = "mul.f32 \t%f3, %f1, %f2;\n@%p1 mov.f32 %f4, %f3;\n{} %f5, %f4, %f1;"
    assert [bool(read_ptx(said.format(last))) for last in ("add.f32", "sub.rn.f32", "fma.rn.f32", "mul.f32")] == [
        *(True, True, False, False)
    ]
    code = "LDG.E.128 R4, [R2]; LDG.E.U16 R9, [R2]; @P0 LDG.E R1; STG.E.64 [R2], R4; STL.128 [R1], R4; LDL R4, [R1];"
    assert read_sass(code) == {"loads": {16: 1, 2: 1, 4: 1}, "stores": {8: 1}, "spills": 20}
    job = {"kernel": "whole_kernel", "variant": "", "constants": {"M": 2}, "moved": {"f0": 32, "out": 16}}
    good = {"kernel": "whole_kernel", "spills": 0, "unfused": [], "loads": {16: 2}, "stores": {16: 1}}
    assert problem(good, job) == ""
    for bad in (
        {"spills": 8},
        {"unfused": ["mul, add"]},
        {"loads": {16: 1, 4: 4}},
        {"loads": {16: 2, 4: 1}},
        {"stores": {8: 2}},
    ):
        assert problem(good | bad, job)


def test_a_kernel_compiles_without_a_gpu(monkeypatch):
    from benchmarks.kernels import compiled, jobs

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    found = jobs()
    assert {job["kernel"] for job in found} == {
        "lincomb_kernel", "residual_kernel", "finish_kernel", "whole_kernel", "gram_kernel", "mix_kernel"
    }  # fmt: skip
    row = compiled(next(job for job in found if job["variant"] == "2 in, 1 out; float32, last input bfloat16"), 90)
    assert row["problem"] == ""
    assert row["loads"][16] == 3
    assert row["stores"] == {16: 2}


@pytest.mark.parametrize("kernel", ["lincomb_kernel", "residual_kernel", "whole_kernel", "gram_kernel", "mix_kernel"])
def test_no_addition_takes_a_rounded_product(kernel):
    """Of every kernel the widest float32 variant; `make kernels` reads them all."""
    from benchmarks.kernels import compiled, jobs

    width = lambda job: (job["constants"].get("K", 0), job["constants"]["M"])  # noqa: E731
    found = [job for job in jobs() if job["kernel"] == kernel and job["variant"].endswith("; float32")]
    row = compiled(max(found, key=width), 90)
    assert row["unfused"] == []
    assert row["problem"] == ""

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

if importlib.util.find_spec("triton") is None:
    pytest.skip('triton is not installed (pip install "invfast[triton]")', allow_module_level=True)

ROOT = Path(__file__).parents[1]


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


class Driver:
    """What torch asks Triton of a GPU while it traces."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cuda", 0)


CALLS = {
    "lincomb": lambda x, y, table, index: torch.ops.invfast_triton.lincomb([x, y], table, index),
    "lincomb_residual": lambda x, y, table, index: torch.ops.invfast_triton.lincomb_residual([x, y], table, index, x),
    "anderson_mix": lambda x, y, table, index: torch.ops.invfast_triton.anderson_mix([x, y], [x, y]),
}


@pytest.fixture
def traced(monkeypatch):
    """Arguments on a GPU that is not there: (size) -> x, y, table, index."""
    import triton
    from torch._subclasses import FakeTensorMode

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    kernels.load()
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
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


@pytest.mark.parametrize(
    ("op", "size", "written"),
    [
        ("lincomb", 64, [["out0", "out1"]]),
        ("lincomb_residual", 64, [["out0", "out1", "sums"]]),
        ("lincomb_residual", 65537, [["out0", "out1", "sums"], ["sums"]]),
        ("anderson_mix", 64, [["out"]]),
        ("anderson_mix", 65537, [["partial"], ["out"]]),
    ],
)
def test_compile_sees_the_kernels_and_what_they_write(traced, op, size, written):
    from torch._functorch.aot_autograd import aot_module_simplified

    launches = []

    def keep(graph, _):
        launches.extend(node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target))
        return graph.forward

    backend = lambda graph, inputs: aot_module_simplified(graph, inputs, fw_compiler=keep)  # noqa: E731
    torch.compile(CALLS[op], backend=backend, fullgraph=True)(*traced(size))
    assert [node.kwargs["tensors_to_clone"] for node in launches] == written


@pytest.mark.parametrize("op", CALLS)
def test_export_keeps_the_op(traced, op):
    class Module(torch.nn.Module):
        forward = staticmethod(CALLS[op])

    nodes = torch.export.export(Module(), traced(64)).graph.nodes
    assert [str(node.target) for node in nodes if "invfast" in str(node.target)] == [f"invfast_triton.{op}.default"]


def test_the_reader_of_machine_code():
    from benchmarks.kernels import problem, read_sass

    code = "LDG.E.128 R4, [R2]; LDG.E.U16 R9, [R2]; @P0 LDG.E R1; STG.E.64 [R2], R4; STL.128 [R1], R4; LDL R4, [R1];"
    assert read_sass(code) == {"loads": {16: 1, 2: 1, 4: 1}, "stores": {8: 1}, "spills": 20}
    job = {"kernel": "whole_kernel", "variant": "", "constants": {"M": 2}, "moved": {"f0": 32, "out": 16}}
    good = {"kernel": "whole_kernel", "spills": 0, "loads": {16: 2}, "stores": {16: 1}}
    assert problem(good, job) == ""
    for bad in ({"spills": 8}, {"loads": {16: 1, 4: 4}}, {"loads": {16: 2, 4: 1}}, {"stores": {8: 2}}):
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

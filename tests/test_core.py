"""The C++ core: built by CMake, checked by ctest and the sanitizers; its binding against the reference ops."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ here; the package works without"
)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder, *options):
    said = run("cmake", "-S", ROOT, "-B", folder, *options) + run("cmake", "--build", folder, "--parallel", 2)
    assert "warning" not in said
    return folder


@pytest.mark.parametrize("sanitize", ["OFF", "ON"])
def test_ctest(sanitize, tmp_path):
    said = run("ctest", "--test-dir", build(tmp_path, f"-DINVFAST_SANITIZE={sanitize}"), "--output-on-failure")
    assert "100% tests passed" in said


BINDING = """
import sys, torch
sys.path.insert(0, {tests!r})
from toy import distance
from invfast import ops
schema = "(Tensor[] inputs, Tensor table, Tensor index{y}) -> Tensor[]"
torch.library.define("invfast_cpp::lincomb", schema.format(y=""))
torch.library.define("invfast_cpp::lincomb_residual", schema.format(y=", Tensor y"))
torch.library.define("invfast_cpp::anderson_mix", "(Tensor[] values, Tensor[] residuals) -> Tensor")
torch.ops.load_library({library!r})
cpp = torch.ops.invfast_cpp
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    near = 1e-13 if wide == torch.float64 else 2e-6
    for shape in ((1, 1), (2, 3), (3, 4, 9, 7), (5, 4095), (0, 4)):
        inputs = [torch.randn(shape).to(dtype) for _ in range(4)]
        table, step = torch.randn(3, 2, 4, dtype=wide), torch.tensor(1)
        wanted, sums = ops.lincomb_residual(inputs, table, 1, inputs[0].to(wide))
        got = cpp.lincomb(inputs, table, step)
        *again, found = cpp.lincomb_residual(inputs, table, step, inputs[0])
        for a, b, c in zip(wanted, got, again, strict=True):
            assert b.dtype == wide and b.shape == a.shape
            assert torch.equal(b, c) and (not a.numel() or distance(b, a) < near)
        assert found.shape == sums.shape and (not sums.numel() or distance(found, sums) < 10 * near)
    for columns in (2, 3, 4):
        f, r = (list(torch.randn(columns, 3, 4, 8, 8, dtype=wide)) for _ in range(2))
        for j in range(columns):  # one sample converged, one not finite
            r[j][1] = 0
            r[j][2, 0, 0, 0] = torch.nan
        assert distance(cpp.anderson_mix(f, r), ops.anderson_mix(f, r)) < (1e-9 if wide == torch.float64 else 1e-4)
x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
y = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2)
table = torch.tensor([[[2.0, -1.0]]])
assert torch.equal(cpp.lincomb([x, y], table, torch.tensor(0))[0], 2 * x - y)
for step in (-1, 1):
    try:
        cpp.lincomb([x, y], table, torch.tensor(step))
    except RuntimeError as error:
        assert "outside the table of 1 steps" in str(error)
    else:
        raise AssertionError("a step outside the table passed")
print("same")
"""


def test_the_binding_is_the_reference(tmp_path):
    build(tmp_path, f"-DINVFAST_TORCH={Path(torch.__file__).parent}")
    library = tmp_path / "_C.abi3.so"
    code = BINDING.format(tests=str(ROOT / "tests"), library=str(library), y="{y}")
    assert "same" in run(sys.executable, "-c", code)
    unstable = [line for line in run("nm", "-D", "--undefined-only", "-C", library).splitlines() if "at::" in line]
    unstable += [line for line in run("nm", "-D", "--undefined-only", "-C", library).splitlines() if "c10::" in line]
    assert not unstable

"""The C++ core: built by CMake, checked by ctest and the sanitizers; its binding, in a process of its own, against
float64 expressions and the ops' definitions."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIZES = (1, 3, 63, 129, 4095, 65537)

needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no cmake or g++ here; the package works without"
)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder, *options):
    # CUDA takes minutes to compile; benchmarks/cuda_kernels.py and CMake's default do.
    said = run("cmake", "-S", ROOT, "-B", folder, "-DINVFAST_CUDA=OFF", *options)
    said += run("cmake", "--build", folder, "--parallel", 2)
    assert "warning" not in said
    return folder


@needs_compiler
@pytest.mark.parametrize("sanitize", ["OFF", pytest.param("ON", marks=pytest.mark.slow)])
def test_ctest(sanitize, tmp_path):
    said = run("ctest", "--test-dir", build(tmp_path, f"-DINVFAST_SANITIZE={sanitize}"), "--output-on-failure")
    assert "100% tests passed" in said


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binding")
    return build(folder, f"-DINVFAST_TORCH={Path(torch.__file__).parent}", "-DINVFAST_TESTS=OFF") / "_C.abi3.so"


@needs_compiler
def test_binding(library):
    # A process has one library of an op: the suite's may be the installed one.
    assert "all checks passed" in run(sys.executable, __file__, library)


@needs_compiler
def test_only_stable_symbols(library):
    symbols = [line.split()[-1] for line in run("nm", "-D", "--undefined-only", library).splitlines()]
    torch_symbols = [name for name in symbols if "torch" in name or "c10" in name or name.startswith("_ZN2at")]
    assert any(name.startswith("aoti_torch_") for name in torch_symbols)
    assert [name for name in torch_symbols if not name.startswith(("aoti_torch_", "torch_"))] == []
    assert not [name for name in symbols if name.startswith("Py")]


# What follows runs in that process.


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def near(dtype):
    return 1e-13 if dtype == torch.float64 else 2e-6


def expected(inputs, table, steps, y):
    """Outputs and sums in float64; `steps` one a sample."""
    rows = table.double()[steps]
    shape = (-1,) + (1,) * (inputs[0].ndim - 1)
    out = [sum(rows[:, m, k].reshape(shape) * x.double() for k, x in enumerate(inputs)) for m in range(table.shape[1])]
    f, gap = out[0].flatten(1), (out[0] - y.double()).flatten(1)
    return out, torch.stack([gap.square().sum(1), f.square().sum(1), f.isfinite().all(1).double()], 1)


def check_parity(cpp, distance):
    for dtype in DTYPES:
        acc = wide(dtype)
        for k, size in enumerate(SIZES):
            for batch in range(1, 6):
                n, m = 1 + (batch + k) % 4, 1 + batch % 2
                inputs = [torch.randn(batch, size).to(dtype if j % 2 == 0 else torch.float32) for j in range(n)]
                table, y = torch.randn(5, m, n, dtype=acc), torch.randn(batch, size).to(dtype)
                own = torch.randint(0, 5, (batch,))
                for step in (torch.tensor(3), own):
                    want, want_sums = expected(inputs, table, step.expand(batch), y)
                    *got, sums = cpp.lincomb_residual(inputs, table, step, y)
                    again = cpp.lincomb(inputs, table, step)
                    for a, b, c in zip(want, got, again, strict=True):
                        assert b.dtype == acc
                        assert b.shape == a.shape
                        assert torch.equal(b, c)
                        assert distance(b, a) < near(acc), (dtype, size, batch)
                    assert sums.dtype == acc
                    assert distance(sums, want_sums) < 5 * near(acc), (dtype, size, batch)
                    for j in range(batch if step is own else 0):
                        cut = [x[j : j + 1] for x in inputs]
                        one = step if step.ndim == 0 else step[j : j + 1]
                        *image, image_sums = cpp.lincomb_residual(cut, table, one, y[j : j + 1])
                        assert all(torch.equal(a[0], b[j]) for a, b in zip(image, got, strict=True))
                        assert torch.equal(image_sums[0], sums[j])


def check_layouts(cpp, distance):
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    y = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2)
    z = torch.randn(4, 4, 6, 12)[::2, :, :, ::2]
    table = torch.randn(2, 3, 2).permute(0, 2, 1)
    before = [each.clone() for each in (x, y, z)]
    step = torch.tensor([0, 1, 1, 0])[::2]
    got = cpp.lincomb([x, y, z], table, step)
    want, _ = expected([x, y, z], table, step, z)
    assert all(distance(a, b) < near(torch.float32) and a.is_contiguous() for a, b in zip(got, want, strict=True))
    assert all(map(torch.equal, (x, y, z), before))
    mixed = cpp.anderson_mix([x, y, z], [z, x, y])
    assert torch.equal(
        mixed, cpp.anderson_mix([e.contiguous() for e in (x, y, z)], [e.contiguous() for e in (z, x, y)])
    )
    base = torch.randn(1000)
    for offset in range(1, 4):  # memory that is not aligned to a vector
        v = base[offset : offset + 900].view(3, 300)
        assert torch.equal(cpp.lincomb([v], torch.tensor([[[2.0]]]), torch.tensor(0))[0], 2 * v)


def check_nothing(cpp, distance):
    table = torch.randn(2, 2, 1)
    for shape in ((0, 4), (3, 0), (0,)):
        x = torch.empty(shape)
        *out, sums = cpp.lincomb_residual([x], table, torch.tensor(1), x)
        assert [a.shape for a in out] == [x.shape] * 2
        assert torch.equal(sums, torch.tensor([[0.0, 0.0, 1.0]]).expand(shape[0], 3))
        assert cpp.lincomb([x], table, torch.tensor(0))[0].shape == x.shape
        assert cpp.anderson_mix([x, x], [x, x]).shape == x.shape


def check_steps_outside(cpp, distance):
    x, table = torch.randn(3, 5), torch.randn(4, 2, 1)
    for bad in (-1, 4, 2**62, -(2**63)):
        *out, sums = cpp.lincomb_residual([x], table, torch.tensor(bad), x)
        assert all(each.isnan().all() for each in out)
        assert sums[:, :2].isnan().all()
        assert not sums[:, 2].any()
        *out, sums = cpp.lincomb_residual([x], table, torch.tensor([0, bad, 3]), x)
        *good, good_sums = cpp.lincomb_residual([x], table, torch.tensor([0, 0, 3]), x)
        for a, b in zip([*out, sums], [*good, good_sums], strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert all(each[1].isnan().all() for each in out)


def check_flags(cpp, distance):
    x, one, zero = torch.randn(4, 3000), torch.ones(1, 1, 1), torch.tensor(0)
    x[0, 2999], x[1, 7], x[2, 0] = torch.inf, torch.nan, 3e38
    out, sums = cpp.lincomb_residual([x], one, zero, x)
    assert torch.equal(out.isnan(), x.isnan())
    assert sums[:, 2].tolist() == [0, 0, 1, 1]
    assert sums[2, 1].isinf()
    assert sums[3, 0] == 0


def check_mixing(cpp, distance):
    from invfast import ops

    for dtype in (torch.float32, torch.float64):
        for size in SIZES[2:]:
            for m in range(1, 5):
                f, r = (list(torch.randn(m, 5, size, dtype=dtype)) for _ in range(2))
                for each in f[:-1]:
                    each[4] = torch.nan  # the sample's residuals are bad too: its old columns must be left out
                if m > 1:
                    r[-1][1] = 0  # converged
                    r[1][2] = r[0][2]  # identical
                    r[0][3] = 2 * r[-1][3]  # collinear
                    r[0][4, 0] = torch.nan
                got, want = cpp.anderson_mix(f, r), ops.anderson_mix(f, r)
                assert got.dtype == dtype
                ordinary = [0, 1, 3, 4] if m > 1 else [0, 1, 2, 3, 4]
                # Weights of ill-conditioned samples are as uncertain as their residuals' products.
                limit = 1e-3 if dtype == torch.float32 else 1e-8
                for j in [0, 1, 4] if m > 1 else range(5):
                    assert distance(got[j], want[j]) < limit, (dtype, size, m, j)
                assert got[ordinary].isfinite().all()
                if m > 1:
                    assert torch.equal(got[1], f[-1][1])
                    assert torch.equal(got[4], f[-1][4])
                for j in range(5):
                    image = cpp.anderson_mix([x[j : j + 1] for x in f], [x[j : j + 1] for x in r])
                    assert torch.equal(image[0], got[j])


def check_large_results_reuse_memory(cpp, distance):
    x, table, zero = torch.randn(2, 3000, 2000), torch.tensor([[[2.0]]]), torch.tensor(0)
    seen = set()
    for _ in range(6):
        y = cpp.lincomb([x], table, zero)[0]
        assert torch.equal(y, 2 * x)
        seen.add(y.data_ptr())
        x = y / 2
    assert len(seen) <= 2
    kept = [cpp.lincomb([x], table, zero)[0] for _ in range(4)]
    assert len({each.data_ptr() for each in kept}) == 4
    assert all(torch.equal(each, 2 * x) for each in kept)


def check_refusals(cpp, distance):
    x, table, zero = torch.randn(2, 3), torch.randn(1, 1, 1), torch.tensor(0)
    for call in (
        lambda: cpp.lincomb([x.long()], table, zero),
        lambda: cpp.lincomb([x, x], table, zero),
        lambda: cpp.lincomb([x], table.half(), zero),
        lambda: cpp.lincomb([x], table, torch.tensor([0, 0, 0])),
        lambda: cpp.lincomb([x, x[:1]], torch.randn(1, 1, 2), zero),
        lambda: cpp.lincomb_residual([x], table, zero, x[:1]),
        lambda: cpp.anderson_mix([x], [x, x]),
        lambda: cpp.anderson_mix([x] * 5, [x] * 5),
    ):
        with pytest.raises(RuntimeError):
            call()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from toy import distance

    from invfast.ops import extension

    extension.LIBRARY = Path(sys.argv[1])
    torch.manual_seed(0)
    checks = [value for name, value in list(globals().items()) if name.startswith("check_")]
    with torch.inference_mode():
        for check in checks:
            check(extension.load(), distance)
    print("all checks passed:", ", ".join(check.__name__ for check in checks))

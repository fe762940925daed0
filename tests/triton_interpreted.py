"""The Triton kernels in Triton's interpreter, beside plain float64 expressions; tests/test_triton.py runs this file.

Tolerance is twice the error of the same expression in the dtype of accumulation.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from exact import as_exact_as_eager
from toy import distance

from invfast import kernels
from invfast.ops import resolve, unavailable
from invfast.ops.registry import implement

HALF, BFLOAT, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
SHAPES = [(1, 1), (2, 3), (3, 63), (4, 129), (5, 4095)]
LONG = (1, 65537)  # seconds each
CHUNKED = 5000  # a sample for several programs


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def combined(inputs, table, index, dtype=DOUBLE):
    """The definition, sample by sample."""
    steps, outputs, _ = table.shape
    result = [torch.full(inputs[0].shape, torch.nan, dtype=dtype) for _ in range(outputs)]
    for sample, step in enumerate(index.expand(len(inputs[0])).tolist()):
        for m in range(outputs if 0 <= step < steps else 0):
            row = table[step, m].to(dtype)
            result[m][sample] = sum(c * x[sample].to(dtype) for c, x in zip(row, inputs, strict=True))
    return result


def norms(f, y):
    f, y = f.flatten(1), y.flatten(1).to(f.dtype)
    return torch.stack([(f - y).square().sum(1), f.square().sum(1), f.isfinite().all(1).to(f.dtype)], 1)


def mixed(values, residuals, dtype=DOUBLE):
    """The definition, sample by sample; the Gram matrix in `dtype`."""
    result = values[-1].to(dtype, copy=True)
    for sample in range(len(result)):
        r = torch.stack([x[sample].flatten().to(dtype) for x in residuals])
        gram = (r @ r.T).double()
        scale = gram.diagonal().rsqrt()
        normal = scale[:, None] * gram * scale + 1e-10 * torch.eye(len(r), dtype=DOUBLE)
        weights = scale * torch.linalg.solve_ex(normal, scale)[0]
        weights = weights / weights.sum()
        if weights.abs().sum() <= 1e3:
            result[sample] = sum(w * x[sample].to(dtype) for w, x in zip(weights.to(dtype), values, strict=True))
    return result


def agrees(found, exact, eager, rounding=1):
    """Within twice the error of an eager run, or a few roundings: there is no more exact float64 to tell its error."""
    assert found.shape == exact.shape
    assert found.is_contiguous()
    assert found.dtype == eager.dtype
    as_exact_as_eager(found, eager, exact, floor=rounding)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def ops(monkeypatch):
    """The raw ops; whatever they allocate is full of NaN."""
    empty = torch.empty

    def poisoned(*given, **named):
        x = empty(*given, **named)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)
    return kernels.load()


@pytest.mark.parametrize(
    ("shape", "dtype"), [*product(SHAPES, [SINGLE, HALF, BFLOAT, DOUBLE]), (LONG, SINGLE)], ids=str
)
def test_update(ops, shape, dtype):
    accumulate = DOUBLE if dtype == DOUBLE else SINGLE
    k, m = 1 + (shape[0] + shape[1]) % 4, 1 + shape[0] % 2
    inputs = [random(*shape, dtype=accumulate if j else dtype, seed=j) for j in range(k)]
    table, index, y = random(7, m, k, dtype=accumulate, seed=8), torch.tensor(4), random(*shape, dtype=dtype, seed=9)
    exact, eager = combined(inputs, table, index), combined(inputs, table, index, accumulate)
    for found in (ops.lincomb(inputs, table, index), ops.lincomb_residual(inputs, table, index, y)[:-1]):
        assert len(found) == m
        for each in zip(found, exact, eager, strict=True):
            agrees(*each)
    sums = ops.lincomb_residual(inputs, table, index, y)[-1]
    assert sums.shape == (shape[0], 3)
    for column in range(3):
        agrees(*(x[:, column].contiguous() for x in (sums, norms(exact[0], y), norms(eager[0], y))))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_table(ops, k, m):
    inputs = [random(2, 4, 5, dtype=(HALF, BFLOAT, SINGLE, DOUBLE)[j], seed=j) for j in range(k)]
    table, index = random(3, m, k), torch.tensor([2, 0])
    for each in zip(ops.lincomb(inputs, table, index), *(combined(inputs, table, index, d) for d in (DOUBLE, SINGLE)),
                    strict=True):  # fmt: skip
        agrees(*each)


@pytest.mark.skipif(unavailable("cpp") is not None, reason="the extension is not built")
@pytest.mark.parametrize(("size", "dtype"), [(7, SINGLE), (63, BFLOAT), (65, DOUBLE), (2100, SINGLE)])
def test_products_are_added_in_the_order_of_the_other_implementation(ops, dtype, size):
    """Neither NumPy nor the core for a CPU fuses: one order gives equal bits here, as one of fma does on a GPU."""
    cpp, accumulate = resolve("cpu", "cpp"), DOUBLE if dtype == DOUBLE else SINGLE
    for k in (4,) if size > 2048 else (1, 2, 3, 4):
        inputs = [random(2, size, dtype=dtype, seed=j) for j in range(k)]
        table, index, y = random(3, 2, k, dtype=accumulate), torch.tensor([2, 0]), random(2, size, seed=9)
        expected = cpp.lincomb(inputs, table, index)
        for found in (ops.lincomb(inputs, table, index), ops.lincomb_residual(inputs, table, index, y)[:2]):
            for each in zip(found, expected, strict=True):
                same(*each)
        values = [random(2, size, dtype=accumulate, seed=20 + j) for j in range(k)]
        residuals = [torch.zeros_like(x) for x in values[1:]]  # of converged iterates the latest is taken as it is
        same(ops.anderson_mix(values, [values[0], *residuals]), cpp.anderson_mix(values, [values[0], *residuals]))


@pytest.mark.parametrize("size", [5, CHUNKED])
def test_a_step_outside_the_table_is_flagged(ops, size):
    inputs, table, y = [random(4, size), random(4, size, seed=1)], random(3, 2, 2), random(4, size, seed=2)
    index = torch.tensor([2, 3, -1, 0])
    *outputs, sums = ops.lincomb_residual(inputs, table, index, y)
    for found in (*outputs, *ops.lincomb(inputs, table, index), sums):
        assert found.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
        assert found[::3].isfinite().all()
    assert all(x.isnan().all() for x in ops.lincomb_residual(inputs, table, torch.tensor(3), y))


@pytest.mark.parametrize("size", [63, CHUNKED])
def test_finite_flags(ops, size):
    x = random(3, size)
    x[1, size - 1], x[2, 0] = torch.inf, 1e30
    sums = ops.lincomb_residual([x], torch.ones(1, 1, 1), torch.tensor(0), torch.zeros(3, size))[1]
    assert sums[:, 2].tolist() == [1, 0, 1]  # 1e30 is finite, its square is not
    assert sums.isinf()[:, :2].tolist() == [[False, False], [True, True], [True, True]]


def test_strides(ops):
    x = random(3, 4, 6, 5).to(memory_format=torch.channels_last)
    y, wide = random(3, 6, 4, 5, seed=1).transpose(1, 2), random(3, 4, 6, 10, seed=2)[..., ::2]
    table, index = random(6, 2, 3, dtype=DOUBLE)[::2], torch.tensor([0, 9, 2, 9, 1, 9])[::2]
    for found, exact in zip(ops.lincomb([x, y, wide], table, index), combined([x, y, wide], table, index), strict=True):
        agrees(found, exact, exact)
    *_, sums = ops.lincomb_residual([x, y, wide], table, index, x)
    assert distance(sums, norms(combined([x, y, wide], table, index)[0], x)) < 1e-15
    agrees(ops.anderson_mix([x, y], [y, wide]), mixed([x, y], [y, wide]), mixed([x, y], [y, wide], SINGLE))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 2), (0, 0)], ids=str)
def test_nothing(ops, shape):
    x, table, index = torch.zeros(shape), torch.ones(2, 2, 1), torch.tensor(1)
    *outputs, sums = ops.lincomb_residual([x], table, index, x)
    assert [y.shape for y in (*outputs, *ops.lincomb([x], table, index))] == [x.shape] * 4
    same(sums, torch.tensor([0.0, 0.0, 1.0]).repeat(shape[0], 1))
    assert ops.anderson_mix([x, x], [x, x]).shape == x.shape


@pytest.mark.parametrize("size", [33, CHUNKED])
def test_a_batch_equals_its_images(ops, size):
    x, y, z = (random(3, size, seed=seed) for seed in range(3))
    table, index = random(4, 1, 2), torch.tensor([3, 1, 3])
    whole = [*ops.lincomb([x, y], table, index), *ops.lincomb_residual([x, y], table, index, z)]
    mix = ops.anderson_mix([x, y, z], [z, x, y])
    for j in range(3):
        a, b, c = x[j : j + 1], y[j : j + 1], z[j : j + 1]
        alone = [*ops.lincomb([a, b], table, index[j]), *ops.lincomb_residual([a, b], table, index[j], c)]
        for one, all_of_them in zip(alone, whole, strict=True):
            same(one, all_of_them[j : j + 1])
        same(ops.anderson_mix([a, b, c], [c, a, b]), mix[j : j + 1])


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize(
    ("shape", "m"), [(s, 2 + j % 3) for j, s in enumerate([*SHAPES[1:], LONG])] + [((1, CHUNKED), 4)]
)
def test_anderson(ops, shape, m, dtype):
    values = [random(*shape, dtype=dtype, seed=j) for j in range(m)]
    residuals = [random(*shape, dtype=dtype, seed=10 + j) for j in range(m)]
    exact, eager = mixed(values, residuals), mixed(values, residuals, dtype)
    agrees(ops.anderson_mix(values, residuals), exact, eager, rounding=100 if dtype == DOUBLE else 1)


def test_anderson_of_one(ops):
    x = random(2, 4, 4)
    found = ops.anderson_mix([x], [x])
    same(found, x)
    assert found.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("size", [50, CHUNKED])
def test_anderson_guards(ops, size, dtype):
    """One batch: 0 identical, 1 collinear, 2 converged, 3 infinite and 4 NaN residuals, 5 nearly parallel, 6 plain."""
    values = [random(7, size, dtype=dtype, seed=j) for j in range(2)]
    r, s = (random(7, size, dtype=dtype, seed=10 + j) for j in range(2))
    s[0], s[1], s[2] = r[0], 2 * r[1], 0
    r[3, 7], r[4, 7], values[0][4, 3] = torch.inf, torch.nan, torch.nan
    s[5] = r[5] * (1 + 2.0**-12)  # weights of 4096
    found = ops.anderson_mix(values, [r, s])
    assert distance(found[0], (values[0][0] + values[1][0]) / 2) < 1e-5
    assert distance(found[1], 2 * values[0][1] - values[1][1]) < 1e-5
    same(found[2:6], values[1][2:6])
    one = [[x[6:] for x in values], [r[6:], s[6:]]]
    agrees(found[6:], mixed(*one), mixed(*one, dtype), rounding=100 if dtype == DOUBLE else 1)


def test_schemas(ops):
    implement("invfast_triton", "CPU", ops)
    x, table, index = random(2, 5), random(3, 2, 2), torch.tensor(1)
    tests = ("test_schema", "test_autograd_registration")  # the others need a GPU under the interpreter
    for op, arguments in [
        ("lincomb", ([x, x.clone()], table, index)),
        ("lincomb_residual", ([x, x.clone()], table, index, x.clone())),
        ("anderson_mix", ([x, x.clone()], [x.clone(), x + 1])),
    ]:
        torch.library.opcheck(getattr(torch.ops.invfast_triton, op).default, arguments, test_utils=tests)

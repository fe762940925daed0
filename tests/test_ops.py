"""The arithmetic between evaluations, against plain expressions in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import distance

from invfast.ops import anderson_mix, lincomb, lincomb_residual

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("size", [1, 3, 63, 129, 4095])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lincomb(dtype, size):
    table = torch.randn(5, 2, 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    inputs = [torch.randn(2, size).to(dtype) for _ in range(3)]
    out = lincomb(inputs, table, 4)
    assert [o.dtype for o in out] == [table.dtype] * 2
    for m in range(2):
        wanted = sum(table[4, m, k].double() * inputs[k].double() for k in range(3))
        assert distance(out[m], wanted) < (1e-15 if dtype == torch.float64 else 1e-6)


def test_lincomb_keeps_its_inputs_and_takes_any_layout():
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    y = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2)[:, :, ::1]
    before = x.clone(), y.clone()
    (out,) = lincomb([x, y], torch.tensor([[[2.0, -1.0]]]), 0)
    assert torch.equal(out, 2 * x - y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert lincomb([torch.empty(0, 4)], torch.ones(1, 1, 1), 0)[0].shape == (0, 4)


def test_lincomb_refuses():
    x, table = torch.zeros(2, 3), torch.ones(4, 1, 2)
    with pytest.raises(ValueError, match="2 columns needs as many inputs"):
        lincomb([x], table, 0)
    with pytest.raises(ValueError, match="must have one shape"):
        lincomb([x, x[:1]], table, 0)
    for index in (-1, 4):
        with pytest.raises(IndexError, match="table of 4 steps"):
            lincomb([x, x], table, index)


def test_lincomb_residual():
    x, y = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    f, second, sums = lincomb_residual((x, y), torch.tensor([[[0.3, 0.6], [1.0, 1.0]]], dtype=torch.float64), 0, y)
    assert torch.allclose(second, x + y)
    assert torch.allclose(sums[:, 0], (f - y).square().sum((1, 2, 3)))
    assert torch.allclose(sums[:, 1], f.square().sum((1, 2, 3)))
    x[1, 0, 0, 0] = torch.nan
    assert lincomb_residual((x, y), torch.ones(1, 1, 2, dtype=torch.float64), 0, y)[1][:, 2].tolist() == [1, 0, 1]


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31), st.floats(-12, 6))
def test_anderson_weights_are_the_constrained_minimum(batch, m, seed, magnitude):
    generator = torch.Generator().manual_seed(seed)
    values, residuals = torch.randn(2, m, batch, 40, generator=generator, dtype=torch.float64)
    mixed = anderson_mix(list(values), list(10**magnitude * residuals))
    for b in range(batch):
        # Eliminate the constraint: minimise |r_m + sum_j c_j (r_j - r_m)| over c.
        r, f = residuals[:, b].T, values[:, b].T
        c = torch.linalg.lstsq(r[:, :-1] - r[:, -1:], -r[:, -1]).solution
        weights = torch.cat([c, 1 - c.sum(0, keepdim=True)])
        assert distance(mixed[b], f @ weights) < 1e-6


def test_anderson_guards():
    f = torch.randn(3, 6, 10, dtype=torch.float64)
    r = torch.randn(3, 6, 10, dtype=torch.float64)
    r[:, 1] = r[2, 1]  # identical residuals
    r[:, 2] = torch.stack([r[2, 2], 2 * r[2, 2], 3 * r[2, 2]])  # collinear
    r[2, 3] = 0  # converged
    r[0, 4, 0] = torch.nan
    f[0, 4, 0] = torch.nan
    mixed = anderson_mix(list(f), list(r))
    assert mixed.isfinite().all()
    assert torch.equal(mixed[3], f[2, 3])
    assert torch.equal(mixed[4], f[2, 4])
    assert distance(mixed[1], f[:, 1].mean(0)) < 1e-5
    for b in range(6):  # nobody's trouble reaches a neighbour
        alone = anderson_mix([x[b : b + 1] for x in f], [x[b : b + 1] for x in r])
        assert torch.equal(alone[0], mixed[b])


def test_anderson_of_one_value_is_the_value():
    f = torch.randn(2, 3)
    assert torch.equal(anderson_mix([f], [torch.randn(2, 3)]), f)

"""The arithmetic between evaluations, against plain expressions in float64."""

import pytest
import torch
from exact import as_exact_as_eager
from hypothesis import given
from hypothesis import strategies as st
from toy import distance

from invfast import ops
from invfast.ops import anderson_mix, lincomb, lincomb_residual
from invfast.ops.registry import MICROSECONDS, checked, preferred, register

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("size", [1, 3, 63, 129, 4095])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lincomb(dtype, size):
    table = torch.randn(5, 2, 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    inputs = [torch.randn(2, size).to(dtype) for _ in range(3)]
    out = lincomb(inputs, table, 4)
    assert [o.dtype for o in out] == [table.dtype] * 2
    for m in range(2):
        terms = torch.stack([table[4, m, k].double() * inputs[k].double() for k in range(3)])
        # Three products and two sums, in any order, fused or not; in float64 what is wanted is rounded as well.
        roundings = 3 * torch.finfo(table.dtype).eps * terms.abs().sum(0)
        assert ((out[m].double() - terms.sum(0)).abs() <= roundings).all()


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


def test_a_step_on_the_device():
    table, x = torch.randn(3, 2, 2), torch.randn(2, 4, 5, 5)
    inputs = (x, x.flip(0))
    for i in range(3):
        for a, b in zip(lincomb(inputs, table, torch.tensor(i)), lincomb(inputs, table, i), strict=True):
            assert torch.equal(a, b)
    mixed = lincomb_residual(inputs, table, torch.tensor([2, 0]), x)
    for j, i in enumerate((2, 0)):
        for a, b in zip(mixed, lincomb_residual(inputs, table, i, x), strict=True):
            assert torch.equal(a[j], b[j])
    for outside in (-1, 3):
        first, _, sums = lincomb_residual(inputs, table, torch.tensor([1, outside]), x)
        assert first[0].isfinite().all()
        assert first[1].isnan().all()
        assert sums[:, 2].tolist() == [1, 0]


IMPLEMENTATIONS = {
    "reference": lambda: ops.resolve("cpu", "reference"),
    "public": lambda: checked("public", register("invfast")),
    "cpp": lambda: ops.resolve("cpu", "cpp"),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request):
    if request.param == "cpp" and (why := ops.unavailable("cpp")):
        pytest.skip(why)
    return IMPLEMENTATIONS[request.param]()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(
    st.integers(1, 5), st.integers(0, 300), st.integers(1, 4), st.integers(1, 2), st.sampled_from(DTYPES),
    st.lists(st.floats(-4, 4), min_size=8, max_size=8), st.integers(0, 2**31),
)  # fmt: skip
def test_no_further_from_float64_than_twice_what_eager_is(name, batch, size, columns, outputs, dtype, numbers, seed):
    if name == "cpp" and (why := ops.unavailable("cpp")):
        pytest.skip(why)
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [torch.randn(batch, size, generator=generator).to(dtype) for _ in range(columns)]
    table = torch.tensor(numbers[: columns * outputs], dtype=wide).reshape(1, outputs, columns)
    y = inputs[-1].to(wide)
    *got, sums = IMPLEMENTATIONS[name]().lincomb_residual(inputs, table, 0, y)
    unit = torch.finfo(wide).eps
    for m, out in enumerate(got):
        exact = sum(c.double() * x.double() for c, x in zip(table[0, m], inputs, strict=True))
        eager = sum(c * x.to(wide) for c, x in zip(table[0, m], inputs, strict=True))
        size_of = sum(c.abs().double() * x.double().abs() for c, x in zip(table[0, m], inputs, strict=True))
        assert ((out - exact).abs() <= 2 * (eager - exact).abs() + unit * size_of).all()
    f = got[0].double()
    for found, exact in zip(sums.T, ((f - y).square().sum(1), f.square().sum(1)), strict=False):
        assert (found - exact).abs().le((size + 4) * (unit * exact + torch.finfo(wide).tiny)).all()


X, TABLE = torch.zeros(2, 3), torch.ones(4, 1, 2)
REFUSED = {
    "number": (([X], TABLE, 0), ValueError, "2 columns needs as many inputs"),
    "shape": (([X, X[:1]], TABLE, 0), ValueError, "must have one shape"),
    "0-d": (([X[0, 0], X[0, 0]], TABLE, 0), ValueError, "must have one shape"),
    "dtype": (([X, X.int()], TABLE, 0), TypeError, "must be float16, bfloat16, float32 or float64, got torch.int32"),
    "device": (([X, X.to("meta")], TABLE, 0), ValueError, "must lie on cpu, got meta"),
    "flat table": (([X, X], TABLE[0], 0), ValueError, "table must be float32 or float64"),
    "half table": (([X, X], TABLE.half(), 0), ValueError, "table must be float32 or float64"),
    "three outputs": (([X, X], torch.ones(4, 3, 2), 0), ValueError, "table must be float32 or float64"),
    "five inputs": (([X] * 5, torch.ones(4, 1, 5), 0), ValueError, "5 columns needs as many inputs"),
    "step below": (([X, X], TABLE, -1), IndexError, "step -1 is outside the table of 4 steps"),
    "step above": (([X, X], TABLE, 4), IndexError, "step 4 is outside the table of 4 steps"),
    "step dtype": (([X, X], TABLE, torch.tensor(1, dtype=torch.int32)), TypeError, "must be int64 on cpu"),
    "step kind": (([X, X], TABLE, 1.0), TypeError, "must be an int or an int64 tensor"),
    "steps": (([X, X], TABLE, torch.zeros(3, dtype=torch.int64)), ValueError, r"one a sample \(2,\), got \(3,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_implementation_refuses_alike(case, kernels):
    given, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        kernels.lincomb(*given)
    with pytest.raises(error, match=message):
        kernels.lincomb_residual(*given, given[0][0])


def test_every_implementation_refuses_histories_alike(kernels):
    with pytest.raises(ValueError, match=r"1..4 values and as many residuals, got 2 and 1"):
        kernels.anderson_mix([X, X], [X])
    with pytest.raises(TypeError, match="all be float32 or all float64"):
        kernels.anderson_mix([X.half()], [X.half()])
    with pytest.raises(ValueError, match="must have one shape"):
        kernels.lincomb_residual([X, X], TABLE, 0, X[:1])


def samples(dtype):
    """Arguments of each op, for the checks of torch.library."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [torch.randn(2, 4, 3, 5).to(dtype) for _ in range(3)]
    table = torch.randn(5, 2, 3, dtype=wide)
    history = [list(torch.randn(3, 2, 4, 3, 5, dtype=wide)) for _ in range(2)]
    for index in (torch.tensor(2), torch.tensor([1, 4])):
        yield "lincomb", (inputs, table, index)
        yield "lincomb_residual", (inputs, table, index, inputs[1])
    yield "anderson_mix", tuple(history)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("namespace", ["invfast", "invfast_cpp"])
def test_opcheck(namespace, dtype):
    if namespace == "invfast_cpp" and (why := ops.unavailable("cpp")):
        pytest.skip(why)
    ops.resolve("cpu", None)
    for name, args in samples(dtype):
        torch.library.opcheck(getattr(getattr(torch.ops, namespace), name).default, args)


def test_compiled_and_exported_graphs_give_the_eager_result(kernels):
    tables = torch.randn(2, 5, 1, 3)

    def step(x, y, o, index):
        table, wide = tables.to(x.dtype)
        f, sums = kernels.lincomb_residual((x, y, o), table, index, y)
        (g,) = kernels.lincomb((x, f, o), wide, index)
        return kernels.anderson_mix([f, g], [f - y, g - f]), sums

    args = (*torch.randn(3, 2, 4, 3, 5), torch.tensor(3))
    compiled = torch.compile(step, fullgraph=True)
    exported = torch.export.export(Wrapped(step), args).module()
    for index in (torch.tensor(3), torch.tensor(1)):
        args = (*args[:3], index)
        eager = step(*args)
        exact = step(*(x.double() for x in args[:3]), index)
        for run in (compiled(*args), exported(*args)):
            for each in zip(run, eager, exact, strict=True):
                as_exact_as_eager(*each)


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_cuda_takes_what_was_measured_to_be_faster(monkeypatch):
    assert [preferred("cuda", captured) for captured in (False, True)] == [("cpp", "triton", "reference")] * 2
    monkeypatch.setitem(MICROSECONDS, "triton", {"called": (85, 145), "captured": (1.5, 3, 4)})
    assert preferred("cuda", captured=False)[0] == "cpp"
    assert preferred("cuda", captured=True)[0] == "triton"
    assert preferred("mps") == ("reference",)


def test_resolve_names_what_it_took_and_what_is_missing(monkeypatch, tmp_path):
    assert ops.resolve("cpu", "reference").name == "reference"
    with pytest.raises(ValueError, match="unknown kernels 'cuda'; expected one of 'reference', 'cpp', 'triton'"):
        ops.resolve("cpu", "cuda")
    with pytest.raises(RuntimeError, match="kernels 'triton' are unavailable on cpu"):
        ops.resolve("cpu", "triton")
    monkeypatch.setattr("invfast.ops.extension.LIBRARY", tmp_path / "_C.abi3.so")
    monkeypatch.setattr("invfast.ops.extension.REASON", tmp_path / "_C.reason")
    (tmp_path / "_C.reason").write_text("no C++ compiler was found\n")
    found = ops.resolve("cpu")
    assert found.name == "reference"
    assert "cpp: no C++ compiler was found" in found.reason
    with pytest.raises(RuntimeError, match="kernels 'cpp' are unavailable on cpu: no C"):
        ops.resolve("cpu", "cpp")

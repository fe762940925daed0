"""out[m] = sum_k table[index, m, k] * in[k], and per sample |f - y|^2, |f|^2 and a finite flag of f = out[0].

A tensor is samples of `size` contiguous elements. A program reads its coefficients from the device, where they may
change under a captured graph. A step outside the table gives NaN coefficients, and so NaN outputs and sums, and reads
nothing. Offsets inside a block are 32-bit on a 64-bit base, so that any size is addressed and vectors form.
"""
# ruff: noqa: N803, N806 (what is known at compile time is in capitals)

import triton
import triton.language as tl

RUNTIME = ["steps", "index_stride", "chunks", "blocks"]
ANY_ALIGNMENT = ["table", "index"]


@triton.jit
def read(pointer, start, left, lane, A: tl.constexpr):
    """A block of a stream, in the type of accumulation; 0 beyond the end."""
    return tl.load(pointer + start + lane, mask=lane < left, other=0.0).to(A)


@triton.jit
def coefficient(table, step, steps, m: tl.constexpr, k: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    """table[step, m, k]; NaN where the step is outside, 0 where the table has no such row or column."""
    c = 0.0
    if m < M and k < K:
        inside = (step >= 0) & (step < steps)
        c = tl.load(table + step * (M * K) + m * K + k, mask=inside, other=float("nan"))
    return c


@triton.jit
def row(table, step, steps, m: tl.constexpr, M: tl.constexpr, K: tl.constexpr):
    c0 = coefficient(table, step, steps, m, 0, M, K)
    c1 = coefficient(table, step, steps, m, 1, M, K)
    c2 = coefficient(table, step, steps, m, 2, M, K)
    c3 = coefficient(table, step, steps, m, 3, M, K)
    return c0, c1, c2, c3


@triton.jit
def combine(x0, x1, x2, x3, c0, c1, c2, c3, K: tl.constexpr):
    total = x0 * c0
    if K > 1:
        total = tl.fma(x1, c1, total)
    if K > 2:
        total = tl.fma(x2, c2, total)
    if K > 3:
        total = tl.fma(x3, c3, total)
    return total


@triton.jit
def read_all(in0, in1, in2, in3, start, left, lane, K: tl.constexpr, A: tl.constexpr):
    x0 = read(in0, start, left, lane, A)
    x1 = read(in1, start, left, lane, A) if K > 1 else x0
    x2 = read(in2, start, left, lane, A) if K > 2 else x0
    x3 = read(in3, start, left, lane, A) if K > 3 else x0
    return x0, x1, x2, x3


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANY_ALIGNMENT)
def lincomb_kernel(
    in0, in1, in2, in3, out0, out1, table, index, size, steps, index_stride, blocks,
    M: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one sample a program."""
    A: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    sample, block = (program // blocks).to(tl.int64), (program % blocks).to(tl.int64)
    step = tl.load(index + sample * index_stride)
    start, left = sample * size + block * BLOCK, size - block * BLOCK
    lane = tl.arange(0, BLOCK)
    x0, x1, x2, x3 = read_all(in0, in1, in2, in3, start, left, lane, K, A)
    c0, c1, c2, c3 = row(table, step, steps, 0, M, K)
    tl.store(out0 + start + lane, combine(x0, x1, x2, x3, c0, c1, c2, c3, K), mask=lane < left)
    if M > 1:
        c0, c1, c2, c3 = row(table, step, steps, 1, M, K)
        tl.store(out1 + start + lane, combine(x0, x1, x2, x3, c0, c1, c2, c3, K), mask=lane < left)


@triton.jit
def flag(bad):
    """1 for no bad element, 0 for some; NaN, of a step outside the table, stays."""
    return tl.where(bad == 0, 1.0, tl.where(bad > 0, 0.0, bad))


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=[*ANY_ALIGNMENT, "sums"])
def residual_kernel(
    in0, in1, in2, in3, y, out0, out1, table, index, sums, size, steps, index_stride, chunks, blocks,
    M: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of `blocks` blocks of one sample a program; a chunk that is the whole sample finishes its sums.

    sums: (B, 3, chunks); the third is the number of elements that are not finite until it is finished.
    """
    A: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    sample, chunk = (program // chunks).to(tl.int64), (program % chunks).to(tl.int64)
    step = tl.load(index + sample * index_stride)
    c0, c1, c2, c3 = row(table, step, steps, 0, M, K)
    d0, d1, d2, d3 = row(table, step, steps, 1, M, K)
    lane = tl.arange(0, BLOCK)
    gap, norm, bad = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], tl.float32)
    for i in range(blocks):
        begin = (chunk * blocks + i) * BLOCK
        start, left = sample * size + begin, size - begin
        x0, x1, x2, x3 = read_all(in0, in1, in2, in3, start, left, lane, K, A)
        f = combine(x0, x1, x2, x3, c0, c1, c2, c3, K)
        tl.store(out0 + start + lane, f, mask=lane < left)
        if M > 1:
            tl.store(out1 + start + lane, combine(x0, x1, x2, x3, d0, d1, d2, d3, K), mask=lane < left)
        f = tl.where(lane < left, f, 0.0)
        difference = f - read(y, start, left, lane, A)
        gap = tl.fma(difference, difference, gap)
        norm = tl.fma(f, f, norm)
        bad += tl.where(tl.abs(f) < float("inf"), 0.0, 1.0)
    outside = (step < 0) | (step >= steps)
    count = tl.where(outside, float("nan"), tl.sum(bad, 0))
    at = sums + sample * 3 * chunks + chunk
    tl.store(at, tl.sum(gap, 0))
    tl.store(at + chunks, tl.sum(norm, 0))
    tl.store(at + 2 * chunks, tl.where(chunks == 1, flag(count), count))


@triton.jit
def total(partial, at, chunks, CHUNKS: tl.constexpr):
    """The sum over a sample's chunks, in the one order that its size gives."""
    lane = tl.arange(0, CHUNKS)
    return tl.sum(tl.load(partial + at + lane, mask=lane < chunks, other=0.0).to(tl.float64), 0)


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["partial", "sums"])
def finish_kernel(partial, sums, chunks, CHUNKS: tl.constexpr):
    """(B, 3, chunks) -> (B, 3): one sample a program."""
    sample = tl.program_id(0).to(tl.int64)
    at = sample * 3 * chunks
    tl.store(sums + sample * 3, total(partial, at, chunks, CHUNKS))
    tl.store(sums + sample * 3 + 1, total(partial, at + chunks, chunks, CHUNKS))
    tl.store(sums + sample * 3 + 2, flag(total(partial, at + 2 * chunks, chunks, CHUNKS)))

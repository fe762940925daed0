"""Anderson mixing, each sample on its own: out = sum_j a_j f_j, a = argmin |sum_j a_j r_j|^2 with sum_j a_j = 1.

Two passes: the Gram matrix of the residuals, then the mixing; the solve between them is scalars in float64. The matrix
is normalised by its diagonal and given a ridge; weights that are not finite, or above 1e3 in sum of magnitudes, become
those of the latest value alone.
"""
# ruff: noqa: N803, N806 (what is known at compile time is in capitals)

import triton
import triton.language as tl

from invfast.kernels.lincomb import read, total

RUNTIME = ["chunks", "blocks"]
RIDGE = tl.constexpr(1e-10)
LIMIT = tl.constexpr(1e3)


@triton.jit
def gram(r0, r1, r2, r3, base, first, blocks, size, M: tl.constexpr, BLOCK: tl.constexpr):
    """<r_i, r_j> over `blocks` blocks of a sample: the upper triangle, column by column."""
    A: tl.constexpr = r0.dtype.element_ty
    lane = tl.arange(0, BLOCK)
    g00, g01, g11 = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    g02, g12, g22 = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    g03, g13, g23, g33 = tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], A), tl.zeros([BLOCK], A)
    for i in range(blocks):
        begin = (first + i) * BLOCK
        start, left = base + begin, size - begin
        x0, x1 = read(r0, start, left, lane, A), read(r1, start, left, lane, A)
        g00 = tl.fma(x0, x0, g00)
        g01 = tl.fma(x0, x1, g01)
        g11 = tl.fma(x1, x1, g11)
        if M > 2:
            x2 = read(r2, start, left, lane, A)
            g02 = tl.fma(x0, x2, g02)
            g12 = tl.fma(x1, x2, g12)
            g22 = tl.fma(x2, x2, g22)
        if M > 3:
            x3 = read(r3, start, left, lane, A)
            g03 = tl.fma(x0, x3, g03)
            g13 = tl.fma(x1, x3, g13)
            g23 = tl.fma(x2, x3, g23)
            g33 = tl.fma(x3, x3, g33)
    g = (tl.sum(g00, 0), tl.sum(g01, 0), tl.sum(g11, 0))
    if M > 2:
        g = g + (tl.sum(g02, 0), tl.sum(g12, 0), tl.sum(g22, 0))  # noqa: RUF005
    if M > 3:
        g = g + (tl.sum(g03, 0), tl.sum(g13, 0), tl.sum(g23, 0), tl.sum(g33, 0))  # noqa: RUF005
    return g


@triton.jit
def norm(g, j: tl.constexpr, M: tl.constexpr):
    """|r_j|; 1 for an absent column."""
    return tl.sqrt(g[j * (j + 3) // 2].to(tl.float64)) if j < M else tl.full([], 1.0, tl.float64)


@triton.jit
def inverse(s, j: tl.constexpr, M: tl.constexpr):
    """1 / |r_j|; 0 for an absent column, which takes it out of the sum."""
    return 1.0 / s[j] if j < M else tl.zeros([], tl.float64)


@triton.jit
def normal(g, s, i: tl.constexpr, j: tl.constexpr, M: tl.constexpr):
    """Element i <= j of the Gram matrix divided by its diagonal, with the ridge; of identity for absent columns."""
    ridge: tl.constexpr = RIDGE if i == j else 0.0
    a = tl.full([], 1.0 if i == j else 0.0, tl.float64)
    if j < M:
        a = g[j * (j + 1) // 2 + i].to(tl.float64) / (s[i] * s[j]) + ridge
    return a


@triton.jit
def less(a, factor, b):
    """a - factor * b, rounded once."""
    return tl.fma(-factor, b, a)


@triton.jit
def solve(g, M: tl.constexpr):
    """The weights of a Gram matrix: Gaussian elimination in the order of the columns, which a positive one allows."""
    s = (norm(g, 0, M), norm(g, 1, M), norm(g, 2, M), norm(g, 3, M))
    a00, a01, a02, a03 = normal(g, s, 0, 0, M), normal(g, s, 0, 1, M), normal(g, s, 0, 2, M), normal(g, s, 0, 3, M)
    a11, a12, a13 = normal(g, s, 1, 1, M), normal(g, s, 1, 2, M), normal(g, s, 1, 3, M)
    a22, a23, a33 = normal(g, s, 2, 2, M), normal(g, s, 2, 3, M), normal(g, s, 3, 3, M)
    b0, b1, b2, b3 = 1.0 / s[0], 1.0 / s[1], inverse(s, 2, M), inverse(s, 3, M)

    q1, q2, q3 = a01 / a00, a02 / a00, a03 / a00
    a11, a12, a13, b1 = less(a11, q1, a01), less(a12, q1, a02), less(a13, q1, a03), less(b1, q1, b0)
    a22, a23, b2 = less(a22, q2, a02), less(a23, q2, a03), less(b2, q2, b0)
    a33, b3 = less(a33, q3, a03), less(b3, q3, b0)
    q2, q3 = a12 / a11, a13 / a11
    a22, a23, b2 = less(a22, q2, a12), less(a23, q2, a13), less(b2, q2, b1)
    a33, b3 = less(a33, q3, a13), less(b3, q3, b1)
    q3 = a23 / a22
    a33, b3 = less(a33, q3, a23), less(b3, q3, b2)

    w3 = b3 / a33
    w2 = less(b2, a23, w3) / a22
    w1 = less(less(b1, a12, w2), a13, w3) / a11
    w0 = less(less(less(b0, a01, w1), a02, w2), a03, w3) / a00
    return guard(w0 / s[0], w1 / s[1], w2 / s[2], w3 / s[3], M)


@triton.jit
def guard(w0, w1, w2, w3, M: tl.constexpr):
    """The weights divided by their sum, or the latest value alone."""
    over = w0 + w1 + w2 + w3
    w0, w1, w2, w3 = w0 / over, w1 / over, w2 / over, w3 / over
    # One NaN or infinity fails the comparison too.
    safe = tl.abs(w0) + tl.abs(w1) + tl.abs(w2) + tl.abs(w3) <= LIMIT
    w0 = tl.where(safe, w0, 0.0)
    w1 = tl.where(safe, w1, 1.0 if M == 2 else 0.0)
    w2 = tl.where(safe, w2, 1.0 if M == 3 else 0.0)
    w3 = tl.where(safe, w3, 1.0 if M == 4 else 0.0)
    return w0, w1, w2, w3


@triton.jit
def add(mixed, pointer, weight, start, left, lane):
    """mixed + weight * f; a value with weight 0 is not read, and so cannot bring its NaN along."""
    w = weight.to(mixed.dtype)
    f = read(pointer, start, tl.where(w == 0, 0, left), lane, mixed.dtype)
    return tl.where(w == 0, mixed, tl.fma(f, w, mixed))


@triton.jit
def mix(f0, f1, f2, f3, out, w, base, first, blocks, size, M: tl.constexpr, BLOCK: tl.constexpr):
    """The latest value's product, then the older ones added, newest first."""
    A: tl.constexpr = out.dtype.element_ty
    lane = tl.arange(0, BLOCK)
    latest = f1 if M == 2 else (f2 if M == 3 else f3)
    for i in range(blocks):
        begin = (first + i) * BLOCK
        start, left = base + begin, size - begin
        mixed = read(latest, start, left, lane, A) * w[M - 1].to(A)
        if M > 3:
            mixed = add(mixed, f2, w[2], start, left, lane)
        if M > 2:
            mixed = add(mixed, f1, w[1], start, left, lane)
        mixed = add(mixed, f0, w[0], start, left, lane)
        tl.store(out + start + lane, mixed, mask=lane < left)


@triton.jit(do_not_specialize=RUNTIME)
def whole_kernel(
    f0, f1, f2, f3, r0, r1, r2, r3, out, size, blocks, M: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A small sample in one program: both passes."""
    base, first = tl.program_id(0).to(tl.int64) * size, tl.zeros([], tl.int64)
    w = solve(gram(r0, r1, r2, r3, base, first, blocks, size, M, BLOCK), M)
    mix(f0, f1, f2, f3, out, w, base, first, blocks, size, M, BLOCK)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=["partial"])
def gram_kernel(
    r0, r1, r2, r3, partial, size, chunks, blocks, M: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """First pass of a large sample, one chunk a program. partial: (B, M (M + 1) / 2, chunks), float64."""
    program = tl.program_id(0)
    sample, chunk = (program // chunks).to(tl.int64), (program % chunks).to(tl.int64)
    g = gram(r0, r1, r2, r3, sample * size, chunk * blocks, blocks, size, M, BLOCK)
    at = partial + sample * (M * (M + 1) // 2) * chunks + chunk
    for j in tl.static_range(M * (M + 1) // 2):
        tl.store(at + j * chunks, g[j])


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=["partial"])
def mix_kernel(
    f0, f1, f2, f3, partial, out, size, chunks, blocks, M: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Second pass of a large sample, one chunk a program; each solves for its sample again rather than wait for one."""
    program = tl.program_id(0)
    sample, chunk = (program // chunks).to(tl.int64), (program % chunks).to(tl.int64)
    at = sample * (M * (M + 1) // 2) * chunks
    g = (total(partial, at, chunks, CHUNKS),)
    for j in tl.static_range(1, M * (M + 1) // 2):
        g = g + (total(partial, at + j * chunks, chunks, CHUNKS),)  # noqa: RUF005
    mix(f0, f1, f2, f3, out, solve(g, M), sample * size, chunk * blocks, blocks, size, M, BLOCK)

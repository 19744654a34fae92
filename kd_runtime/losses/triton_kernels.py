"""The two Triton kernels of the pass over rows of logits; only :mod:`triton_rows` imports this, where Triton is.

A program takes ROWS rows (one on a GPU; the interpreter is faster with several) and COLUMNS columns at a time.
Temperature and soft-cap are compiled in: both have few values, and an argument would be rounded to float32.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def capped(z, SOFTCAP: tl.constexpr, ABSENT: tl.constexpr, LOWEST: tl.constexpr):
    """SOFTCAP tanh(z / SOFTCAP), and ABSENT where no logit is; SOFTCAP 0 is none.

    Near 0, where 1 - exp(-2x) cancels in float32, it is tanh's series, whose next term is below 3e-8 of it there.
    """
    if SOFTCAP == 0:
        u = z
    else:
        x = z / SOFTCAP
        shrunk = tl.exp(-2 * tl.abs(x))
        far = tl.where(x < 0, -1.0, 1.0) * (1 - shrunk) / (1 + shrunk)
        if x.dtype == tl.float64:
            tanh = far
        else:
            square = tl.where(tl.abs(x) < 0.3, x * x, 0.0)
            near = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
            tanh = tl.where(tl.abs(x) < 0.3, near, far)
        u = tl.where(z <= LOWEST, ABSENT, SOFTCAP * tanh)
    return u


@triton.jit
def read_rows(
    z,
    stride,
    rows,
    width,
    maximum,
    total,
    weighted,
    cool_total,
    cool_weighted,
    block_maxima,
    TEMPERATURE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WITH_MAXIMA: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ABSENT: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """Of each row of ``z``: maximum, sum of exp(u) and of exp(u) u with u = z - maximum, the same at the temperature,
    and the largest of every BLOCK columns before the soft-cap. Each column is read once: the sums are rescaled where
    the maximum grows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    base = z + row.to(tl.int64)[:, None] * stride
    m = tl.full([ROWS], LOWEST, COMPUTE)
    s = tl.zeros([ROWS], COMPUTE)
    w = tl.zeros([ROWS], COMPUTE)
    cool_s = tl.zeros([ROWS], COMPUTE)
    cool_w = tl.zeros([ROWS], COMPUTE)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = there[:, None] & (column < width)[None, :]
        raw = tl.load(base + column[None, :], mask=mask, other=ABSENT).to(COMPUTE)
        if WITH_MAXIMA:
            blocks = width // BLOCK
            block = start // BLOCK + tl.arange(0, COLUMNS // BLOCK)
            largest = tl.max(tl.reshape(raw, [ROWS, COLUMNS // BLOCK, BLOCK]), 2)
            at = block_maxima + row.to(tl.int64)[:, None] * blocks + block[None, :]
            tl.store(at, largest, mask=there[:, None] & (block < blocks)[None, :])
        u = capped(raw, SOFTCAP, ABSENT, LOWEST)
        grown = tl.maximum(m, tl.max(u, 1))
        shift = m - grown
        gap = u - grown[:, None]
        e = tl.exp(gap)
        scale = tl.exp(shift)
        w = scale * (w + shift * s) + tl.sum(e * gap, 1)
        s = scale * s + tl.sum(e, 1)
        if TEMPERATURE != 1:
            gap = gap / TEMPERATURE
            shift = shift / TEMPERATURE
            e = tl.exp(gap)
            scale = tl.exp(shift)
            cool_w = scale * (cool_w + shift * cool_s) + tl.sum(e * gap, 1)
            cool_s = scale * cool_s + tl.sum(e, 1)
        m = grown
    tl.store(maximum + row, m, mask=there)
    tl.store(total + row, s, mask=there)
    tl.store(weighted + row, w, mask=there)
    if TEMPERATURE != 1:
        tl.store(cool_total + row, cool_s, mask=there)
        tl.store(cool_weighted + row, cool_w, mask=there)


@triton.jit
def write_gradient(
    z,
    stride,
    rows,
    width,
    maximum,
    cool_row,
    plain_row,
    TEMPERATURE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ABSENT: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """Overwrite logits by the gradient outside the merged columns; what is absent becomes 0."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = row < rows
    mask = there[:, None] & (column < width)[None, :]
    at = z + row.to(tl.int64)[:, None] * stride + column[None, :]
    m = tl.load(maximum + row, mask=there, other=0.0)
    cool = tl.load(cool_row + row, mask=there, other=0.0)
    plain = tl.load(plain_row + row, mask=there, other=0.0)
    u = capped(tl.load(at, mask=mask, other=ABSENT).to(COMPUTE), SOFTCAP, ABSENT, LOWEST)
    gap = u - m[:, None]
    if TEMPERATURE == 1:
        gradient = (cool + plain)[:, None] * tl.exp(gap)
    else:
        gradient = plain[:, None] * tl.exp(gap) + cool[:, None] * tl.exp(gap / TEMPERATURE)
    if SOFTCAP != 0:
        share = u / SOFTCAP
        gradient = tl.where(u <= LOWEST, 0.0, gradient * (1 - share * share))
    tl.store(at, gradient.to(z.dtype.element_ty), mask=mask)

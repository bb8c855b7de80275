"""Patchwise attention on the GPU: gradients of gamma's two linears, in the notation of `patchwise_forward`.

Added up slice by slice from what the query pass of `patchwise_backward` leaves behind: h and the gradient of u.
"""

# Triton's functions take pointers and compile-time constants: there is no Python type for them.

import triton
import triton.language as tl
from triton.language import constexpr

from sanbench.ops.gpu.patchwise_backward import through_slice
from sanbench.ops.gpu.patchwise_forward import normalised, product, reflect, tiled, value_channels


@triton.jit
def batch_pixels(start, pixel_count, height, width, P: constexpr):
    """Place in the batch, image, row and column of P consecutive pixels, and which exist."""
    at = start + tl.arange(0, P).to(tl.int64)
    inside = at % (height * width)
    y = (inside // width).to(tl.int32)
    return at, at // (height * width), y, (inside - y * width).to(tl.int32), at < pixel_count


@triton.jit
def first_weights(
    query, key, scale, shift, weight, grad_u, grad_weight, grad_scale, grad_shift,
    pixel_count, step, height, width, stride_q, stride_k,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of one slice of W1, s1 and t1 over `step` pixels (program_id 1).

    program_id 0 is the slice, 0 the query's, program_id 2 which of its channels.

    query, key N x H x W x R, grad_u N x H x W x M; grad_weight splits x (1 + K) x R x M, grad_scale and grad_shift
    splits x (1 + K) x R, in float32, to be added up over the splits. Programs of the same pixels run side by side, so that
    DRAM gives each map once, and the L2 1 + K times.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = query.dtype.element_ty
    m, r = tl.arange(0, T.BM), tl.program_id(2) * T.BR + tl.arange(0, T.BR)
    slot, split = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = slot * T.narrow + r
    total = tl.zeros([T.BR, T.BM], tl.float32)
    to_scale, to_shift = tl.zeros([T.BR], tl.float32), tl.zeros([T.BR], tl.float32)
    for start in range(split * step, tl.minimum(split * step + step, pixel_count), T.pixels):
        at, image, y, x, here = batch_pixels(start, pixel_count, height, width, T.pixels)
        mine = here[:, None] & (r < T.narrow)
        if slot == 0:
            raw = tl.load(query + (at * stride_q)[:, None] + r, mine, 0.0)
        else:
            from_y = reflect(y + (slot - 1) // T.size - T.radius, height, T)
            from_x = reflect(x + (slot - 1) % T.size - T.radius, width, T)
            near = (image * height + from_y) * width + from_x
            raw = tl.load(key + (near * stride_k)[:, None] + r, mine, 0.0)
        to_u = tl.load(grad_u + (at * T.hidden)[:, None] + m, here[:, None] & (m < T.hidden), 0.0)
        positive = normalised(raw, scale, shift, channel, r < T.narrow)
        total = product(tl.trans(positive), to_u, total, DTYPE, T)
        to_x = through_slice(to_u, raw, scale, shift, weight, channel, r < T.narrow, DTYPE, T)
        to_scale += tl.sum(to_x * raw.to(tl.float32), 0)
        to_shift += tl.sum(to_x, 0)
    channel += split * (1 + T.neighbours) * T.narrow
    tl.store(grad_weight + channel[:, None] * T.hidden + m, total, (r < T.narrow)[:, None] & (m < T.hidden))
    tl.store(grad_scale + channel, to_scale, r < T.narrow)
    tl.store(grad_shift + channel, to_shift, r < T.narrow)


@triton.jit
def second_weights(
    value, h, grad, grad_weight, grad_bias, pixel_count, step, height, width, stride_v, stride_grad,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of W2 and bias over `step` pixels (program_id 1).

    program_id 0 is which `beside` neighbours of a row, program_id 2 which groups.

    value, grad N x H x W x C, h N x H x W x M; grad_weight splits x G K x M and grad_bias splits x G K, in float32. As
    `first_weights`; the L2 gives value K times and grad and h K / beside times.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = value.dtype.element_ty
    S: constexpr = T.beside * T.block
    m = tl.arange(0, T.BM)
    blocks: tl.constexpr = (T.size + T.beside - 1) // T.beside
    dy, split = tl.program_id(0) // blocks - T.radius, tl.program_id(1).to(tl.int64)
    dx = tl.program_id(0) % blocks * T.beside - T.radius
    first_group = tl.program_id(2) * T.block
    c, exists = value_channels(first_group, T)
    total, to_bias = tl.zeros([S, T.BM], tl.float32), tl.zeros([S], tl.float32)
    for start in range(split * step, tl.minimum(split * step + step, pixel_count), T.pixels):
        at, image, y, x, here = batch_pixels(start, pixel_count, height, width, T.pixels)
        to_y = tl.load(grad + (at * stride_grad)[:, None] + c, here[:, None] & exists, 0.0).to(tl.float32)
        row = (image * height + reflect(y + dy, height, T)) * width
        near = row[:, None] + reflect(x[:, None] + dx + tl.arange(0, T.beside), width, T)
        v = tl.load(value + (near * stride_v)[:, :, None] + c, here[:, None, None] & exists, 0.0).to(tl.float32)
        v = v.reshape(T.pixels, T.beside, T.BQ, T.block)
        to_w = tl.sum(to_y.reshape(T.pixels, 1, T.BQ, T.block) * v, 2).reshape(T.pixels, S)
        h_here = tl.load(h + (at * T.hidden)[:, None] + m, here[:, None] & (m < T.hidden), 0.0)
        total = product(tl.trans(to_w), h_here, total, DTYPE, T)
        to_bias += tl.sum(to_w, 0)
    n, g = tl.arange(0, S) // T.block, tl.arange(0, S) % T.block + first_group
    known = (dx + n <= T.radius) & (g < T.groups)
    channel = split * T.groups * T.neighbours + g * T.neighbours + (dy + T.radius) * T.size + dx + n + T.radius
    tl.store(grad_weight + channel[:, None] * T.hidden + m, total, known[:, None] & (m < T.hidden))
    tl.store(grad_bias + channel, to_bias, known)

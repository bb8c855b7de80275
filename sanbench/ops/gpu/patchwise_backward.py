"""Patchwise attention on the GPU: kernels of the backward pass, in the notation of `patchwise_forward`.

The query pass recomputes u and h, and keeps h and the gradient of u, M channels each where a value has 8 M; gradients of key
and value are gathered from there: a pixel j is neighbour k of the pixels that lie opposite to k around j and around its mirror
images beyond the borders. Gradients of W1 and W2 are in `patchwise_weights`.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from sanbench.ops.gpu.patchwise_forward import (
    hidden,
    normalised,
    pixels,
    product,
    reflect,
    second_normalised,
    tiled,
    value_channels,
    weights,
)


@triton.jit
def own_gradients(
    to_u, query, scale, shift, weight, grad_query, grad_u, first, at, here, height, width, stride_q, T: constexpr
):
    """Stores u's gradient and, through W1's slice of the query, phi's."""
    DTYPE: constexpr = query.dtype.element_ty
    m = tl.arange(0, T.BM)
    place = (first * height * width + at)[:, None]
    tl.store(grad_u + place * T.hidden + m, to_u.to(DTYPE), here[:, None] & (m < T.hidden))
    for part in range(0, T.narrow, T.BR):
        r = part + tl.arange(0, T.BR)
        mine = here[:, None] & (r < T.narrow)
        raw = tl.load(query + place * stride_q + r, mine, 0.0)
        to_x = through_slice(to_u, raw, scale, shift, weight, r, r < T.narrow, DTYPE, T)
        to_x *= tl.load(scale + r, r < T.narrow, 0.0).to(tl.float32)
        tl.store(grad_query + place * T.narrow + r, to_x.to(DTYPE), mine)


@triton.jit
def through_slice(to_u, raw, scale, shift, weight, channel, known, DTYPE: constexpr, T: constexpr):
    """The gradient before a slice's ReLU, P x len(channel)."""
    m = tl.arange(0, T.BM)
    w = tl.load(weight + channel * T.hidden + m[:, None], known & (m < T.hidden)[:, None], 0.0)
    to_x = product(to_u, w, tl.zeros([raw.shape[0], raw.shape[1]], tl.float32), DTYPE, T)
    return tl.where(normalised(raw, scale, shift, channel, known) > 0, to_x, 0.0)


@triton.jit
def query_backward(
    query, key, value, scale, shift, weight, scale2, shift2, second, grad, grad_query, h, grad_u, partial,
    images, height, width, stride_q, stride_k, stride_v, stride_grad,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of P pixels' own: of phi, of u, and this program's share of those of s2 and t2.

    As `attention_forward`; grad N x H x W x C is y's gradient, grad_query N x H x W x R, h and grad_u N x H x W x M: h and the
    gradient of u, for the gathering kernels; partial programs x 2 x M in float32. From DRAM query, key, value and grad once,
    three small maps (R + 2 M channels beside C = 8 M) written once.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = query.dtype.element_ty
    first, image, y, x, here = pixels(height, width, images, T)
    u = hidden(query, key, scale, shift, weight, first, image, y, x, here, height, width, stride_q, stride_k, T)
    argument = second_normalised(u, scale2, shift2, T)
    at = (image * height + y) * width + x
    value += first * height * width * stride_v
    grad += first * height * width * stride_grad
    m = tl.arange(0, T.BM)
    to_h = tl.zeros([T.pixels, T.BM], tl.float32)
    n, g = tl.arange(0, T.beside * T.block) // T.block, tl.arange(0, T.beside * T.block) % T.block
    for first_group in range(0, T.groups, T.block):
        c, exists = value_channels(first_group, T)
        to_y = tl.load(grad + (at * stride_grad)[:, None] + c, here[:, None] & exists, 0.0).to(tl.float32)
        to_y = to_y.reshape(T.pixels, 1, T.BQ, T.block)
        for dy in range(T.size):
            row = (image * height + reflect(y + dy - T.radius, height, T)) * width
            for block in range(tl.cdiv(T.size, T.beside)):
                dx = block * T.beside + tl.arange(0, T.beside)
                near = (row[:, None] + reflect(x[:, None] + dx - T.radius, width, T)) * stride_v
                used = (here[:, None] & (dx < T.size))[:, :, None] & exists
                v = tl.load(value + near[:, :, None] + c, used, 0.0).to(tl.float32)
                to_w = tl.sum(to_y * v.reshape(T.pixels, T.beside, T.BQ, T.block), 2)
                k, group = dy * T.size + block * T.beside + n, first_group + g
                known = (block * T.beside + n < T.size) & (group < T.groups)
                row_of = (group * T.neighbours + k) * T.hidden
                w = tl.load(second + row_of[:, None] + m, known[:, None] & (m < T.hidden), 0.0)
                to_h = product(to_w.reshape(T.pixels, T.beside * T.block), w, to_h, DTYPE, T)
    to_argument = tl.where((argument > 0) & here[:, None], to_h, 0.0)
    to_u = to_argument * tl.load(scale2 + m, m < T.hidden, 0.0).to(tl.float32)
    own_gradients(to_u, query, scale, shift, weight, grad_query, grad_u, first, at, here, height, width, stride_q, T)
    place = (first * height * width + at)[:, None] * T.hidden + m
    tl.store(h + place, tl.maximum(argument, 0.0).to(DTYPE), here[:, None] & (m < T.hidden))
    partial += tl.program_id(0) * 2 * T.hidden + m
    tl.store(partial, tl.sum(to_argument * u, 0), m < T.hidden)
    tl.store(partial + T.hidden, tl.sum(to_argument, 0), m < T.hidden)


@triton.jit
def reach(height, width, T: constexpr):
    """First and last row, first and last column that this program's pixels can have."""
    if T.rows == 0:
        return 0, height - 1, 0, width - 1
    else:
        across = tl.cdiv(width, T.columns)
        tile = tl.program_id(0) % (across * tl.cdiv(height, T.rows))
        top, left = tile // across * T.rows, tile % across * T.columns
        return top, tl.minimum(top + T.rows, height) - 1, left, tl.minimum(left + T.columns, width) - 1


@triton.jit
def copies(size, T: constexpr):
    """How many mirrored copies of a line of `size` pixels the footprint reaches on each side."""
    return tl.cdiv(T.radius, tl.maximum(size - 1, 1))


@triton.jit
def mirrored(position, copy, size):
    """Where pixel `position` of a line of `size` lies in its mirrored copy `copy`; copy 0 is the line itself."""
    return copy * tl.maximum(size - 1, 1) + tl.where((copy & 1) == 1, size - 1 - position, position)


@triton.jit
def span(low, high, copy, size):
    """The same of the first and the last pixel of a range, the smaller one first."""
    a, b = mirrored(low, copy, size), mirrored(high, copy, size)
    return tl.minimum(a, b), tl.maximum(a, b)


@triton.jit
def is_own(position, copy, size):
    """Whether the pixel is that copy's own: copies side by side share the pixel between them, the inner one has it."""
    edge = tl.where(((copy & 1) == 1) == (copy > 0), size - 1, 0)
    return (copy == 0) | (size == 1) | (position != edge)


@triton.jit
def key_backward(
    key, scale, shift, weight, grad_u, grad_key, images, height, width, stride_k,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of psi at P pixels, gathered: from each pixel that has one of them as neighbour k, in place or mirrored.

    program_id 1 is which of its channels.

    key N x H x W x R, grad_u N x H x W x M, grad_key N x H x W x R. Slice k passes on the same whatever the pixel, so that
    gradients of u are added up before they go through it. From DRAM each once while they fit in the L2.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = key.dtype.element_ty
    first, image, y, x, here = pixels(height, width, images, T)
    top, bottom, left, right = reach(height, width, T)
    m, r = tl.arange(0, T.BM), tl.program_id(1) * T.BR + tl.arange(0, T.BR)
    at = (image * height + y) * width + x
    mine = here[:, None] & (r < T.narrow)
    raw = tl.load(key + (first * height * width + at)[:, None] * stride_k + r, mine, 0.0)
    grad_u += first * height * width * T.hidden
    total = tl.zeros([T.pixels, T.BR], tl.float32)
    for dy in range(-T.radius, T.radius + 1):
        for dx in range(-T.radius, T.radius + 1):
            to_u = tl.zeros([T.pixels, T.BM], tl.float32)
            for down in range(-copies(height, T), copies(height, T) + 1):
                low, high = span(top, bottom, down, height)
                if (high >= dy) & (low - dy < height):
                    from_y = mirrored(y, down, height) - dy
                    some = here & is_own(y, down, height) & (from_y >= 0) & (from_y < height)
                    for across in range(-copies(width, T), copies(width, T) + 1):
                        low, high = span(left, right, across, width)
                        if (high >= dx) & (low - dx < width):
                            from_x = mirrored(x, across, width) - dx
                            exists = some & is_own(x, across, width) & (from_x >= 0) & (from_x < width)
                            near = ((image * height + from_y) * width + from_x) * T.hidden
                            there = tl.load(grad_u + near[:, None] + m, exists[:, None] & (m < T.hidden), 0.0)
                            to_u += there.to(tl.float32)
            k = (dy + T.radius) * T.size + dx + T.radius
            channel = (1 + k) * T.narrow + r
            to_x = through_slice(to_u, raw, scale, shift, weight, channel, r < T.narrow, DTYPE, T)
            total += to_x * tl.load(scale + channel, r < T.narrow, 0.0).to(tl.float32)
    tl.store(grad_key + (first * height * width + at)[:, None] * T.narrow + r, total.to(DTYPE), mine)


@triton.jit
def value_backward(
    h, second, bias, grad, grad_value, images, height, width, stride_grad,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of beta at P pixels, gathered as in `key_backward`: y's gradient times the weights, recomputed from h.

    h N x H x W x M, second G K x M, bias G K, grad and grad_value N x H x W x C. Only tiles at a border look into mirrored
    copies. From DRAM each once while they fit in the L2.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = h.dtype.element_ty
    first, image, y, x, here = pixels(height, width, images, T)
    top, bottom, left, right = reach(height, width, T)
    m = tl.arange(0, T.BM)
    at = (image * height + y) * width + x
    grad += first * height * width * stride_grad
    h += first * height * width * T.hidden
    for first_group in range(0, T.groups, T.block):
        g = first_group + tl.arange(0, T.block)
        c, known = value_channels(first_group, T)
        total = tl.zeros([T.pixels, T.BQ, T.block], tl.float32)
        for down in range(-copies(height, T), copies(height, T) + 1):
            low, high = span(top, bottom, down, height)
            for dy in range(tl.maximum(-T.radius, low - height + 1), tl.minimum(T.radius, high) + 1):
                from_y = mirrored(y, down, height) - dy
                some = here & is_own(y, down, height) & (from_y >= 0) & (from_y < height)
                for across in range(-copies(width, T), copies(width, T) + 1):
                    low, high = span(left, right, across, width)
                    for dx in range(tl.maximum(-T.radius, low - width + 1), tl.minimum(T.radius, high) + 1):
                        from_x = mirrored(x, across, width) - dx
                        exists = (some & is_own(x, across, width) & (from_x >= 0) & (from_x < width))[:, None]
                        near = (image * height + from_y) * width + from_x
                        h_there = tl.load(h + (near * T.hidden)[:, None] + m, exists & (m < T.hidden), 0.0)
                        k = (dy + T.radius) * T.size + dx + T.radius
                        w = weights(h_there, second, bias, k, g, T, DTYPE)
                        to_y = tl.load(grad + (near * stride_grad)[:, None] + c, exists & known, 0.0).to(tl.float32)
                        total += w[:, None, :] * to_y.reshape(T.pixels, T.BQ, T.block)
        place = (first * height * width + at)[:, None] * (T.share * T.groups) + c
        total = total.reshape(T.pixels, T.BQ * T.block).to(DTYPE)
        tl.store(grad_value + place, total, here[:, None] & known)


@triton.jit
def statistics_backward(
    query, key, scale, shift, weight, moments, grad, grad_query, grad_u,
    images, height, width, stride_q, stride_k,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients of u and phi at P pixels from those of the moments: moments and grad N x 2 x M in float32.

    query, key, grad_query N x H x W x R, grad_u N x H x W x M. From DRAM query and key once,
    grad_query and grad_u written once.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    first, image, y, x, here = pixels(height, width, images, T)
    u = hidden(query, key, scale, shift, weight, first, image, y, x, here, height, width, stride_q, stride_k, T)
    m = tl.arange(0, T.BM)
    row = (first + image)[:, None] * 2 * T.hidden + m
    known = here[:, None] & (m < T.hidden)
    mean = tl.load(moments + row, known, 0.0)
    to_mean, to_variance = tl.load(grad + row, known, 0.0), tl.load(grad + row + T.hidden, known, 0.0)
    to_u = (to_mean + 2.0 * (u - mean) * to_variance) / (height * width)
    at = (image * height + y) * width + x
    own_gradients(to_u, query, scale, shift, weight, grad_query, grad_u, first, at, here, height, width, stride_q, T)

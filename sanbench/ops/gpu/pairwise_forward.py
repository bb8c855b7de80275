"""Pairwise attention in Triton (relation "subtraction", gamma of two linears): kernels.

With the normalisations folded into A = s1 a + t1, B = s1 b and W1' = s2 W1, a pair (i, j) costs

    x = relu(A_i - B_j)        R channels, and E of positions
    z = relu(W1' x + t2)       M channels
    e = W2 z                   G channels, in units of log 2 (the bias cancels)

and pixel i: p = softmax_j(e), y_c = sum_j p_{c mod G} v_c. A program owns a tile of PIXELS pixels of one image and visits their
footprint CHUNK neighbours at a time; what it reads of neighbours comes through the cache, and no reduction over channels
that share a weight crosses threads: those S are a tuple of [PIXELS, G]. Names ending in B are block sizes: R, M and G up to
a power of two, 16 at least where a product sums over them.
Maps are given by a pointer and strides (image, channel, row, column), `first` is W1' without positions, M x R, `first_at`
its E columns of positions, E x M in float32, `second` is W2 log2(e), G x M. at_i and at_j are E x H x W in float32.
"""

import triton
import triton.language as tl

from sanbench.ops.gpu.blocks import channels_of, matrix, pixels, product, reflect, settled, vector


@triton.jit
def positions(at_i, at_j, scale, shift, i, j, plane, R: tl.constexpr, E: tl.constexpr):
    """relu(s1 (p_i - p_j) + t1), E times [pixels]."""
    found = ()
    for e in tl.static_range(E):
        offset = tl.load(at_i + e * plane + i) - tl.load(at_j + e * plane + j)
        found = found + (tl.maximum(tl.load(scale + R + e) * offset + tl.load(shift + R + e), 0.0),)
    return found


@triton.jit
def mapped(x, at, first, first_at, bias, m, E: tl.constexpr, M: tl.constexpr, MB: tl.constexpr, PRECISION: tl.constexpr,
           UPCAST: tl.constexpr):  # fmt: skip
    """W1' x + t2: [pixels, MB]."""
    start = tl.zeros([x.shape[0], MB], tl.float32) + bias[None, :]
    for e in tl.static_range(E):
        start += at[e][:, None] * vector(first_at + e * M, m, M, MB)[None, :]
    return product(x, tl.trans(first), start, PRECISION, UPCAST)


@triton.jit
def attention(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, out, out_n, out_c, out_y, out_x, grad, grad_n, grad_c, grad_y,
    grad_x, lse, delta, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr, SMALL: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, GB: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """out (N x C x H x W), or with BACKWARD what the backward starts from: lse = log2 sum_j 2^e and delta = sum_s grad * out,
    both N x H x W x G in float32.

    A program owns PIXELS pixels and GB groups with their S GB value channels; the softmax is online over CHUNKs. From DRAM
    query, value, out once and, while an image's rows fit in L2, key once: the fewest possible. Through L2 the halo of
    the tile: key and value (1 + (K - 1) / COLUMNS) (1 + (K - 1) COLUMNS / PIXELS) times, query once for each GB groups.
    """
    y, x, exists = pixels(tl.program_id(0), height, width, PIXELS, COLUMNS)
    image = tl.program_id(2).to(tl.int64)
    r, m, g = tl.arange(0, RB), tl.arange(0, MB), tl.program_id(1) * GB + tl.arange(0, GB)
    s1 = vector(scale, r, R, RB)
    a = channels_of(query + image * query_n + (y * query_y + x * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
    a = s1[None, :] * a + vector(shift, r, R, RB)[None, :]
    w1, w2 = matrix(first, m, r, M, R), matrix(second, g, m, G, M)
    t2 = vector(bias, m, M, MB)
    key += image * key_n
    value += image * value_n
    top = tl.full([PIXELS, GB], float("-inf"), tl.float32)
    total = tl.zeros([PIXELS, GB], tl.float32)
    sums = (tl.zeros([PIXELS, GB], tl.float32),) * S
    for step in range(K * K // CHUNK):
        yj = reflect(y + step * CHUNK // K - K // 2, height, SMALL)
        scores, values, highest = (), (), top
        for chunk in tl.static_range(CHUNK):
            xj = reflect(x + step * CHUNK % K + chunk - K // 2, width, SMALL)
            b = channels_of(key + (yj * key_y + xj * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, height * width, R, E)
            z = mapped(settled(tl.maximum(a - s1[None, :] * b, 0.0)), at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            start = tl.zeros([PIXELS, GB], tl.float32)
            scores = scores + (product(tl.maximum(z, 0.0), tl.trans(w2), start, PRECISION, UPCAST),)
            values = values + (yj * value_y + xj * value_x,)
            highest = tl.maximum(highest, scores[chunk])
        shrink = tl.exp2(top - highest)
        top = highest
        total *= shrink
        new = ()
        for s in tl.static_range(S):
            new = new + (sums[s] * shrink,)
        for chunk in tl.static_range(CHUNK):
            p = tl.exp2(scores[chunk] - top)
            total += p
            summed, new = new, ()
            for s in tl.static_range(S):
                at_v = value + values[chunk][:, None] + (s * G + g)[None, :] * value_c
                new = new + (summed[s] + p * channels_of(at_v, g, G, GB),)
        sums = new
    written = exists[:, None] & (g < G)[None, :]
    if BACKWARD:
        dots = tl.zeros([PIXELS, GB], tl.float32)
        for s in tl.static_range(S):
            at_g = grad + image * grad_n + (y * grad_y + x * grad_x)[:, None] + (s * G + g)[None, :] * grad_c
            dots += sums[s] * channels_of(at_g, g, G, GB)
        at = ((image * height + y) * width + x)[:, None] * G + g[None, :]
        tl.store(lse + at, top + tl.log2(total), mask=written)
        tl.store(delta + at, dots / total, mask=written)
    else:
        for s in tl.static_range(S):
            at_o = out + image * out_n + (y * out_y + x * out_x)[:, None] + (s * G + g)[None, :] * out_c
            tl.store(at_o, (sums[s] / total).to(out.dtype.element_ty), mask=written)


@triton.jit
def statistics(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, at_i, at_j, scale, shift, first, first_at, bias,
    parts, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, RB: tl.constexpr,
    MB: tl.constexpr, SMALL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts (N x slots x 3 x M): how many values of W1 x, their mean and the sum of their squared distances from it.

    A program owns every slots-th tile of an image. It sums distances from what it saw first, so that nothing cancels.
    Bytes as in `attention` without value: query once, key once from DRAM and with its halo through L2.
    """
    slot, slots, image = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    r, m = tl.arange(0, RB), tl.arange(0, MB)
    s1, t1, t2 = vector(scale, r, R, RB), vector(shift, r, R, RB), vector(bias, m, M, MB)
    w1 = matrix(first, m, r, M, R)
    query += image * query_n
    key += image * key_n
    centre, count = tl.zeros([MB], tl.float32), tl.zeros([], tl.float32)
    sums, squares = tl.zeros([MB], tl.float32), tl.zeros([MB], tl.float32)
    for tile in range(slot, tiles_of(height, width, PIXELS, COLUMNS), slots):
        y, x, exists = pixels(tile, height, width, PIXELS, COLUMNS)
        a = channels_of(query + (y * query_y + x * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
        a = s1[None, :] * a + t1[None, :]
        for k in range(K * K):
            yj = reflect(y + k // K - K // 2, height, SMALL)
            xj = reflect(x + k % K - K // 2, width, SMALL)
            b = channels_of(key + (yj * key_y + xj * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, height * width, R, E)
            h = mapped(settled(tl.maximum(a - s1[None, :] * b, 0.0)), at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            centre = tl.where((tile == slot) & (k == 0), tl.sum(h, 0) / PIXELS, centre)
            off = tl.where(exists[:, None], h - centre[None, :], 0.0)
            sums += tl.sum(off, 0)
            squares += tl.sum(off * off, 0)
        count += K * K * tl.sum(exists.to(tl.float32), 0)
    mean = sums / tl.maximum(count, 1.0)
    at = parts + (image * slots + slot) * 3 * M + m
    tl.store(at, tl.zeros([MB], tl.float32) + count, mask=m < M)
    tl.store(at + M, centre + mean, mask=m < M)
    tl.store(at + 2 * M, squares - sums * mean, mask=m < M)


@triton.jit
def tiles_of(height, width, PIXELS: tl.constexpr, COLUMNS: tl.constexpr):
    """How many tiles a map has."""
    if COLUMNS == 0:
        return tl.cdiv(height * width, PIXELS)
    else:
        return tl.cdiv(height, PIXELS // COLUMNS) * tl.cdiv(width, COLUMNS)

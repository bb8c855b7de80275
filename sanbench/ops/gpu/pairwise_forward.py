"""Pairwise attention in Triton (relation "subtraction", gamma of two linears): kernels.

With the normalisations folded into A = s1 a + t1, B = s1 b and W1' = s2 W1, a pair (i, j) costs

    x = relu(A_i - B_j)        R channels, and E of positions
    z = relu(W1' x + t2)       M channels
    e = W2 z                   G channels, in units of log 2 (the bias cancels)

and pixel i: p = softmax_j(e), y_c = sum_j p_{c mod G} v_c. A program owns a tile of PIXELS pixels of one image and visits their
neighbours one after the other; what it reads of them comes through the cache, and no reduction over channels
that share a weight crosses threads: those S are a tuple of [PIXELS, G]. Names ending in B are block sizes, powers of two, 16 at
least where a product sums over them.

Channels of R and M are tuples of RN and MN blocks. Where one block is all of them, W1' and W2 stay in shared memory. Where they
do not fit, a program reads them block by block for each neighbour: of the products' operands one block is needed at a time, and
the same 4 M (R + G) bytes come from the cache again, not from DRAM. A load that depends on k, if only in name, is one that the
compiler does not move out of the loop.
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
def block(n, SIZE: tl.constexpr):
    """Indices of block n."""
    return tl.arange(0, SIZE) + n * SIZE


@triton.jit
def again(k, size, STREAMED: tl.constexpr):
    """0. Where STREAMED the compiler cannot tell, so that it reads what lies there for each neighbour k and keeps no copy, and
    not the same for several `size`, each positive; a multiple of 16, so that vectors stay aligned."""
    return 16 * tl.where(size > 0, 0, k) if STREAMED else 0


@triton.jit
def scaled(pixel, step, scale, shift, R: tl.constexpr, RB: tl.constexpr, RN: tl.constexpr):
    """s1 x + t1 of the pixels whose channels begin at `pixel`, RN times [pixels, RB]; without `shift` s1 x."""
    found = ()
    for q in tl.static_range(RN):
        r = block(q, RB)
        x = vector(scale, r, R, RB)[None, :] * channels_of(pixel[:, None] + r[None, :] * step, r, R, RB)
        if shift is not None:
            x += vector(shift, r, R, RB)[None, :]
        found = found + (x,)
    return found


@triton.jit
def relations(a, b, RN: tl.constexpr):
    """relu(a - b), RN times [pixels, RB]."""
    found = ()
    for q in tl.static_range(RN):
        found = found + (settled(tl.maximum(a[q] - b[q], 0.0)),)
    return found


@triton.jit
def whole(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RB: tl.constexpr, CB: tl.constexpr):
    """A ROWS x COLUMNS matrix to keep where it is one block of RB x CB, else None."""
    if ROWS <= RB and COLUMNS <= CB:
        return matrix(pointer, tl.arange(0, RB), tl.arange(0, CB), ROWS, COLUMNS)
    else:
        return None


@triton.jit
def times(
    x, kept, pointer, n, q, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NB: tl.constexpr, QB: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """start + x w, or x w' if TRANSPOSED, of block (n, q) of a matrix: what was kept, or read for this use and in two halves of
    what is summed over, so that half as many registers hold operands."""
    if kept is None and x.shape[1] >= 32:
        x0, x1 = tl.split(x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute(0, 2, 1))
        if TRANSPOSED:
            w0 = tl.trans(matrix(pointer, block(n, NB), block(2 * q, QB // 2), ROWS, COLUMNS))
            w1 = tl.trans(matrix(pointer, block(n, NB), block(2 * q + 1, QB // 2), ROWS, COLUMNS))
        else:
            w0 = matrix(pointer, block(2 * n, NB // 2), block(q, QB), ROWS, COLUMNS)
            w1 = matrix(pointer, block(2 * n + 1, NB // 2), block(q, QB), ROWS, COLUMNS)
        return product(x1, w1, product(x0, w0, start, PRECISION, UPCAST), PRECISION, UPCAST)
    else:
        w = matrix(pointer, block(n, NB), block(q, QB), ROWS, COLUMNS) if kept is None else kept
        return product(x, tl.trans(w) if TRANSPOSED else w, start, PRECISION, UPCAST)


@triton.jit
def mapped(
    x, at, w1, first, first_at, bias, anew, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, RB: tl.constexpr,
    MB: tl.constexpr, RN: tl.constexpr, MN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """h = W1' x + t2: MN times [pixels, MB]."""
    h = ()
    for n in tl.static_range(MN):
        start = tl.zeros([x[0].shape[0], MB], tl.float32) + vector(bias + anew, block(n, MB), M, MB)[None, :]
        for e in tl.static_range(E):
            start += at[e][:, None] * vector(first_at + anew + e * M, block(n, MB), M, MB)[None, :]
        h = h + (start,)
    for q in tl.static_range(RN):  # outside: a block of x serves all of h before the next is an operand
        before, h = h, ()
        for n in tl.static_range(MN):
            h = h + (times(x[q], w1, first + anew, n, q, before[n], M, R, MB, RB, True, PRECISION, UPCAST),)
    return h


@triton.jit
def scores(h, w2, second, g, anew, M: tl.constexpr, G: tl.constexpr, MB: tl.constexpr, MN: tl.constexpr,
           PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """e = W2 relu(h): [pixels, groups g]."""
    e = tl.zeros([h[0].shape[0], g.shape[0]], tl.float32)
    for n in tl.static_range(MN):
        e = times(tl.maximum(h[n], 0.0), w2, second + anew, 0, n, e, G, M, g.shape[0], MB, True, PRECISION, UPCAST)
    return e


@triton.jit
def attention(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, out, out_n, out_c, out_y, out_x, grad, grad_n, grad_c, grad_y,
    grad_x, lse, delta, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, SMALL: tl.constexpr, BACKWARD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr, GB: tl.constexpr,
):  # fmt: skip
    """out (N x C x H x W), or with BACKWARD what the backward starts from: lse = log2 sum_j 2^e and delta = sum_s grad * out,
    both N x H x W x G in float32.

    A program owns PIXELS pixels and GB groups with their S GB value channels; the softmax is online over neighbours. From DRAM
    query, value, out once and, while an image's rows fit in L2, key once: the fewest possible. Through L2 the halo of
    the tile: key and value (1 + (K - 1) / COLUMNS) (1 + (K - 1) COLUMNS / PIXELS) times, query once for each GB groups.
    """
    y, x, exists = pixels(tl.program_id(0), height, width, PIXELS, COLUMNS)
    image = tl.program_id(2).to(tl.int64)
    RN: tl.constexpr = (R + RB - 1) // RB
    MN: tl.constexpr = (M + MB - 1) // MB
    g = tl.program_id(1) * GB + tl.arange(0, GB)
    STREAMED: tl.constexpr = RN * MN > 1
    a = scaled(query + image * query_n + y * query_y + x * query_x, query_c, scale, shift, R, RB, RN)
    w1 = whole(first, M, R, MB, RB)
    w2 = matrix(second, g, tl.arange(0, MB), G, M) if MN == 1 else None
    key += image * key_n
    value += image * value_n
    top = tl.full([PIXELS, GB], float("-inf"), tl.float32)
    total = tl.zeros([PIXELS, GB], tl.float32)
    sums = (tl.zeros([PIXELS, GB], tl.float32),) * S
    for k in range(K * K):
        anew = again(k, height, STREAMED)
        yj, xj = reflect(y + k // K - K // 2, height, SMALL), reflect(x + k % K - K // 2, width, SMALL)
        b = scaled(key + yj * key_y + xj * key_x, key_c, scale + anew, None, R, RB, RN)
        at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, height * width, R, E)
        h = mapped(relations(a, b, RN), at, w1, first, first_at, bias, anew, R, E, M, RB, MB, RN, MN, PRECISION, UPCAST)
        e = scores(h, w2, second, g, anew, M, G, MB, MN, PRECISION, UPCAST)
        highest = tl.maximum(top, e)
        shrink, p = tl.exp2(top - highest), tl.exp2(e - highest)
        top, total = highest, total * shrink + p
        new = ()
        for s in tl.static_range(S):
            at_v = value + (yj * value_y + xj * value_x)[:, None] + (s * G + g)[None, :] * value_c
            new = new + (sums[s] * shrink + p * channels_of(at_v, g, G, GB),)
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
    parts, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, SMALL: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, RB: tl.constexpr,
    MB: tl.constexpr,
):  # fmt: skip
    """parts (N x slots x 3 x M): how many values of W1 x, their mean and the sum of their squared distances from it.

    A program owns every slots-th tile of an image. It sums distances from what it saw first, so that nothing cancels.
    Bytes as in `attention` without value: query once, key once from DRAM and with its halo through L2.
    """
    RN: tl.constexpr = (R + RB - 1) // RB
    MN: tl.constexpr = (M + MB - 1) // MB
    slot, slots, image = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    STREAMED: tl.constexpr = RN * MN > 1
    w1 = whole(first, M, R, MB, RB)
    query += image * query_n
    key += image * key_n
    count = tl.zeros([], tl.float32)
    centres = (tl.zeros([MB], tl.float32),) * MN
    sums = (tl.zeros([MB], tl.float32),) * MN
    squares = (tl.zeros([MB], tl.float32),) * MN
    for tile in range(slot, tiles_of(height, width, PIXELS, COLUMNS), slots):
        y, x, exists = pixels(tile, height, width, PIXELS, COLUMNS)
        a = scaled(query + y * query_y + x * query_x, query_c, scale, shift, R, RB, RN)
        for k in range(K * K):
            yj, xj = reflect(y + k // K - K // 2, height, SMALL), reflect(x + k % K - K // 2, width, SMALL)
            anew = again(k, height, STREAMED)
            b = scaled(key + yj * key_y + xj * key_x, key_c, scale + anew, None, R, RB, RN)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, height * width, R, E)
            h = mapped(relations(a, b, RN), at, w1, first, first_at, bias, anew, R, E, M, RB, MB, RN, MN, PRECISION, UPCAST)
            new_centres, new_sums, new_squares = (), (), ()
            for n in tl.static_range(MN):
                centre = tl.where((tile == slot) & (k == 0), tl.sum(h[n], 0) / PIXELS, centres[n])
                off = tl.where(exists[:, None], h[n] - centre[None, :], 0.0)
                new_centres = new_centres + (centre,)
                new_sums = new_sums + (sums[n] + tl.sum(off, 0),)
                new_squares = new_squares + (squares[n] + tl.sum(off * off, 0),)
            centres, sums, squares = new_centres, new_sums, new_squares
        count += K * K * tl.sum(exists.to(tl.float32), 0)
    for n in tl.static_range(MN):
        m = block(n, MB)
        mean = sums[n] / tl.maximum(count, 1.0)
        at_part = parts + (image * slots + slot) * 3 * M + m
        tl.store(at_part, tl.zeros([MB], tl.float32) + count, mask=m < M)
        tl.store(at_part + M, centres[n] + mean, mask=m < M)
        tl.store(at_part + 2 * M, squares[n] - sums[n] * mean, mask=m < M)


@triton.jit
def tiles_of(height, width, PIXELS: tl.constexpr, COLUMNS: tl.constexpr):
    """How many tiles a map has."""
    if COLUMNS == 0:
        return tl.cdiv(height * width, PIXELS)
    else:
        return tl.cdiv(height, PIXELS // COLUMNS) * tl.cdiv(width, COLUMNS)

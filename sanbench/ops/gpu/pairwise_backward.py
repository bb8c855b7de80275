"""Pairwise attention in Triton: the kernels of the backward. Notation and blocks as in `sanbench.ops.gpu.pairwise_forward`.

Both recompute every pair: a query pass owns pixels i and gathers what belongs to them and to gamma, a key pass owns pixels j
and gathers over the i that see them, each pair as often as reflection makes it occur. Nothing is added atomically: gradients
of what all images share are one partial sum a program.

Registers decide how much of it one program does. With KEEP a tile's own S channels a weight stay in them; without, they are
read again for each neighbour, from the L1: 2 C bytes a pair in bfloat16, for C / 16 registers a thread (16 pixels, 8 warps). A
load that depends on k, if only in name, is one that the compiler does not move out of the loop.
"""

import triton
import triton.language as tl

from sanbench.ops.gpu.blocks import channels_of, matrix, pixels, product, reflect, settled, vector
from sanbench.ops.gpu.pairwise_forward import mapped, positions, tiles_of


@triton.jit
def widened(x, FROM: tl.constexpr, TO: tl.constexpr):
    """[pixels, FROM] -> [pixels, TO], zeros behind."""
    if FROM < TO:
        wide = tl.join(x, tl.zeros_like(x)).permute(0, 2, 1).reshape([x.shape[0], 2 * FROM])
        return widened(wide, 2 * FROM, TO)
    else:
        return x


@triton.jit
def matrices(first, second, r, m, R: tl.constexpr, M: tl.constexpr, G: tl.constexpr, GB: tl.constexpr, GW: tl.constexpr,
             STATISTICS: tl.constexpr):  # fmt: skip
    """W1', and W2 with groups up to GB and up to GW; STATISTICS: there is no W2, and W1' stands where nobody looks."""
    w1 = matrix(first, m, r, M, R)
    if STATISTICS:
        return w1, w1, w1
    else:
        return w1, matrix(second, tl.arange(0, GB), m, G, M), matrix(second, tl.arange(0, GW), m, G, M)


@triton.jit
def mapping_gradients(
    h, w2, w2_wide, lse, delta, dots, weight, moments, m, M: tl.constexpr, MB: tl.constexpr, GB: tl.constexpr,
    GW: tl.constexpr, STATISTICS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of h = W1' x + t2 and of e (in its own units), with z and p, all times a pair's weight."""
    if STATISTICS:
        slope = vector(moments + M, m, M, MB)[None, :] * (h - vector(moments + 2 * M, m, M, MB)[None, :])
        to_h = (vector(moments, m, M, MB)[None, :] + slope) * weight[:, None]
        return to_h, h, h, h
    else:
        z = tl.maximum(h, 0.0)
        e = product(z, tl.trans(w2), tl.zeros([h.shape[0], GB], tl.float32), PRECISION, UPCAST)
        p = tl.exp2(e - lse) * weight[:, None]
        to_e = p * (dots - delta) * 0.6931471805599453
        to_z = product(widened(to_e, GB, GW), w2_wide, tl.zeros([h.shape[0], MB], tl.float32), PRECISION, UPCAST)
        return tl.where(h > 0, to_z, 0.0), z, to_e, p


@triton.jit
def shared_channels(pointer, step, inside, G: tl.constexpr, S: tl.constexpr):
    """The S channels that share a weight, each [pixels, GB] in float32, from where the first lies; the next is G * step on."""
    found = ()
    for s in tl.static_range(S):
        found = found + (tl.load(pointer + s * G * step, mask=inside, other=0).to(tl.float32),)
    return found


@triton.jit
def summed_products(a, b, S: tl.constexpr):
    """sum_s a_s b_s, settled: eight channels of a neighbour would each change their layout on the way to a product, not one."""
    total = a[0] * b[0]
    for s in tl.static_range(1, S):
        total += a[s] * b[s]
    return settled(total)


@triton.jit
def query_pass(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, grad, grad_n, grad_c, grad_y, grad_x, lse, delta, moments,
    to_query, to_query_n, to_query_c, to_query_y, to_query_x, to_at, parts, images, height, width, R: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr,
    GB: tl.constexpr, GW: tl.constexpr, SMALL: tl.constexpr, STATISTICS: tl.constexpr, OWN: tl.constexpr, WEIGHTS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """With OWN to_query (as query), with WEIGHTS also to_at (N x E x H x W) and parts (programs x size): one after the other

        W1' M x R, W1' of positions E x M, t2 M    with FIRST
        W2 log2(e) G x M                           with SECOND, of attention only
        s1 R + E, t1 R + E                         with WEIGHTS, which goes with OWN

    A program owns every programs-th tile. lse and delta are N x H x W x G as `attention` leaves them; moments, for
    STATISTICS, is N x 3 x M: what a value's gradient is at the mean, its slope, and the mean. From DRAM query, grad, lse,
    delta and to_query once a pass, key and value once while they fit in L2: the fewest possible; parts are (programs / images)
    times gamma's size an image.
    """
    r, m, g, plane = tl.arange(0, RB), tl.arange(0, MB), tl.arange(0, GB), height * width
    s1, t1, t2 = vector(scale, r, R, RB), vector(shift, r, R, RB), vector(bias, m, M, MB)
    w1, w2, w2_wide = matrices(first, second, r, m, R, M, G, GB, GW, STATISTICS)
    if WEIGHTS:
        to_s1, to_t1 = tl.zeros([RB], tl.float32), tl.zeros([RB], tl.float32)
        to_s1_at = (tl.zeros([], tl.float32),) * E
        to_t1_at = (tl.zeros([], tl.float32),) * E
    if FIRST:
        to_w1 = tl.zeros([MB, RB], tl.float32)
        to_t2 = tl.zeros([PIXELS, MB], tl.float32)  # summed over pixels at the end
        to_first_at = (tl.zeros([PIXELS, MB], tl.float32),) * E
    if SECOND:
        to_w2 = tl.zeros([GB, MB], tl.float32)
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    for tile in range(tl.program_id(0), tiles * images, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
        valid = exists.to(tl.float32)
        raw = channels_of(query + image * query_n + (y * query_y + x * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
        a = s1[None, :] * raw + t1[None, :]
        to_a = tl.zeros([PIXELS, RB], tl.float32)
        to_a_at = (tl.zeros([PIXELS, MB], tl.float32),) * E  # before W1' of positions
        gradients, at_moments = (), moments
        if STATISTICS:
            at_moments += image * 3 * M
            at_lse, at_delta = a, a
        else:
            at_pixel = ((image * height + y) * width + x)[:, None] * G + g[None, :]
            at_lse, at_delta = channels_of(lse + at_pixel, g, G, GB), channels_of(delta + at_pixel, g, G, GB)
            at_grad = grad + image * grad_n + (y * grad_y + x * grad_x)[:, None] + g[None, :] * grad_c
            if KEEP:
                gradients = shared_channels(at_grad, grad_c, (g < G)[None, :], G, S)
        for k in range(K * K):
            yj, xj = reflect(y + k // K - K // 2, height, SMALL), reflect(x + k % K - K // 2, width, SMALL)
            b = channels_of(key + image * key_n + (yj * key_y + xj * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, plane, R, E)
            relation = settled(tl.maximum(a - s1[None, :] * b, 0.0))
            h = mapped(relation, at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            dots = at_lse
            if not STATISTICS:
                mine = gradients
                if not KEEP:
                    mine = shared_channels(at_grad, grad_c, (g < G)[None, :] & (k >= 0), G, S)
                at_v = value + image * value_n + (yj * value_y + xj * value_x)[:, None] + g[None, :] * value_c
                dots = summed_products(mine, shared_channels(at_v, value_c, (g < G)[None, :], G, S), S)
            to_h, z, to_e, p = mapping_gradients(
                h, w2, w2_wide, at_lse, at_delta, dots, valid, at_moments, m, M, MB, GB, GW, STATISTICS,
                PRECISION, UPCAST,
            )  # fmt: skip
            if OWN:
                to_x = product(to_h, w1, tl.zeros([PIXELS, RB], tl.float32), PRECISION, UPCAST)
                to_a += tl.where(relation > 0, to_x, 0.0)
            if WEIGHTS:
                summed_at = ()
                for e in tl.static_range(E):
                    summed_at = summed_at + (to_a_at[e] + tl.where((at[e] > 0)[:, None], to_h, 0.0),)
                to_a_at = summed_at
            if FIRST:
                to_t2 += to_h
                summed = ()
                for e in tl.static_range(E):
                    summed = summed + (to_first_at[e] + to_h * at[e][:, None],)
                to_first_at = summed
            if images > 0:  # always: a region of its own, or these products' warps would be laid as the ones above are
                if FIRST:
                    to_w1 = product(tl.trans(to_h), relation.to(w1.dtype), to_w1, PRECISION, UPCAST)
                if SECOND:
                    to_w2 = product(tl.trans(to_e), z.to(w1.dtype), to_w2, PRECISION, UPCAST)
        if OWN:
            at_q = to_query + image * to_query_n + (y * to_query_y + x * to_query_x)[:, None] + r[None, :] * to_query_c
            tl.store(at_q, (s1[None, :] * to_a).to(to_query.dtype.element_ty), mask=exists[:, None] & (r < R)[None, :])
        if WEIGHTS:
            to_a = tl.where(exists[:, None], to_a, 0.0)
            to_s1 += tl.sum(to_a * raw, 0)
            to_t1 += tl.sum(to_a, 0)
            scales, shifts = (), ()
            for e in tl.static_range(E):
                pixel = y * width + x
                to_u = tl.sum(to_a_at[e] * vector(first_at + e * M, m, M, MB)[None, :], 1)
                tl.store(to_at + (image * E + e) * plane + pixel, tl.load(scale + R + e) * to_u, mask=exists)
                scales = scales + (to_s1_at[e] + tl.sum(to_u * tl.load(at_i + e * plane + pixel), 0),)
                shifts = shifts + (to_t1_at[e] + tl.sum(to_u, 0),)
            to_s1_at, to_t1_at = scales, shifts
    SIZE: tl.constexpr = M * (R + E + 1) + (0 if STATISTICS else G * M) + 2 * (R + E)
    to = parts
    if parts is not None:
        to += tl.program_id(0).to(tl.int64) * SIZE
    if FIRST:
        tl.store(to + m[:, None] * R + r[None, :], to_w1, mask=(m < M)[:, None] & (r < R)[None, :])
        for e in tl.static_range(E):
            tl.store(to + (R + e) * M + m, tl.sum(to_first_at[e], 0), mask=m < M)
        tl.store(to + (R + E) * M + m, tl.sum(to_t2, 0), mask=m < M)
    if SECOND:
        to_second = to + (R + E + 1) * M + g[:, None] * M + m[None, :]
        tl.store(to_second, to_w2, mask=(g < G)[:, None] & (m < M)[None, :])
    if WEIGHTS:
        to += SIZE - 2 * (R + E)
        tl.store(to + r, to_s1, mask=r < R)
        tl.store(to + R + E + r, to_t1, mask=r < R)
        for e in tl.static_range(E):
            tl.store(to + R + e, to_s1_at[e])
            tl.store(to + R + E + R + e, to_t1_at[e])


@triton.jit
def key_pass(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, grad, grad_n, grad_c, grad_y, grad_x, lse, delta, moments,
    down, across, to_key, to_key_n, to_key_c, to_key_y, to_key_x, to_value, to_value_n, to_value_c, to_value_y, to_value_x,
    to_at, parts, images, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr, GB: tl.constexpr, GW: tl.constexpr, STATISTICS: tl.constexpr,
    WEIGHTS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """to_key (as key) and to_value (as value); with WEIGHTS also to_at (N x E x H x W) and parts (programs x (R + E): of s1).

    A program owns every programs-th tile. down (H x K) and across (W x K): how often j is a neighbour of the pixel at an
    offset. From DRAM key, value, to_key and to_value once, and query, grad, lse and delta once while they fit in L2: the
    fewest possible; through L2 these four come with the tile's halo.
    """
    r, m, g, plane = tl.arange(0, RB), tl.arange(0, MB), tl.arange(0, GB), height * width
    s1, t1, t2 = vector(scale, r, R, RB), vector(shift, r, R, RB), vector(bias, m, M, MB)
    w1, w2, w2_wide = matrices(first, second, r, m, R, M, G, GB, GW, STATISTICS)
    if WEIGHTS:
        to_s1 = tl.zeros([RB], tl.float32)
        to_s1_at = (tl.zeros([], tl.float32),) * E
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    for tile in range(tl.program_id(0), tiles * images, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
        raw = channels_of(key + image * key_n + (y * key_y + x * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
        to_b = tl.zeros([PIXELS, RB], tl.float32)
        to_b_at = (tl.zeros([PIXELS, MB], tl.float32),) * E  # before W1' of positions
        to_v, values, at_moments = (), (), moments
        if STATISTICS:
            at_moments += image * 3 * M
        else:
            to_v = (tl.zeros([PIXELS, GB], tl.float32),) * S
            at_value = value + image * value_n + (y * value_y + x * value_x)[:, None] + g[None, :] * value_c
            if KEEP:
                values = shared_channels(at_value, value_c, (g < G)[None, :], G, S)
        for k in range(K * K):
            often = tl.load(down + y * K + k // K) * tl.load(across + x * K + k % K)
            often = tl.where(exists, often, 0.0)
            yi = tl.minimum(tl.maximum(y + k // K - K // 2, 0), height - 1)
            xi = tl.minimum(tl.maximum(x + k % K - K // 2, 0), width - 1)
            a = channels_of(query + image * query_n + (yi * query_y + xi * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
            a = s1[None, :] * a + t1[None, :]
            at = positions(at_i, at_j, scale, shift, yi * width + xi, y * width + x, plane, R, E)
            relation = settled(tl.maximum(a - s1[None, :] * raw, 0.0))
            h = mapped(relation, at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            at_lse, at_delta, dots, gradients = raw, raw, raw, ()
            if not STATISTICS:
                at_pixel = ((image * height + yi) * width + xi)[:, None] * G + g[None, :]
                at_lse, at_delta = channels_of(lse + at_pixel, g, G, GB), channels_of(delta + at_pixel, g, G, GB)
                mine = values
                if not KEEP:
                    mine = shared_channels(at_value, value_c, (g < G)[None, :] & (k >= 0), G, S)
                at_g = grad + image * grad_n + (yi * grad_y + xi * grad_x)[:, None] + g[None, :] * grad_c
                gradients = shared_channels(at_g, grad_c, (g < G)[None, :], G, S)
                dots = summed_products(mine, gradients, S)
            to_h, z, to_e, p = mapping_gradients(
                h, w2, w2_wide, at_lse, at_delta, dots, often, at_moments, m, M, MB, GB, GW, STATISTICS,
                PRECISION, UPCAST,
            )  # fmt: skip
            if not STATISTICS:
                if not KEEP:
                    gradients = shared_channels(at_g, grad_c, (g < G)[None, :] & (often > 0)[:, None], G, S)
                summed = ()
                for s in tl.static_range(S):
                    summed = summed + (to_v[s] + p * gradients[s],)
                to_v = summed
            to_x = product(to_h, w1, tl.zeros([PIXELS, RB], tl.float32), PRECISION, UPCAST)
            to_b -= tl.where(relation > 0, to_x, 0.0)
            if WEIGHTS:
                summed_at = ()
                for e in tl.static_range(E):
                    summed_at = summed_at + (to_b_at[e] - tl.where((at[e] > 0)[:, None], to_h, 0.0),)
                to_b_at = summed_at
        at_k = to_key + image * to_key_n + (y * to_key_y + x * to_key_x)[:, None] + r[None, :] * to_key_c
        tl.store(at_k, (s1[None, :] * to_b).to(to_key.dtype.element_ty), mask=exists[:, None] & (r < R)[None, :])
        if not STATISTICS:
            for s in tl.static_range(S):
                at_v = to_value + image * to_value_n + (y * to_value_y + x * to_value_x)[:, None]
                at_v += (s * G + g)[None, :] * to_value_c
                tl.store(at_v, to_v[s].to(to_value.dtype.element_ty), mask=exists[:, None] & (g < G)[None, :])
        if WEIGHTS:
            to_s1 += tl.sum(to_b * raw, 0)
            scales = ()
            for e in tl.static_range(E):
                pixel = y * width + x
                to_u = tl.sum(to_b_at[e] * vector(first_at + e * M, m, M, MB)[None, :], 1)
                tl.store(to_at + (image * E + e) * plane + pixel, tl.load(scale + R + e) * to_u, mask=exists)
                scales = scales + (to_s1_at[e] + tl.sum(to_u * tl.load(at_j + e * plane + pixel), 0),)
            to_s1_at = scales
    if WEIGHTS:
        to = parts + tl.program_id(0) * (R + E)
        tl.store(to + r, to_s1, mask=r < R)
        for e in tl.static_range(E):
            tl.store(to + R + e, to_s1_at[e])

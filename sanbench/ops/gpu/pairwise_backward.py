"""Pairwise attention in Triton: the kernels of the backward. Notation and blocks as in `sanbench.ops.gpu.pairwise_forward`.

Both recompute every pair: a query pass owns pixels i and gathers what belongs to them and to gamma, a key pass owns pixels j
and gathers over the i that see them, each pair as often as reflection makes it occur. Nothing is added atomically: gradients
of what all images share are one partial sum a program.
"""

import triton
import triton.language as tl

from sanbench.ops.gpu.blocks import channels_of, matrix, pixels, product, reflect, vector
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
def query_pass(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, grad, grad_n, grad_c, grad_y, grad_x, lse, delta, moments,
    to_query, to_query_n, to_query_c, to_query_y, to_query_x, to_at, parts, images, height, width, R: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr,
    GB: tl.constexpr, GW: tl.constexpr, SMALL: tl.constexpr, STATISTICS: tl.constexpr, WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """to_query (as query); with WEIGHTS also to_at (N x E x H x W) and parts (programs x size), one after the other

        W1' M x R, W1' of positions E x M, t2 M, W2 log2(e) G x M (attention), s1 R + E, t1 R + E

    A program owns every programs-th tile. lse and delta are N x H x W x G as `attention` leaves them; moments, for
    STATISTICS, is N x 3 x M: what a value's gradient is at the mean, its slope, and the mean. From DRAM query, grad, lse,
    delta and to_query once, key and value once while they fit in L2: the fewest possible; parts are (programs / images)
    times gamma's size an image.
    """
    r, m, g = tl.arange(0, RB), tl.arange(0, MB), tl.arange(0, GB)
    s1, t1, t2 = vector(scale, r, R, RB), vector(shift, r, R, RB), vector(bias, m, M, MB)
    w1 = matrix(first, m, r, M, R)
    plane = height * width
    if STATISTICS:
        w2, w2_wide = w1, w1
    else:
        w2, w2_wide = matrix(second, g, m, G, M), matrix(second, tl.arange(0, GW), m, G, M)
    if WEIGHTS:
        to_w1 = tl.zeros([MB, RB], tl.float32)
        to_s1, to_t1 = tl.zeros([RB], tl.float32), tl.zeros([RB], tl.float32)
        to_t2 = tl.zeros([PIXELS, MB], tl.float32)  # summed over pixels at the end
        to_first_at = (tl.zeros([PIXELS, MB], tl.float32),) * E
        to_s1_at = (tl.zeros([], tl.float32),) * E
        to_t1_at = (tl.zeros([], tl.float32),) * E
        if not STATISTICS:
            to_w2 = tl.zeros([GB, MB], tl.float32)
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    for tile in range(tl.program_id(0), tiles * images, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
        valid = exists.to(tl.float32)
        raw = channels_of(query + image * query_n + (y * query_y + x * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
        a = s1[None, :] * raw + t1[None, :]
        to_a = tl.zeros([PIXELS, RB], tl.float32)
        to_a_at = (tl.zeros([PIXELS], tl.float32),) * E
        gradients = ()
        at_moments = moments
        if STATISTICS:
            at_moments += image * 3 * M
            at_lse, at_delta = a, a
        else:
            at_pixel = ((image * height + y) * width + x)[:, None] * G + g[None, :]
            at_lse, at_delta = channels_of(lse + at_pixel, g, G, GB), channels_of(delta + at_pixel, g, G, GB)
            for s in tl.static_range(S):
                at_g = grad + image * grad_n + (y * grad_y + x * grad_x)[:, None] + (s * G + g)[None, :] * grad_c
                gradients = gradients + (channels_of(at_g, g, G, GB),)
        for k in range(K * K):
            yj, xj = reflect(y + k // K - K // 2, height, SMALL), reflect(x + k % K - K // 2, width, SMALL)
            b = channels_of(key + image * key_n + (yj * key_y + xj * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, plane, R, E)
            relation = tl.maximum(a - s1[None, :] * b, 0.0)
            h = mapped(relation, at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            dots = at_lse
            if not STATISTICS:
                dots = tl.zeros([PIXELS, GB], tl.float32)
                for s in tl.static_range(S):
                    at_v = value + image * value_n + (yj * value_y + xj * value_x)[:, None] + (s * G + g)[None, :] * value_c
                    dots += gradients[s] * channels_of(at_v, g, G, GB)
            to_h, z, to_e, p = mapping_gradients(
                h, w2, w2_wide, at_lse, at_delta, dots, valid, at_moments, m, M, MB, GB, GW, STATISTICS,
                PRECISION, UPCAST,
            )  # fmt: skip
            to_x = product(to_h, w1, tl.zeros([PIXELS, RB], tl.float32), PRECISION, UPCAST)
            to_a += tl.where(relation > 0, to_x, 0.0)
            if WEIGHTS:
                to_t2 += to_h
                if images > 0:  # always: a region of its own, or these products' warps would be laid as the ones above are
                    to_w1 = product(tl.trans(to_h), relation.to(w1.dtype), to_w1, PRECISION, UPCAST)
                    if not STATISTICS:
                        to_w2 = product(tl.trans(to_e), z.to(w1.dtype), to_w2, PRECISION, UPCAST)
                summed, summed_at = (), ()
                for e in tl.static_range(E):
                    to_u = tl.sum(to_h * vector(first_at + e * M, m, M, MB)[None, :], 1)
                    summed = summed + (to_first_at[e] + to_h * at[e][:, None],)
                    summed_at = summed_at + (to_a_at[e] + tl.where(at[e] > 0, to_u, 0.0),)
                to_first_at, to_a_at = summed, summed_at
        at_q = to_query + image * to_query_n + (y * to_query_y + x * to_query_x)[:, None] + r[None, :] * to_query_c
        tl.store(at_q, (s1[None, :] * to_a).to(to_query.dtype.element_ty), mask=exists[:, None] & (r < R)[None, :])
        if WEIGHTS:
            to_a = tl.where(exists[:, None], to_a, 0.0)
            to_s1 += tl.sum(to_a * raw, 0)
            to_t1 += tl.sum(to_a, 0)
            scales, shifts = (), ()
            for e in tl.static_range(E):
                pixel = y * width + x
                tl.store(to_at + (image * E + e) * plane + pixel, tl.load(scale + R + e) * to_a_at[e], mask=exists)
                scales = scales + (to_s1_at[e] + tl.sum(to_a_at[e] * tl.load(at_i + e * plane + pixel), 0),)
                shifts = shifts + (to_t1_at[e] + tl.sum(to_a_at[e], 0),)
            to_s1_at, to_t1_at = scales, shifts
    if WEIGHTS:
        SIZE: tl.constexpr = M * (R + E + 1) + (0 if STATISTICS else G * M) + 2 * (R + E)
        to = parts + tl.program_id(0).to(tl.int64) * SIZE
        tl.store(to + m[:, None] * R + r[None, :], to_w1, mask=(m < M)[:, None] & (r < R)[None, :])
        to += M * R
        for e in tl.static_range(E):
            tl.store(to + e * M + m, tl.sum(to_first_at[e], 0), mask=m < M)
        to += E * M
        tl.store(to + m, tl.sum(to_t2, 0), mask=m < M)
        to += M
        if not STATISTICS:
            tl.store(to + g[:, None] * M + m[None, :], to_w2, mask=(g < G)[:, None] & (m < M)[None, :])
            to += G * M
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
):  # fmt: skip
    """to_key (as key) and to_value (as value); with WEIGHTS also to_at (N x E x H x W) and parts (programs x (R + E): of s1).

    A program owns every programs-th tile. down (H x K) and across (W x K): how often j is a neighbour of the pixel at an
    offset. From DRAM key, value, to_key and to_value once, and query, grad, lse and delta once while they fit in L2: the
    fewest possible; through L2 these four come with the tile's halo.
    """
    r, m, g = tl.arange(0, RB), tl.arange(0, MB), tl.arange(0, GB)
    s1, t1, t2 = vector(scale, r, R, RB), vector(shift, r, R, RB), vector(bias, m, M, MB)
    w1 = matrix(first, m, r, M, R)
    plane = height * width
    if STATISTICS:
        w2, w2_wide = w1, w1
    else:
        w2, w2_wide = matrix(second, g, m, G, M), matrix(second, tl.arange(0, GW), m, G, M)
    if WEIGHTS:
        to_s1 = tl.zeros([RB], tl.float32)
        to_s1_at = (tl.zeros([], tl.float32),) * E
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    for tile in range(tl.program_id(0), tiles * images, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
        raw = channels_of(key + image * key_n + (y * key_y + x * key_x)[:, None] + r[None, :] * key_c, r, R, RB)
        to_b = tl.zeros([PIXELS, RB], tl.float32)
        to_b_at = (tl.zeros([PIXELS], tl.float32),) * E
        values, to_v, at_moments = (), (), moments
        if STATISTICS:
            at_moments += image * 3 * M
        else:
            to_v = (tl.zeros([PIXELS, GB], tl.float32),) * S
            for s in tl.static_range(S):
                at_v = value + image * value_n + (y * value_y + x * value_x)[:, None] + (s * G + g)[None, :] * value_c
                values = values + (channels_of(at_v, g, G, GB),)
        for k in range(K * K):
            often = tl.load(down + y * K + k // K) * tl.load(across + x * K + k % K)
            often = tl.where(exists, often, 0.0)
            yi = tl.minimum(tl.maximum(y + k // K - K // 2, 0), height - 1)
            xi = tl.minimum(tl.maximum(x + k % K - K // 2, 0), width - 1)
            a = channels_of(query + image * query_n + (yi * query_y + xi * query_x)[:, None] + r[None, :] * query_c, r, R, RB)
            a = s1[None, :] * a + t1[None, :]
            at = positions(at_i, at_j, scale, shift, yi * width + xi, y * width + x, plane, R, E)
            relation = tl.maximum(a - s1[None, :] * raw, 0.0)
            h = mapped(relation, at, w1, first_at, t2, m, E, M, MB, PRECISION, UPCAST)
            at_lse, at_delta, dots, gradients = raw, raw, raw, ()
            if not STATISTICS:
                at_pixel = ((image * height + yi) * width + xi)[:, None] * G + g[None, :]
                at_lse, at_delta = channels_of(lse + at_pixel, g, G, GB), channels_of(delta + at_pixel, g, G, GB)
                dots = tl.zeros([PIXELS, GB], tl.float32)
                for s in tl.static_range(S):
                    at_g = grad + image * grad_n + (yi * grad_y + xi * grad_x)[:, None] + (s * G + g)[None, :] * grad_c
                    gradients = gradients + (channels_of(at_g, g, G, GB),)
                    dots += values[s] * gradients[s]
            to_h, z, to_e, p = mapping_gradients(
                h, w2, w2_wide, at_lse, at_delta, dots, often, at_moments, m, M, MB, GB, GW, STATISTICS,
                PRECISION, UPCAST,
            )  # fmt: skip
            if not STATISTICS:
                summed = ()
                for s in tl.static_range(S):
                    summed = summed + (to_v[s] + p * gradients[s],)
                to_v = summed
            to_x = product(to_h, w1, tl.zeros([PIXELS, RB], tl.float32), PRECISION, UPCAST)
            to_b -= tl.where(relation > 0, to_x, 0.0)
            if WEIGHTS:
                summed_at = ()
                for e in tl.static_range(E):
                    to_u = tl.sum(to_h * vector(first_at + e * M, m, M, MB)[None, :], 1)
                    summed_at = summed_at + (to_b_at[e] - tl.where(at[e] > 0, to_u, 0.0),)
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
                tl.store(to_at + (image * E + e) * plane + pixel, tl.load(scale + R + e) * to_b_at[e], mask=exists)
                scales = scales + (to_s1_at[e] + tl.sum(to_b_at[e] * tl.load(at_j + e * plane + pixel), 0),)
            to_s1_at = scales
    if WEIGHTS:
        to = parts + tl.program_id(0) * (R + E)
        tl.store(to + r, to_s1, mask=r < R)
        for e in tl.static_range(E):
            tl.store(to + R + e, to_s1_at[e])

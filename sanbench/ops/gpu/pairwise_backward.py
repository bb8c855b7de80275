"""Pairwise attention in Triton: the kernels of the backward. Notation and blocks as in `sanbench.ops.gpu.pairwise_forward`.

Both recompute every pair: a query pass owns pixels i and gathers what belongs to them and to gamma, a key pass owns pixels j
and gathers over the i that see them, each pair as often as reflection makes it occur. Nothing is added atomically: gradients
of what all images share are one partial sum a program. W1', W2 and the hidden layer are walked in blocks as there.

Registers decide how much of it one program does. With KEEP a tile's own S channels a weight stay in them; without, they are
read again for each neighbour, from the L1: 2 C bytes a pair in bfloat16, for C / 16 registers a thread (16 pixels, 8 warps).
"""

import triton
import triton.language as tl

from sanbench.ops.gpu.blocks import channels_of, pixels, product, reflect, settled, vector
from sanbench.ops.gpu.pairwise_forward import again, block, mapped, positions, relations, scaled, scores, tiles_of, times, whole


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
    h, w2, w2_wide, second, lse, delta, dots, weight, moments, anew, once_more, M: tl.constexpr, G: tl.constexpr,
    MB: tl.constexpr, MN: tl.constexpr, GB: tl.constexpr, GW: tl.constexpr, STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of h = W1' x + t2, by block, and of e (in its own units, of GW groups), with p, all times a pair's weight."""
    to_h = ()
    if STATISTICS:
        for n in tl.static_range(MN):
            at_mean = vector(moments + anew, block(n, MB), M, MB)[None, :]
            slope = vector(moments + anew + M, block(n, MB), M, MB)[None, :]
            mean = vector(moments + anew + 2 * M, block(n, MB), M, MB)[None, :]
            to_h = to_h + ((at_mean + slope * (h[n] - mean)) * weight[:, None],)
        return to_h, h[0], h[0]
    else:
        e = scores(h, w2, second, tl.arange(0, GB), anew, M, G, MB, MN, PRECISION, UPCAST)
        p = tl.exp2(e - lse) * weight[:, None]
        to_e = p * (dots - delta) * 0.6931471805599453
        wide = widened(to_e, GB, GW)
        for n in tl.static_range(MN):
            to_z = tl.zeros([wide.shape[0], MB], tl.float32)
            to_z = times(wide, w2_wide, second + once_more, 0, n, to_z, G, M, GW, MB, False, PRECISION, UPCAST)
            to_h = to_h + (tl.where(h[n] > 0, to_z, 0.0),)
        return to_h, wide, p


@triton.jit
def relation_gradients(
    before, to_h, relation, w1, first, once_more, sign: tl.constexpr, R: tl.constexpr, M: tl.constexpr, RB: tl.constexpr,
    MB: tl.constexpr, RN: tl.constexpr, MN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`before` and sign times the gradients of what `relation` is the relu of, by block."""
    to_x = (tl.zeros(relation[0].shape, tl.float32),) * RN
    for n in tl.static_range(MN):
        summed, to_x = to_x, ()
        for q in tl.static_range(RN):
            to_x = to_x + (times(to_h[n], w1, first + once_more, n, q, summed[q], M, R, MB, RB, False, PRECISION, UPCAST),)
    found = ()
    for q in tl.static_range(RN):
        found = found + (before[q] + sign * tl.where(relation[q] > 0, to_x[q], 0.0),)
    return found


@triton.jit
def position_sums(before, to_h, at, sign: tl.constexpr, E: tl.constexpr, MN: tl.constexpr):
    """`before` and sign times what a neighbour adds, by block and position, before W1' of positions reduces it."""
    found = ()
    for n in tl.static_range(MN):
        for e in tl.static_range(E):
            found = found + (before[n * E + e] + sign * tl.where((at[e] > 0)[:, None], to_h[n], 0.0),)
    return found


@triton.jit
def joined(blocks, COUNT: tl.constexpr):
    """One or two [pixels, size] side by side. Products over pixels then have COUNT size rows: where these are fewer than 16 a
    warp, warps repeat each other's."""
    if COUNT == 1:
        return blocks[0]
    else:
        both = tl.join(blocks[0], blocks[1])
        return both.permute(0, 2, 1).reshape([both.shape[0], 2 * both.shape[1]])


@triton.jit
def store_scaled(to, x, step, scale, exists, R: tl.constexpr, RB: tl.constexpr, RN: tl.constexpr):
    """Store s1 x, RN blocks, from where a pixel's channels begin."""
    for q in tl.static_range(RN):
        r = block(q, RB)
        inside = exists[:, None] & (r < R)[None, :]
        s1 = vector(scale, r, R, RB)[None, :]
        tl.store(to[:, None] + r[None, :] * step, (s1 * x[q]).to(to.dtype.element_ty), mask=inside)


@triton.jit
def store_delta(
    to, x, at, first_at, exists, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, RB: tl.constexpr, MB: tl.constexpr,
    RN: tl.constexpr, MN: tl.constexpr,
):  # fmt: skip
    """Store the gradient of what gamma's first relu takes: x, then what `position_sums` came to, times W1'."""
    for q in tl.static_range(RN):
        r = block(q, RB)
        tl.store(to[:, None] + r[None, :], x[q], mask=exists[:, None] & (r < R)[None, :])
    for e in tl.static_range(E):
        total = tl.zeros([x[0].shape[0]], tl.float32)
        for n in tl.static_range(MN):
            total += tl.sum(at[n * E + e] * vector(first_at + e * M, block(n, MB), M, MB)[None, :], 1)
        tl.store(to + R + e, total, mask=exists)


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
    to_query, to_query_n, to_query_c, to_query_y, to_query_x, to_delta, parts, images, height, width, R: tl.constexpr,
    E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, GB: tl.constexpr, GW: tl.constexpr,
    SMALL: tl.constexpr, STATISTICS: tl.constexpr, OWN: tl.constexpr, WEIGHTS: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    RB: tl.constexpr, MB: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Gradients. With OWN to_query (as query), with WEIGHTS, which goes with OWN, to_delta (N x H x W x (R + E) in float32) of
    s1 q + t1 and of positions alike; then parts (programs x size): one after the other

        W1' M x R                                with FIRST
        W1' of positions E x M, t2 M             with WEIGHTS
        W2 log2(e) G x M                         with SECOND, of attention only

    A program owns every programs-th tile. lse and delta are N x H x W x G as `attention` leaves them; moments, for
    STATISTICS, is N x 3 x M: what a value's gradient is at the mean, its slope, and the mean. From DRAM query, grad, lse,
    delta and to_query once a pass, key and value once while they fit in L2: the fewest possible; parts are (programs / images)
    times gamma's size an image.
    """
    RN: tl.constexpr = (R + RB - 1) // RB
    MN: tl.constexpr = (M + MB - 1) // MB
    g, plane = tl.arange(0, GB), height * width
    STREAMED: tl.constexpr = RN * MN > 1
    w1 = whole(first, M, R, MB, RB)
    w2 = whole(second, G, M, GB, MB) if not STATISTICS else None
    w2_wide = whole(second, G, M, GW, MB) if not STATISTICS else None
    REREAD: tl.constexpr = STREAMED and not (WEIGHTS and STATISTICS)  # kept, `a` would have others spilled
    if FIRST:
        to_w1 = (tl.zeros([MN * MB, RB], tl.float32),) * RN
    if WEIGHTS:
        to_t2 = (tl.zeros([PIXELS, MB], tl.float32),) * MN  # summed over pixels at the end
        to_first_at = (tl.zeros([PIXELS, MB], tl.float32),) * (MN * E)
    if SECOND:
        to_w2 = tl.zeros([MN * MB, GW], tl.float32)  # transposed
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    for tile in range(tl.program_id(0), tiles * images, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
        valid = exists.to(tl.float32)
        a = scaled(query + image * query_n + y * query_y + x * query_x, query_c, scale, shift, R, RB, RN)
        to_a = (tl.zeros([PIXELS, RB], tl.float32),) * RN
        to_a_at = (tl.zeros([PIXELS, MB], tl.float32),) * (MN * E)  # before W1' of positions
        gradients, at_moments = (), moments
        if STATISTICS:
            at_moments += image * 3 * M
        else:
            at_pixel = ((image * height + y) * width + x)[:, None] * G + g[None, :]
            at_grad = grad + image * grad_n + (y * grad_y + x * grad_x)[:, None] + g[None, :] * grad_c
            if KEEP:
                gradients = shared_channels(at_grad, grad_c, (g < G)[None, :], G, S)
        for k in range(K * K):
            anew, once_more = again(k, height, STREAMED), again(k, width, STREAMED)
            yj, xj = reflect(y + k // K - K // 2, height, SMALL), reflect(x + k % K - K // 2, width, SMALL)
            b = scaled(key + image * key_n + yj * key_y + xj * key_x, key_c, scale + anew, None, R, RB, RN)
            at = positions(at_i, at_j, scale, shift, y * width + x, yj * width + xj, plane, R, E)
            if REREAD:
                at_query = query + image * query_n + anew + (y * query_y + x * query_x)
                a = scaled(at_query, query_c, scale + anew, shift + anew, R, RB, RN)
            relation = relations(a, b, RN)
            h = mapped(relation, at, w1, first, first_at, bias, anew, R, E, M, RB, MB, RN, MN, PRECISION, UPCAST)
            at_lse, at_delta, dots = a[0], a[0], a[0]
            if not STATISTICS:
                at_lse, at_delta = channels_of(lse + anew + at_pixel, g, G, GB), channels_of(delta + anew + at_pixel, g, G, GB)
                mine = gradients
                if not KEEP:
                    mine = shared_channels(at_grad, grad_c, (g < G)[None, :] & (k >= 0), G, S)
                at_v = value + image * value_n + (yj * value_y + xj * value_x)[:, None] + g[None, :] * value_c
                dots = summed_products(mine, shared_channels(at_v, value_c, (g < G)[None, :], G, S), S)
            to_h, to_e, p = mapping_gradients(
                h, w2, w2_wide, second, at_lse, at_delta, dots, valid, at_moments, anew, once_more, M, G, MB, MN, GB, GW,
                STATISTICS, PRECISION, UPCAST,
            )  # fmt: skip
            if OWN:
                to_a = relation_gradients(
                    to_a, to_h, relation, w1, first, once_more, 1, R, M, RB, MB, RN, MN, PRECISION, UPCAST
                )
            if WEIGHTS:
                to_a_at = position_sums(to_a_at, to_h, at, 1, E, MN)
                new_t2, new_first_at = (), ()
                for n in tl.static_range(MN):
                    new_t2 = new_t2 + (to_t2[n] + to_h[n],)
                    for e in tl.static_range(E):
                        new_first_at = new_first_at + (to_first_at[n * E + e] + to_h[n] * at[e][:, None],)
                to_t2, to_first_at = new_t2, new_first_at
            if images > 0:  # always: a region of its own, or these products' warps would be laid as the ones above are
                dtype = first.dtype.element_ty
                if FIRST:
                    new_w1, left = (), tl.trans(joined(to_h, MN))
                    for q in tl.static_range(RN):
                        new_w1 = new_w1 + (product(left, relation[q].to(dtype), to_w1[q], PRECISION, UPCAST),)
                    to_w1 = new_w1
                if SECOND:
                    z = tl.maximum(joined(h, MN), 0.0)
                    to_w2 = product(tl.trans(z), to_e.to(dtype), to_w2, PRECISION, UPCAST)
        if OWN:
            at_to = to_query + image * to_query_n + y * to_query_y + x * to_query_x
            store_scaled(at_to, to_a, to_query_c, scale, exists, R, RB, RN)
        if WEIGHTS:
            at_delta = to_delta + ((image * height + y) * width + x) * (R + E)
            store_delta(at_delta, to_a, to_a_at, first_at, exists, R, E, M, RB, MB, RN, MN)
    SIZE: tl.constexpr = M * (R + E + 1) + (0 if STATISTICS else G * M)
    to = parts
    if parts is not None:
        to += tl.program_id(0).to(tl.int64) * SIZE
    every = tl.arange(0, MN * MB)
    if FIRST:
        row = R + tl.where(images > 0, 0, 1)  # R, but unknown: what stores of several entries need was spilled
        for q in tl.static_range(RN):
            r = block(q, RB)
            tl.store(to + every[:, None] * row + r[None, :], to_w1[q], mask=(every < M)[:, None] & (r < R)[None, :])
    if WEIGHTS:
        for n in tl.static_range(MN):
            m = block(n, MB)
            for e in tl.static_range(E):
                tl.store(to + (R + e) * M + m, tl.sum(to_first_at[n * E + e], 0), mask=m < M)
            tl.store(to + (R + E) * M + m, tl.sum(to_t2[n], 0), mask=m < M)
    if SECOND:
        wide = tl.arange(0, GW)
        to_second = to + (R + E + 1) * M + wide[None, :] * M + every[:, None]
        tl.store(to_second, to_w2, mask=(every < M)[:, None] & (wide < G)[None, :])


@triton.jit
def key_pass(
    query, query_n, query_c, query_y, query_x, key, key_n, key_c, key_y, key_x, value, value_n, value_c, value_y, value_x,
    at_i, at_j, scale, shift, first, first_at, bias, second, grad, grad_n, grad_c, grad_y, grad_x, lse, delta, moments,
    down, across, to_key, to_key_n, to_key_c, to_key_y, to_key_x, to_value, to_value_n, to_value_c, to_value_y, to_value_x,
    to_delta, height, width, R: tl.constexpr, E: tl.constexpr, M: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, GB: tl.constexpr, GW: tl.constexpr, STATISTICS: tl.constexpr, WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, RB: tl.constexpr,
    MB: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Gradients: to_key (as key), to_value (as value) and with WEIGHTS to_delta (N x H x W x (R + E) in float32) of s1 k.

    A program owns a tile. down (H x K) and across (W x K): how often j is a neighbour of the pixel at an
    offset. From DRAM key, value, to_key and to_value once, and query, grad, lse and delta once while they fit in L2: the
    fewest possible; through L2 these four come with the tile's halo.
    """
    RN: tl.constexpr = (R + RB - 1) // RB
    MN: tl.constexpr = (M + MB - 1) // MB
    g, plane = tl.arange(0, GB), height * width
    STREAMED: tl.constexpr = RN * MN > 1
    w1 = whole(first, M, R, MB, RB)
    w2 = whole(second, G, M, GB, MB) if not STATISTICS else None
    w2_wide = whole(second, G, M, GW, MB) if not STATISTICS else None
    tiles = tiles_of(height, width, PIXELS, COLUMNS)
    tile = tl.program_id(0)
    image = (tile // tiles).to(tl.int64)
    y, x, exists = pixels(tile % tiles, height, width, PIXELS, COLUMNS)
    to_b = (tl.zeros([PIXELS, RB], tl.float32),) * RN
    to_b_at = (tl.zeros([PIXELS, MB], tl.float32),) * (MN * E)  # before W1' of positions
    to_v, values, at_moments = (), (), moments
    if STATISTICS:
        at_moments += image * 3 * M
    else:
        to_v = (tl.zeros([PIXELS, GB], tl.float32),) * S
        at_value = value + image * value_n + (y * value_y + x * value_x)[:, None] + g[None, :] * value_c
        if KEEP:
            values = shared_channels(at_value, value_c, (g < G)[None, :], G, S)
    for k in range(K * K):
        anew, once_more = again(k, height, STREAMED), again(k, width, STREAMED)
        often = tl.load(down + (y * K + k // K)) * tl.load(across + (x * K + k % K))
        often = tl.where(exists, often, 0.0)
        yi = tl.minimum(tl.maximum(y + k // K - K // 2, 0), height - 1)
        xi = tl.minimum(tl.maximum(x + k % K - K // 2, 0), width - 1)
        a = scaled(query + image * query_n + yi * query_y + xi * query_x, query_c, scale + anew, shift + anew, R, RB, RN)
        at = positions(at_i, at_j, scale, shift, yi * width + xi, y * width + x, plane, R, E)
        b = scaled(key + image * key_n + anew + (y * key_y + x * key_x), key_c, scale + anew, None, R, RB, RN)
        relation = relations(a, b, RN)
        h = mapped(relation, at, w1, first, first_at, bias, anew, R, E, M, RB, MB, RN, MN, PRECISION, UPCAST)
        at_lse, at_delta, dots, gradients = b[0], b[0], b[0], ()
        if not STATISTICS:
            at_pixel = ((image * height + yi) * width + xi)[:, None] * G + g[None, :]
            at_lse, at_delta = channels_of(lse + at_pixel, g, G, GB), channels_of(delta + at_pixel, g, G, GB)
            mine = values
            if not KEEP:
                mine = shared_channels(at_value, value_c, (g < G)[None, :] & (k >= 0), G, S)
            at_g = grad + image * grad_n + (yi * grad_y + xi * grad_x)[:, None] + g[None, :] * grad_c
            gradients = shared_channels(at_g, grad_c, (g < G)[None, :], G, S)
            dots = summed_products(mine, gradients, S)
        to_h, to_e, p = mapping_gradients(
            h, w2, w2_wide, second, at_lse, at_delta, dots, often, at_moments, anew, once_more, M, G, MB, MN, GB, GW,
            STATISTICS, PRECISION, UPCAST,
        )  # fmt: skip
        if not STATISTICS:
            if not KEEP:
                gradients = shared_channels(at_g, grad_c, (g < G)[None, :] & (often > 0)[:, None], G, S)
            summed = ()
            for s in tl.static_range(S):
                summed = summed + (to_v[s] + p * gradients[s],)
            to_v = summed
        to_b = relation_gradients(to_b, to_h, relation, w1, first, once_more, -1, R, M, RB, MB, RN, MN, PRECISION, UPCAST)
        if WEIGHTS:
            to_b_at = position_sums(to_b_at, to_h, at, -1, E, MN)
    at_to = to_key + image * to_key_n + y * to_key_y + x * to_key_x
    store_scaled(at_to, to_b, to_key_c, scale, exists, R, RB, RN)
    if not STATISTICS:
        for s in tl.static_range(S):
            at_v = to_value + image * to_value_n + (y * to_value_y + x * to_value_x)[:, None]
            at_v += (s * G + g)[None, :] * to_value_c
            tl.store(at_v, to_v[s].to(to_value.dtype.element_ty), mask=exists[:, None] & (g < G)[None, :])
    if WEIGHTS:
        at_delta = to_delta + ((image * height + y) * width + x) * (R + E)
        store_delta(at_delta, to_b, to_b_at, first_at, exists, R, E, M, RB, MB, RN, MN)

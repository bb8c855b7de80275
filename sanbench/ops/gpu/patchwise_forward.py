"""Patchwise attention on the GPU: kernels of the forward pass (equations 4 and 5).

Relation "concatenation", gamma of two linears.

A pixel i has 1 + K slices of R channels: phi(x_i), then psi(x_j) for its K = footprint^2 neighbours. With gamma's tensors

    u_i = sum over slices of W1_slice relu(s1_slice * slice + t1_slice)             M channels
    h_i = relu(s2 * u_i + t2)
    y_i = sum_k (W2_k h_i + bias_k) * v_j(i, k)                                      channel c takes weight channel c mod G

Kernels read maps channels last: pixel p of the batch, counted row-major over N x H x W, starts at p * stride. W1 and its
normalisation come by slice: (1 + K) x R x M and (1 + K) x R. A program owns P pixels: `rows` x `columns` of one image or, with
`rows` 0, `columns` consecutive ones of the batch, so that maps of 7 x 7 waste nothing. Neighbours are loaded where they lie,
through the cache. Nothing is added to memory that another program writes: gradients of neighbours are gathered.
"""

from dataclasses import dataclass, replace

import triton
import triton.language as tl
from triton.language import constexpr


@dataclass(frozen=True)
class PatchwiseShapes:
    """Sizes that a kernel is compiled for, with the tile of a program. `precision` is tl.dot's, or "interpreter"."""

    narrow: int  # R
    hidden: int  # M
    groups: int  # G
    share: int  # Q = C / G
    size: int  # of the footprint
    repeated: bool  # a map as small as the footprint's radius: borders reflect more than once
    precision: str
    narrow_block: int  # channels of a slice in one dot, a power of two: operands in float32 want fewer
    rows: int = 0
    columns: int = 0
    block: int = 0  # weight channels a pass over the footprint: P * Q of each stay in registers

    def tiled(self, rows: int, columns: int, block: int) -> "PatchwiseShapes":
        return replace(self, rows=rows, columns=columns, block=block)

    @property
    def radius(self) -> int:
        return self.size // 2

    @property
    def neighbours(self) -> int:
        return self.size**2

    @property
    def pixels(self) -> int:
        return max(self.rows, 1) * self.columns

    @property
    def BR(self) -> int:
        return self.narrow_block

    @property
    def BM(self) -> int:  # M and Q in powers of two
        return max(16, triton.next_power_of_2(self.hidden))

    @property
    def BQ(self) -> int:
        return triton.next_power_of_2(self.share)

    @property
    def across(self) -> int:
        """Neighbours of a row that share a dot: the shortest is 16 long."""
        return max(1, 16 // self.BR)

    @property
    def beside(self) -> int:
        """The same where weight channels are summed over."""
        return max(1, 16 // self.block)


@triton.constexpr_function
def tiled(shapes, rows, columns, block):
    return shapes.tiled(rows, columns, block)


@triton.jit
def pixels(height, width, images, T: constexpr):
    """First image of this program, and for each of its P pixels the image (counted from there), row, column, and existence."""
    at = tl.arange(0, T.pixels)
    if T.rows == 0:
        start = tl.program_id(0).to(tl.int64) * T.columns
        first = start // (height * width)
        at += (start - first * (height * width)).to(tl.int32)
        image = at // (height * width)
        y = at // width - image * height
        return first, image, y, at % width, first + image < images
    else:
        across, down = tl.cdiv(width, T.columns), tl.cdiv(height, T.rows)
        tile = tl.program_id(0) % (across * down)
        first = (tl.program_id(0) // (across * down)).to(tl.int64)
        y = tile // across * T.rows + at // T.columns
        x = tile % across * T.columns + at % T.columns
        return first, tl.zeros_like(at), y, x, (y < height) & (x < width)


@triton.jit
def reflect(index, size, T: constexpr):
    """As `sanbench.ops.footprint.reflect`; once is enough where the radius is below `size`."""
    index = tl.abs(index)
    if T.repeated:
        period = tl.maximum(2 * size - 2, 1)
        index = index % period
        return tl.minimum(index, period - index) % size
    else:
        return tl.minimum(index, 2 * size - 2 - index)


@triton.jit
def product(a, b, acc, DTYPE: constexpr, T: constexpr):
    """acc + a b on the tensor cores, operands in DTYPE. The interpreter multiplies only float32 rightly."""
    if T.precision == "interpreter":
        return acc + tl.dot(a.to(DTYPE).to(tl.float32), b.to(DTYPE).to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(DTYPE), b.to(DTYPE), acc, input_precision=T.precision)


@triton.jit
def normalised(x, scale, shift, at, here):
    """relu(scale * x + shift) in float32; scale and shift lie along the last axis."""
    s = tl.load(scale + at, here, 0.0).to(tl.float32)
    t = tl.load(shift + at, here, 0.0).to(tl.float32)
    return tl.maximum(x.to(tl.float32) * s + t, 0.0)


@triton.jit
def value_channels(first_group, T: constexpr):
    """Channels q * G + g for g from `first_group` up, at [q * block + g], and which exist."""
    at = tl.arange(0, T.BQ * T.block)
    q, g = at // T.block, at % T.block + first_group
    here = (q < T.share) & (g < T.groups)
    return (at if T.block == T.groups else q * T.groups + g), here


@triton.jit
def hidden(query, key, scale, shift, weight, first, image, y, x, here, height, width, stride_q, stride_k, T: constexpr):
    """u of the program's pixels, P x BM in float32: one dot for each neighbour, or for `across` of a row."""
    DTYPE: constexpr = query.dtype.element_ty
    BR: constexpr = max(16, T.BR)
    m = tl.arange(0, T.BM)
    at = (image * height + y) * width + x
    query += first * height * width * stride_q
    key += first * height * width * stride_k
    u = tl.zeros([T.pixels, T.BM], tl.float32)
    for part in range(0, T.narrow, T.BR):
        r = part + tl.arange(0, BR)
        raw = tl.load(query + (at * stride_q)[:, None] + r, here[:, None] & (r < T.narrow), 0.0)
        w = tl.load(weight + r[:, None] * T.hidden + m, (r < T.narrow)[:, None] & (m < T.hidden), 0.0)
        u = product(normalised(raw, scale, shift, r, r < T.narrow), w, u, DTYPE, T)
    lane = tl.arange(0, T.across * T.BR)
    for dy in range(T.size):
        row = (image * height + reflect(y + dy - T.radius, height, T)) * width
        for block in range(tl.cdiv(T.size, T.across)):
            dx = block * T.across + lane // T.BR
            if T.across == 1:
                near = (row + reflect(x + block - T.radius, width, T))[:, None]
            else:
                near = row[:, None] + reflect(x[:, None] + dx - T.radius, width, T)
            for part in range(0, T.narrow, T.BR):
                r = part + lane % T.BR
                used = (r < T.narrow) & (dx < T.size)
                channel = (1 + dy * T.size + dx) * T.narrow + r
                raw = tl.load(key + near * stride_k + r, here[:, None] & used, 0.0)
                w = tl.load(weight + channel[:, None] * T.hidden + m, used[:, None] & (m < T.hidden), 0.0)
                u = product(normalised(raw, scale, shift, channel, used), w, u, DTYPE, T)
    return u


@triton.jit
def second_normalised(u, scale, shift, T: constexpr):
    """s2 * u + t2; channels beyond M become 0."""
    m = tl.arange(0, T.BM)
    return u * tl.load(scale + m, m < T.hidden, 0.0).to(tl.float32) + tl.load(shift + m, m < T.hidden, 0.0).to(tl.float32)


@triton.jit
def weights(h, second, bias, k, g, T: constexpr, DTYPE: constexpr):
    """W2_k h + bias_k for the weight channels g: P x len(g)."""
    m = tl.arange(0, T.BM)
    channel = g * T.neighbours + k
    w = tl.load(second + channel * T.hidden + m[:, None], (m < T.hidden)[:, None] & (g < T.groups), 0.0)
    b = tl.load(bias + channel, g < T.groups, 0.0).to(tl.float32)
    return product(h, w, tl.zeros([T.pixels, T.block], tl.float32) + b, DTYPE, T)


@triton.jit
def attention_forward(
    query, key, value, scale, shift, weight, scale2, shift2, second, bias, out,
    images, height, width, stride_q, stride_k, stride_v, stride_out,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """y of P pixels, all C channels.

    query, key N x H x W x R; value, out N x H x W x C; scale, shift (1 + K) x R; weight (1 + K) x R x M; scale2, shift2 M;
    second G K x M; bias G K. From DRAM each input once and each output once, the fewest possible, while the batch's key and
    value stay in the L2; from L2 to an SM the tile and its halo, (rows + 2r)(columns + 2r) / rows columns times key and value,
    and the weights once a program.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    DTYPE: constexpr = query.dtype.element_ty
    first, image, y, x, here = pixels(height, width, images, T)
    u = hidden(query, key, scale, shift, weight, first, image, y, x, here, height, width, stride_q, stride_k, T)
    h = tl.maximum(second_normalised(u, scale2, shift2, T), 0.0).to(DTYPE)
    value += first * height * width * stride_v
    out += first * height * width * stride_out
    for first_group in range(0, T.groups, T.block):
        g = first_group + tl.arange(0, T.block)
        c, exists = value_channels(first_group, T)
        total = tl.zeros([T.pixels, T.BQ, T.block], tl.float32)
        for dy in range(T.size):
            row = (image * height + reflect(y + dy - T.radius, height, T)) * width
            for dx in range(T.size):
                near = row + reflect(x + dx - T.radius, width, T)
                v = tl.load(value + (near * stride_v)[:, None] + c, here[:, None] & exists, 0.0).to(tl.float32)
                w = weights(h, second, bias, dy * T.size + dx, g, T, DTYPE)
                total += w[:, None, :] * v.reshape(T.pixels, T.BQ, T.block)
        at = (image * height + y) * width + x
        total = total.reshape(T.pixels, T.BQ * T.block).to(DTYPE)
        tl.store(out + (at * stride_out)[:, None] + c, total, here[:, None] & exists)


@triton.jit
def statistics_forward(
    query, key, scale, shift, weight, moments, images, height, width, stride_q, stride_k,
    SHAPES: constexpr, ROWS: constexpr, COLUMNS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Mean of u and sum of its squared deviations from it over P pixels of one image: moments is programs x 2 x M, float32.

    query, key N x H x W x R; a program's pixels are of one image, so that an image's moments come from its programs' own
    (`pooled`). From DRAM query and key once.
    """
    T: constexpr = tiled(SHAPES, ROWS, COLUMNS, BLOCK)
    first, image, y, x, here = pixels(height, width, images, T)
    u = hidden(query, key, scale, shift, weight, first, image, y, x, here, height, width, stride_q, stride_k, T)
    m = tl.arange(0, T.BM)
    count = tl.sum(here.to(tl.float32), 0)
    mean = tl.sum(tl.where(here[:, None], u, 0.0), 0) / count
    off = tl.where(here[:, None], u - mean, 0.0)
    moments += tl.program_id(0) * 2 * T.hidden + m
    tl.store(moments, mean, m < T.hidden)
    tl.store(moments + T.hidden, tl.sum(off * off, 0), m < T.hidden)

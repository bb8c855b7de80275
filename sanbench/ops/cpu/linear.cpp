// 1 x 1 convolutions as matrix products, with what surrounds them: forward
//     out = W relu(scale x + shift) + bias + residual
// and backward
//     grad_x = scale (W^T grad) where scale x + shift > 0, or W^T grad
//     grad_W = grad relu(scale x + shift)^T
// over dense channels-last maps, which are matrices pixels x channels. W comes in parts, rows below rows.
//
// A tile of out, TILE_ROWS pixels x TILE_COLUMNS channels, stays in registers while DEPTH products are added to it.
#include "tile.h"

constexpr int PARTS = 3;  // of W at most

struct Linear {
    int64_t pixels, inputs, outputs, parts;
    int threads;
    const float *x, *scale, *shift;
    const float *residual, *grad;        // pixels x outputs; residual may be missing
    float* out;                          // pixels x outputs, backward pixels x inputs, of the weights outputs x inputs
    int64_t size[PARTS];                       // rows of each part of W
    const float *weight[PARTS], *bias[PARTS];  // size x inputs, size
};
MIRRORED(Linear, bias)

namespace {

constexpr int TILE_ROWS = LANES == 16 ? 14 : 6, TILE_COLUMNS = 2 * LANES;  // with 32 registers, with 16
constexpr int DEPTH = 256, PITCH = DEPTH + 16;
constexpr int64_t BLOCK = 392, PANELS = 8;  // rows and panels of a task at most: DEPTH of both stay in the second-level cache

struct Product {  // out (rows x columns) = left (rows x inner) * right + bias + residual
    const int64_t rows, inner, columns;
    float* const out;
    std::vector<const float*> weight;  // rows of W
    Buffer bias;                       // padded to whole panels
    const float *left, *scale = nullptr, *shift = nullptr;  // left is taken as relu(scale left + shift), where there is a scale
    bool turned = false;                                    // left is inner x rows
    const float *residual = nullptr, *masked = nullptr, *by, *and_shift;  // the result times `by` where by * masked + and_shift > 0

    Product(const Linear& l, int64_t rows, int64_t inner, int64_t columns)
        : rows(rows), inner(inner), columns(columns), out(l.out), bias(padded(columns, TILE_COLUMNS)) {
        for (int64_t k = 0; k < l.parts; ++k) {
            if (l.bias[k]) std::copy_n(l.bias[k], l.size[k], bias.get() + weight.size());
            for (int64_t r = 0; r < l.size[k]; ++r) weight.push_back(l.weight[k] + r * l.inputs);
        }
    }
};

// to (length x count, pitch apart) = the columns from `first` of up to LANES rows
template <class F>
void fill_turned(float* to, int64_t pitch, F&& row, int64_t count, int64_t first, int64_t length) {
    for (int64_t k = 0; k < length; k += LANES, to += LANES * pitch) {
        const int64_t n = std::min<int64_t>(LANES, length - k);
        V x[LANES];
        for (int i = 0; i < LANES; ++i) x[i] = i < count ? part(row(i) + first + k, n) : V{};
        transpose(x);
        for (int64_t j = 0; j < n; ++j) store(to + j * pitch, x[j]);
    }
}

// to = relu(scale from + shift), or `from` itself
void fill_row(float* to, const float* from, int64_t n, const float* scale, const float* shift) {
    if (!scale) return (void)memcpy(to, from, 4 * n);
    for (int64_t k = 0, size; k < n; k += LANES) {
        size = std::min<int64_t>(LANES, n - k);
        put(to + k, relu(part(scale + k, size) * part(from + k, size) + part(shift + k, size)), size);
    }
}

// DEPTH columns from `first` of a block of rows of the left side, PITCH apart.
void fill_left(const Product& p, float* to, int64_t row, int64_t rows, int64_t first, int64_t depth) {
    for (int64_t k = 0; p.turned && k < depth; k += LANES)
        fill_turned(to + k, PITCH, [&](int i) { return p.left + (first + k + i) * p.rows; }, std::min<int64_t>(LANES, depth - k), row, rows);
    for (int64_t r = 0; !p.turned && r < rows; ++r)
        fill_row(to + r * PITCH, p.left + (row + r) * p.inner + first, depth, p.scale ? p.scale + first : nullptr, p.shift + first);
}

// Adds left (TILE_ROWS x depth, PITCH apart) * right (depth x TILE_COLUMNS) to the tile of out at (row, column), which the first
// call begins and the last one ends. A tile that is not WHOLE crosses the border of out.
template <bool WHOLE>
void tile(const Product& p, const float* left, const float* right, int64_t depth, bool is_first, bool is_last, int64_t row, int64_t column) {
    float* out = p.out + row * p.columns + column;
    const int64_t rows = WHOLE ? TILE_ROWS : std::min<int64_t>(TILE_ROWS, p.rows - row);
    int64_t size[2] = {LANES, LANES};
    for (int h = 0; h < 2 && !WHOLE; ++h) size[h] = std::clamp<int64_t>(p.columns - column - h * LANES, 0, LANES);
    V sum[TILE_ROWS][2];
    auto each = [&](auto&& f) {  // f(vector of the tile, its place, how many of it are of out, which of a row's two it is)
        UNROLLED(i, TILE_ROWS) UNROLLED(h, 2)
            if (WHOLE || i < rows) f(sum[i][h], i * p.columns + h * LANES, size[h], h);
    };
    const float* bias = p.bias.get() + column;
    UNROLLED(i, TILE_ROWS) UNROLLED(h, 2) sum[i][h] = is_first ? *(const V*)(bias + h * LANES) : V{};
    if (!is_first) each([&](V& x, int64_t at, int64_t n, int) { x = part(out + at, n); });
    for (int64_t k = 0; k < depth; ++k, right += TILE_COLUMNS) {
        const V one = *(const V*)right, other = *(const V*)(right + LANES);
        UNROLLED(i, TILE_ROWS) sum[i][0] += left[i * PITCH + k] * one, sum[i][1] += left[i * PITCH + k] * other;
    }
    if (is_last && p.residual) each([&](V& x, int64_t at, int64_t n, int) { x += part(p.residual + (out - p.out) + at, n); });
    if (is_last && p.masked)
        each([&](V& x, int64_t at, int64_t n, int h) {
            const V by = part(p.by + column + h * LANES, n), masked = part(p.masked + (out - p.out) + at, n);
            x = by * masked + part(p.and_shift + column + h * LANES, n) > 0 ? x * by : V{};
        });
    each([&](V& x, int64_t at, int64_t n, int) { put(out + at, x, n); });
}

// right(to, first row, rows, first column, columns) gives a part of the right side as a panel, TILE_COLUMNS apart.
template <class F>
void multiply(const Product& p, int threads, F&& right) {
    const int64_t blocks = (p.rows + BLOCK - 1) / BLOCK, panels = (p.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int64_t block = padded((p.rows + blocks - 1) / blocks, TILE_ROWS);
    const int64_t strips = std::min(panels, std::max((8 + blocks - 1) / blocks, (panels + PANELS - 1) / PANELS));
    const int tasks = (int)(blocks * strips);
    parallel(tasks, threads, [&](auto& next, int) {
        const Buffer rows_of_left(block * PITCH), panels_of_right(PANELS * DEPTH * TILE_COLUMNS);
        int64_t held = -1;  // the strip whose one part of the right side is there already
        for (int task; (task = next()) >= 0;) {
            const int64_t strip = task / blocks, first = task % blocks * block, rows = std::min(block, p.rows - first);
            const int64_t begin = panels * strip / strips, end = panels * (strip + 1) / strips;
            for (int64_t k = 0; k < p.inner; k += DEPTH) {
                const int64_t depth = std::min<int64_t>(DEPTH, p.inner - k);
                auto panel = [&](int64_t n) { return panels_of_right.get() + (n - begin) * depth * TILE_COLUMNS; };
                if (held != strip)
                    for (int64_t n = begin; n < end; ++n)
                        right(panel(n), k, depth, n * TILE_COLUMNS, std::min<int64_t>(TILE_COLUMNS, p.columns - n * TILE_COLUMNS));
                held = depth == p.inner ? strip : -1;
                fill_left(p, rows_of_left.get(), first, rows, k, depth);
                for (int64_t r = 0; r < rows; r += TILE_ROWS)  // then columns: out is written row by row
                    for (int64_t n = begin; n < end; ++n) {
                        const bool whole = r + TILE_ROWS <= rows && (n + 1) * TILE_COLUMNS <= p.columns;
                        (whole ? tile<true> : tile<false>)(p, rows_of_left.get() + r * PITCH, panel(n), depth, k == 0,
                                                           k + depth == p.inner, first + r, n * TILE_COLUMNS);
                    }
            }
        }
    });
}

}  // namespace

extern "C" void normalised_linear(const Linear* l) {
    Product p(*l, l->pixels, l->inputs, l->outputs);
    p.left = l->x, p.scale = l->scale, p.shift = l->shift, p.residual = l->residual;
    multiply(p, l->threads, [&](float* to, int64_t k, int64_t depth, int64_t first, int64_t columns) {
        for (int64_t c = 0; c < columns; c += LANES)
            fill_turned(to + c, TILE_COLUMNS, [&](int i) { return p.weight[first + c + i]; }, std::min<int64_t>(LANES, columns - c), k, depth);
    });
}

extern "C" void normalised_linear_backward(const Linear* l) {
    Product p(*l, l->pixels, l->outputs, l->inputs);
    p.left = l->grad, p.masked = l->scale ? l->x : nullptr, p.by = l->scale, p.and_shift = l->shift;
    multiply(p, l->threads, [&](float* to, int64_t k, int64_t depth, int64_t first, int64_t columns) {
        for (int64_t r = 0; r < depth; ++r) std::copy_n(p.weight[k + r] + first, columns, to + r * TILE_COLUMNS);
    });
}

extern "C" void normalised_linear_weights(const Linear* l) {
    Product p(*l, l->outputs, l->pixels, l->inputs);
    p.left = l->grad, p.turned = true;
    multiply(p, l->threads, [&](float* to, int64_t k, int64_t depth, int64_t first, int64_t columns) {
        for (int64_t r = 0; r < depth; ++r)
            fill_row(to + r * TILE_COLUMNS, l->x + (k + r) * l->inputs + first, columns, l->scale + first, l->shift + first);
    });
}

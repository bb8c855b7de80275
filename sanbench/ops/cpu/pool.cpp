// The largest of each 2 x 2 pixels of relu(scale x + shift), and its backward, over a dense channels-last map. With a weight, of
// its product with x in place of x; the product is then never written.
#include "tile.h"

struct Pool {
    int64_t images, height, width, inputs, channels;  // inputs: channels of x; they are the same without weight
    int threads;
    const float *x, *weight, *scale, *shift, *grad;   // weight: channels x inputs, may be missing
    float *out, *grad_x, *grad_scale, *grad_shift;    // the last two may be missing
};
MIRRORED(Pool, grad_shift)

namespace {

constexpr int MOST = 4;    // inputs with a weight
constexpr int WINDOW = 4;  // pixels

struct Worker {
    const Pool& p;
    const int64_t vectors, row;      // of channels; elements of a row of x
    Buffer scale, shift, weight;     // padded to vectors; weight: inputs x channels, scaled

    explicit Worker(const Pool& pool)
        : p(pool), vectors((p.channels + LANES - 1) / LANES), row(p.width * p.inputs), scale(zeros(vectors * LANES)),
          shift(zeros(vectors * LANES)), weight(zeros(p.inputs * vectors * LANES * (p.weight ? 1 : 0))) {
        std::copy(p.scale, p.scale + p.channels, scale.get());
        std::copy(p.shift, p.shift + p.channels, shift.get());
        for (int64_t c = 0; p.weight && c < p.channels; ++c)
            for (int64_t i = 0; i < p.inputs; ++i) weight[i * vectors * LANES + c] = p.scale[c] * p.weight[c * p.inputs + i];
    }
    int64_t rows() const { return p.images * (p.height / 2); }  // of the result
    int64_t windows() const { return p.width / 2; }
    int64_t first_pixel(int64_t y, int64_t x) const {  // element of x where the window of row y begins
        const int64_t image = y / (p.height / 2), down = y % (p.height / 2);
        return (image * p.height + 2 * down) * row + 2 * x * p.inputs;
    }
    int64_t pixel(int k) const { return k / 2 * row + k % 2 * p.inputs; }  // of a window, from its first
    V by(const Buffer& values, int64_t v) const { return *(const V*)(values.get() + v * LANES); }
    int64_t size(int64_t v) const { return std::min<int64_t>(LANES, p.channels - v * LANES); }

    template <bool LINEAR>
    V value(const float* from, int64_t v) const {  // before the relu
        if (!LINEAR) return by(scale, v) * part(from + v * LANES, size(v)) + by(shift, v);
        V sum = by(shift, v);
        for (int64_t i = 0; i < p.inputs; ++i) sum += by(weight, i * vectors + v) * from[i];
        return sum;
    }
    template <bool LINEAR>
    V largest(const float* from, int64_t v, I& where) const {
        V best = value<LINEAR>(from, v);
        where = I{};
        for (int k = 1; k < WINDOW; ++k) {
            const V other = value<LINEAR>(from + pixel(k), v);
            const I better = (other > best) | (other != other);  // not a number stays one
            best = better ? other : best, where = better ? I{} + k : where;
        }
        return best;
    }
    template <bool LINEAR>
    void forward(int64_t y) const {
        for (int64_t x = 0; x < windows(); ++x) {
            const float* from = p.x + first_pixel(y, x);
            I where;
            for (int64_t v = 0; v < vectors; ++v)
                put(p.out + (y * windows() + x) * p.channels + v * LANES, relu(largest<LINEAR>(from, v, where)), size(v));
        }
    }
    template <bool LINEAR>
    void backward(int64_t y, V* by_scale, V* by_shift) const {
        for (int64_t x = 0; x < windows(); ++x) {
            const int64_t at = first_pixel(y, x);
            V sum[WINDOW][MOST] = {};
            for (int64_t v = 0; v < vectors; ++v) {
                I where;
                const V best = largest<LINEAR>(p.x + at, v, where);
                V grad = part(p.grad + (y * windows() + x) * p.channels + v * LANES, size(v));
                grad = best > 0 ? grad : V{};
                for (int k = 0; k < WINDOW; ++k) {
                    const V mine = where == k ? grad : V{};
                    if (LINEAR) {
                        for (int64_t i = 0; i < p.inputs; ++i) sum[k][i] += by(weight, i * vectors + v) * mine;
                        continue;
                    }
                    put(p.grad_x + at + pixel(k) + v * LANES, by(scale, v) * mine, size(v));
                    if (by_scale) by_scale[v] += mine * part(p.x + at + pixel(k) + v * LANES, size(v));
                }
                if (by_scale) by_shift[v] += grad;
            }
            for (int k = 0; LINEAR && k < WINDOW; ++k)
                for (int64_t i = 0; i < p.inputs; ++i) {
                    float total = 0;
                    for (int l = 0; l < LANES; ++l) total += sum[k][i][l];
                    p.grad_x[at + pixel(k) + i] = total;
                }
        }
    }
};

template <bool LINEAR>
void forward(const Pool& p) {
    const Worker worker(p);
    parallel((int)worker.rows(), p.threads, [&](auto& next, int) {
        for (int y; (y = next()) >= 0;) worker.forward<LINEAR>(y);
    });
}

template <bool LINEAR>
void backward(const Pool& p) {
    const Worker worker(p);
    const int64_t rows = worker.rows(), tasks = std::min<int64_t>(rows, 64), vectors = worker.vectors;
    Buffer totals = zeros(p.grad_scale ? tasks * 2 * vectors * LANES : 0);
    parallel((int)tasks, p.threads, [&](auto& next, int) {
        for (int task; (task = next()) >= 0;) {
            V* total = p.grad_scale ? (V*)totals.get() + task * 2 * vectors : nullptr;
            for (int64_t y = rows * task / tasks; y < rows * (task + 1) / tasks; ++y)
                worker.backward<LINEAR>(y, total, total + vectors);
        }
    });
    for (int64_t c = 0; p.grad_scale && c < p.channels; ++c) {
        double scale = 0, shift = 0;
        for (int64_t k = 0; k < tasks; ++k) {
            const float* at = totals.get() + k * 2 * vectors * LANES + c;
            scale += at[0], shift += at[vectors * LANES];
        }
        p.grad_scale[c] = (float)scale, p.grad_shift[c] = (float)shift;
    }
}

}  // namespace

extern "C" void normalised_pool(const Pool* p) { p->weight ? forward<true>(*p) : forward<false>(*p); }
extern "C" void normalised_pool_backward(const Pool* p) { p->weight ? backward<true>(*p) : backward<false>(*p); }

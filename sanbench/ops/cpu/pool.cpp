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

template <bool LINEAR>  // whether x passes a linear
struct Pooling {
    const Pool& p;
    const int64_t vectors, row, windows, rows;  // of channels; elements of a row of x; of a row of the result; of the result
    Buffer scale, shift, weight;                // padded to vectors; weight: inputs x channels, scaled

    explicit Pooling(const Pool& pool)
        : p(pool), vectors((p.channels + LANES - 1) / LANES), row(p.width * p.inputs), windows(p.width / 2),
          rows(p.images * (p.height / 2)), scale(vectors * LANES), shift(vectors * LANES),
          weight(LINEAR ? p.inputs * vectors * LANES : 0) {
        std::copy(p.scale, p.scale + p.channels, scale.get());
        std::copy(p.shift, p.shift + p.channels, shift.get());
        for (int64_t c = 0; LINEAR && c < p.channels; ++c)
            for (int64_t i = 0; i < p.inputs; ++i) weight[i * vectors * LANES + c] = p.scale[c] * p.weight[c * p.inputs + i];
    }
    int64_t first_pixel(int64_t y, int64_t x) const {  // element of x where the window of row y begins
        const int64_t image = y / (p.height / 2), down = y % (p.height / 2);
        return (image * p.height + 2 * down) * row + 2 * x * p.inputs;
    }
    int64_t pixel(int k) const { return k / 2 * row + k % 2 * p.inputs; }  // of a window, from its first
    int64_t size(int64_t v) const { return std::min<int64_t>(LANES, p.channels - v * LANES); }

    V value(const float* from, int64_t v) const {  // before the relu
        if (!LINEAR) return scale.vectors()[v] * part(from + v * LANES, size(v)) + shift.vectors()[v];
        V sum = shift.vectors()[v];
        for (int64_t i = 0; i < p.inputs; ++i) sum += weight.vectors()[i * vectors + v] * from[i];
        return sum;
    }
    V largest(const float* from, int64_t v, I& where) const {
        V best = value(from, v);
        where = I{};
        for (int k = 1; k < WINDOW; ++k) {
            const V other = value(from + pixel(k), v);
            const I better = (other > best) | (other != other);  // not a number stays one
            best = better ? other : best, where = better ? I{} + k : where;
        }
        return best;
    }
    void forward() const {
        each_task((int)rows, p.threads, [&](int y, int) {
            for (int64_t x = 0; x < windows; ++x) {
                const float* from = p.x + first_pixel(y, x);
                I where;
                for (int64_t v = 0; v < vectors; ++v)
                    put(p.out + (y * windows + x) * p.channels + v * LANES, relu(largest(from, v, where)), size(v));
            }
        });
    }
    void window_backward(int64_t y, int64_t x, V* sums) const {  // adds to those of scale and, behind them, shift, if they are there
        const int64_t at = first_pixel(y, x);
        V sum[WINDOW][MOST] = {};
        for (int64_t v = 0; v < vectors; ++v) {
            I where;
            const V best = largest(p.x + at, v, where);
            V grad = part(p.grad + (y * windows + x) * p.channels + v * LANES, size(v));
            grad = best > 0 ? grad : V{};
            for (int k = 0; k < WINDOW; ++k) {
                const V mine = where == k ? grad : V{};
                if (LINEAR) {
                    for (int64_t i = 0; i < p.inputs; ++i) sum[k][i] += weight.vectors()[i * vectors + v] * mine;
                    continue;
                }
                put(p.grad_x + at + pixel(k) + v * LANES, scale.vectors()[v] * mine, size(v));
                if (sums) sums[v] += mine * part(p.x + at + pixel(k) + v * LANES, size(v));
            }
            if (sums) sums[vectors + v] += grad;
        }
        for (int k = 0; LINEAR && k < WINDOW; ++k)
            for (int64_t i = 0; i < p.inputs; ++i) {
                float total = 0;
                for (int l = 0; l < LANES; ++l) total += sum[k][i][l];
                p.grad_x[at + pixel(k) + i] = total;
            }
    }
    void backward() const {
        const int64_t tasks = std::min<int64_t>(rows, 64);
        const Totals totals(p.grad_scale ? tasks : 0, p.channels);
        each_task((int)tasks, p.threads, [&](int task, int) {
            V* sums = p.grad_scale ? totals.at(task, 0) : nullptr;
            for (int64_t y = rows * task / tasks; y < rows * (task + 1) / tasks; ++y)
                for (int64_t x = 0; x < windows; ++x) window_backward(y, x, sums);
        });
        if (p.grad_scale) totals.give(0, tasks, [&](int64_t c, double to_scale, double to_shift) {
            p.grad_scale[c] = (float)to_scale, p.grad_shift[c] = (float)to_shift;
        });
    }
};

}  // namespace

extern "C" void normalised_pool(const Pool* p) { p->weight ? Pooling<true>(*p).forward() : Pooling<false>(*p).forward(); }
extern "C" void normalised_pool_backward(const Pool* p) { p->weight ? Pooling<true>(*p).backward() : Pooling<false>(*p).backward(); }

// relu(scale x + shift) and its backward over a dense map, as outer x channels x inner: channels-last maps have inner 1.
#include "tile.h"

struct Normalise {  // mirrored by kernels.py
    int64_t outer, channels, inner;
    int threads;
    const float *x, *scale, *shift, *grad;
    float *out, *grad_x, *grad_scale, *grad_shift;  // of the backward; the last two may be missing
};

namespace {

constexpr int64_t CHUNK = 1 << 15;  // elements a task works on at least, whatever the number of threads

struct Chunks {
    int64_t rows, count;  // of `outer`
    explicit Chunks(const Normalise& n) {
        const int64_t row = n.channels * n.inner;
        rows = std::max<int64_t>(1, std::max(CHUNK / row, n.outer / 64));
        count = (n.outer + rows - 1) / rows;
    }
};

// f(element, channel, how many of a vector are there) for the elements of `rows` rows from `first`; `along`: vector over channels.
template <bool ALONG, class F>
void each(const Normalise& n, int64_t first, int64_t rows, F&& f) {
    for (int64_t o = first; o < std::min(first + rows, n.outer); ++o)
        if (ALONG)
            for (int64_t c = 0; c < n.channels; c += LANES) f(o * n.channels + c, c, std::min<int64_t>(LANES, n.channels - c));
        else
            for (int64_t c = 0; c < n.channels; ++c)
                for (int64_t i = 0; i < n.inner; i += LANES)
                    f((o * n.channels + c) * n.inner + i, c, std::min<int64_t>(LANES, n.inner - i));
}
static inline V part(const float* from, int64_t n) {  // the first n of a vector, then zeros
    if (n == LANES) return load(from);
    V x{};
    for (int64_t i = 0; i < n; ++i) x[i] = from[i];
    return x;
}
static inline void put(float* to, V x, int64_t n) {
    if (n == LANES) return store(to, x);
    for (int64_t i = 0; i < n; ++i) to[i] = x[i];
}

template <bool ALONG>
void forward(const Normalise& n) {
    const Chunks chunks(n);
    parallel((int)chunks.count, n.threads, [&](auto& next, int) {
        for (int task; (task = next()) >= 0;)
            each<ALONG>(n, task * chunks.rows, chunks.rows, [&](int64_t at, int64_t c, int64_t size) {
                const V scale = ALONG ? part(n.scale + c, size) : all(n.scale[c]), shift = ALONG ? part(n.shift + c, size) : all(n.shift[c]);
                put(n.out + at, relu(scale * part(n.x + at, size) + shift), size);
            });
    });
}

template <bool ALONG>
void backward(const Normalise& n) {
    const Chunks chunks(n);
    const int64_t sums = ALONG ? padded(n.channels, LANES) : n.channels * LANES;  // of one chunk, twice
    Buffer totals = zeros(n.grad_scale ? chunks.count * 2 * sums : 0);
    parallel((int)chunks.count, n.threads, [&](auto& next, int) {
        for (int task; (task = next()) >= 0;) {
            V* total = (V*)(totals.get() + (n.grad_scale ? task * 2 * sums : 0));
            each<ALONG>(n, task * chunks.rows, chunks.rows, [&](int64_t at, int64_t c, int64_t size) {
                const V scale = ALONG ? part(n.scale + c, size) : all(n.scale[c]), shift = ALONG ? part(n.shift + c, size) : all(n.shift[c]);
                const V x = part(n.x + at, size);
                V grad = part(n.grad + at, size);
                grad = scale * x + shift > 0 ? grad : V{};
                put(n.grad_x + at, grad * scale, size);
                if (!n.grad_scale) return;
                const int64_t to = ALONG ? c / LANES : c;
                total[to] += grad * x, total[sums / LANES + to] += grad;
            });
        }
    });
    if (!n.grad_scale) return;
    for (int64_t c = 0; c < n.channels; ++c) {
        double scale = 0, shift = 0;
        for (int64_t k = 0; k < chunks.count; ++k)
            for (int64_t l = 0; l < (ALONG ? 1 : LANES); ++l) {
                const float* at = totals.get() + k * 2 * sums + (ALONG ? c : c * LANES + l);
                scale += at[0], shift += at[sums];
            }
        n.grad_scale[c] = (float)scale, n.grad_shift[c] = (float)shift;
    }
}

}  // namespace

extern "C" void normalised_relu(const Normalise* n) { n->inner == 1 ? forward<true>(*n) : forward<false>(*n); }
extern "C" void normalised_relu_backward(const Normalise* n) { n->inner == 1 ? backward<true>(*n) : backward<false>(*n); }

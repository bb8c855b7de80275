// Moments of each channel, what a batch makes of them, relu(scale x + shift), and their backwards over a dense map, as outer x
// channels x inner: channels-last maps have inner 1.
#include <cmath>

#include "tile.h"

struct Normalise {
    int64_t images, outer, channels, inner;
    int threads;
    const float *x, *scale, *shift, *grad;
    const float *moments, *grad_moments;            // images x 2 x channels; the backward of moments adds `grad`, if it is there
    float *out, *grad_x, *grad_scale, *grad_shift;  // out: also the moments; the last two may be missing
};
MIRRORED(Normalise, grad_shift)

struct Batch {  // normalisation by the moments of all images, each over `values` numbers a channel; of no images: by running averages
    int64_t images, channels, values, threads;
    double momentum, eps;
    const float *moments, *weight, *bias;              // moments: images x 2 x channels
    float *running_mean, *running_variance, *scale, *shift;
    const float *grad_scale, *grad_shift;
    float *grad_moments, *grad_weight, *grad_bias;
};
MIRRORED(Batch, grad_bias)

namespace {

constexpr int64_t CHUNK = 1 << 15;  // elements a task works on at least, whatever the number of threads

struct Chunks {
    int64_t rows, count;
    Chunks(const Normalise& n, int64_t outer) {  // of `outer` rows
        const int64_t row = n.channels * n.inner;
        rows = std::max<int64_t>(1, std::max(CHUNK / row, outer / 64));
        count = (outer + rows - 1) / rows;
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

template <bool ALONG>
void forward(const Normalise& n) {
    const Chunks chunks(n, n.outer);
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
    const Chunks chunks(n, n.outer);
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

// Calls f(image, its number among the image's chunks, first row, rows) for every chunk of every image.
template <class F>
void each_chunk(const Normalise& n, const Chunks& chunks, F&& f) {
    const int64_t outer = n.outer / n.images;
    parallel((int)(n.images * chunks.count), n.threads, [&](auto& next, int) {
        for (int task; (task = next()) >= 0;) {
            const int64_t image = task / chunks.count, first = task % chunks.count * chunks.rows;
            f(image, task, image * outer + first, std::min(chunks.rows, outer - first));
        }
    });
}

template <bool ALONG>
void moments(const Normalise& n) {  // about each image's first pixel; single precision within a chunk, double beyond
    const Chunks chunks(n, n.outer / n.images);
    const int64_t sums = ALONG ? padded(n.channels, LANES) : n.channels * LANES, image_size = n.outer / n.images * n.channels * n.inner;
    Buffer totals = zeros(n.images * chunks.count * 2 * sums);
    each_chunk(n, chunks, [&](int64_t image, int task, int64_t first, int64_t rows) {
        V* total = (V*)(totals.get() + task * 2 * sums);
        const float* origin = n.x + image * image_size;
        each<ALONG>(n, first, rows, [&](int64_t at, int64_t c, int64_t size) {
            V off = part(n.x + at, size) - (ALONG ? part(origin + c, size) : all(origin[c * n.inner]));
            for (int64_t l = size; !ALONG && l < LANES; ++l) off[l] = 0;
            const int64_t to = ALONG ? c / LANES : c;
            total[to] += off, total[sums / LANES + to] += off * off;
        });
    });
    const double count = (double)(n.outer / n.images * n.inner);
    for (int64_t image = 0; image < n.images; ++image)
        for (int64_t c = 0; c < n.channels; ++c) {
            double sum = 0, square = 0;
            for (int64_t k = 0; k < chunks.count; ++k)
                for (int64_t l = 0; l < (ALONG ? 1 : LANES); ++l) {
                    const float* at = totals.get() + (image * chunks.count + k) * 2 * sums + (ALONG ? c : c * LANES + l);
                    sum += at[0], square += at[sums];
                }
            float* to = n.out + image * 2 * n.channels + c;
            to[0] = (float)(n.x[image * image_size + c * n.inner] + sum / count);
            const double variance = square / count - sum / count * (sum / count);
            to[n.channels] = (float)(variance < 0 ? 0 : variance);
        }
}

template <bool ALONG>
void moments_backward(const Normalise& n) {  // (g_mean + 2 g_variance (x - mean)) / count
    const float over = 1.f / (float)(n.outer / n.images * n.inner);
    each_chunk(n, Chunks(n, n.outer / n.images), [&](int64_t image, int, int64_t first, int64_t rows) {
        const float *mean = n.moments + image * 2 * n.channels, *grad = n.grad_moments + image * 2 * n.channels;
        each<ALONG>(n, first, rows, [&](int64_t at, int64_t c, int64_t size) {
            auto of = [&](const float* values) { return ALONG ? part(values + c, size) : all(values[c]); };
            const V slope = of(grad + n.channels) * (2 * over);
            const V before = n.grad ? part(n.grad + at, size) : V{};
            put(n.grad_x + at, before + of(grad) * over + slope * (part(n.x + at, size) - of(mean)), size);
        });
    });
}

struct Merged {  // mean and biased variance of one channel of the batch
    double mean = 0, variance = 0;
    Merged(const Batch& b, int64_t channel) {
        if (!b.images) mean = b.running_mean[channel], variance = b.running_variance[channel];
        if (!b.images) return;
        auto moment = [&](int64_t image, int64_t which) { return (double)b.moments[(2 * image + which) * b.channels + channel]; };
        for (int64_t n = 0; n < b.images; ++n) mean += moment(n, 0);
        mean /= (double)b.images;
        for (int64_t n = 0; n < b.images; ++n) variance += moment(n, 1) + (moment(n, 0) - mean) * (moment(n, 0) - mean);
        variance /= (double)b.images;
    }
};

}  // namespace

extern "C" void batch_normalisation(const Batch* b) {
    const double count = (double)(b->images * b->values), unbiased = count / (count - 1);
    auto move = [&](float& average, double to) { average += (float)(b->momentum * (to - average)); };
    for (int64_t c = 0; c < b->channels; ++c) {
        const Merged merged(*b, c);
        const double scale = b->weight[c] / std::sqrt(merged.variance + b->eps);
        b->scale[c] = (float)scale, b->shift[c] = (float)(b->bias[c] - merged.mean * scale);
        if (b->images) move(b->running_mean[c], merged.mean), move(b->running_variance[c], merged.variance * unbiased);
    }
}

extern "C" void batch_normalisation_backward(const Batch* b) {
    for (int64_t c = 0; c < b->channels; ++c) {
        const Merged merged(*b, c);
        const double inverse = 1 / std::sqrt(merged.variance + b->eps), to_scale = b->grad_scale[c] - b->grad_shift[c] * merged.mean;
        const double to_mean = -b->grad_shift[c] * b->weight[c] * inverse / (double)b->images;
        const double to_variance = -to_scale * b->weight[c] * inverse * inverse * inverse / 2 / (double)b->images;
        b->grad_weight[c] = (float)(to_scale * inverse), b->grad_bias[c] = b->grad_shift[c];
        for (int64_t n = 0; n < b->images; ++n) {
            const float mean = b->moments[2 * n * b->channels + c];
            float* to = b->grad_moments + 2 * n * b->channels + c;
            to[0] = (float)(to_mean + 2 * to_variance * (mean - merged.mean)), to[b->channels] = (float)to_variance;
        }
    }
}

extern "C" void normalised_relu(const Normalise* n) { n->inner == 1 ? forward<true>(*n) : forward<false>(*n); }
extern "C" void normalised_relu_backward(const Normalise* n) { n->inner == 1 ? backward<true>(*n) : backward<false>(*n); }
extern "C" void channel_moments(const Normalise* n) { n->inner == 1 ? moments<true>(*n) : moments<false>(*n); }
extern "C" void channel_moments_backward(const Normalise* n) { n->inner == 1 ? moments_backward<true>(*n) : moments_backward<false>(*n); }

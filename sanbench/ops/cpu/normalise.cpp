// Moments of each channel, what a batch makes of them, relu(scale x + shift), and their backwards over a dense channels-last map, which
// is a matrix pixels x channels.
#include <cmath>

#include "tile.h"

struct Normalise {
    int64_t images, pixels, channels;  // pixels of all images
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

struct Place {  // of a vector of channels in the map
    int64_t task, part, at, channel, size;  // its first element and channel, how many of its elements are there
    V map(const float* values) const { return ::part(values + at, size); }
    V channels(const float* values) const { return ::part(values + channel, size); }
};

struct Chunks {  // of a map's pixels, each a task and within one of `parts` equal parts
    const Normalise& n;
    const int64_t pixels, rows, count;  // pixels of a part and of a chunk, chunks of a part
    const int tasks;

    Chunks(const Normalise& n, int64_t parts)
        : n(n), pixels(n.pixels / parts), rows(std::max<int64_t>({1, CHUNK / n.channels, pixels / 64})),
          count((pixels + rows - 1) / rows), tasks((int)(parts * count)) {}

    template <class F>
    void each(F&& f) const {
        each_task(tasks, n.threads, [&](int task, int) {
            const int64_t part = task / count, first = part * pixels + task % count * rows;
            for (int64_t p = first; p < std::min(first + rows, (part + 1) * pixels); ++p)
                for (int64_t c = 0; c < n.channels; c += LANES)
                    f(Place{task, part, p * n.channels + c, c, std::min<int64_t>(LANES, n.channels - c)});
        });
    }
};

struct Merged {  // mean and biased variance of the batch, by channel
    std::vector<double> mean, variance;
    explicit Merged(const Batch& b) : mean(b.channels), variance(b.channels) {
        for (int64_t c = 0; !b.images && c < b.channels; ++c) mean[c] = b.running_mean[c], variance[c] = b.running_variance[c];
        const double over = 1. / (double)b.images;
        each(b, [&](int64_t c, float of_image, float) { mean[c] += of_image * over; });
        each(b, [&](int64_t c, float of_image, float within) {
            variance[c] += (within + (of_image - mean[c]) * (of_image - mean[c])) * over;
        });
    }
    template <class F>  // f(channel, mean, variance) for each image
    static void each(const Batch& b, F&& f) {
        for (const float *n = b.moments, *end = n + 2 * b.images * b.channels; n < end; n += 2 * b.channels)
            for (int64_t c = 0; c < b.channels; ++c) f(c, n[c], n[b.channels + c]);
    }
};

}  // namespace

extern "C" void batch_normalisation(const Batch* b) {
    const double count = (double)(b->images * b->values), unbiased = count / (count - 1);
    auto move = [&](float& average, double to) { average += (float)(b->momentum * (to - average)); };
    const Merged merged(*b);
    for (int64_t c = 0; c < b->channels; ++c) {
        const double scale = b->weight[c] / std::sqrt(merged.variance[c] + b->eps);
        b->scale[c] = (float)scale, b->shift[c] = (float)(b->bias[c] - merged.mean[c] * scale);
        if (b->images) move(b->running_mean[c], merged.mean[c]), move(b->running_variance[c], merged.variance[c] * unbiased);
    }
}

extern "C" void batch_normalisation_backward(const Batch* b) {
    const Merged merged(*b);
    std::vector<double> to_mean(b->channels), to_variance(b->channels);
    for (int64_t c = 0; c < b->channels; ++c) {
        const double inverse = 1 / std::sqrt(merged.variance[c] + b->eps), to_scale = b->grad_scale[c] - b->grad_shift[c] * merged.mean[c];
        to_mean[c] = -b->grad_shift[c] * b->weight[c] * inverse / (double)b->images;
        to_variance[c] = -to_scale * b->weight[c] * inverse * inverse * inverse / 2 / (double)b->images;
        b->grad_weight[c] = (float)(to_scale * inverse), b->grad_bias[c] = b->grad_shift[c];
    }
    float* to = b->grad_moments;
    for (int64_t n = 0; n < b->images; ++n, to += 2 * b->channels)
        for (int64_t c = 0; c < b->channels; ++c) {
            const float mean = b->moments[2 * n * b->channels + c];
            to[c] = (float)(to_mean[c] + 2 * to_variance[c] * (mean - merged.mean[c])), to[b->channels + c] = (float)to_variance[c];
        }
}

extern "C" void normalised_relu(const Normalise* n) {
    Chunks(*n, 1).each([&](auto v) { put(n->out + v.at, relu(v.channels(n->scale) * v.map(n->x) + v.channels(n->shift)), v.size); });
}

extern "C" void normalised_relu_backward(const Normalise* n) {
    const Chunks chunks(*n, 1);
    const Totals totals(n->grad_scale ? chunks.tasks : 0, n->channels);
    chunks.each([&](auto v) {
        const V scale = v.channels(n->scale), shift = v.channels(n->shift), x = v.map(n->x);
        V grad = v.map(n->grad);
        grad = scale * x + shift > 0 ? grad : V{};
        put(n->grad_x + v.at, grad * scale, v.size);
        if (!n->grad_scale) return;
        V* total = totals.at(v.task, v.channel);
        total[0] += grad * x, total[totals.vectors] += grad;
    });
    if (n->grad_scale) totals.give(0, chunks.tasks, [&](int64_t c, double scale, double shift) {
        n->grad_scale[c] = (float)scale, n->grad_shift[c] = (float)shift;
    });
}

extern "C" void channel_moments(const Normalise* n) {  // about each image's first pixel; single precision within a chunk, double beyond
    const Chunks chunks(*n, n->images);
    const Totals totals(chunks.tasks, n->channels);
    chunks.each([&](auto v) {
        const V off = v.map(n->x) - v.channels(n->x + v.part * chunks.pixels * n->channels);
        V* total = totals.at(v.task, v.channel);
        total[0] += off, total[totals.vectors] += off * off;
    });
    for (int64_t image = 0; image < n->images; ++image)
        totals.give(image * chunks.count, chunks.count, [&](int64_t c, double sum, double square) {
            const double mean = sum / (double)chunks.pixels, variance = square / (double)chunks.pixels - mean * mean;
            float* to = n->out + image * 2 * n->channels + c;
            to[0] = (float)(n->x[image * chunks.pixels * n->channels + c] + mean);
            to[n->channels] = (float)(variance < 0 ? 0 : variance);
        });
}

extern "C" void channel_moments_backward(const Normalise* n) {  // (g_mean + 2 g_variance (x - mean)) / count
    const Chunks chunks(*n, n->images);
    const float over = 1.f / (float)chunks.pixels;
    chunks.each([&](auto v) {
        const float *mean = n->moments + v.part * 2 * n->channels, *grad = n->grad_moments + v.part * 2 * n->channels;
        const V slope = v.channels(grad + n->channels) * (2 * over), before = n->grad ? v.map(n->grad) : V{};
        put(n->grad_x + v.at, before + v.channels(grad) * over + slope * (v.map(n->x) - v.channels(mean)), v.size);
    });
}

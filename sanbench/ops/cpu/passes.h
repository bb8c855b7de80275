// How a forward, a backward and the statistics run over tiles; what differs is the Plan and the Worker of the kind of attention.
#pragma once
#include "tile.h"

struct Gradients {  // of one tile, or of one thread where a tile is a whole image
    Buffer a, b, value;
    long size_a, size_b, size_value;
    Gradients(const Tiling& t, int at_centre, int around, int values)
        : size_a(at_centre * t.plain.plane), size_b(around * t.halo.plane), size_value(values * t.halo.plane) {
        a = zeros(size_a), b = zeros(size_b), value = zeros(size_value);
    }
    void clear() {
        memset(a.get(), 0, 4 * size_a);
        memset(b.get(), 0, 4 * size_b);
        memset(value.get(), 0, 4 * size_value);
    }
};

class Moments {  // of the hidden channels of one tile, lane by lane
    const int channels;
    bool centred = false;
    Buffer row_sum, row_square;  // single precision within a row, double beyond

  public:
    Buffer centre;                          // the lane's first value
    std::vector<double> count, sum, square;  // about `centre`

    explicit Moments(int channels)
        : channels(channels), row_sum(zeros(channels * LANES)), row_square(zeros(channels * LANES)), centre(zeros(channels * LANES)),
          count(LANES), sum(channels * LANES), square(channels * LANES) {}

    void add_count(V valid, int values) {
        for (int l = 0; l < LANES; ++l) count[l] += valid[l] * values;
    }
    template <int N>  // the columns of one block, `times` each; the lanes of a vector that are valid are so in every later one
    void add(const V* h, V valid, const float* times) {
        add_columns<N>(h, [&](int q) { return valid * times[q]; });
    }
    template <int N, class F>
    void add_columns(const V* h, F&& weight) {
        V *middle = (V*)centre.get(), *to_sum = (V*)row_sum.get(), *to_square = (V*)row_square.get();
        if (!centred)
            for (int m = 0; m < channels; ++m) middle[m] = h[(long)m * N];
        centred = true;
        V times[N];
        for (int q = 0; q < N; ++q) times[q] = weight(q);
        for (int m = 0; m < channels; ++m)
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) {
                const V off = h[(long)m * N + q] - middle[m], part = times[q] * off;
                to_sum[m] += part;
                to_square[m] += part * off;
            }
    }
    void end_row() {
        for (int i = 0; i < channels * LANES; ++i) {
            sum[i] += row_sum[i], square[i] += row_square[i];
            row_sum[i] = row_square[i] = 0;
        }
    }
};

// The gradient of mean and variance reaches each value h as (g_mean + 2 g_variance (h - mean)) / count.
class MomentsBackward {
    const int channels;
    std::vector<V> constant, slope;

  public:
    MomentsBackward(const Tiling& t, const Attention& c, int tile, double count)
        : channels(c.hidden), constant(padded(c.hidden, ROWS)), slope(padded(c.hidden, ROWS)) {
        for (int m = 0; m < channels; ++m)
            for (int l = 0; l < LANES; ++l) {
                const int image = t.group(tile) * t.interleave + l % t.interleave;
                if (image >= t.images) continue;
                const float *grad = c.grad_moments + (long)image * 2 * channels, *moment = c.moments + (long)image * 2 * channels;
                slope[m][l] = (float)(2 * grad[channels + m] / count);
                constant[m][l] = (float)(grad[m] / count) - slope[m][l] * moment[m];
            }
    }
    template <int N>
    void apply(V* h, V valid, const float* times) const {
        apply_columns<N>(h, [&](int q) { return valid * times[q]; });
    }
    template <int N, class F>
    void apply_columns(V* h, F&& weight) const {
        for (size_t m = 0; m < slope.size(); ++m)
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) h[m * N + q] = weight(q) * (constant[m] + slope[m] * h[m * N + q]);
    }
};

template <class Plan, class Worker>
void run_forward(const Attention& call) {
    const Plan plan(call);
    const int tiles = plan.tiling.tiles(), threads = std::min(call.threads, tiles);
    std::vector<Worker> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back(plan, false);
    parallel(tiles, threads, [&](auto& next, int thread) {
        for (int tile; (tile = next()) >= 0;) workers[thread].forward(tile);
    });
}

template <class Plan, class Worker>
void run_statistics(const Attention& call) {
    const Plan plan(call);
    const Tiling& t = plan.tiling;
    const int threads = std::min(call.threads, t.tiles()), channels = call.hidden;
    std::vector<Worker> workers;
    std::vector<Moments> moments;
    for (int i = 0; i < threads; ++i) workers.emplace_back(plan, true);
    for (int i = 0; i < t.tiles(); ++i) moments.emplace_back(channels);
    parallel(t.tiles(), threads, [&](auto& next, int thread) {
        for (int tile; (tile = next()) >= 0;) workers[thread].statistics(tile, moments[tile]);
    });
    for (int image = 0; image < t.images; ++image)
        for (int m = 0; m < channels; ++m) {
            double count = 0, mean = 0, square = 0;  // merged band by band, lane by lane
            for (int band = 0; band < t.bands; ++band) {
                const Moments& part = moments[image / t.interleave * t.bands + band];
                for (int l = image % t.interleave; l < LANES; l += t.interleave) {
                    const double n = part.count[l];
                    if (n == 0) continue;
                    const long at = (long)m * LANES + l;
                    const double off = part.centre[at] + part.sum[at] / n - mean;
                    square += part.square[at] - part.sum[at] * part.sum[at] / n + off * off * count * n / (count + n);
                    mean += off * n / (count + n);
                    count += n;
                }
            }
            call.out_moments[(long)image * 2 * channels + m] = (float)mean;
            call.out_moments[(long)image * 2 * channels + channels + m] = (float)(square / count);
        }
}

// Tiles come in lots; a lot has its own sums of the gradients of what all images share, added up in order at the end. Bands of one
// image overlap in their halos: their gradients are kept and folded band after band.
template <class Plan, class Worker, class Sums, class F>
void run_backward(const Attention& call, F&& tile_backward) {
    const Plan plan(call);
    const Tiling& t = plan.tiling;
    const bool split = t.bands > 1;
    const int lots = std::min(t.tiles(), 16), threads = std::min(call.threads, lots);
    std::vector<Worker> workers;
    std::vector<Gradients> grads;
    std::vector<Sums> sums;
    for (int i = 0; i < threads; ++i) workers.emplace_back(plan, true);
    for (int i = 0; i < (split ? t.tiles() : threads); ++i) grads.push_back(plan.gradients());
    for (int i = 0; i < (call.weights ? lots : 0); ++i) sums.emplace_back(plan);
    parallel(lots, threads, [&](auto& next, int thread) {
        Worker& worker = workers[thread];
        for (int lot; (lot = next()) >= 0;)
            for (int tile = t.tiles() * lot / lots; tile < t.tiles() * (lot + 1) / lots; ++tile) {
                Gradients& to = grads[split ? tile : thread];
                Sums* shared = call.weights ? &sums[lot] : nullptr;
                if (!split) to.clear();
                tile_backward(worker, tile, to, shared);
                worker.finish_a(tile, to, shared);
                if (!split) worker.finish_b(tile, to, shared);
            }
    });
    if (split)  // then there are at most 16 tiles, each a lot
        parallel(t.groups, threads, [&](auto& next, int thread) {
            for (int group; (group = next()) >= 0;)
                for (int tile = group * t.bands; tile < (group + 1) * t.bands; ++tile)
                    workers[thread].finish_b(tile, grads[tile], call.weights ? &sums[tile] : nullptr);
        });
    if (call.weights) sum_weights(plan, sums);
}

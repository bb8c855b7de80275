// How forward, backward and statistics of both kinds of attention run over tiles. What differs is the Worker of the kind, which walks
// a tile in strips: sequences of blocks that are worked on together.
#pragma once
#include "weights.h"

struct Gradients {  // of one tile, or of one thread where a tile is a whole image
    Buffer a, b, value;
    explicit Gradients(const Plan& p) : a(p.R * p.tiling.plain.plane), b(p.R * p.tiling.halo.plane), value(p.C * p.tiling.halo.plane) {}
    void clear() { a.clear(), b.clear(), value.clear(); }
};

struct Scratch {  // of one thread: the channels of the tile at hand
    const Plan& p;
    const Tiling& t;
    Buffer a, b, value, out;  // the sides of the relation, at the pixels and around them; the value; the result or its gradient

    explicit Scratch(const Plan& plan)
        : p(plan), t(p.tiling), a(p.R * t.plain.plane), b(p.R * t.halo.plane), value(p.C * t.halo.plane), out(p.C * t.plain.plane) {}

    void fill_tile(int tile) {  // pairwise attention's sides are A = s1 a + t1 and B = s1 b
        const Attention& c = p.call;
        const float *scale = p.pairwise ? c.gamma[0] : nullptr, *shift = c.gamma[1];
        fill(t, t.plain, tile, c.query, a.get(), c.narrow, scale, shift);
        fill(t, t.halo, tile, c.key, b.get(), c.narrow, scale);
        if (c.extra) {
            fill(t, t.plain, tile, c.at_i, a.get() + c.narrow * t.plain.plane, c.extra, scale + c.narrow, shift + c.narrow);
            fill(t, t.halo, tile, c.at_j, b.get() + c.narrow * t.halo.plane, c.extra, scale + c.narrow);
        }
        if (p.C) fill(t, t.halo, tile, c.value, value.get(), p.C);
    }

    // The result at one vector of pixels in the channels of group g. each(f) calls f(weight, number of the neighbour).
    template <class F>
    void aggregate(int g, long at_plain, long at_halo, F&& each) {
        const long step = p.G * t.halo.plane;
        auto channels = [&](auto n, int c) {  // n of them: c, c + G, ...
            constexpr int N = n;
            const float* from = value.get() + c * t.halo.plane + at_halo;
            V sum[N] = {};
            each([&](V weight, int j) { UNROLLED(i, N) sum[i] += weight * load(from + i * step + t.offset[j]); });
            for (int i = 0; i < N; ++i) *(V*)(out.get() + (c + (long)i * p.G) * t.plain.plane + at_plain) = sum[i];
        };
        int c = g;
        for (; c + 7 * p.G < p.C; c += 8 * p.G) channels(std::integral_constant<int, 8>{}, c);
        for (; c < p.C; c += p.G) channels(std::integral_constant<int, 1>{}, c);
    }

    // The gradient of the weights of group g, and with VALUES that of the values. each(f) calls f(gradient, weight, neighbour).
    template <bool VALUES, class F>
    void aggregation_backward(int g, long at_plain, long at_halo, Gradients& grads, F&& each) {
        const long plain_step = p.G * t.plain.plane, halo_step = p.G * t.halo.plane;
        const float *gy = out.get() + g * t.plain.plane + at_plain, *from = value.get() + g * t.halo.plane + at_halo;
        float* to = grads.value.get() + g * t.halo.plane + at_halo;
        each([](V& back, V, int) { back = V{}; });
        for (int c = g; c < p.C; c += 8 * p.G, gy += 8 * plain_step, from += 8 * halo_step, to += 8 * halo_step) {
            const int n = std::min(8, (p.C - c + p.G - 1) / p.G);
            V grad[8];
            for (int i = 0; i < 8; ++i) grad[i] = i < n ? *(const V*)(gy + i * plain_step) : V{};
            each([&](V& back, V weight, int j) {
                const long at = t.offset[j];
                V sum = back;
                if (n == 8)
                    UNROLLED(i, 8) sum += grad[i] * load(from + i * halo_step + at);
                else
                    for (int i = 0; i < n; ++i) sum += grad[i] * load(from + i * halo_step + at);
                for (int i = 0; VALUES && i < n; ++i) store(to + i * halo_step + at, load(to + i * halo_step + at) + weight * grad[i]);
                back = sum;
            });
        }
    }
};

class Moments {  // of the hidden channels of one tile, lane by lane
    const int channels;
    bool centred = false;
    V row_count{};
    Buffer row_sum, row_square;  // single precision within a row, double beyond

  public:
    Buffer centre;                           // the lane's first value
    std::vector<double> count, sum, square;  // about `centre`

    explicit Moments(int channels)
        : channels(channels), row_sum(channels * LANES), row_square(channels * LANES), centre(channels * LANES), count(LANES),
          sum(channels * LANES), square(channels * LANES) {}

    template <int N, class F>  // the columns of one block, weight(q) times each; lanes that are valid are so in every later vector
    void add(const V* h, F&& weight) {
        V *middle = centre.vectors(), *to_sum = row_sum.vectors(), *to_square = row_square.vectors();
        if (!centred)
            for (int m = 0; m < channels; ++m) middle[m] = h[(long)m * N];
        centred = true;
        V times[N];
        for (int q = 0; q < N; ++q) row_count += times[q] = weight(q);
        for (int m = 0; m < channels; ++m)
            UNROLLED(q, N) {
                const V off = h[(long)m * N + q] - middle[m], part = times[q] * off;
                to_sum[m] += part;
                to_square[m] += part * off;
            }
    }
    void end_row() {
        for (int l = 0; l < LANES; ++l) count[l] += row_count[l];
        for (int i = 0; i < channels * LANES; ++i) sum[i] += row_sum[i], square[i] += row_square[i];
        row_count = V{}, row_sum.clear(), row_square.clear();
    }
};

// The gradient of mean and variance reaches each value h as (g_mean + 2 g_variance (h - mean)) / count.
class MomentsBackward {
    std::vector<V> constant, slope;

  public:
    MomentsBackward(const Plan& p, int tile) : constant(p.Mp), slope(p.Mp) {
        const Tiling& t = p.tiling;
        const double count = (double)t.height * t.width * (p.pairwise ? p.K : 1);
        for (int m = 0; m < p.M; ++m)
            for (int l = 0; l < LANES; ++l) {
                const int image = t.group(tile) * t.interleave + l % t.interleave;
                if (image >= t.images) continue;
                const float *grad = p.call.grad_moments + (long)image * 2 * p.M, *moment = p.call.moments + (long)image * 2 * p.M;
                slope[m][l] = (float)(2 * grad[p.M + m] / count);
                constant[m][l] = (float)(grad[m] / count) - slope[m][l] * moment[m];
            }
    }
    template <int N, class F>
    void apply(V* h, F&& weight) const {
        V times[N];
        for (int q = 0; q < N; ++q) times[q] = weight(q);
        for (size_t m = 0; m < slope.size(); ++m)
            UNROLLED(q, N) h[m * N + q] = times[q] * (constant[m] + slope[m] * h[m * N + q]);
    }
};

// Of Worker, whole says whether x and h of a strip are kept for a backward; times(q) counts column q in each lane.
template <class Worker>
void statistics_backward(Worker& worker, int tile, Gradients& grads, Sums* sums) {
    const MomentsBackward back(worker.p, tile);
    worker.strips(tile, [&](const Blocks& blocks) {
        blocks.each([&](auto n, int first) {
            V* to = worker.back_h.vectors() + (long)worker.p.Mp * first;
            worker.template hidden<n>(to, first);
            back.apply<n>(to, [&](int q) { return worker.times(first + q); });
        });
        worker.first_backward(blocks, grads, sums);
    });
}

template <class T, class... Arguments>
std::vector<T> several(int n, const Arguments&... arguments) {
    std::vector<T> all;
    all.reserve(n);
    for (int i = 0; i < n; ++i) all.emplace_back(arguments...);
    return all;
}

template <class Worker>
void run_forward(const Attention& call) {
    const Plan plan(call, Worker::pairwise);
    const int tiles = plan.tiling.tiles(), threads = std::min(call.threads, tiles);
    auto workers = several<Worker>(threads, plan, false);
    each_task(tiles, threads, [&](int tile, int thread) {
        Worker& worker = workers[thread];
        worker.fill_tile(tile);
        worker.forward(tile);
        give<false>(plan.tiling, plan.tiling.plain, tile, call.out, worker.out.get(), plan.C);
    });
}

template <class Worker>
void run_statistics(const Attention& call) {
    const Plan plan(call, Worker::pairwise);
    const Tiling& t = plan.tiling;
    const int threads = std::min(call.threads, t.tiles()), channels = call.hidden;
    auto workers = several<Worker>(threads, plan, false);
    auto moments = several<Moments>(t.tiles(), channels);
    each_task(t.tiles(), threads, [&](int tile, int thread) {
        Worker& worker = workers[thread];
        worker.fill_tile(tile);
        worker.strips(tile, [&](const Blocks& blocks) {
            blocks.each([&](auto n, int first) {
                V* h = worker.h.vectors();
                worker.template hidden<n>(h, first);
                moments[tile].template add<n>(h, [&](int q) { return worker.times(first + q); });
            });
            if (worker.ends_row) moments[tile].end_row();
        });
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

// The backward of attention, or without a second linear that of statistics. Tiles come in lots; a lot has its own sums of gradients of
// what all images share, added up in order at the end. Bands of one image overlap in their halos: their gradients are kept and folded
// band after band.
template <class Worker>
void run_backward(const Attention& call) {
    const Plan plan(call, Worker::pairwise);
    const Tiling& t = plan.tiling;
    const bool split = t.bands > 1;
    const int lots = std::min(t.tiles(), 16), threads = std::min(call.threads, lots);
    auto workers = several<Worker>(threads, plan, true);
    auto grads = several<Gradients>(split ? t.tiles() : threads, plan);
    auto sums = several<Sums>(call.weights ? lots : 0, plan);
    auto fold = [&](Worker& worker, int tile, const Gradients& of_tile, Sums* shared) {
        worker.template finish<false>(tile, of_tile.b, shared);
        give<true>(t, t.halo, tile, call.grad_value, of_tile.value.get(), plan.C);
    };
    each_task(lots, threads, [&](int lot, int thread) {
        Worker& worker = workers[thread];
        Sums* shared = call.weights ? &sums[lot] : nullptr;
        for (int tile = t.tiles() * lot / lots; tile < t.tiles() * (lot + 1) / lots; ++tile) {
            Gradients& to = grads[split ? tile : thread];
            if (!split) to.clear();
            worker.fill_tile(tile);
            worker.out.clear();  // zeros where no image is
            fill(t, t.plain, tile, call.out, worker.out.get(), plan.C);
            call.gamma[5] ? worker.backward(tile, to, shared) : statistics_backward(worker, tile, to, shared);
            worker.template finish<true>(tile, to.a, shared);
            if (!split) fold(worker, tile, to, shared);
        }
    });
    if (split)  // then there are at most 16 tiles, each a lot
        each_task(t.groups, threads, [&](int group, int thread) {
            for (int tile = group * t.bands; tile < (group + 1) * t.bands; ++tile)
                fold(workers[thread], tile, grads[tile], call.weights ? &sums[tile] : nullptr);
        });
    if (call.weights) sum_weights(plan, sums);
}

// Moments of the relation itself, without visiting a pair: what training's first normalisation needs, in double precision, because the
// position's channels, alike all over the map, cancel badly. The formulas are those of sanbench/ops/closed_form.py; sums over the
// footprint are made along the rows and then along the columns.
#include "tile.h"

namespace {

struct Line {  // one axis of a map
    int size, footprint;
    std::vector<int> at;        // [k, i]: neighbour k of pixel i
    std::vector<double> count;  // [k, j]: at how many pixels j is neighbour k
    std::vector<double> times;  // [j]: how often j is a neighbour
    Line(int size, int footprint) : size(size), footprint(footprint), count((size_t)footprint * size), times(size) {
        for (int k = 0; k < footprint; ++k)
            for (int i = 0; i < size; ++i) {
                at.push_back(reflected(i + k - footprint / 2, size));
                ++count[(size_t)k * size + at.back()], ++times[at.back()];
            }
    }
};

struct Geometry {
    const Attention& call;
    const Line down, across;
    const int pixels, neighbours;
    explicit Geometry(const Attention& c)
        : call(c), down(c.height, c.footprint), across(c.width, c.footprint), pixels(c.height * c.width), neighbours(c.footprint * c.footprint) {}
    double times(int p) const { return down.times[p / call.width] * across.times[p % call.width]; }
    template <class F>
    void each_pixel(F&& f) const {
        for (int y = 0, p = 0; y < call.height; ++y)
            for (int x = 0; x < call.width; ++x, ++p) f(p, y, x);
    }
};

struct Map {  // one channel of an image about its mean, each pixel counted `times`
    std::vector<double> values;
    double mean = 0;
    template <class F>
    Map(const Geometry& g, const StridedMap& view, long image, long channel, double total, F&& times) : values(g.pixels) {
        g.each_pixel([&](int p, int y, int x) { mean += times(p) * (values[p] = *view.at(image, channel, y, x)); });
        mean /= total;
        for (double& value : values) value -= mean;
    }
    Map(const Geometry& g, const StridedMap& view, long image, long channel) : Map(g, view, image, channel, g.pixels, [](int) { return 1.; }) {}
    double operator[](int p) const { return values[p]; }
};

// BACK false: the sum over each pixel's footprint; true: to each pixel, from those whose footprint it is in.
template <bool BACK>
std::vector<double> over_footprint(const Geometry& g, const Map& map) {
    const int width = g.call.width;
    std::vector<double> rows(g.pixels), out(g.pixels);
    auto add = [](auto& to, const auto& from, int p, int other) { BACK ? to[other] += from[p] : to[p] += from[other]; };
    for (int k = 0; k < g.call.footprint; ++k)
        g.each_pixel([&](int p, int y, int x) { add(rows, map, p, y * width + g.across.at[k * width + x]); });
    for (int k = 0; k < g.call.footprint; ++k)
        g.each_pixel([&](int p, int y, int x) { add(out, rows, p, g.down.at[k * g.call.height + y] * width + x); });
    return out;
}

// f(image, channel) for the channels of all images; those of the position, behind them, are the same for all and have image -1.
template <class F>
void each_channel(const Attention& c, F&& f) {
    const int own = c.images * c.narrow;
    each_task(own + c.extra, c.threads, [&](int task, int) { task < own ? f(task / c.narrow, task % c.narrow) : f(-1, task - own); });
}

struct Pair {  // channel d of the relation phi(x_i) - psi(x_j)
    const double total;
    const Map i, j;
    Pair(const Geometry& g, int image, int d)
        : total((double)g.pixels * g.neighbours), i(g, image < 0 ? g.call.at_i : g.call.query, std::max(image, 0), d),
          j(g, image < 0 ? g.call.at_j : g.call.key, std::max(image, 0), d, total, [&](int p) { return g.times(p); }) {}
};

// For each neighbour k of one map: its mean and its mean square over the pixels, [k] behind [k].
std::vector<double> of_neighbours(const Geometry& g, const Map& map) {
    const int side = g.call.footprint, height = g.call.height;
    std::vector<double> rows(2 * side * height), out(2 * g.neighbours);
    for (int k = 0; k < side; ++k)
        g.each_pixel([&](int p, int y, int x) {
            const double value = map[p] * g.across.count[(size_t)k * g.call.width + x];
            rows[k * height + y] += value, rows[(side + k) * height + y] += value * map[p];
        });
    for (int which = 0; which < 2; ++which)
        for (int down = 0; down < side; ++down)
            for (int across = 0; across < side; ++across) {
                double sum = 0;
                for (int y = 0; y < height; ++y) sum += g.down.count[(size_t)down * height + y] * rows[(which * side + across) * height + y];
                out[which * g.neighbours + down * side + across] = sum / g.pixels;
            }
    return out;
}

}  // namespace

extern "C" void pairwise_moments(const Attention* call) {
    const Geometry g(*call);
    const int channels = call->narrow + call->extra;
    each_channel(*call, [&](int image, int d) {
        const Pair pair(g, image, d);
        const std::vector<double> around = over_footprint<false>(g, pair.j);
        double square = 0;
        for (int p = 0; p < g.pixels; ++p)
            square += pair.i[p] * (g.neighbours * pair.i[p] - 2 * around[p]) + g.times(p) * pair.j[p] * pair.j[p];
        for (int n = image < 0 ? 0 : image; n < (image < 0 ? call->images : image + 1); ++n) {
            float* to = call->out_moments + (long)n * 2 * channels + (image < 0 ? call->narrow : 0) + d;
            to[0] = (float)(pair.i.mean - pair.j.mean), to[channels] = (float)(square / pair.total);
        }
    });
}

// Adds to the gradients of query and key, and writes those of the position where they are asked for.
extern "C" void pairwise_moments_backward(const Attention* call) {
    const Geometry g(*call);
    const int channels = call->narrow + call->extra;
    each_channel(*call, [&](int image, int d) {
        if (image < 0 && !call->grad_at_i) return;
        const Pair pair(g, image, d);
        const std::vector<double> of_j = over_footprint<false>(g, pair.j), of_i = over_footprint<true>(g, pair.i);
        double mean = 0, variance = 0;
        for (int n = image < 0 ? 0 : image; n < (image < 0 ? call->images : image + 1); ++n) {
            const float* grad = call->grad_moments + (long)n * 2 * channels + (image < 0 ? call->narrow : 0) + d;
            mean += grad[0] / pair.total, variance += grad[channels] / pair.total;
        }
        g.each_pixel([&](int p, int y, int x) {
            const double to_i = g.neighbours * mean + 2 * variance * (g.neighbours * pair.i[p] - of_j[p]);
            const double to_j = 2 * variance * (g.times(p) * pair.j[p] - of_i[p]) - g.times(p) * mean;
            if (image < 0) {
                call->grad_at_i[(long)d * g.pixels + p] = (float)to_i, call->grad_at_j[(long)d * g.pixels + p] = (float)to_j;
            } else {
                *call->grad_query.at(image, d, y, x) += (float)to_i, *call->grad_key.at(image, d, y, x) += (float)to_j;
            }
        });
    });
}

extern "C" void patchwise_moments(const Attention* call) {
    const Geometry g(*call);
    const int channels = call->narrow * (1 + g.neighbours);
    each_channel(*call, [&](int image, int d) {
        const Map i(g, call->query, image, d), j(g, call->key, image, d);
        const std::vector<double> around = of_neighbours(g, j);
        float *mean = call->out_moments + (long)image * 2 * channels, *variance = mean + channels;
        double square = 0;
        for (double value : i.values) square += value * value;
        mean[d] = (float)i.mean, variance[d] = (float)(square / g.pixels);
        for (int k = 0; k < g.neighbours; ++k) {
            const int at = call->narrow + d * g.neighbours + k;
            mean[at] = (float)(around[k] + j.mean), variance[at] = (float)(around[g.neighbours + k] - around[k] * around[k]);
        }
    });
}

// Adds to the gradients of query and key.
extern "C" void patchwise_moments_backward(const Attention* call) {
    const Geometry g(*call);
    const int channels = call->narrow * (1 + g.neighbours), side = call->footprint, width = call->width, height = call->height;
    each_channel(*call, [&](int image, int d) {
        const Map i(g, call->query, image, d), j(g, call->key, image, d);
        const std::vector<double> around = of_neighbours(g, j);
        const float *mean = call->grad_moments + (long)image * 2 * channels, *variance = mean + channels;
        std::vector<double> once(side * width), twice(side * width);  // [k down, x]: what every pixel of a column has from k
        for (int k = 0; k < g.neighbours; ++k) {
            const int at = call->narrow + d * g.neighbours + k, down = k / side, across = k % side;
            const double to_mean = mean[at] - 2 * variance[at] * around[k];
            for (int x = 0; x < width; ++x) {
                const double count = g.across.count[(size_t)across * width + x] / g.pixels;
                once[down * width + x] += count * to_mean, twice[down * width + x] += count * variance[at];
            }
        }
        g.each_pixel([&](int p, int y, int x) {
            double to_j = 0;
            for (int k = 0; k < side; ++k)
                to_j += g.down.count[(size_t)k * height + y] * (once[k * width + x] + 2 * j[p] * twice[k * width + x]);
            *call->grad_query.at(image, d, y, x) += (float)((mean[d] + 2 * variance[d] * i[p]) / g.pixels);
            *call->grad_key.at(image, d, y, x) += (float)to_j;
        });
    });
}

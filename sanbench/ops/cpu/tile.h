// Tiles: bands of rows of a few interleaved images, padded by reflection so that every neighbour is a shifted load.
//
// A scratch row holds pixel x of image b at x * interleave + b, so that maps narrower than a vector fill it with several images. The work
// is cut into tiles by the shapes alone, never by the number of threads: results are the same bits for any number of threads.
#pragma once
#include <omp.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstring>

#include "vector.h"

// The size of a structure in bytes and where its last field begins: sanbench/ops/cpu/structures.py compares them with its own.
#define MIRRORED(Structure, last)                         \
    extern "C" void layout_of_##Structure(int64_t* out) { \
        out[0] = sizeof(Structure);                       \
        out[1] = offsetof(Structure, last);               \
    }

struct StridedMap {  // a tensor images x channels x height x width in memory
    float* data;
    int64_t image, channel, row, column;  // strides in elements
    float* at(long n, long c, long y, long x) const { return data + n * image + c * channel + y * row + x * column; }
};

struct Attention {  // the arguments of pairwise.cpp and patchwise.cpp
    int images, height, width, footprint, narrow, extra, hidden, groups, channels, threads, weights;
    StridedMap query, key, at_i, at_j, value, out;  // out: the result or its gradient; position as read at i and at j
    StridedMap grad_query, grad_key, grad_value;    // zeros
    const float* gamma[7];                          // s1 t1 W1 s2 t2 W2 bias, for statistics up to W1
    float *grad_gamma[7], *grad_at_i, *grad_at_j;
    const float *moments, *grad_moments;            // statistics: images x 2 x hidden
    float* out_moments;
};

static inline int reflected(int i, int size) {
    if (size == 1) return 0;
    const int period = 2 * size - 2;
    i = (i % period + period) % period;
    return i < size ? i : period - i;
}

// The distinct neighbours along one axis: on a map smaller than the footprint, shifts that differ by the period of reflection coincide.
struct Axis {
    std::vector<int> shift, count;  // how many of the footprint's shifts each stands for
    int before = 0, after = 0;      // halo
    Axis(int size, int footprint, bool distinct) {
        const int radius = footprint / 2, period = size == 1 ? 1 : 2 * size - 2;
        for (int k = 0; k < footprint; ++k) {  // distinct: 0, -1, 1, -2, 2, ... so that the smallest shift stands for its like
            const int s = !distinct ? k - radius : k % 2 ? -(k + 1) / 2 : k / 2;
            size_t known = 0;
            while (known < shift.size() && !(distinct && (shift[known] - s) % period == 0)) ++known;
            if (known == shift.size()) {
                shift.push_back(s), count.push_back(0);
                before = std::max(before, -s), after = std::max(after, s);
            }
            ++count[known];
        }
    }
};

struct Layout {  // of the channels of one tile in scratch
    int rows, columns, above, left;  // with halo
    long pitch, plane;               // elements between rows and between channels
};

struct Tiling {
    int images, height, width, interleave, groups, bands, band_rows, vectors;  // vectors of output pixels in a row
    Layout plain, halo;              // without and with the pixels around the tile
    std::vector<long> offset;        // of each neighbour in `halo`
    std::vector<float> multiplicity;
    std::vector<V> mask;             // of each vector of a row: 1 where a lane holds a pixel, else 0; again for the last group

    Tiling(int images, int height, int width, int footprint, bool distinct) : images(images), height(height), width(width) {
        const Axis down(height, footprint, distinct), across(width, footprint, distinct);
        long best = -1;
        for (int n = 1; n <= LANES && n < 2 * images; n *= 2) {
            const long cost = (long)((images + n - 1) / n) * ((width * n + LANES - 1) / LANES);
            if (best < 0 || cost < best) best = cost, interleave = n;
        }
        groups = (images + interleave - 1) / interleave;
        vectors = (width * interleave + LANES - 1) / LANES;
        for (bands = 1; bands * groups < 8 && bands * 8 <= height + 2;) bands *= 2;  // eight tiles, of four rows at least
        band_rows = (height + bands - 1) / bands;
        bands = (height + band_rows - 1) / band_rows;
        const long row = (long)vectors * LANES;
        plain = {band_rows, width, 0, 0, row, row * band_rows};
        const int halo_rows = band_rows + down.before + down.after, halo_columns = width + across.before + across.after;
        const long pitch = (long)halo_columns * interleave;
        halo = {halo_rows, halo_columns, down.before, across.before, pitch, padded(pitch * halo_rows + LANES, LANES)};
        for (size_t y = 0; y < down.shift.size(); ++y)
            for (size_t x = 0; x < across.shift.size(); ++x) {
                offset.push_back(down.shift[y] * pitch + (long)across.shift[x] * interleave);
                multiplicity.push_back((float)(down.count[y] * across.count[x]));
            }
        for (int there : {interleave, images - (groups - 1) * interleave})  // images of a group
            for (int v = 0; v < vectors; ++v) {
                mask.emplace_back();
                for (int l = 0, at = v * LANES; l < LANES; ++l, ++at)
                    mask.back()[l] = at < width * interleave && at % interleave < there;
            }
    }
    int tiles() const { return groups * bands; }
    int first_row(int tile) const { return tile % bands * band_rows; }
    int rows(int tile) const { return std::min(band_rows, height - first_row(tile)); }
    int group(int tile) const { return tile / bands; }
    long at(int y, int v) const { return (y + halo.above) * halo.pitch + (long)halo.left * interleave + (long)v * LANES; }
    V valid(int group, int v) const { return mask[(group + 1 == groups) * vectors + v]; }
};

// Calls f(channel, element of scratch, element of the tensor) for every pixel of a tile and `channels` channels; images that are not there
// are skipped. Where channels lie side by side in the tensor (channels-last), LANES pixels and channels are taken at once, if there are
// `vectors`(first channel, LANES pixels of it in scratch, pixels in the tensor, missing where no image is).
template <class F, class Vectors = std::nullptr_t>
static inline void visit(const Tiling& t, const Layout& layout, int tile, const StridedMap& view, float* scratch, int channels, F&& f,
                         [[maybe_unused]] Vectors&& vectors = nullptr) {
    constexpr bool many = !std::is_same_v<std::decay_t<Vectors>, std::nullptr_t>;
    const int whole = many && view.channel == 1 ? channels / LANES * LANES : 0, image = t.group(tile) * t.interleave;
    const int first = t.first_row(tile) - layout.above, halo = layout.rows - t.band_rows, row = layout.columns * t.interleave;
    std::vector<int64_t> places(padded(row, LANES), -1);
    for (int at = 0; at < row; ++at)
        if (image + at % t.interleave < t.images)
            places[at] = at % t.interleave * view.image + reflected(at / t.interleave - layout.left, t.width) * view.column;
    for (int y = 0; y < t.rows(tile) + halo; ++y)
        for (int at = 0; at < row; at += LANES) {
            float *pixels[LANES], *from = view.at(image, 0, reflected(first + y, t.height), 0), *to = scratch + y * layout.pitch + at;
            for (int l = 0; l < LANES; ++l) pixels[l] = places[at + l] < 0 ? nullptr : from + places[at + l];
            if constexpr (many)
                for (int c = 0; c < whole; c += LANES) vectors(c, to + c * layout.plane, pixels);
            for (int c = whole; c < channels; ++c)
                for (int l = 0; l < LANES; ++l)
                    if (pixels[l]) f(c, to[c * layout.plane + l], pixels[l][c * view.channel]);
        }
}

// scratch = scale * tensor + shift, or the tensor itself. Where no image is, scratch holds zeros or another image.
static inline void fill(const Tiling& t, const Layout& layout, int tile, const StridedMap& view, float* scratch, int channels,
                        const float* scale = nullptr, const float* shift = nullptr) {
    auto changed = [=](int c, auto x) { return scale ? scale[c] * x + (shift ? shift[c] : 0.f) : x; };
    auto vectors = [&](int c, float* to, float* const* pixels) {
        V x[LANES];
        UNROLLED(l, LANES) x[l] = pixels[l] ? load(pixels[l] + c) : V{};
        transpose(x);
        for (int i = 0; i < LANES; ++i) store(to + i * layout.plane, changed(c + i, x[i]));
    };
    visit(t, layout, tile, view, scratch, channels, [=](int c, float& to, float& from) { to = changed(c, from); }, vectors);
}

// tensor = scale * scratch, or with ADD what is there and that
template <bool ADD>
static inline void give(const Tiling& t, const Layout& layout, int tile, const StridedMap& view, float* scratch, int channels,
                        const float* scale = nullptr) {
    auto scaled = [=](int c, auto x) { return scale ? scale[c] * x : x; };
    auto vectors = [&](int c, float* from, float* const* pixels) {
        V x[LANES];
        UNROLLED(i, LANES) x[i] = scaled(c + i, load(from + i * layout.plane));
        transpose(x);
        for (int l = 0; l < LANES; ++l)
            if (pixels[l]) store(pixels[l] + c, ADD ? load(pixels[l] + c) + x[l] : x[l]);
    };
    auto one = [=](int c, float& from, float& to) { ADD ? to += scaled(c, from) : to = scaled(c, from); };
    visit(t, layout, tile, view, scratch, channels, one, vectors);
}

// Splits `tasks` over threads: work(next, thread) takes task numbers from next() until it returns -1. A forked child has no
// OpenMP threads to call, so it works alone.
template <class F>
static void parallel(int tasks, int threads, F&& work) {
    static const pid_t home = getpid();
    std::atomic<int> taken{0};
    auto next = [&] {
        const int task = taken++;
        return task < tasks ? task : -1;
    };
    threads = std::min(threads, tasks);
    if (threads <= 1 || getpid() != home) return work(next, 0);
#pragma omp parallel num_threads(threads)
    work(next, omp_get_thread_num());
}

// f(task, thread) for each task
template <class F>
static void each_task(int tasks, int threads, F&& f) {
    parallel(tasks, threads, [&](auto& next, int thread) {
        for (int task; (task = next()) >= 0;) f(task, thread);
    });
}

// Two sums for each channel: in single precision within a task, in double precision over tasks.
struct Totals {
    const int64_t channels, vectors;  // vectors of one of the sums of a task
    const Buffer held;
    Totals(int64_t tasks, int64_t channels)
        : channels(channels), vectors((channels + LANES - 1) / LANES), held(tasks * 2 * vectors * LANES) {}
    V* at(int64_t task, int64_t channel) const { return held.vectors() + task * 2 * vectors + channel / LANES; }
    template <class F>
    void give(int64_t first, int64_t tasks, F&& f) const {  // f(channel, its two sums over the tasks)
        for (int64_t c = 0; c < channels; ++c) {
            double sum = 0, other = 0;
            for (int64_t task = first; task < first + tasks; ++task) {
                const float* of_task = (const float*)at(task, 0) + c;
                sum += of_task[0], other += of_task[vectors * LANES];
            }
            f(c, sum, other);
        }
    }
};

// Patchwise attention with the relation "concatenation" and a gamma of two linears.
//
// A pixel's delta has 1 + K slices: the R channels of its query, then the K neighbours of each channel of the key. With the second
// normalisation folded into W1' = s2 W1, a pixel costs
//     h = relu(sum over slices of W1'_slice relu(s1 x + t1) + t2)      M channels
//     w_g = W2_g h + bias                                               K weights for each of G groups, no softmax
//     y_c = sum_k w_{c mod G, k} v_{c, k}
// The columns of a block are vectors of pixels; a strip is the sequence of blocks that is worked on together: one block forward, several
// backward, where products over all columns (gradients of weights) want many.
#include "passes.h"

namespace {

constexpr int STRIP = 4 * COLS;

struct Plan {  // what all threads share
    static constexpr bool distinct = false;
    const Attention& call;
    const int R, M, G, C, K, D, Mp, Kp, Rp;
    const Tiling tiling;
    std::vector<Buffer> first, first_back, second, second_back;  // by slice, by group
    std::vector<Buffer> group_bias;
    Buffer bias;

    explicit Plan(const Attention& c)
        : call(c), R(c.narrow), M(c.hidden), G(c.groups), C(c.channels), K(c.footprint * c.footprint), D(R * (K + 1)),
          Mp(padded(M, ROWS)), Kp(padded(K, ROWS)), Rp(padded(R, ROWS)),
          tiling(c.images, c.height, c.width, c.footprint, distinct), bias(zeros(Mp)) {
        const float *w1 = c.gamma[2], *s2 = c.gamma[3], *t2 = c.gamma[4], *w2 = c.gamma[5], *b2 = c.gamma[6];
        for (int s = 0; s <= R; ++s) {
            auto entry = [&](int m, int k) { return w1[(long)m * D + start(s) + k] * (s2 ? s2[m] : 1.f); };
            first.push_back(zeros((long)Mp * length(s)));
            pack(first[s].get(), M, length(s), entry);
            first_back.push_back(zeros(padded(length(s), ROWS) * M));
            pack(first_back[s].get(), length(s), M, [&](int k, int m) { return entry(m, k); });
        }
        if (!w2) return;  // statistics
        memcpy(bias.get(), t2, 4l * M);
        for (int g = 0; g < G; ++g) {
            auto entry = [&](int k, int m) { return w2[((long)g * K + k) * M + m]; };
            second.push_back(zeros((long)Kp * M));
            pack(second[g].get(), K, M, entry);
            second_back.push_back(zeros((long)Mp * K));
            pack(second_back[g].get(), M, K, [&](int m, int k) { return entry(k, m); });
            group_bias.push_back(zeros(Kp));
            memcpy(group_bias[g].get(), b2 + (long)g * K, 4l * K);
        }
    }
    int start(int slice) const { return slice ? R + (slice - 1) * K : 0; }  // in delta
    int length(int slice) const { return slice ? K : R; }
    Gradients gradients() const { return Gradients(tiling, R, R, C); }
};

struct Sums {  // of one lot of tiles: gradients of what all images share
    std::vector<Buffer> first, second;  // by slice, by group
    Buffer scale, shift, bias, group_bias;
    explicit Sums(const Plan& p)
        : scale(zeros((long)p.D * LANES)), shift(zeros((long)p.D * LANES)), bias(zeros((long)p.Mp * LANES)),
          group_bias(zeros((long)p.G * p.K * LANES)) {
        for (int s = 0; s <= p.R; ++s) first.push_back(zeros(outer_size(p.Mp, padded(p.length(s), ROWS)) * LANES));
        for (int g = 0; g < p.G; ++g) second.push_back(zeros(outer_size(p.Kp, p.Mp) * LANES));
    }
};

struct Worker {
    const Plan& p;
    const Tiling& t;
    Buffer a, b, value, out;           // the tile's channels
    Buffer x, h, w, back_h, back_w;    // of a strip
    int columns = 0;                   // of the strip
    long at_plain[STRIP], at_halo[STRIP];
    V valid[STRIP];

    Worker(const Plan& plan, bool backward)
        : p(plan), t(plan.tiling), a(zeros(p.R * t.plain.plane)), b(zeros(p.R * t.halo.plane)), value(zeros(p.C * t.halo.plane)),
          out(zeros(p.C * t.plain.plane)) {
        const long strip = (long)LANES * (backward ? STRIP : COLS), slice = std::max(p.Kp, p.Rp);
        x = zeros(slice * strip), h = zeros(p.Mp * strip), w = zeros(p.Kp * strip);
        if (backward) back_h = zeros(p.Mp * strip), back_w = zeros(p.Kp * strip);
    }

    void fill_tile(int tile) {
        fill(t, t.plain, tile, p.call.query, a.get(), p.R);
        fill(t, t.halo, tile, p.call.key, b.get(), p.R);
        if (p.C) fill(t, t.halo, tile, p.call.value, value.get(), p.C);
    }

    // Walks the vectors of a tile in strips of `longest`.
    template <class F>
    void strips(int tile, int longest, F&& f) {
        const int all = t.rows(tile) * t.vectors;
        for (int first = 0; first < all; first += columns) {
            columns = std::min(longest, all - first);
            for (int u = 0; u < columns; ++u) {
                const int y = (first + u) / t.vectors, v = (first + u) % t.vectors;
                at_plain[u] = y * t.plain.pitch + (long)v * LANES, at_halo[u] = t.at(y, v);
                valid[u] = t.valid(t.group(tile), v);
            }
            f(Blocks(columns));
        }
    }
    // f(width of the block as a constant, its first column), for the blocks of the strip
    template <class F>
    static void each_block(const Blocks& blocks, F&& f) {
        for (int k = 0; k < blocks.count; ++k) with_columns(blocks.width(k), [&](auto n) { f(n, blocks.first[k]); });
    }

    V raw(int slice, int k, int u) const {  // delta's channel k of a slice, at column u
        return slice ? load(b.get() + (slice - 1) * t.halo.plane + at_halo[u] + t.offset[k]) : load(a.get() + k * t.plain.plane + at_plain[u]);
    }
    template <int N>
    void delta(V* to, int slice, int first) const {  // relu(s1 x + t1)
        const float *scale = p.call.gamma[0] + p.start(slice), *shift = p.call.gamma[1] + p.start(slice);
        for (int k = 0; k < p.length(slice); ++k)
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) to[k * N + q] = relu(raw(slice, k, first + q) * scale[k] + shift[k]);
    }
    template <int N>
    void hidden(int first) {  // h before its relu
        V *to = (V*)h.get() + (long)p.Mp * first, *at_x = (V*)x.get();
        for (int s = 0; s <= p.R; ++s) {
            delta<N>(at_x, s, first);
            if (s == 0)
                product_of<N, PLAIN>(to, p.first[s].get(), p.bias.get(), at_x, p.Mp, p.length(s));
            else
                product_of<N, ADD>(to, p.first[s].get(), nullptr, at_x, p.Mp, p.length(s));
        }
    }
    template <int N>
    void positive_hidden(int first) {
        hidden<N>(first);
        V* at = (V*)h.get() + (long)p.Mp * first;
        for (int i = 0; i < p.Mp * N; ++i) at[i] = relu(at[i]);
    }
    template <int N>
    V* weights(int g, int first) {
        V* to = (V*)w.get() + (long)p.Kp * first;
        product_of<N, PLAIN>(to, p.second[g].get(), p.group_bias[g].get(), (V*)h.get() + (long)p.Mp * first, p.Kp, p.M);
        return to;
    }

    template <int CHANNELS, int N>
    void aggregate(const V* weight, int c, int first) {
        const long step = p.G * t.halo.plane;
        for (int q = 0; q < N; ++q) {
            const float* from = value.get() + c * t.halo.plane + at_halo[first + q];
            V sum[CHANNELS] = {};
            for (int k = 0; k < p.K; ++k) {
                const V by = weight[k * N + q];
#pragma GCC unroll 8
                for (int i = 0; i < CHANNELS; ++i) sum[i] += by * load(from + i * step + t.offset[k]);
            }
            for (int i = 0; i < CHANNELS; ++i)
                *(V*)(out.get() + (c + (long)i * p.G) * t.plain.plane + at_plain[first + q]) = sum[i];
        }
    }

    void forward(int tile) {
        fill_tile(tile);
        strips(tile, COLS, [&](const Blocks& blocks) {
            each_block(blocks, [&](auto n, int first) {
                constexpr int N = decltype(n)::value;
                positive_hidden<N>(first);
                for (int g = 0; g < p.G; ++g) {
                    const V* weight = weights<N>(g, first);
                    int c = g;
                    for (; c + 7 * p.G < p.C; c += 8 * p.G) aggregate<8, N>(weight, c, first);
                    for (; c < p.C; c += p.G) aggregate<1, N>(weight, c, first);
                }
            });
        });
        visit(t, t.plain, tile, p.call.out, out.get(), p.C, [](int, float& from, float& to) { to = from; });
    }

    // Gradients of the weights of group g (back_w) and of the values.
    template <int N>
    void aggregation_backward(int g, int first, Gradients& grads) {
        V *back = (V*)back_w.get() + (long)p.Kp * first, *weight = (V*)w.get() + (long)p.Kp * first;
        const long plain_step = p.G * t.plain.plane, halo_step = p.G * t.halo.plane;
        for (int q = 0; q < N; ++q) {
            const float *gy = out.get() + g * t.plain.plane + at_plain[first + q], *from = value.get() + g * t.halo.plane + at_halo[first + q];
            float* to = grads.value.get() + g * t.halo.plane + at_halo[first + q];
            for (int k = 0; k < p.K; ++k) back[k * N + q] = V{};
            for (int c = g; c < p.C; c += 8 * p.G, gy += 8 * plain_step, from += 8 * halo_step, to += 8 * halo_step) {
                const int n = std::min(8, (p.C - c + p.G - 1) / p.G);
                V grad[8];
                for (int i = 0; i < 8; ++i) grad[i] = i < n ? *(const V*)(gy + i * plain_step) : V{};
                for (int k = 0; k < p.K; ++k) {
                    const V by = weight[k * N + q];
                    const long at = t.offset[k];
                    V sum = back[k * N + q];
                    for (int i = 0; i < n; ++i) sum += grad[i] * load(from + i * halo_step + at);
                    for (int i = 0; i < n; ++i) store(to + i * halo_step + at, load(to + i * halo_step + at) + by * grad[i]);
                    back[k * N + q] = sum;
                }
            }
        }
    }

    // From the gradient of h before its relu (back_h) to those of query, key and the first linear.
    void first_backward(const Blocks& blocks, Gradients& grads, Sums* sums) {
        for (int s = 0; s <= p.R; ++s) {
            const int length = p.length(s), rows = padded(length, ROWS);
            const float* scale = p.call.gamma[0] + p.start(s);
            V* at_x = (V*)x.get();
            if (rows > length)
                for (int k = 0; k < blocks.count; ++k) {
                    const int n = blocks.width(k);
                    for (int i = length * n; i < rows * n; ++i) at_x[(long)rows * blocks.first[k] + i] = V{};
                }
            each_block(blocks, [&](auto n, int first) { delta<decltype(n)::value>(at_x + (long)rows * first, s, first); });
            if (sums) outer_product((V*)sums->first[s].get(), (V*)back_h.get(), at_x, p.Mp, rows, blocks);
            each_block(blocks, [&](auto n, int first) {
                constexpr int N = decltype(n)::value;
                V back[ROWS * N];
                const V *back_to = (V*)back_h.get() + (long)p.Mp * first, *mine = at_x + (long)rows * first;
                for (int k = 0; k < length; k += ROWS) {
                    product_of<N, PLAIN>(back, p.first_back[s].get() + (long)k * p.M, nullptr, back_to, ROWS, p.M);
                    for (int i = 0; i < ROWS && k + i < length; ++i) {
                        V by_scale{}, by_shift{};
                        for (int q = 0; q < N; ++q) {
                            const int u = first + q;
                            const V grad = mine[(k + i) * N + q] > 0 ? back[i * N + q] : V{};
                            float* to = s ? grads.b.get() + (s - 1) * t.halo.plane + at_halo[u] + t.offset[k + i]
                                          : grads.a.get() + (k + i) * t.plain.plane + at_plain[u];
                            store(to, load(to) + grad * scale[k + i]);
                            by_scale += grad * raw(s, k + i, u), by_shift += grad;
                        }
                        if (!sums) continue;
                        ((V*)sums->scale.get())[p.start(s) + k + i] += by_scale;
                        ((V*)sums->shift.get())[p.start(s) + k + i] += by_shift;
                    }
                }
            });
        }
    }

    void backward(int tile, Gradients& grads, Sums* sums) {
        fill_tile(tile);
        memset(out.get(), 0, 4 * p.C * t.plain.plane);  // zeros where no image is
        fill(t, t.plain, tile, p.call.out, out.get(), p.C);
        strips(tile, STRIP, [&](const Blocks& blocks) {
            each_block(blocks, [&](auto n, int first) { positive_hidden<decltype(n)::value>(first); });
            memset(back_h.get(), 0, 4l * p.Mp * LANES * columns);
            for (int g = 0; g < p.G; ++g) {
                each_block(blocks, [&](auto n, int first) {
                    constexpr int N = decltype(n)::value;
                    weights<N>(g, first);
                    aggregation_backward<N>(g, first, grads);
                    const V* back = (V*)back_w.get() + (long)p.Kp * first;
                    product_of<N, ADD>((V*)back_h.get() + (long)p.Mp * first, p.second_back[g].get(), nullptr, back, p.Mp, p.K);
                    for (int k = 0; sums && k < p.K; ++k)
                        for (int q = 0; q < N; ++q) ((V*)sums->group_bias.get())[(long)g * p.K + k] += back[k * N + q];
                });
                if (sums) outer_product((V*)sums->second[g].get(), (V*)back_w.get(), (V*)h.get(), p.Kp, p.Mp, blocks);
            }
            each_block(blocks, [&](auto n, int first) {
                constexpr int N = decltype(n)::value;
                V *back = (V*)back_h.get() + (long)p.Mp * first, *at = (V*)h.get() + (long)p.Mp * first;
                for (int m = 0; m < p.Mp; ++m)
                    for (int q = 0; q < N; ++q) {
                        back[m * N + q] = at[m * N + q] > 0 ? back[m * N + q] : V{};
                        if (sums) ((V*)sums->bias.get())[m] += back[m * N + q];
                    }
            });
            first_backward(blocks, grads, sums);
        });
    }

    void statistics(int tile, Moments& moments) {
        fill_tile(tile);
        strips(tile, COLS, [&](const Blocks& blocks) {
            for (int u = 0; u < columns; ++u) moments.add_count(valid[u], 1);
            each_block(blocks, [&](auto n, int first) {
                hidden<decltype(n)::value>(first);
                moments.template add_columns<decltype(n)::value>((V*)h.get() + (long)p.Mp * first, [&](int q) { return valid[first + q]; });
            });
            moments.end_row();
        });
    }

    void statistics_backward(int tile, Gradients& grads, Sums* sums) {
        fill_tile(tile);
        const MomentsBackward back(t, p.call, tile, (double)p.call.height * p.call.width);
        strips(tile, STRIP, [&](const Blocks& blocks) {
            each_block(blocks, [&](auto n, int first) {
                constexpr int N = decltype(n)::value;
                hidden<N>(first);
                V *from = (V*)h.get() + (long)p.Mp * first, *to = (V*)back_h.get() + (long)p.Mp * first;
                std::copy(from, from + p.Mp * N, to);
                back.template apply_columns<N>(to, [&](int q) { return valid[first + q]; });
            });
            first_backward(blocks, grads, sums);
        });
    }

    void finish_a(int tile, Gradients& grads, Sums*) {
        visit(t, t.plain, tile, p.call.grad_query, grads.a.get(), p.R, [](int, float& from, float& to) { to = from; });
    }
    void finish_b(int tile, Gradients& grads, Sums*) {  // bands of an image overlap, so one after the other
        visit(t, t.halo, tile, p.call.grad_key, grads.b.get(), p.R, [](int, float& from, float& to) { to += from; });
        if (p.C) visit(t, t.halo, tile, p.call.grad_value, grads.value.get(), p.C, [](int, float& from, float& to) { to += from; });
    }
};

static void sum_weights(const Plan& p, const std::vector<Sums>& sums) {
    const Attention& c = p.call;
    const bool statistics = !c.gamma[5];
    auto total = [&](auto&& entry) {
        double sum = 0;
        for (const Sums& s : sums) sum += entry(s);
        return sum;
    };
    auto lanes = [&](const Buffer Sums::*buffer, long at) {
        return total([&](const Sums& s) {
            double sum = 0;
            for (int l = 0; l < LANES; ++l) sum += (s.*buffer)[at * LANES + l];
            return sum;
        });
    };
    for (int d = 0; d < p.D; ++d) {
        c.grad_gamma[0][d] = (float)lanes(&Sums::scale, d);
        c.grad_gamma[1][d] = (float)lanes(&Sums::shift, d);
    }
    for (int m = 0; m < p.M; ++m) {
        double scale = 0;
        for (int s = 0; s <= p.R; ++s)
            for (int k = 0; k < p.length(s); ++k) {
                const long at = (long)m * p.D + p.start(s) + k;
                const int rows = padded(p.length(s), ROWS);
                const double grad = total([&](const Sums& part) { return outer_entry((const V*)part.first[s].get(), rows, m, k); });
                c.grad_gamma[2][at] = (float)(grad * (statistics ? 1.f : c.gamma[3][m]));
                scale += grad * c.gamma[2][at];
            }
        if (statistics) continue;
        c.grad_gamma[3][m] = (float)scale;
        c.grad_gamma[4][m] = (float)lanes(&Sums::bias, m);
        for (int g = 0; g < p.G; ++g)
            for (int k = 0; k < p.K; ++k)
                c.grad_gamma[5][((long)g * p.K + k) * p.M + m] =
                    (float)total([&](const Sums& s) { return outer_entry((const V*)s.second[g].get(), p.Mp, k, m); });
    }
    if (!statistics)
        for (int at = 0; at < p.G * p.K; ++at) c.grad_gamma[6][at] = (float)lanes(&Sums::group_bias, at);
}

}  // namespace

extern "C" void patchwise_attention(const Attention* call) { run_forward<Plan, Worker>(*call); }
extern "C" void patchwise_statistics(const Attention* call) { run_statistics<Plan, Worker>(*call); }

extern "C" void patchwise_attention_backward(const Attention* call) {
    run_backward<Plan, Worker, Sums>(*call, [](Worker& worker, int tile, Gradients& grads, Sums* sums) { worker.backward(tile, grads, sums); });
}
extern "C" void patchwise_statistics_backward(const Attention* call) {
    run_backward<Plan, Worker, Sums>(*call, [](Worker& worker, int tile, Gradients& grads, Sums* sums) {
        worker.statistics_backward(tile, grads, sums);
    });
}

// Pairwise attention with the relation "subtraction" and a gamma of two linears.
//
// With the first normalisation folded into A = s1 a + t1 and B = s1 b, and the second one into W1' = s2 W1, a pair (i, j) costs
//     x = relu(A_i - B_j)      D = R + E channels, the last E of them positions
//     z = relu(W1' x + t2)     M channels
//     e = W2 z                 G channels (the bias cancels)
// and a pixel p = softmax_j(e), y_c = sum_j p_{c mod G} v_c. LANES output pixels at once, neighbours in blocks of COLS. The backward
// recomputes all of it and scatters what belongs to j into a padded scratch that is folded back.
#include "passes.h"

namespace {

struct Plan {  // what all threads share
    static constexpr bool distinct = true;
    const Attention& call;
    const int D, M, G, C, Dp, Mp, Gp, K;
    const Tiling tiling;
    const Blocks blocks;
    Buffer scaled, first, first_back, second, second_back, bias;

    explicit Plan(const Attention& c)
        : call(c), D(c.narrow + c.extra), M(c.hidden), G(c.groups), C(c.channels), Dp(padded(D, ROWS)), Mp(padded(M, ROWS)),
          Gp(padded(G, ROWS)), K(c.footprint * c.footprint), tiling(c.images, c.height, c.width, c.footprint, distinct),
          blocks((int)tiling.offset.size()), scaled(zeros((long)M * D)), first(zeros((long)Mp * D)), first_back(zeros((long)Dp * M)),
          second(zeros((long)Gp * M)), second_back(zeros((long)Mp * G)), bias(zeros(Mp)) {
        for (int m = 0; m < M; ++m)
            for (int d = 0; d < D; ++d) scaled[(long)m * D + d] = c.gamma[2][(long)m * D + d] * (c.gamma[3] ? c.gamma[3][m] : 1.f);
        pack(first.get(), M, D, [&](int m, int d) { return scaled[(long)m * D + d]; });
        pack(first_back.get(), D, M, [&](int d, int m) { return scaled[(long)m * D + d]; });
        if (!c.gamma[5]) return;  // statistics
        memcpy(bias.get(), c.gamma[4], 4l * M);
        pack(second.get(), G, M, [&](int g, int m) { return c.gamma[5][(long)g * M + m]; });
        pack(second_back.get(), M, G, [&](int m, int g) { return c.gamma[5][(long)g * M + m]; });
    }
    int columns() const { return blocks.columns(); }
    Gradients gradients() const { return Gradients(tiling, D, D, C); }
};

struct Sums {  // of one lot of tiles: gradients of what all images share
    Buffer first, second, bias;
    std::vector<double> scale, shift;
    explicit Sums(const Plan& p)
        : first(zeros(outer_size(p.Mp, p.Dp) * LANES)), second(zeros(p.Gp ? outer_size(p.Gp, p.Mp) * LANES : 0)),
          bias(zeros(p.Mp * LANES)), scale(p.D), shift(p.D) {}
};

struct Worker {
    const Plan& p;
    const Tiling& t;
    Buffer a, b, value, out;       // the tile's channels
    Buffer x, z, e, back_e, back_z;  // sequences of blocks, for the pixels at hand

    explicit Worker(const Plan& plan, bool backward)
        : p(plan), t(plan.tiling), a(zeros(p.D * t.plain.plane)), b(zeros(p.D * t.halo.plane)), value(zeros(p.C * t.halo.plane)),
          out(zeros(p.C * t.plain.plane)), x(zeros((long)p.Dp * length(backward))), z(zeros((long)p.Mp * length(backward))),
          e(zeros((long)p.Gp * length(true))), back_e(zeros((long)p.Gp * length(backward))),
          back_z(zeros((long)p.Mp * length(backward))) {}
    long length(bool whole) const { return LANES * (whole ? p.columns() : COLS); }

    void fill_tile(int tile) {
        const Attention& c = p.call;
        const float *scale = c.gamma[0], *shift = c.gamma[1];
        fill(t, t.plain, tile, c.query, a.get(), c.narrow, scale, shift);
        fill(t, t.halo, tile, c.key, b.get(), c.narrow, scale);
        if (c.extra) {
            fill(t, t.plain, tile, c.at_i, a.get() + c.narrow * t.plain.plane, c.extra, scale + c.narrow, shift + c.narrow);
            fill(t, t.halo, tile, c.at_j, b.get() + c.narrow * t.halo.plane, c.extra, scale + c.narrow);
        }
        if (p.C) fill(t, t.halo, tile, c.value, value.get(), p.C);
    }
    float* plain(Buffer& buffer, int y, int v) { return buffer.get() + y * t.plain.pitch + (long)v * LANES; }
    const long* neighbours(int block) const { return &t.offset[p.blocks.first[block]]; }

    // x of one block
    template <int N>
    void differences(V* to, int y, int v, int block) {
        const float *at_a = plain(a, y, v), *at_b = b.get() + t.at(y, v);
        const long* offset = neighbours(block);
        for (int d = 0; d < p.D; ++d, at_a += t.plain.plane, at_b += t.halo.plane) {
            const V centre = *(const V*)at_a;
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) to[d * N + q] = relu(centre - load(at_b + offset[q]));
        }
    }

    // e of all neighbours; x and z are kept for the backward.
    void scores(int y, int v, bool keep) {
        for (int k = 0; k < p.blocks.count; ++k)
            with_columns(p.blocks.width(k), [&](auto n) {
                constexpr int N = decltype(n)::value;
                const long first = p.blocks.first[k], kept = keep ? first : 0;
                V *at_x = (V*)x.get() + p.Dp * kept, *at_z = (V*)z.get() + p.Mp * kept;
                differences<N>(at_x, y, v, k);
                product_of<N, RELU>(at_z, p.first.get(), p.bias.get(), at_x, p.Mp, p.D);
                product_of<N, PLAIN>((V*)e.get() + p.Gp * first, p.second.get(), nullptr, at_z, p.Gp, p.M);
            });
    }

    // f(weight of e at block k, column q of group g; number of the neighbour)
    template <class F>
    void each(int g, F&& f) const {
        for (int k = 0, j = 0; k < p.blocks.count; ++k) {
            const int n = p.blocks.width(k);
            const long at = (long)p.Gp * p.blocks.first[k] + g * n;
            for (int q = 0; q < n; ++q) f(at + q, j++);
        }
    }

    void softmax() {
        V* w = (V*)e.get();
        for (int g = 0; g < p.G; ++g) {
            V largest = w[(long)g * p.blocks.width(0)], sum{};
            each(g, [&](long at, int) { largest = largest > w[at] ? largest : w[at]; });
            each(g, [&](long at, int j) { sum += w[at] = exponential(w[at] - largest) * t.multiplicity[j]; });
            const V inverse = 1.f / sum;
            each(g, [&](long at, int) { w[at] *= inverse; });
        }
    }

    template <int N>  // N channels that share the weights of group g
    void aggregate(int y, int v, int g, int c) {
        const float* from = value.get() + c * t.halo.plane + t.at(y, v);
        const V* w = (const V*)e.get();
        const long step = p.G * t.halo.plane;
        V sum[N] = {};
        each(g, [&](long at, int j) {
#pragma GCC unroll 8
            for (int i = 0; i < N; ++i) sum[i] += w[at] * load(from + i * step + t.offset[j]);
        });
        for (int i = 0; i < N; ++i) *(V*)(plain(out, y, v) + (c + (long)i * p.G) * t.plain.plane) = sum[i];
    }

    void forward(int tile) {
        fill_tile(tile);
        for (int y = 0; y < t.rows(tile); ++y)
            for (int v = 0; v < t.vectors; ++v) {
                scores(y, v, false);
                softmax();
                for (int g = 0; g < p.G; ++g) {
                    int c = g;
                    for (; c + 7 * p.G < p.C; c += 8 * p.G) aggregate<8>(y, v, g, c);
                    for (; c < p.C; c += p.G) aggregate<1>(y, v, g, c);
                }
            }
        visit(t, t.plain, tile, p.call.out, out.get(), p.C, [](int, float& from, float& to) { to = from; });
    }

    // back_e = p (gw - sum p gw) with gw = sum over channels of gy v, and the gradient of the values
    void attention_backward(int y, int v, Gradients& grads) {
        const V* w = (const V*)e.get();
        V* back = (V*)back_e.get();
        const long at_v = t.at(y, v);
        for (int g = 0; g < p.G; ++g) {
            V mean{};
            const float *gy = plain(out, y, v) + g * t.plain.plane, *from = value.get() + g * t.halo.plane + at_v;
            each(g, [&](long at, int) { back[at] = V{}; });
            for (int c = g; c < p.C; c += 8 * p.G, gy += 8 * p.G * t.plain.plane, from += 8 * p.G * t.halo.plane) {
                const int n = std::min(8, (p.C - c + p.G - 1) / p.G);
                V grad[8];
                for (int i = 0; i < 8; ++i) grad[i] = i < n ? *(const V*)(gy + i * p.G * t.plain.plane) : V{};
                each(g, [&](long at, int j) {
                    V sum = back[at];
                    if (n == 8)
#pragma GCC unroll 8
                        for (int i = 0; i < 8; ++i) sum += grad[i] * load(from + i * p.G * t.halo.plane + t.offset[j]);
                    else
                        for (int i = 0; i < n; ++i) sum += grad[i] * load(from + i * p.G * t.halo.plane + t.offset[j]);
                    back[at] = sum;
                });
            }
            each(g, [&](long at, int) { mean += w[at] * back[at]; });
            each(g, [&](long at, int) { back[at] = w[at] * (back[at] - mean); });
        }
        // neighbours outermost: a store and a load one pixel apart would wait for each other
        for (int k = 0; k < p.blocks.count; ++k) {
            const int n = p.blocks.width(k);
            for (int q = 0; q < n; ++q) {
                const V* weight = w + (long)p.Gp * p.blocks.first[k] + q;
                float* to = grads.value.get() + at_v + neighbours(k)[q];
                const float* gy = plain(out, y, v);
                for (int c = 0; c < p.C; c += p.G)
                    for (int g = 0; g < p.G; ++g, to += t.halo.plane, gy += t.plain.plane)
                        store(to, load(to) + weight[(long)g * n] * *(const V*)gy);
            }
        }
    }

    // From the gradient of z before its relu (back_z) to those of A, B and the first linear.
    void first_backward(int y, int v, Gradients& grads, Sums* sums) {
        if (sums) outer_product((V*)sums->first.get(), (V*)back_z.get(), (V*)x.get(), p.Mp, p.Dp, p.blocks);
        float* to_a = plain(grads.a, y, v);
        for (int k = 0; k < p.blocks.count; ++k)
            with_columns(p.blocks.width(k), [&](auto n) {
                constexpr int N = decltype(n)::value;
                const long first = p.blocks.first[k];
                V* at_x = (V*)x.get() + p.Dp * first;
                V back[4 * N];
                for (int d = 0; d < p.D; d += ROWS) {
                    product_of<N, PLAIN>(back, p.first_back.get() + (long)d * p.M, nullptr, (V*)back_z.get() + p.Mp * first, ROWS, p.M);
                    for (int i = 0; i < ROWS && d + i < p.D; ++i) {
                        V sum{};
#pragma GCC unroll 8
                        for (int q = 0; q < N; ++q) {
                            V& at = at_x[(d + i) * N + q];
                            at = at > 0 ? back[i * N + q] : V{};
                            sum += at;
                        }
                        *(V*)(to_a + (d + i) * t.plain.plane) += sum;
                    }
                }
                for (int q = 0; q < N; ++q) {
                    float* to = grads.b.get() + t.at(y, v) + neighbours(k)[q];
                    for (int d = 0; d < p.D; ++d, to += t.halo.plane) store(to, load(to) - at_x[d * N + q]);
                }
            });
    }

    void backward(int tile, Gradients& grads, Sums* sums) {
        fill_tile(tile);
        memset(out.get(), 0, 4 * p.C * t.plain.plane);  // zeros where no image is
        fill(t, t.plain, tile, p.call.out, out.get(), p.C);
        for (int y = 0; y < t.rows(tile); ++y)
            for (int v = 0; v < t.vectors; ++v) {
                scores(y, v, true);
                softmax();
                attention_backward(y, v, grads);
                if (sums) outer_product((V*)sums->second.get(), (V*)back_e.get(), (V*)z.get(), p.Gp, p.Mp, p.blocks);
                for (int k = 0; k < p.blocks.count; ++k)
                    with_columns(p.blocks.width(k), [&](auto n) {
                        constexpr int N = decltype(n)::value;
                        const long first = p.blocks.first[k];
                        V *to = (V*)back_z.get() + p.Mp * first, *at_z = (V*)z.get() + p.Mp * first;
                        product_of<N, PLAIN>(to, p.second_back.get(), nullptr, (V*)back_e.get() + p.Gp * first, p.Mp, p.G);
                        for (int m = 0; m < p.Mp; ++m) {
                            V sum{};
#pragma GCC unroll 8
                            for (int q = 0; q < N; ++q) sum += to[m * N + q] = at_z[m * N + q] > 0 ? to[m * N + q] : V{};
                            if (sums) ((V*)sums->bias.get())[m] += sum;
                        }
                    });
                first_backward(y, v, grads, sums);
            }
    }

    template <int N>
    void hidden(V* to, int y, int v, int block) {  // W1 x without relu
        V* at_x = (V*)x.get() + (long)p.Dp * p.blocks.first[block];
        differences<N>(at_x, y, v, block);
        product_of<N, PLAIN>(to, p.first.get(), nullptr, at_x, p.Mp, p.D);
    }

    void statistics(int tile, Moments& moments) {
        fill_tile(tile);
        for (int y = 0; y < t.rows(tile); ++y) {
            for (int v = 0; v < t.vectors; ++v) {
                const V valid = t.valid(t.group(tile), v);
                moments.add_count(valid, p.K);
                for (int k = 0; k < p.blocks.count; ++k)
                    with_columns(p.blocks.width(k), [&](auto n) {
                        constexpr int N = decltype(n)::value;
                        hidden<N>((V*)z.get(), y, v, k);
                        moments.add<N>((V*)z.get(), valid, &t.multiplicity[p.blocks.first[k]]);
                    });
            }
            moments.end_row();
        }
    }

    // The gradient of the moments reaches each value h as (g_mean + 2 g_variance (h - mean)) / count.
    void statistics_backward(int tile, Gradients& grads, Sums* sums) {
        fill_tile(tile);
        const MomentsBackward back(t, p.call, tile, (double)p.call.height * p.call.width * p.K);
        for (int y = 0; y < t.rows(tile); ++y)
            for (int v = 0; v < t.vectors; ++v) {
                const V valid = t.valid(t.group(tile), v);
                for (int k = 0; k < p.blocks.count; ++k)
                    with_columns(p.blocks.width(k), [&](auto n) {
                        constexpr int N = decltype(n)::value;
                        V* at = (V*)back_z.get() + (long)p.Mp * p.blocks.first[k];
                        hidden<N>(at, y, v, k);
                        back.apply<N>(at, valid, &t.multiplicity[p.blocks.first[k]]);
                    });
                first_backward(y, v, grads, sums);
            }
    }

    // Gradients of a tile without halo: query, encoding at i, and what they give to scale and shift.
    void finish_a(int tile, Gradients& grads, Sums* sums) {
        const Attention& c = p.call;
        float* positions = grads.a.get() + c.narrow * t.plain.plane;
        visit(t, t.plain, tile, c.grad_query, grads.a.get(), c.narrow, [&](int d, float& from, float& to) { to = c.gamma[0][d] * from; });
        if (!sums) return;
        visit(t, t.plain, tile, c.query, grads.a.get(), c.narrow, [&](int d, float& g, float& at) {
            sums->scale[d] += (double)g * at, sums->shift[d] += g;
        });
        visit(t, t.plain, tile, c.at_i, positions, c.extra, [&](int d, float& g, float& at) {
            sums->scale[c.narrow + d] += (double)g * at, sums->shift[c.narrow + d] += g;
        });
        if (c.grad_at_i) add_position(tile, t.plain, c.grad_at_i, positions);
    }
    // ... and with halo: bands of an image overlap, so one after the other.
    void finish_b(int tile, Gradients& grads, Sums* sums) {
        const Attention& c = p.call;
        float* positions = grads.b.get() + c.narrow * t.halo.plane;
        visit(t, t.halo, tile, c.grad_key, grads.b.get(), c.narrow, [&](int d, float& from, float& to) { to += c.gamma[0][d] * from; });
        if (p.C) visit(t, t.halo, tile, c.grad_value, grads.value.get(), p.C, [](int, float& from, float& to) { to += from; });
        if (!sums) return;
        visit(t, t.halo, tile, c.key, grads.b.get(), c.narrow, [&](int d, float& g, float& at) { sums->scale[d] += (double)g * at; });
        visit(t, t.halo, tile, c.at_j, positions, c.extra, [&](int d, float& g, float& at) {
            sums->scale[c.narrow + d] += (double)g * at;
        });
        if (c.grad_at_j) add_position(tile, t.halo, c.grad_at_j, positions);
    }
    void add_position(int tile, const Layout& layout, float* grad, float* from) {  // grad: groups x E x height x width
        const int64_t row = t.width, plane = row * t.height;
        const StridedMap view{grad + t.group(tile) * p.call.extra * plane, 0, plane, row, 1};
        visit(t, layout, tile, view, from, p.call.extra, [&](int d, float& g, float& to) {
            to += p.call.gamma[0][p.call.narrow + d] * g;
        });
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
    for (int d = 0; d < p.D; ++d) {
        c.grad_gamma[0][d] = (float)total([&](const Sums& s) { return s.scale[d]; });
        c.grad_gamma[1][d] = (float)total([&](const Sums& s) { return s.shift[d]; });
    }
    for (int m = 0; m < p.M; ++m) {
        double scale = 0;
        for (int d = 0; d < p.D; ++d) {
            const long at = (long)m * p.D + d;
            const double grad = total([&](const Sums& s) { return outer_entry((const V*)s.first.get(), p.Dp, m, d); });
            c.grad_gamma[2][at] = (float)(grad * (statistics ? 1.f : c.gamma[3][m]));
            scale += grad * c.gamma[2][at];
        }
        if (statistics) continue;
        c.grad_gamma[3][m] = (float)scale;
        c.grad_gamma[4][m] = (float)total([&](const Sums& s) {
            double sum = 0;
            for (int l = 0; l < LANES; ++l) sum += s.bias[(long)m * LANES + l];
            return sum;
        });
        for (int g = 0; g < p.G; ++g)
            c.grad_gamma[5][(long)g * p.M + m] = (float)total([&](const Sums& s) { return outer_entry((const V*)s.second.get(), p.Mp, g, m); });
    }
}

}  // namespace

MIRRORED(StridedMap, column)
MIRRORED(Attention, out_moments)

// How many groups of images the gradients of positions come in: groups x E x height x width.
extern "C" int pairwise_groups(const Attention* call) {
    return Tiling(call->images, call->height, call->width, call->footprint, Plan::distinct).groups;
}

extern "C" void pairwise_attention(const Attention* call) { run_forward<Plan, Worker>(*call); }
extern "C" void pairwise_statistics(const Attention* call) { run_statistics<Plan, Worker>(*call); }

extern "C" void pairwise_attention_backward(const Attention* call) {
    run_backward<Plan, Worker, Sums>(*call, [](Worker& worker, int tile, Gradients& grads, Sums* sums) { worker.backward(tile, grads, sums); });
}
extern "C" void pairwise_statistics_backward(const Attention* call) {
    run_backward<Plan, Worker, Sums>(*call, [](Worker& worker, int tile, Gradients& grads, Sums* sums) {
        worker.statistics_backward(tile, grads, sums);
    });
}

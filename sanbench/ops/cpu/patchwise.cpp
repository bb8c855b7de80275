// Patchwise attention with the relation "concatenation" and a gamma of two linears.
//
// A pixel's delta has 1 + R slices: the R channels of its query, then the K neighbours of each channel of the key. With the second
// normalisation folded into W1' = s2 W1, a pixel costs
//     h = relu(sum over slices of W1'_slice relu(s1 x + t1) + t2)      M channels
//     w_g = W2_g h + bias                                               K weights for each of G groups, no softmax
//     y_c = sum_k w_{c mod G, k} v_{c, k}
// The columns of a block are vectors of pixels; a strip is one block forward, several backward, where products over all columns
// (gradients of weights) want many.
#include "passes.h"

namespace {

constexpr int STRIP = 4 * COLS;

struct Worker : Scratch {
    static constexpr bool pairwise = false, ends_row = true;
    const int Kp, longest;           // columns of a strip at most
    Buffer x, h, w, back_h, back_w;  // of a strip
    int columns = 0;                 // of the strip
    long at_plain[STRIP], at_halo[STRIP];
    V valid[STRIP];

    Worker(const Plan& plan, bool whole)
        : Scratch(plan), Kp(padded(p.K, ROWS)), longest(whole ? STRIP : COLS), x(length(std::max(Kp, (int)padded(p.R, ROWS)))),
          h(length(p.Mp)), w(length(Kp)), back_h(whole ? length(p.Mp) : 0), back_w(whole ? length(Kp) : 0) {}
    long length(int rows) const { return (long)rows * LANES * longest; }

    template <class F>
    void strips(int tile, F&& f) {
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
    V times(int u) const { return valid[u]; }

    V raw(int slice, int k, int u) const {  // delta's channel k of a slice, at column u
        return slice ? load(b.get() + (slice - 1) * t.halo.plane + at_halo[u] + t.offset[k])
                     : load(a.get() + k * t.plain.plane + at_plain[u]);
    }
    template <int N>
    void delta(V* to, int slice, int first) const {  // relu(s1 x + t1)
        const int length = p.length[slice];
        const float *scale = p.call.gamma[0] + p.start[slice], *shift = p.call.gamma[1] + p.start[slice];
        for (int k = 0; k < length; ++k) UNROLLED(q, N) to[k * N + q] = relu(raw(slice, k, first + q) * scale[k] + shift[k]);
    }
    template <int N, Epilogue E = ADD>
    void hidden(V* to, int first) {  // h before its relu, or with ADD_RELU after it
        V* at_x = x.vectors();
        for (int s = 0; s <= p.R; ++s) {
            delta<N>(at_x, s, first);
            auto product = s == 0 ? product_of<N, PLAIN> : s < p.R ? product_of<N, ADD> : product_of<N, E>;
            product(to, p.first[s].get(), s ? nullptr : p.bias.get(), at_x, p.Mp, p.length[s]);
        }
    }
    template <int N>
    void positive_hidden(int first) { hidden<N, ADD_RELU>(h.vectors() + (long)p.Mp * first, first); }
    template <int N>
    V* weights(int g, int first) {
        V* to = w.vectors() + (long)Kp * first;
        product_of<N, PLAIN>(to, p.second[g].get(), p.set_bias[g].get(), h.vectors() + (long)p.Mp * first, Kp, p.M);
        return to;
    }

    void forward(int tile) {
        strips(tile, [&](const Blocks& blocks) {
            blocks.each([&](auto n, int first) {
                constexpr int N = n;
                positive_hidden<N>(first);
                for (int g = 0; g < p.G; ++g) {
                    const V* weight = weights<N>(g, first);
                    for (int q = 0; q < N; ++q)
                        aggregate(g, at_plain[first + q], at_halo[first + q], [&](auto&& f) {
                            for (int k = 0; k < p.K; ++k) f(weight[k * N + q], k);
                        });
                }
            });
        });
    }

    // From the gradient of h before its relu (back_h) to those of query, key and the first linear.
    void first_backward(const Blocks& blocks, Gradients& grads, Sums* sums) {
        for (int s = 0; s <= p.R; ++s) {
            const int length = p.length[s], rows = padded(length, ROWS), start = p.start[s];
            const float* scale = p.call.gamma[0] + start;
            V* at_x = x.vectors();
            blocks.each([&](auto n, int first) {
                V* mine = at_x + (long)rows * first;
                delta<n>(mine, s, first);
                std::fill(mine + length * n, mine + rows * n, V{});
            });
            if (sums) sums->first[s].add(back_h.vectors(), at_x, blocks);
            blocks.each([&](auto n, int first) {
                constexpr int N = n;
                V back[ROWS * N];
                const V *back_to = back_h.vectors() + (long)p.Mp * first, *mine = at_x + (long)rows * first;
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
                        sums->scale.vectors()[start + k + i] += by_scale;
                        sums->shift.vectors()[start + k + i] += by_shift;
                    }
                }
            });
        }
    }

    void backward(int tile, Gradients& grads, Sums* sums) {
        strips(tile, [&](const Blocks& blocks) {
            blocks.each([&](auto n, int first) { positive_hidden<n>(first); });
            std::fill_n(back_h.vectors(), (long)p.Mp * columns, V{});
            for (int g = 0; g < p.G; ++g) {
                blocks.each([&](auto n, int first) {
                    constexpr int N = n;
                    V *weight = weights<N>(g, first), *back = back_w.vectors() + (long)Kp * first;
                    for (int q = 0; q < N; ++q)
                        aggregation_backward<true>(g, at_plain[first + q], at_halo[first + q], grads, [&](auto&& f) {
                            for (int k = 0; k < p.K; ++k) f(back[k * N + q], weight[k * N + q], k);
                        });
                    product_of<N, ADD>(back_h.vectors() + (long)p.Mp * first, p.second_back[g].get(), nullptr, back, p.Mp, p.K);
                    for (int k = 0; sums && k < p.K; ++k)
                        for (int q = 0; q < N; ++q) sums->set_bias.vectors()[(long)g * p.K + k] += back[k * N + q];
                });
                if (sums) sums->second[g].add(back_w.vectors(), h.vectors(), blocks);
            }
            blocks.each([&](auto n, int first) {
                constexpr int N = n;
                V *back = back_h.vectors() + (long)p.Mp * first, *at = h.vectors() + (long)p.Mp * first;
                for (int m = 0; m < p.Mp; ++m)
                    for (int q = 0; q < N; ++q) {
                        back[m * N + q] = at[m * N + q] > 0 ? back[m * N + q] : V{};
                        if (sums) sums->bias.vectors()[m] += back[m * N + q];
                    }
            });
            first_backward(blocks, grads, sums);
        });
    }

    template <bool CENTRE>
    void finish(int tile, const Buffer& grads, Sums*) {
        give<!CENTRE>(t, CENTRE ? t.plain : t.halo, tile, CENTRE ? p.call.grad_query : p.call.grad_key, grads.get(), p.R);
    }
};

}  // namespace

extern "C" void patchwise_attention(const Attention* call) { run_forward<Worker>(*call); }
extern "C" void patchwise_attention_backward(const Attention* call) { run_backward<Worker>(*call); }
extern "C" void patchwise_statistics(const Attention* call) { run_statistics<Worker>(*call); }
extern "C" void patchwise_statistics_backward(const Attention* call) { run_backward<Worker>(*call); }

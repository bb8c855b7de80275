// Pairwise attention with the relation "subtraction" and a gamma of two linears.
//
// With the first normalisation folded into A = s1 a + t1 and B = s1 b, and the second one into W1' = s2 W1, a pair (i, j) costs
//     x = relu(A_i - B_j)      R channels, the last of them positions
//     h = relu(W1' x + t2)     M channels
//     e = W2 h                 G channels (the bias cancels)
// and a pixel p = softmax_j(e), y_c = sum_j p_{c mod G} v_c. LANES output pixels at once, neighbours in blocks of COLS. The backward
// recomputes all of it and scatters what belongs to j into a padded scratch that is folded back.
#include "passes.h"

namespace {

struct Worker : Scratch {
    static constexpr bool pairwise = true;
    const bool whole;
    const int Rp, Gp;
    const Blocks blocks;             // of neighbours: the strip of a vector of pixels
    Buffer x, h, e, back_e, back_h;  // sequences of blocks
    long at_plain = 0, at_halo = 0;  // the vector of pixels at hand
    V valid{};
    bool ends_row = false;

    Worker(const Plan& plan, bool whole)
        : Scratch(plan), whole(whole), Rp(padded(p.R, ROWS)), Gp(padded(p.G, ROWS)), blocks((int)t.offset.size()),
          x(Rp * length(whole)), h(p.Mp * length(whole)), e(Gp * length(true)), back_e(Gp * length(whole)),
          back_h(p.Mp * length(whole)) {}
    long length(bool all) const { return LANES * (all ? (long)t.offset.size() : COLS); }

    template <class F>
    void strips(int tile, F&& f) {
        for (int y = 0; y < t.rows(tile); ++y)
            for (int v = 0; v < t.vectors; ++v) {
                at_plain = y * t.plain.pitch + (long)v * LANES, at_halo = t.at(y, v);
                valid = t.valid(t.group(tile), v), ends_row = v + 1 == t.vectors;
                f(blocks);
            }
    }
    V times(int u) const { return valid * t.multiplicity[u]; }

    // W1' x + t2 of one block, or relu of it
    template <int N, Epilogue E = PLAIN>
    void hidden(V* to, int first) {
        V* at_x = x.vectors() + (whole ? (long)Rp * first : 0);
        const float *at_a = a.get() + at_plain, *at_b = b.get() + at_halo;
        const long* offset = &t.offset[first];
        for (int d = 0; d < p.R; ++d, at_a += t.plain.plane, at_b += t.halo.plane) {
            const V centre = *(const V*)at_a;
            UNROLLED(q, N) at_x[d * N + q] = relu(centre - load(at_b + offset[q]));
        }
        product_of<N, E>(to, p.first[0].get(), p.bias.get(), at_x, p.Mp, p.R);
    }

    void scores() {  // e of all neighbours
        blocks.each([&](auto n, int first) {
            V* at_h = h.vectors() + (whole ? (long)p.Mp * first : 0);
            hidden<n, RELU>(at_h, first);
            product_of<n, PLAIN>(e.vectors() + (long)Gp * first, p.second[0].get(), nullptr, at_h, Gp, p.M);
        });
    }

    // f(weight of e at block k, column q of group g; number of the neighbour)
    template <class F>
    void each(int g, F&& f) const {
        for (int k = 0, j = 0; k < blocks.count; ++k) {
            const int n = blocks.width(k);
            const long at = (long)Gp * blocks.first[k] + g * n;
            for (int q = 0; q < n; ++q) f(at + q, j++);
        }
    }

    void softmax() {
        V* w = e.vectors();
        for (int g = 0; g < p.G; ++g) {
            V largest = w[(long)g * blocks.width(0)], sum{};
            each(g, [&](long at, int) { largest = largest > w[at] ? largest : w[at]; });
            each(g, [&](long at, int j) { sum += w[at] = exponential(w[at] - largest) * t.multiplicity[j]; });
            const V inverse = 1.f / sum;
            each(g, [&](long at, int) { w[at] *= inverse; });
        }
    }

    void forward(int tile) {
        strips(tile, [&](const Blocks&) {
            scores();
            softmax();
            const V* w = e.vectors();
            for (int g = 0; g < p.G; ++g)
                aggregate(g, at_plain, at_halo, [&](auto&& f) { each(g, [&](long at, int j) { f(w[at], j); }); });
        });
    }

    // back_e = p (gw - sum p gw) with gw = sum over channels of gy v, and the gradient of the values
    void attention_backward(Gradients& grads) {
        V *w = e.vectors(), *back = back_e.vectors();
        for (int g = 0; g < p.G; ++g) {
            aggregation_backward<false>(g, at_plain, at_halo, grads, [&](auto&& f) {
                each(g, [&](long at, int j) { f(back[at], w[at], j); });
            });
            V mean{};
            each(g, [&](long at, int) { mean += w[at] * back[at]; });
            each(g, [&](long at, int) { back[at] = w[at] * (back[at] - mean); });
        }
        // neighbours outermost: a store and a load one pixel apart would wait for each other
        for (int k = 0; k < blocks.count; ++k) {
            const int n = blocks.width(k);
            for (int q = 0; q < n; ++q) {
                const V* weight = w + (long)Gp * blocks.first[k] + q;
                float* to = grads.value.get() + at_halo + t.offset[blocks.first[k] + q];
                const float* gy = out.get() + at_plain;
                for (int c = 0; c < p.C; c += p.G)
                    for (int g = 0; g < p.G; ++g, to += t.halo.plane, gy += t.plain.plane)
                        store(to, load(to) + weight[(long)g * n] * *(const V*)gy);
            }
        }
    }

    // From the gradient of h before its relu (back_h) to those of A, B and the first linear.
    void first_backward(const Blocks&, Gradients& grads, Sums* sums) {
        if (sums) sums->first[0].add(back_h.vectors(), x.vectors(), blocks);
        float *to_a = grads.a.get() + at_plain, *to_b = grads.b.get() + at_halo;
        blocks.each([&](auto n, int first) {
            constexpr int N = n;
            V* at_x = x.vectors() + (long)Rp * first;
            V back[ROWS * N];
            for (int d = 0; d < p.R; d += ROWS) {
                const float* weight = p.first_back[0].get() + (long)d * p.M;
                product_of<N, PLAIN>(back, weight, nullptr, back_h.vectors() + (long)p.Mp * first, ROWS, p.M);
                for (int i = 0; i < ROWS && d + i < p.R; ++i) {
                    V sum{};
                    UNROLLED(q, N) {
                        V& at = at_x[(d + i) * N + q];
                        at = at > 0 ? back[i * N + q] : V{};
                        sum += at;
                    }
                    *(V*)(to_a + (d + i) * t.plain.plane) += sum;
                }
            }
            for (int q = 0; q < N; ++q) {
                float* to = to_b + t.offset[first + q];
                for (int d = 0; d < p.R; ++d, to += t.halo.plane) store(to, load(to) - at_x[d * N + q]);
            }
        });
    }

    void backward(int tile, Gradients& grads, Sums* sums) {
        strips(tile, [&](const Blocks&) {
            scores();
            softmax();
            attention_backward(grads);
            if (sums) sums->second[0].add(back_e.vectors(), h.vectors(), blocks);
            blocks.each([&](auto n, int first) {
                constexpr int N = n;
                V *to = back_h.vectors() + (long)p.Mp * first, *at_h = h.vectors() + (long)p.Mp * first;
                product_of<N, PLAIN>(to, p.second_back[0].get(), nullptr, back_e.vectors() + (long)Gp * first, p.Mp, p.G);
                for (int m = 0; m < p.Mp; ++m) {
                    V sum{};
                    UNROLLED(q, N) sum += to[m * N + q] = at_h[m * N + q] > 0 ? to[m * N + q] : V{};
                    if (sums) sums->bias.vectors()[m] += sum;
                }
            });
            first_backward(blocks, grads, sums);
        });
    }

    // From the gradients of A (CENTRE) or B: those of the map and the position, and what they give to scale and shift.
    template <bool CENTRE>
    void finish(int tile, const Buffer& grads, Sums* sums) {
        const Attention& c = p.call;
        const Layout& layout = CENTRE ? t.plain : t.halo;
        float *own = grads.get(), *positions = own + c.narrow * layout.plane;
        give<!CENTRE>(t, layout, tile, CENTRE ? c.grad_query : c.grad_key, own, c.narrow, c.gamma[0]);
        if (!sums) return;
        auto add = [&](const StridedMap& map, float* from, int first, int channels) {
            visit(t, layout, tile, map, from, channels, [&](int d, float& grad, float& at) {
                sums->pair_scale[first + d] += (double)grad * at;
                if (CENTRE) sums->pair_shift[first + d] += grad;
            });
        };
        add(CENTRE ? c.query : c.key, own, 0, c.narrow);
        add(CENTRE ? c.at_i : c.at_j, positions, c.narrow, c.extra);
        float* to_position = CENTRE ? c.grad_at_i : c.grad_at_j;  // groups x extra x height x width
        if (!to_position) return;
        const int64_t row = t.width, plane = row * t.height;
        const StridedMap view{to_position + t.group(tile) * c.extra * plane, 0, plane, row, 1};
        visit(t, layout, tile, view, positions, c.extra, [&](int d, float& from, float& to) { to += c.gamma[0][c.narrow + d] * from; });
    }
};

}  // namespace

MIRRORED(StridedMap, column)
MIRRORED(Attention, out_moments)

// How many groups of images the gradients of positions come in: groups x extra x height x width.
extern "C" int pairwise_groups(const Attention* call) {
    return Tiling(call->images, call->height, call->width, call->footprint, Worker::pairwise).groups;
}

extern "C" void pairwise_attention(const Attention* call) { run_forward<Worker>(*call); }
extern "C" void pairwise_attention_backward(const Attention* call) { run_backward<Worker>(*call); }
extern "C" void pairwise_statistics(const Attention* call) { run_statistics<Worker>(*call); }
extern "C" void pairwise_statistics_backward(const Attention* call) { run_backward<Worker>(*call); }

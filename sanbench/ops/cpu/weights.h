// Gamma's two linears as the kernels read them, and the sums of its gradients.
//
// The inputs of the first linear come in slices, the outputs of the second one in sets. Pairwise attention has one of each. Patchwise
// attention has a slice for the query's channels and one for each channel of the key, and a set for each group.
#pragma once
#include "tile.h"

struct Plan {  // what all threads share
    const Attention& call;
    const bool pairwise;
    const int R, M, G, C, K;  // channels of the query and the position, between the linears, groups, channels of the value, neighbours
    const int sets, outputs, Mp;                                           // outputs of a set; M padded
    const Tiling tiling;
    std::vector<int> length, start{0};                                     // of each slice; where it begins, and the end
    std::vector<Buffer> first, first_back, second, second_back, set_bias;  // by slice, by set
    Buffer bias;

    Plan(const Attention& c, bool pairwise)
        : call(c), pairwise(pairwise), R(c.narrow + c.extra), M(c.hidden), G(c.groups), C(c.channels), K(c.footprint * c.footprint),
          sets(pairwise ? 1 : G), outputs(pairwise ? G : K), Mp(padded(M, ROWS)),
          tiling(c.images, c.height, c.width, c.footprint, pairwise), length(pairwise ? 1 : 1 + R, K), bias(Mp) {
        length[0] = R;
        for (int n : length) start.push_back(start.back() + n);
        const float *w1 = c.gamma[2], *s2 = c.gamma[3], *w2 = c.gamma[5];
        for (size_t s = 0; s < length.size(); ++s) {
            auto entry = [&](int m, int d) { return w1[(long)m * inputs() + start[s] + d] * (s2 ? s2[m] : 1.f); };
            first.push_back(packed(M, length[s], entry));
            first_back.push_back(packed(length[s], M, [&](int d, int m) { return entry(m, d); }));
        }
        if (!w2) return;  // statistics
        std::copy_n(c.gamma[4], M, bias.get());
        for (int g = 0; g < sets; ++g) {
            auto entry = [&](int k, int m) { return w2[((long)g * outputs + k) * M + m]; };
            second.push_back(packed(outputs, M, entry));
            second_back.push_back(packed(M, outputs, [&](int m, int k) { return entry(k, m); }));
            set_bias.emplace_back(padded(outputs, ROWS));
            std::copy_n(c.gamma[6] + (long)g * outputs, outputs, set_bias[g].get());
        }
    }
    int inputs() const { return start.back(); }
};

struct Sums {  // of one lot of tiles: gradients of what all images share
    std::vector<OuterProduct> first, second;  // by slice, by set
    Buffer bias, set_bias, scale, shift;         // lane by lane; scale and shift of patchwise attention ...
    std::vector<double> pair_scale, pair_shift;  // ... and those of pairwise attention
    explicit Sums(const Plan& p)
        : bias((long)p.Mp * LANES), set_bias((long)p.sets * p.outputs * LANES), scale((long)p.inputs() * LANES),
          shift((long)p.inputs() * LANES), pair_scale(p.R), pair_shift(p.R) {
        for (int n : p.length) first.emplace_back(p.Mp, padded(n, ROWS));
        for (size_t g = 0; g < p.second.size(); ++g) second.emplace_back(padded(p.outputs, ROWS), p.Mp);
    }
};

static inline void sum_weights(const Plan& p, const std::vector<Sums>& sums) {
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
    for (int d = 0; d < p.inputs(); ++d) {
        c.grad_gamma[0][d] = (float)(p.pairwise ? total([&](const Sums& s) { return s.pair_scale[d]; }) : lanes(&Sums::scale, d));
        c.grad_gamma[1][d] = (float)(p.pairwise ? total([&](const Sums& s) { return s.pair_shift[d]; }) : lanes(&Sums::shift, d));
    }
    for (int m = 0; m < p.M; ++m) {
        double scale = 0;
        for (size_t s = 0; s < p.length.size(); ++s)
            for (int k = 0; k < p.length[s]; ++k) {
                const long at = (long)m * p.inputs() + p.start[s] + k;
                const double grad = total([&](const Sums& lot) { return lot.first[s].entry(m, k); });
                c.grad_gamma[2][at] = (float)(grad * (statistics ? 1.f : c.gamma[3][m]));
                scale += grad * c.gamma[2][at];
            }
        if (statistics) continue;
        c.grad_gamma[3][m] = (float)scale;
        c.grad_gamma[4][m] = (float)lanes(&Sums::bias, m);
        for (int g = 0; g < p.sets; ++g)
            for (int k = 0; k < p.outputs; ++k)
                c.grad_gamma[5][((long)g * p.outputs + k) * p.M + m] =
                    (float)total([&](const Sums& lot) { return lot.second[g].entry(k, m); });
    }
    for (int at = 0; !statistics && !p.pairwise && at < p.sets * p.outputs; ++at)  // pairwise attention's softmax cancels the bias
        c.grad_gamma[6][at] = (float)lanes(&Sums::set_bias, at);
}

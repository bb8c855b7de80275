// Vectors of pixels and the three loops over them that the attention kernels are made of.
//
// A vector holds LANES output pixels. A block holds `rows` x `n` vectors, one row a channel and one column a neighbour (pairwise)
// or a vector of pixels (patchwise); n is at most COLS. Everything wider is a sequence of blocks.
#pragma once
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16, COLS = 7, TILE_A = 4, TILE_B = 4;
#elif defined(__AVX2__)
#include <immintrin.h>
constexpr int LANES = 8, COLS = 3, TILE_A = 4, TILE_B = 2;
#else
constexpr int LANES = 4, COLS = 3, TILE_A = 2, TILE_B = 2;
#endif
constexpr int ROWS = 4;  // ROWS x COLS accumulators of a product stay in registers; TILE_A x TILE_B = LANES those of an outer product

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int I __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline V load(const float* p) { return *(const Unaligned*)p; }
static inline void store(float* p, V x) { *(Unaligned*)p = x; }
static inline V part(const float* from, int64_t n) {  // the first n of a vector, then zeros
    if (n == LANES) return load(from);
    V x{};
    for (int64_t i = 0; i < n; ++i) x[i] = from[i];
    return x;
}
static inline void put(float* to, V x, int64_t n) {
    if (n == LANES) return store(to, x);
    for (int64_t i = 0; i < n; ++i) to[i] = x[i];
}
static inline V all(float x) { return V{} + x; }
static inline long padded(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline V relu(V x) {  // not a number stays not a number
#if defined(__AVX512F__)
    return (V)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#elif defined(__AVX2__)
    return (V)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#else
    return x < 0 ? V{} : x;
#endif
}

// exp for x <= 0, relative error below 2e-7; below -87 it stays at exp(-87).
static inline V exponential(V x) {
    const V lowest = all(-87.f), magic = all(12582912.f);  // adding 1.5 * 2^23 rounds to an integer
    x = x < lowest ? lowest : x;
    const V shifted = x * 1.44269504f + magic, n = shifted - magic;
    const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const I power = (((I)shifted - (I)magic) + 127) << 23;
    return p * (V)power;
}

// A weight (rows x inner), entry(row, column), as `product_of` reads it: ROWS rows together, missing rows zero.
template <class F>
static void pack(float* packed, int rows, int inner, F&& entry) {
    for (int r = 0; r < padded(rows, ROWS); ++r)
        for (int d = 0; d < inner; ++d)
            packed[(long)(r / ROWS) * ROWS * inner + d * ROWS + r % ROWS] = r < rows ? entry(r, d) : 0.f;
}

enum Epilogue { PLAIN, RELU, ADD };

// out (rows x n) = weight x (inner x n) + bias, for `rows` padded to ROWS; bias may be missing. ADD adds to what out holds instead.
template <int N, Epilogue E>
static void product_of(V* out, const float* weight, const float* bias, const V* x, int rows, int inner) {
    for (int r = 0; r < rows; r += ROWS, weight += (long)ROWS * inner, out += ROWS * N) {
        V sum[ROWS][N];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) sum[i][q] = E == ADD ? out[i * N + q] : bias ? all(bias[r + i]) : V{};
        for (int d = 0; d < inner; ++d)
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                const V w = all(weight[d * ROWS + i]);
#pragma GCC unroll 8
                for (int q = 0; q < N; ++q) sum[i][q] += w * x[(long)d * N + q];
            }
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
            for (int q = 0; q < N; ++q) out[i * N + q] = E == RELU ? relu(sum[i][q]) : sum[i][q];
    }
}

// f(integral_constant n), so that loops over the columns of a block unroll.
template <class F>
static inline void with_columns(int n, F&& f) {
    switch (n) {
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
#if defined(__AVX512F__)
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
#endif
    }
}

template <int HALF, int... L>
static inline V fold(V a, V b, std::integer_sequence<int, L...>) {
#define FROM(l) ((l) % (2 * HALF) < HALF ? 0 : LANES) + (l) / (2 * HALF) * 2 * HALF + (l) % HALF
    return __builtin_shufflevector(a, b, (FROM(L))...) + __builtin_shufflevector(a, b, (FROM(L) + HALF)...);
#undef FROM
}

template <int HALF = LANES / 2>
static inline V lane_sums(V* x) {  // lane l of the result is the sum of x[l]'s lanes; overwrites x
    if constexpr (HALF == 0) {
        return x[0];
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < HALF; ++i) x[i] = fold<HALF>(x[i], x[i + HALF], std::make_integer_sequence<int, LANES>{});
        return lane_sums<HALF / 2>(x);
    }
}

// Blocks[k]: the first column of block k, and at the end the number of columns. A sequence of blocks of `rows` rows lies at
// rows * first column.
struct Blocks {
    int count;
    std::vector<int> first;
    explicit Blocks(int columns) : count((columns + COLS - 1) / COLS), first(count + 1) {
        for (int k = 0; k <= count; ++k) first[k] = (int)((long)columns * k / count);
    }
    int width(int k) const { return first[k + 1] - first[k]; }
    int columns() const { return first[count]; }
};

// total[a][b] += sum over columns and lanes of x[a] * y[b], x and y sequences of blocks of rows_x and rows_y rows
// (padded to TILE_A and TILE_B). total holds TILE_A x TILE_B at a time.
static void outer_product(V* total, const V* x, const V* y, int rows_x, int rows_y, const Blocks& blocks) {
    for (int a = 0; a < rows_x; a += TILE_A)
        for (int b = 0; b < rows_y; b += TILE_B, ++total) {
            V sum[LANES] = {};
            for (int k = 0; k < blocks.count; ++k) {
                const int n = blocks.width(k);
                const V* at_x = x + (long)rows_x * blocks.first[k] + (long)a * n;
                const V* at_y = y + (long)rows_y * blocks.first[k] + (long)b * n;
                for (int q = 0; q < n; ++q)
#pragma GCC unroll 8
                    for (int i = 0; i < TILE_A; ++i)
#pragma GCC unroll 8
                        for (int j = 0; j < TILE_B; ++j) sum[i * TILE_B + j] += at_x[i * n + q] * at_y[j * n + q];
            }
            *total += lane_sums(sum);
        }
}
static inline long outer_size(int rows_x, int rows_y) { return (long)(rows_x / TILE_A) * (rows_y / TILE_B); }  // in vectors
static inline float outer_entry(const V* total, int rows_y, int a, int b) {
    const V* tile = total + (long)(a / TILE_A) * (rows_y / TILE_B) + b / TILE_B;
    return ((const float*)tile)[a % TILE_A * TILE_B + b % TILE_B];
}

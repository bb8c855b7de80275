// Vectors of pixels and the three loops over them that the attention kernels are made of.
//
// A vector holds LANES output pixels. A block holds `rows` x `n` vectors, one row a channel and one column a neighbour (pairwise)
// or a vector of pixels (patchwise); n is at most COLS. Everything wider is a sequence of blocks.
#pragma once
#include <algorithm>
#include <cstdint>
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

// A loop over a constant number of steps, each of which is written out.
#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < n; ++i)

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
static inline V all(float x) { return x - V{}; }  // V{} + x is no broadcast: it makes 0 of -0
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
    V p = all(1.381459878757596e-3f);
    for (float next : {8.368716575205326e-3f, 4.166838899254799e-2f, 1.666652113199234e-1f, 4.999999403953552e-1f}) p = p * r + next;
    p = p * r * r + r + 1.f;
    const I power = (((I)shifted - (I)magic) + 127) << 23;
    return p * (V)power;
}

class Buffer {  // floats aligned to a vector, zeros at first
    std::vector<V> held;

  public:
    explicit Buffer(long floats) : held(floats / LANES + 1) {}
    float* get() const { return (float*)held.data(); }
    V* vectors() const { return (V*)held.data(); }
    float& operator[](long i) const { return get()[i]; }
    void clear() { std::fill(held.begin(), held.end(), V{}); }
};

// A weight (rows x inner), entry(row, column), as `product_of` reads it: ROWS rows together, missing rows zero.
template <class F>
static Buffer packed(int rows, int inner, F&& entry) {
    Buffer to(padded(rows, ROWS) * inner);
    for (int r = 0; r < rows; ++r)
        for (int d = 0; d < inner; ++d) to[(long)(r / ROWS) * ROWS * inner + d * ROWS + r % ROWS] = entry(r, d);
    return to;
}

enum Epilogue { PLAIN, RELU, ADD, ADD_RELU };

// out (rows x n) = weight x (inner x n) + bias, for `rows` padded to ROWS; bias may be missing. ADD adds to what out holds instead.
template <int N, Epilogue E>
static void product_of(V* out, const float* weight, const float* bias, const V* x, int rows, int inner) {
    for (int r = 0; r < rows; r += ROWS, weight += (long)ROWS * inner, out += ROWS * N) {
        V sum[ROWS][N];
        UNROLLED(i, ROWS) UNROLLED(q, N) sum[i][q] = E >= ADD ? out[i * N + q] : bias ? all(bias[r + i]) : V{};
        for (int d = 0; d < inner; ++d)
            UNROLLED(i, ROWS) {
                const V w = all(weight[d * ROWS + i]);
                UNROLLED(q, N) sum[i][q] += w * x[(long)d * N + q];
            }
        UNROLLED(i, ROWS) UNROLLED(q, N) out[i * N + q] = E == RELU || E == ADD_RELU ? relu(sum[i][q]) : sum[i][q];
    }
}

// f(integral_constant n), so that loops over the columns of a block unroll.
template <int N = COLS, class F>
static inline void with_columns(int n, F&& f) {
    if (n == N) return f(std::integral_constant<int, N>{});
    if constexpr (N > 1) with_columns<N - 1>(n, f);
}

template <int HALF, int... L>
static inline void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
    const V first = a;
    a = __builtin_shufflevector(first, b, ((L) & HALF ? (L) + LANES - HALF : (L))...);
    b = __builtin_shufflevector(first, b, ((L) & HALF ? (L) + LANES : (L) + HALF)...);
}

template <int HALF = LANES / 2>
static inline void transpose(V* x) {  // LANES x LANES
    UNROLLED(i, LANES)
        if (!(i & HALF)) exchange<HALF>(x[i], x[i + HALF], std::make_integer_sequence<int, LANES>{});
    if constexpr (HALF > 1) transpose<HALF / 2>(x);
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
    template <class F>  // f(width as a constant, first column) for each block
    void each(F&& f) const {
        for (int k = 0; k < count; ++k) with_columns(width(k), [&](auto n) { f(n, first[k]); });
    }
};

// Sums over columns and lanes of x[a] * y[b], x and y sequences of blocks of rows_x and rows_y rows, padded to ROWS.
class OuterProduct {
    int rows_x, rows_y;
    std::vector<V> total;  // TILE_A x TILE_B at a time

  public:
    OuterProduct(int rows_x, int rows_y) : rows_x(rows_x), rows_y(rows_y), total((rows_x / TILE_A) * (rows_y / TILE_B)) {}
    void add(const V* x, const V* y, const Blocks& blocks) {
        V* to = total.data();
        for (int a = 0; a < rows_x; a += TILE_A)
            for (int b = 0; b < rows_y; b += TILE_B, ++to) {
                V sum[LANES] = {};
                for (int k = 0; k < blocks.count; ++k) {
                    const int n = blocks.width(k);
                    const V* at_x = x + (long)rows_x * blocks.first[k] + (long)a * n;
                    const V* at_y = y + (long)rows_y * blocks.first[k] + (long)b * n;
                    for (int q = 0; q < n; ++q)
                        UNROLLED(i, TILE_A) UNROLLED(j, TILE_B) sum[i * TILE_B + j] += at_x[i * n + q] * at_y[j * n + q];
                }
                transpose(sum);  // lane l of sum[0] + ... is the sum of sum[l]'s lanes
                for (int i = 1; i < LANES; ++i) sum[0] += sum[i];
                *to += sum[0];
            }
    }
    float entry(int a, int b) const {
        return total[(a / TILE_A) * (rows_y / TILE_B) + b / TILE_B][a % TILE_A * TILE_B + b % TILE_B];
    }
};

// Products of int8 matrices, exact: x (rows, depth) · weightᵀ, weight (outputs, depth), in int32. For native.cpp;
// layers/int8.py says the same in torch.
//
// A tile is TILE_ROWS rows times TILE_COLUMNS outputs, summed along the depth: both matrices lie that way in memory.
// `Lanes` fixes what a register holds of a row (Row) and of an output's weights (Column), and how many (COUNT). Rows are
// widened once for all outputs of a task, weights once for all rows; both end in zeros up to a whole register. A processor
// with AMX takes amx.h instead.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "amx.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr int64_t TILE_ROWS = 2, TILE_COLUMNS = 4;  // 8 sums: what 16 registers bear beside the factors
constexpr int64_t TASK_BYTES = 160 << 10;           // of a task's widened rows: they stay in the second cache
constexpr int64_t TASK_OUTPUTS = 256;               // and so many outputs, that there are tasks for many threads

#if defined(__AVX2__)
// Holds a value in its register: GCC would read a column from memory for each row, or copy all sums at every step.
inline void hold(__m256i& value) { asm("" : "+x"(value)); }
#endif

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
// `vpdpbusd` multiplies 32 unsigned by 32 signed bytes and adds four neighbours each to a sum of 32 bits, exactly. So
// rows are stored shifted by 128, and 128 · the sum of an output's weights is taken off again.
struct Lanes {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    static constexpr const char* NAME = "AVX-512 VNNI";
#else
    static constexpr const char* NAME = "AVX-VNNI";
#endif
    using Row = uint8_t;
    using Column = int8_t;
    static constexpr int64_t COUNT = 32;
    static constexpr int32_t SHIFT = 128;
    static void add(__m256i& sums, __m256i row, __m256i column) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
        sums = _mm256_dpbusd_epi32(sums, row, column);
#else
        sums = _mm256_dpbusd_avx_epi32(sums, row, column);
#endif
        hold(sums);
    }
};
#elif defined(__AVX2__)
// `vpmaddwd` multiplies 16 numbers of 16 bits and adds two neighbours each in 32 bits, exactly. `vpmaddubsw` takes 32
// bytes, but adds in 16 bits: 2 · 255 · 127 saturates.
struct Lanes {
    static constexpr const char* NAME = "AVX2";
    using Row = int16_t;
    using Column = int16_t;
    static constexpr int64_t COUNT = 16;
    static constexpr int32_t SHIFT = 0;
    static void add(__m256i& sums, __m256i row, __m256i column) {
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(row, column));
    }
};
#elif defined(__ARM_FEATURE_DOTPROD)
// `sdot` multiplies 16 signed bytes and adds four neighbours each to a sum of 32 bits, exactly. Compilers do not find it in
// a plain loop.
struct Lanes {
    static constexpr const char* NAME = "dot product";
    using Row = int8_t;
    using Column = int8_t;
    static constexpr int64_t COUNT = 16;
    static constexpr int32_t SHIFT = 0;
};
#else
// Left to the compiler: `pmaddwd` of SSE2, `smlal` of ARM.
struct Lanes {
    static constexpr const char* NAME = "plain";
    using Row = int16_t;
    using Column = int16_t;
    static constexpr int64_t COUNT = 16;
    static constexpr int32_t SHIFT = 0;
};
#endif

// out (depth, up to a whole register) = values + shift, then zeros; their sum without the shift.
template <class To>
inline int32_t widen(const int8_t* values, int64_t depth, int64_t padded, int32_t shift, To* out) {
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < depth; ++k) {
        out[k] = static_cast<To>(values[k] + shift);
        sum += values[k];
    }
    std::fill(out + depth, out + padded, static_cast<To>(0));
    return sum;
}

// The sums of one tile: sums[i][j] = rows i · columns j, each `padded` long.
#if defined(__AVX2__)
inline __m256i load_lanes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Eight partial sums each of four -> four whole ones.
inline void add_up(const __m256i (&partial)[TILE_COLUMNS], int32_t* sums) {
    const __m256i halves = _mm256_hadd_epi32(
        _mm256_hadd_epi32(partial[0], partial[1]), _mm256_hadd_epi32(partial[2], partial[3]));
    const __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), whole);
}

inline void multiply_tile(
    const Lanes::Row* rows, const Lanes::Column* columns, int64_t padded, int32_t (&sums)[TILE_ROWS][TILE_COLUMNS]) {
    __m256i partial[TILE_ROWS][TILE_COLUMNS] = {};
    for (auto& row : partial) {
        for (__m256i& sum : row) hold(sum);
    }
    for (int64_t k = 0; k < padded; k += Lanes::COUNT) {
        const __m256i upper = load_lanes(rows + k), lower = load_lanes(rows + padded + k);
#pragma GCC unroll 4
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) {
            __m256i column = load_lanes(columns + j * padded + k);
            hold(column);
            Lanes::add(partial[0][j], upper, column);
            Lanes::add(partial[1][j], lower, column);
        }
    }
    for (int64_t i = 0; i < TILE_ROWS; ++i) add_up(partial[i], sums[i]);
}
#elif defined(__ARM_FEATURE_DOTPROD)
inline void multiply_tile(
    const Lanes::Row* rows, const Lanes::Column* columns, int64_t padded, int32_t (&sums)[TILE_ROWS][TILE_COLUMNS]) {
    int32x4_t partial[TILE_ROWS][TILE_COLUMNS] = {};
    for (int64_t k = 0; k < padded; k += Lanes::COUNT) {
        const int8x16_t upper = vld1q_s8(rows + k), lower = vld1q_s8(rows + padded + k);
#pragma GCC unroll 4
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) {
            const int8x16_t column = vld1q_s8(columns + j * padded + k);
            partial[0][j] = vdotq_s32(partial[0][j], upper, column);
            partial[1][j] = vdotq_s32(partial[1][j], lower, column);
        }
    }
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) sums[i][j] = vaddvq_s32(partial[i][j]);
    }
}
#else
inline void multiply_tile(
    const Lanes::Row* rows, const Lanes::Column* columns, int64_t padded, int32_t (&sums)[TILE_ROWS][TILE_COLUMNS]) {
    for (int64_t i = 0; i < TILE_ROWS; ++i) {
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) {
            const Lanes::Row* row = rows + i * padded;
            const Lanes::Column* column = columns + j * padded;
            int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < padded; ++k) sum += static_cast<int32_t>(row[k]) * column[k];
            sums[i][j] = sum;
        }
    }
}
#endif

// One task: some rows times some outputs; out has `stride` numbers a row.
inline void multiply_task(
    const int8_t* x, int64_t rows, const int8_t* weight, int64_t outputs, int64_t depth, int32_t* out, int64_t stride) {
    const int64_t padded = (depth + Lanes::COUNT - 1) / Lanes::COUNT * Lanes::COUNT;
    alignas(64) Lanes::Row wide[(rows + TILE_ROWS - 1) * padded];
    alignas(64) Lanes::Column columns[TILE_COLUMNS * padded];
    std::fill(wide + rows * padded, wide + (rows + TILE_ROWS - 1) * padded, static_cast<Lanes::Row>(0));
    for (int64_t r = 0; r < rows; ++r) widen(x + r * depth, depth, padded, Lanes::SHIFT, wide + r * padded);
    for (int64_t first = 0; first < outputs; first += TILE_COLUMNS) {
        const int64_t count = std::min(TILE_COLUMNS, outputs - first);
        int32_t shifted[TILE_COLUMNS] = {};
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) {
            const int64_t inside = std::min(first + j, outputs - 1);  // a column too many is computed and not stored
            shifted[j] = Lanes::SHIFT * widen(weight + inside * depth, depth, padded, 0, columns + j * padded);
        }
        for (int64_t r = 0; r < rows; r += TILE_ROWS) {
            int32_t sums[TILE_ROWS][TILE_COLUMNS];
            multiply_tile(wide + r * padded, columns, padded, sums);
            for (int64_t i = 0; i < std::min(TILE_ROWS, rows - r); ++i) {
                for (int64_t j = 0; j < count; ++j) out[(r + i) * stride + first + j] = sums[i][j] - shifted[j];
            }
        }
    }
}

// out (rows, outputs) = x (rows, depth) · weightᵀ (outputs, depth). Whole numbers: the same on any number of threads.
inline void multiply(
    const int8_t* x, const int8_t* weight, int64_t rows, int64_t outputs, int64_t depth, int32_t* out, int threads) {
#if KALM_AMX
    if (amx::permitted()) return amx::multiply(x, weight, rows, outputs, depth, out, threads);
#endif
    const int64_t bytes = std::max<int64_t>(1, depth * static_cast<int64_t>(sizeof(Lanes::Row)));
    const int64_t height = std::max(TILE_ROWS, TASK_BYTES / bytes / TILE_ROWS * TILE_ROWS);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t first = 0; first < outputs; first += TASK_OUTPUTS) {
        for (int64_t top = 0; top < rows; top += height) {
            multiply_task(
                x + top * depth, std::min(height, rows - top), weight + first * depth,
                std::min(TASK_OUTPUTS, outputs - first), depth, out + top * outputs + first, outputs);
        }
    }
}

// What `multiply` uses.
inline const char* instructions() {
#if KALM_AMX
    if (amx::permitted()) return "AMX";
#endif
    return Lanes::NAME;
}

}  // namespace

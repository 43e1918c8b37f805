// One row at a time, in float32: how it is loaded, stored, rotated and normalised. For native.cpp.
//
// A "run" fixes what is stored: Stream, the residual stream and the heads; Sum, what a product gives; Input, what the
// next product takes. In an int8 run, Sum is int32 with a scale for each row and column, and Input int8 with a scale
// for each row.

#pragma once

#include "scalars.h"

namespace {

constexpr int64_t MAX_BLOCKS = 64;  // rotation.py has the same number

struct Float32 {
    using Stream = float;
    using Sum = float;
    using Input = float;
};
struct Bfloat16 {
    using Stream = bfloat16;
    using Sum = bfloat16;
    using Input = bfloat16;
};
struct Int8 {
    using Stream = float;
    using Sum = int32_t;
    using Input = int8_t;
};
struct Int8Last {  // the end of an int8 run: what comes out is no product's input
    using Stream = float;
    using Sum = int32_t;
    using Input = float;
};

// One row (width) of a product, in float32. An int8 product's int32 sums are multiplied by both scales.
template <class Sum>
inline void load_row(const Sum* row, const float*, const float*, int64_t, int64_t width, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = load(row[i]);
}
template <>
inline void load_row<int32_t>(
    const int32_t* row, const float* row_scale, const float* column_scale, int64_t r, int64_t width, float* out) {
    const float scale = row_scale[r];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = load(row[i]) * (scale * column_scale[i]);
}

// Hadamard transform over `blocks` parts of a row, in place, not normalised; rotation.py says what for. Two rounds of sums
// and differences at a time, so that each number is loaded and stored half as often.
inline void rotate(float* row, int64_t width, int64_t blocks) {
    int64_t part = width / blocks;
    for (; 4 * part <= width; part *= 4) {
        for (int64_t first = 0; first < width; first += 4 * part) {
            float *__restrict a = row + first, *__restrict b = a + part, *__restrict c = b + part, *__restrict d = c + part;
#pragma omp simd
            for (int64_t i = 0; i < part; ++i) {
                const float p = a[i] + b[i], q = a[i] - b[i], r = c[i] + d[i], s = c[i] - d[i];
                a[i] = p + r;
                b[i] = q + s;
                c[i] = p - r;
                d[i] = q - s;
            }
        }
    }
    for (int64_t i = 0; i < part && part < width; ++i) {  // what is left is one round over the row's halves
        const float x = row[i], y = row[part + i];
        row[i] = x + y;
        row[part + i] = x - y;
    }
}

// One row of what the next product takes; int8 rows are rotated first, which may change `row`. A row that is not finite
// gets a scale that is not: nothing is hidden.
template <class Input>
inline void store_row(float* row, int64_t width, Input* out, float*, int64_t) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(out[i], row[i]);
}
template <>
inline void store_row<int8_t>(float* row, int64_t width, int8_t* out, float* scales, int64_t r) {
    const int64_t power = width & -width, blocks = power < MAX_BLOCKS ? power : MAX_BLOCKS;
    rotate(row, width, blocks);
    float largest = 0.0f, poison = 0.0f;  // x · 0 is 0, or NaN where x is infinite or no number
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (int64_t i = 0; i < width; ++i) {
        float magnitude = std::fabs(row[i]);
        largest = magnitude > largest ? magnitude : largest;
        poison += row[i] * 0.0f;
    }
    scales[r] = largest / (127.0f * std::sqrt(static_cast<float>(blocks))) + poison;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyintf(row[i] * inverse)));
}

// 1 / √(mean of squares + eps), the factor of an RMS norm.
inline float inverse_rms(const float* row, int64_t width, float eps) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += row[i] * row[i];
    return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

inline void scale_row(float* row, int64_t width, float factor, const float* weight) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) row[i] = row[i] * factor * weight[i];
}

}  // namespace

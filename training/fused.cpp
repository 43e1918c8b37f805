// What a training step does between matrix products, forwards and backwards, in one pass each: a third of the time of
// torch's chains of small operators on a processor. Rows are contiguous; arithmetic is float32, whatever is stored.

#include "scalars.h"

namespace {

inline float tanh_of(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// One row, x̂ = x / rms(x).
template <class T>
inline float scale_of(const T* x, float eps, int64_t width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += load(x[i]) * load(x[i]);
    return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

// dx = s · (g·(1 + w) − x̂ · mean(g·(1 + w)·x̂)), dw += g · x̂, with g in float32.
template <class T>
inline void norm_row_backward(const float* g, const T* x, const float* w, float s, int64_t width, T* dx, float* dw) {
    float mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < width; ++i) mean += g[i] * (1.0f + w[i]) * load(x[i]);
    mean *= s / static_cast<float>(width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        float normed = load(x[i]) * s;
        dw[i] += g[i] * normed;
        store(dx[i], s * (g[i] * (1.0f + w[i]) - normed * mean));
    }
}

// out = [residual +] x̂ · (1 + w)
template <class T>
void norm_forward(const T* x, const float* w, const T* residual, float eps, int64_t rows, int64_t width, T* out, float* scale) {
    for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
        float s = scale[row] = scale_of(x, eps, width);
        if (residual) {
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) store(out[i], load(residual[i]) + load(x[i]) * s * (1.0f + w[i]));
            residual += width;
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) store(out[i], load(x[i]) * s * (1.0f + w[i]));
        }
    }
}

template <class T>
void norm_backward(const T* g, const T* x, const float* w, const float* scale, int64_t rows, int64_t width, T* dx, float* dw) {
    float wide[1024];
    for (int64_t row = 0; row < rows; ++row, x += width, g += width, dx += width) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) wide[i] = load(g[i]);
        norm_row_backward(wide, x, w, scale[row], width, dx, dw);
    }
}

// Rows are heads of tokens, (…, length, heads, width): normalised, then rotated by their token's angles, given for half a
// head: (length, width / 2).
template <class T>
void rotated_norm_forward(const T* x, const float* w, const float* cos, const float* sin, float eps, int64_t rows, int64_t width,
                          int64_t length, int64_t heads, T* out, float* scale) {
    int64_t half = width / 2;
    for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
        const float *c = cos + row / heads % length * half, *n = sin + row / heads % length * half;
        float s = scale[row] = scale_of(x, eps, width);
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float a = load(x[i]) * s * (1.0f + w[i]), b = load(x[i + half]) * s * (1.0f + w[i + half]);
            store(out[i], a * c[i] - b * n[i]);
            store(out[i + half], b * c[i] + a * n[i]);
        }
    }
}

template <class T>
void rotated_norm_backward(const T* g, const T* x, const float* w, const float* cos, const float* sin, const float* scale,
                           int64_t rows, int64_t width, int64_t length, int64_t heads, T* dx, float* dw) {
    float turned[1024];
    int64_t half = width / 2;
    for (int64_t row = 0; row < rows; ++row, x += width, g += width, dx += width) {
        const float *c = cos + row / heads % length * half, *n = sin + row / heads % length * half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float a = load(g[i]), b = load(g[i + half]);
            turned[i] = a * c[i] + b * n[i];
            turned[i + half] = b * c[i] - a * n[i];
        }
        norm_row_backward(turned, x, w, scale[row], width, dx, dw);
    }
}

constexpr float ROOT = 0.7978845608028654f, CUBE = 0.044715f;  // gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))

template <class T>
void gated_gelu_forward(const T* gate, const T* up, int64_t count, T* out) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        float x = load(gate[i]);
        store(out[i], 0.5f * x * (1.0f + tanh_of(ROOT * (x + CUBE * x * x * x))) * load(up[i]));
    }
}

template <class T>
void gated_gelu_backward(const T* g, const T* gate, const T* up, int64_t count, T* dgate, T* dup) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        float x = load(gate[i]), t = tanh_of(ROOT * (x + CUBE * x * x * x));
        float slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBE * x * x);
        float grad = load(g[i]);
        store(dup[i], grad * 0.5f * x * (1.0f + t));
        store(dgate[i], grad * load(up[i]) * slope);
    }
}

}  // namespace

#define EXPORT(T, S)                                                                                                           \
    void norm_forward_##S(const T* x, const float* w, const T* residual, float eps, int64_t rows, int64_t width, T* out,       \
                          float* scale) {                                                                                      \
        norm_forward(x, w, residual, eps, rows, width, out, scale);                                                            \
    }                                                                                                                          \
    void norm_backward_##S(const T* g, const T* x, const float* w, const float* scale, int64_t rows, int64_t width, T* dx,     \
                           float* dw) {                                                                                        \
        norm_backward(g, x, w, scale, rows, width, dx, dw);                                                                    \
    }                                                                                                                          \
    void rotated_norm_forward_##S(const T* x, const float* w, const float* cos, const float* sin, float eps, int64_t rows,     \
                                  int64_t width, int64_t length, int64_t heads, T* out, float* scale) {                        \
        rotated_norm_forward(x, w, cos, sin, eps, rows, width, length, heads, out, scale);                                     \
    }                                                                                                                          \
    void rotated_norm_backward_##S(const T* g, const T* x, const float* w, const float* cos, const float* sin,                 \
                                   const float* scale, int64_t rows, int64_t width, int64_t length, int64_t heads, T* dx,      \
                                   float* dw) {                                                                                \
        rotated_norm_backward(g, x, w, cos, sin, scale, rows, width, length, heads, dx, dw);                                   \
    }                                                                                                                          \
    void gated_gelu_forward_##S(const T* gate, const T* up, int64_t count, T* out) { gated_gelu_forward(gate, up, count, out); } \
    void gated_gelu_backward_##S(const T* g, const T* gate, const T* up, int64_t count, T* dgate, T* dup) {                    \
        gated_gelu_backward(g, gate, up, count, dgate, dup);                                                                   \
    }

extern "C" {
EXPORT(float, f32)
EXPORT(bfloat16, bf16)
}

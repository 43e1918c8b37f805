// Everything of a T5Gemma2 layer that is no matrix product, fused and row by row, and int8's products (products.h).
// Compiled once on the machine that runs it (native.py); torch_kernels.py says the same in torch. Arithmetic is float32,
// whatever is stored.

#include "products.h"
#include "rows.h"

namespace {

// out = x / rms(x) · weight, row by row; x, out (rows, width).
template <class Run>
void norm(
    const typename Run::Stream* x, const float* weight, float eps, int64_t rows, int64_t width,
    typename Run::Input* out, float* out_scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float row[width];
        load_row(x + r * width, nullptr, nullptr, r, width, row);
        scale_row(row, width, inverse_rms(row, width, eps), weight);
        store_row(row, width, out + r * width, out_scale, r);
    }
}

// x += norm(branch, weight), in place, and out = norm(x, next_weight); x, branch, out (rows, width). The sum is not
// rounded before the second norm: one pass reads and writes the residual stream.
template <class Run>
void add_norm(
    typename Run::Stream* x, const typename Run::Sum* branch, const float* row_scale, const float* column_scale,
    const float* weight, const float* next_weight, float eps, int64_t rows, int64_t width,
    typename Run::Input* out, float* out_scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float added[width], row[width];
        load_row(branch + r * width, row_scale, column_scale, r, width, added);
        load_row(x + r * width, nullptr, nullptr, r, width, row);
        const float factor = inverse_rms(added, width, eps);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) row[i] += added[i] * factor * weight[i];
        store_row(row, width, x + r * width, nullptr, r);
        scale_row(row, width, inverse_rms(row, width, eps), next_weight);
        store_row(row, width, out + r * width, out_scale, r);
    }
}

// out (rows, width) = gelu_tanh(gate) · up; gate_up (rows, 2 · width), gates first.
template <class Run>
void gated_gelu(
    const typename Run::Sum* gate_up, const float* row_scale, const float* column_scale, int64_t rows, int64_t width,
    typename Run::Input* out, float* out_scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float row[2 * width];
        load_row(gate_up + 2 * r * width, row_scale, column_scale, r, 2 * width, row);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float x = row[i];
            // gelu_tanh(x) = x/2 · (1 + tanh u) = x / (1 + e^(−2u)), u = √(2/π) · (x + 0.044715 x³)
            const float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
            row[i] = x / (1.0f + exponential(-u2)) * row[width + i];
        }
        store_row(row, width, out + r * width, out_scale, r);
    }
}

// Where one kind of heads (queries, keys or values) goes: out (N, heads, slots, group, head width). Row r goes to slot
// slot[r] % slots of sequence slot[r] / slots. weight (head width), of the heads' norm; null: neither norm nor rotation.
struct Part {
    void* out;
    const int64_t* slot;
    const float* weight;
    int64_t heads, group, slots;
};

// Cuts product (rows, columns) into heads, part after part, and writes each to its slot: normalised, and rotated by
// cos and sin (positions, head width / 2) in the half-split layout. One pass over the product for all three kinds.
template <class Run>
void split_heads(
    const typename Run::Sum* product, const float* row_scale, const float* column_scale, int64_t rows, int64_t columns,
    const Part* parts, int64_t part_count, int64_t head_width, float eps,
    const float* cos, const float* sin, const int64_t* position, int threads) {
    const int64_t half = head_width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float row[columns], rotated[head_width];
        load_row(product + r * columns, row_scale, column_scale, r, columns, row);
        float* head = row;
        for (const Part* part = parts; part < parts + part_count; ++part) {
            auto* out = static_cast<typename Run::Stream*>(part->out);
            const int64_t sequence = part->slot[r] / part->slots, slot = part->slot[r] % part->slots;
            for (int64_t h = 0; h < part->heads; ++h) {
                auto* to = out + ((sequence * part->heads + h) * part->slots + slot) * part->group * head_width;
                for (int64_t g = 0; g < part->group; ++g, head += head_width, to += head_width) {
                    if (!part->weight) {
                        store_row(head, head_width, to, nullptr, r);
                        continue;
                    }
                    scale_row(head, head_width, inverse_rms(head, head_width, eps), part->weight);
                    if (!cos) {
                        store_row(head, head_width, to, nullptr, r);
                        continue;
                    }
                    const float *c = cos + position[r] * half, *s = sin + position[r] * half;
#pragma omp simd
                    for (int64_t i = 0; i < half; ++i) {
                        rotated[i] = head[i] * c[i] - head[half + i] * s[i];
                        rotated[half + i] = head[half + i] * c[i] + head[i] * s[i];
                    }
                    store_row(rotated, head_width, to, nullptr, r);
                }
            }
        }
    }
}

// A sequence's cached keys and values at one layer: states (2, heads, slots, width); int8 with a scale for each vector.
struct PrefixKV {
    const void* states;
    const float* scale;
    int64_t slots;
};

// Copies each sequence's cached vectors to the first slots of out (2, sequences, heads, slots, width).
template <class From, class Stream>
void load_kv(
    const PrefixKV* cached, Stream* out, int64_t sequences, int64_t heads, int64_t slots, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t kind = 0; kind < 2; ++kind) {
        for (int64_t n = 0; n < sequences; ++n) {
            const PrefixKV& entry = cached[n];
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t first = (kind * heads + h) * entry.slots;
                const From* from = static_cast<const From*>(entry.states) + first * width;
                Stream* to = out + ((kind * sequences + n) * heads + h) * slots * width;
                for (int64_t s = 0; s < entry.slots; ++s, from += width, to += width) {
                    const float scale = entry.scale ? entry.scale[first + s] : 1.0f;
#pragma omp simd
                    for (int64_t i = 0; i < width; ++i) store(to[i], load(from[i]) * scale);
                }
            }
        }
    }
}

// Key slots [begin, end).
struct Range {
    int64_t begin, end;
};

// Loads a row's range into out; the largest of it and of `largest`.
template <class Stream>
inline float load_largest(const Stream* row, Range range, float* out, float largest) {
#pragma omp simd reduction(max : largest)
    for (int64_t i = range.begin; i < range.end; ++i) {
        out[i] = load(row[i]);
        largest = out[i] > largest ? out[i] : largest;
    }
    return largest;
}

// row[i] = e^(row[i] − largest) over the range; their sum.
inline float exponentials(float* row, Range range, float largest) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = range.begin; i < range.end; ++i) {
        row[i] = exponential(row[i] - largest);
        sum += row[i];
    }
    return sum;
}

// out[i] = row[i] · factor over the range.
template <class Stream>
inline void store_scaled(const float* row, Range range, float factor, Stream* out) {
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) store(out[i], row[i] * factor);
}

// scores (batch, queries · group, keys), in place: softmax over the key slots [a, b) and [c, d) of each query's span,
// zero elsewhere. `spans` (all batches / heads, queries, 4); the scores are of batch `first` on. Slots that no query
// sees are never read: only the spans cost time.
template <class Stream>
void softmax(
    Stream* scores, const int32_t* spans, int64_t first, int64_t batch, int64_t heads, int64_t queries, int64_t group,
    int64_t keys, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t q = 0; q < queries; ++q) {
            const int32_t* span = spans + ((first + b) / heads * queries + q) * 4;
            const Range seen[2] = {{span[0], span[1]}, {span[2], span[3]}};
            for (int64_t g = 0; g < group; ++g) {
                Stream* row = scores + ((b * queries + q) * group + g) * keys;
                float weights[keys];
                float largest = -INFINITY, sum = 0.0f;
                for (const Range& range : seen) largest = load_largest(row, range, weights, largest);
                for (const Range& range : seen) sum += exponentials(weights, range, largest);
                const float inverse = 1.0f / sum;
                int64_t i = 0;
                for (const Range& range : seen) {
                    if (range.begin >= range.end) continue;
                    for (; i < range.begin; ++i) store(row[i], 0.0f);
                    store_scaled(weights, range, inverse, row);
                    i = range.end;
                }
                for (; i < keys; ++i) store(row[i], 0.0f);
            }
        }
    }
}

}  // namespace

#define KERNELS(RUN, SUFFIX)                                                                                           \
    extern "C" void norm_##SUFFIX(                                                                                     \
        const RUN::Stream* x, const float* weight, float eps, int64_t rows, int64_t width, RUN::Input* out,            \
        float* out_scale, int threads) {                                                                               \
        norm<RUN>(x, weight, eps, rows, width, out, out_scale, threads);                                               \
    }                                                                                                                  \
    extern "C" void add_norm_##SUFFIX(                                                                                 \
        RUN::Stream* x, const RUN::Sum* branch, const float* row_scale, const float* column_scale,                     \
        const float* weight, const float* next_weight, float eps, int64_t rows, int64_t width, RUN::Input* out,        \
        float* out_scale, int threads) {                                                                               \
        add_norm<RUN>(                                                                                                 \
            x, branch, row_scale, column_scale, weight, next_weight, eps, rows, width, out, out_scale, threads);       \
    }                                                                                                                  \
    extern "C" void gated_gelu_##SUFFIX(                                                                               \
        const RUN::Sum* gate_up, const float* row_scale, const float* column_scale, int64_t rows, int64_t width,       \
        RUN::Input* out, float* out_scale, int threads) {                                                              \
        gated_gelu<RUN>(gate_up, row_scale, column_scale, rows, width, out, out_scale, threads);                       \
    }                                                                                                                  \
    extern "C" void split_heads_##SUFFIX(                                                                              \
        const RUN::Sum* product, const float* row_scale, const float* column_scale, int64_t rows, int64_t columns,     \
        const Part* parts, int64_t part_count, int64_t head_width, float eps, const float* cos, const float* sin,      \
        const int64_t* position, int threads) {                                                                        \
        split_heads<RUN>(                                                                                              \
            product, row_scale, column_scale, rows, columns, parts, part_count, head_width, eps, cos, sin, position,   \
            threads);                                                                                                  \
    }

KERNELS(Float32, f32)
KERNELS(Bfloat16, bf16)
KERNELS(Int8, i8)
KERNELS(Int8Last, i8_f32)

extern "C" void quantize(
    const float* x, int64_t rows, int64_t width, int8_t* out, float* out_scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float row[width];
        load_row(x + r * width, nullptr, nullptr, r, width, row);
        store_row(row, width, out + r * width, out_scale, r);
    }
}

extern "C" void softmax_f32(
    float* scores, const int32_t* spans, int64_t first, int64_t batch, int64_t heads, int64_t queries, int64_t group,
    int64_t keys, int threads) {
    softmax(scores, spans, first, batch, heads, queries, group, keys, threads);
}
extern "C" void softmax_bf16(
    bfloat16* scores, const int32_t* spans, int64_t first, int64_t batch, int64_t heads, int64_t queries,
    int64_t group, int64_t keys, int threads) {
    softmax(scores, spans, first, batch, heads, queries, group, keys, threads);
}

#define LOAD_KV(FROM, FROM_SUFFIX, STREAM, SUFFIX)                                                                     \
    extern "C" void load_kv_##FROM_SUFFIX##_##SUFFIX(                                                                  \
        const PrefixKV* cached, STREAM* out, int64_t sequences, int64_t heads, int64_t slots, int64_t width,           \
        int threads) {                                                                                                 \
        load_kv<FROM>(cached, out, sequences, heads, slots, width, threads);                                           \
    }

LOAD_KV(float, f32, float, f32)
LOAD_KV(bfloat16, bf16, float, f32)
LOAD_KV(int8_t, i8, float, f32)
LOAD_KV(float, f32, bfloat16, bf16)
LOAD_KV(bfloat16, bf16, bfloat16, bf16)
LOAD_KV(int8_t, i8, bfloat16, bf16)

extern "C" void multiply_int8(
    const int8_t* x, const int8_t* weight, int64_t rows, int64_t outputs, int64_t depth, int32_t* out, int threads) {
    multiply(x, weight, rows, outputs, depth, out, threads);
}
extern "C" const char* int8_instructions() { return instructions(); }

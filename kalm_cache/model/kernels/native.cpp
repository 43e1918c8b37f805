// Everything of a T5Gemma2 layer that is no matrix product, fused and row by row. Compiled once on the machine that
// runs it (native.py); torch_kernels.py says the same in torch. Arithmetic is float32, whatever is stored.
//
// A "run" fixes what is stored: Stream, the residual stream and the heads; Sum, what a product gives; Input, what the
// next product takes. In an int8 run, Sum is int32 with a scale for each row and column, and Input int8 with a scale
// for each row.

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

// One row of a product, in float32.
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

// Hadamard transform over `blocks` parts of a row, in place, not normalised; rotation.py says what for.
inline void rotate(float* row, int64_t width, int64_t blocks) {
    for (int64_t part = width / blocks; part < width; part *= 2) {
        for (int64_t first = 0; first < width; first += 2 * part) {
            float *__restrict a = row + first, *__restrict b = row + first + part;
#pragma omp simd
            for (int64_t i = 0; i < part; ++i) {
                const float x = a[i], y = b[i];
                a[i] = x + y;
                b[i] = x - y;
            }
        }
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
    float largest = 0.0f, poison = 0.0f;
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

// Where one kind of heads goes: out (N, heads, places, group, head width), row r to place slot[r].
struct Part {
    void* out;
    const int64_t* slot;
    const float* weight;
    int64_t heads, group, places;
};

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
            const int64_t sequence = part->slot[r] / part->places, place = part->slot[r] % part->places;
            for (int64_t h = 0; h < part->heads; ++h) {
                auto* to = out + ((sequence * part->heads + h) * part->places + place) * part->group * head_width;
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

// What was kept of one sequence at one layer: states (2, heads, places, width), with a scale for each vector if int8.
struct Kept {
    const void* states;
    const float* scale;
    int64_t places;
};

// out (2, sequences, heads, places, width): the kept vectors to its first places.
template <class From, class Stream>
void load_kv(
    const Kept* kept, Stream* out, int64_t sequences, int64_t heads, int64_t places, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t kind = 0; kind < 2; ++kind) {
        for (int64_t n = 0; n < sequences; ++n) {
            const Kept& entry = kept[n];
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t first = (kind * heads + h) * entry.places;
                const From* from = static_cast<const From*>(entry.states) + first * width;
                Stream* to = out + ((kind * sequences + n) * heads + h) * places * width;
                for (int64_t p = 0; p < entry.places; ++p, from += width, to += width) {
                    const float scale = entry.scale ? entry.scale[first + p] : 1.0f;
#pragma omp simd
                    for (int64_t i = 0; i < width; ++i) store(to[i], load(from[i]) * scale);
                }
            }
        }
    }
}

struct Range {
    int64_t begin, end;
};

template <class Stream>
inline float load_largest(const Stream* row, Range range, float* out, float largest) {
#pragma omp simd reduction(max : largest)
    for (int64_t i = range.begin; i < range.end; ++i) {
        out[i] = load(row[i]);
        largest = out[i] > largest ? out[i] : largest;
    }
    return largest;
}

inline float exponentials(float* row, Range range, float largest) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = range.begin; i < range.end; ++i) {
        row[i] = exponential(row[i] - largest);
        sum += row[i];
    }
    return sum;
}

template <class Stream>
inline void store_scaled(const float* row, Range range, float factor, Stream* out) {
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) store(out[i], row[i] * factor);
}

// scores (batch, queries · group, keys), in place: softmax over the key slots [a, b) and [c, d) of each query's span,
// zero elsewhere. `spans` (batch / heads, queries, 4).
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

#define RECALL(FROM, FROM_SUFFIX, STREAM, SUFFIX)                                                                      \
    extern "C" void load_kv_##FROM_SUFFIX##_##SUFFIX(                                                                   \
        const Kept* kept, STREAM* out, int64_t sequences, int64_t heads, int64_t places, int64_t width, int threads) { \
        load_kv<FROM>(kept, out, sequences, heads, places, width, threads);                                             \
    }

RECALL(float, f32, float, f32)
RECALL(bfloat16, bf16, float, f32)
RECALL(int8_t, i8, float, f32)
RECALL(float, f32, bfloat16, bf16)
RECALL(bfloat16, bf16, bfloat16, bf16)
RECALL(int8_t, i8, bfloat16, bf16)

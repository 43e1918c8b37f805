// The products of products.h on a processor with AMX: `tdpbssd` multiplies a tile of 16 rows by one of 16 outputs, 64
// numbers deep, in 16 cycles, exactly. oneDNN's int8 product, which torch takes, needs two to four times as long.
//
// A tile of rows is read as it lies in memory. A tile of weights is turned: its four-byte words (four numbers of one
// output) stand in 16 rows by depth. A task turns its weights once for all its rows. What is no whole tile is copied
// into one, with zeros.

#pragma once

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#define KALM_AMX 1

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace amx {

constexpr int64_t SIDE = 16, DEPTH = 64, BLOCK = 2 * SIDE;  // of a tile; of the four that are summed at a time
constexpr int64_t TILE_BYTES = SIDE * DEPTH;
constexpr int64_t PANEL_BYTES = 256 << 10;  // of a task's turned weights: they stay in the second cache
constexpr int64_t LEAST_ROWS = 512;         // of a task: turning its weights takes a tenth of its time then
constexpr int64_t TASKS_PER_THREAD = 4;

// Asks Linux for the tiles' registers, once for all threads of the process. False where it has none to give.
inline bool permitted() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;  // arch/x86/include/uapi/asm/prctl.h
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return granted;
}

// All eight tiles in full size: 0–3 sums, 4 and 5 rows, 6 and 7 weights.
inline void configure() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } tiles;
    std::fill(tiles.row_bytes, tiles.row_bytes + 8, static_cast<uint16_t>(DEPTH));
    std::fill(tiles.rows, tiles.rows + 8, static_cast<uint8_t>(SIDE));
    _tile_loadconfig(&tiles);
}

// A tile of `rows` × `depth` numbers, filled up with zeros; rows of `to` are `stride` bytes apart.
inline void copy_tile(const int8_t* from, int64_t rows, int64_t depth, int64_t from_stride, int8_t* to, int64_t stride) {
    for (int64_t r = 0; r < SIDE; ++r) {
        const int64_t inside = r < rows ? depth : 0;
        std::memcpy(to + r * stride, from + r * from_stride, inside);
        std::memset(to + r * stride + inside, 0, DEPTH - inside);
    }
}

// Turns 16 × 16 words: four rounds, in each of which words change places over twice the distance.
inline void turn(const int8_t* from, int64_t stride, int8_t* to) {
    __m512i a[SIDE], b[SIDE];
    for (int64_t i = 0; i < SIDE; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
    for (int64_t i = 0; i < SIDE; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int64_t i = 0; i < SIDE; i += 4) {
        for (int64_t j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    }
    for (int64_t i = 0; i < SIDE; i += 8) {
        for (int64_t j = 0; j < 4; ++j) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    }
    for (int64_t j = 0; j < 8; ++j) {
        _mm512_store_si512(to + j * DEPTH, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_store_si512(to + (j + 8) * DEPTH, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}

// A panel: tiles of weights, turned, all depths of 16 outputs, then of the next 16.
inline void turn_weights(const int8_t* weight, int64_t outputs, int64_t depth, int8_t* panel) {
    alignas(64) int8_t copied[TILE_BYTES];
    for (int64_t first = 0; first < outputs; first += SIDE) {
        for (int64_t k = 0; k < depth; k += DEPTH, panel += TILE_BYTES) {
            const int8_t* from = weight + first * depth + k;
            const int64_t count = std::min(SIDE, outputs - first), deep = std::min(DEPTH, depth - k);
            if (count == SIDE && deep == DEPTH) {
                turn(from, depth, panel);
            } else {
                copy_tile(from, count, deep, depth, copied, DEPTH);
                turn(copied, DEPTH, panel);
            }
        }
    }
}

// sums (32, 32) = 32 rows of x, `stride` apart, · 32 outputs of a panel; both `padded` deep.
inline void multiply_block(const int8_t* x, int64_t stride, const int8_t* panel, int64_t padded, int32_t* sums) {
    const int8_t *lower = x + SIDE * stride, *right = panel + SIDE * padded;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < padded; k += DEPTH) {
        _tile_loadd(4, x + k, stride);
        _tile_loadd(6, panel + k * SIDE, DEPTH);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, right + k * SIDE, DEPTH);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, lower + k, stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    const int64_t row_bytes = BLOCK * sizeof(int32_t);
    _tile_stored(0, sums, row_bytes);
    _tile_stored(1, sums + SIDE, row_bytes);
    _tile_stored(2, sums + SIDE * BLOCK, row_bytes);
    _tile_stored(3, sums + SIDE * BLOCK + SIDE, row_bytes);
}

// Writes what is inside of sums (32, 32) to out. Whole lines go past the caches: reading them first to write them would
// take longer than multiplying, and a product is larger than the second cache.
inline void store_block(const int32_t* sums, int64_t rows, int64_t outputs, int32_t* out, int64_t stride) {
    const bool lines = outputs == BLOCK && stride % SIDE == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    for (int64_t r = 0; r < rows; ++r, sums += BLOCK, out += stride) {
        if (lines) {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_load_si512(sums));
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out + SIDE), _mm512_load_si512(sums + SIDE));
        } else {
            std::memcpy(out, sums, outputs * sizeof(int32_t));
        }
    }
}

// One task: some rows times some outputs; out has `stride` numbers a row.
inline void multiply_task(
    const int8_t* x, int64_t rows, const int8_t* weight, int64_t outputs, int64_t depth, int32_t* out, int64_t stride) {
    const int64_t padded = (depth + DEPTH - 1) / DEPTH * DEPTH;
    alignas(64) int8_t panel[(outputs + BLOCK - 1) / BLOCK * BLOCK * padded], copied[BLOCK * padded];
    alignas(64) int32_t sums[BLOCK * BLOCK];
    turn_weights(weight, outputs, depth, panel);
    configure();
    for (int64_t top = 0; top < rows; top += BLOCK) {
        const int64_t height = std::min(BLOCK, rows - top);
        const bool whole = height == BLOCK && depth == padded;
        const int8_t* from = x + top * depth;
        for (int64_t k = 0; k < depth && !whole; k += DEPTH) {
            for (int64_t r = 0; r < BLOCK; r += SIDE) {
                copy_tile(
                    from + r * depth + k, std::clamp<int64_t>(height - r, 0, SIDE), std::min(DEPTH, depth - k), depth,
                    copied + r * padded + k, padded);
            }
        }
        for (int64_t first = 0; first < outputs; first += BLOCK) {
            multiply_block(whole ? from : copied, padded, panel + first * padded, padded, sums);
            store_block(sums, height, std::min(BLOCK, outputs - first), out + top * stride + first, stride);
        }
    }
    _tile_release();
    _mm_sfence();  // before another thread reads what went past the caches
}

// out (rows, outputs) = x (rows, depth) · weightᵀ (outputs, depth).
inline void multiply(
    const int8_t* x, const int8_t* weight, int64_t rows, int64_t outputs, int64_t depth, int32_t* out, int threads) {
    const int64_t width = std::max(BLOCK, PANEL_BYTES / std::max(depth, DEPTH) / BLOCK * BLOCK);
    const int64_t panels = (outputs + width - 1) / width, parts = TASKS_PER_THREAD * threads / std::max<int64_t>(1, panels);
    const int64_t share = (rows + std::max<int64_t>(1, parts) - 1) / std::max<int64_t>(1, parts);
    const int64_t height = std::max(LEAST_ROWS, (share + BLOCK - 1) / BLOCK * BLOCK);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
    for (int64_t first = 0; first < outputs; first += width) {
        for (int64_t top = 0; top < rows; top += height) {
            multiply_task(
                x + top * depth, std::min(height, rows - top), weight + first * depth, std::min(width, outputs - first),
                depth, out + top * outputs + first, outputs);
        }
    }
}

}  // namespace amx

#endif

// Single numbers: how they are loaded and stored, and e^x. For native.cpp and for training/fused.cpp.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(int8_t x) { return static_cast<float>(x); }
inline float load(int32_t x) { return static_cast<float>(x); }
inline float load(bfloat16 x) {
    uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &wide, sizeof out);
    return out;
}
inline void store(float& to, float x) { to = x; }
inline void store(bfloat16& to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    to.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// e^x to 2 units in the last place, without a branch, so that loops over it become vector code: 2^(k + f) with
// |f| ≤ 1/2 by the Taylor series of e^(f ln 2), and 2^k put together from its bits.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float k = std::nearbyintf(x * 1.44269504088896341f);
    float r = x - k * 0.693359375f;  // ln 2 in two parts
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;  // minimax coefficients: Cephes, expf.c
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (static_cast<int32_t>(k) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

}  // namespace

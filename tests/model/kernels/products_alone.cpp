// int8 products against whole numbers, as a program of its own: for processors that are only emulated here. Prints what
// multiplies, and ends with 1 at the first number that is another one.

#include <cstdio>
#include <vector>

#include "products.h"

// Numbers of the whole range that is used, a third of them at either end.
static std::vector<int8_t> draw(int64_t count, uint32_t state) {
    std::vector<int8_t> values(count);
    for (int8_t& value : values) {
        state = state * 1664525u + 1013904223u;
        const uint32_t extreme = (state >> 8) % 6;
        value = static_cast<int8_t>(extreme < 2 ? 127 - 254 * static_cast<int>(extreme) : static_cast<int>((state >> 16) % 255) - 127);
    }
    return values;
}

int main() {
    const int64_t shapes[][3] = {{1, 1, 1}, {2, 4, 16}, {3, 5, 31}, {17, 3, 33}, {17, 9, 640}, {3, 257, 64}, {301, 300, 70}, {2, 6, 10241}};
    for (const auto& [rows, outputs, depth] : shapes) {
        const auto x = draw(rows * depth, 1), weight = draw(outputs * depth, 2);
        std::vector<int32_t> out(rows * outputs + 1, 7);
        multiply(x.data(), weight.data(), rows, outputs, depth, out.data(), 2);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t o = 0; o < outputs; ++o) {
                int64_t sum = 0;
                for (int64_t k = 0; k < depth; ++k) sum += x[r * depth + k] * weight[o * depth + k];
                if (sum != out[r * outputs + o]) {
                    std::printf("%ld x %ld, %ld deep: %d, not %ld\n", rows, outputs, depth, out[r * outputs + o], sum);
                    return 1;
                }
            }
        }
        if (out.back() != 7) return 1;
    }
    std::printf("%s\n", instructions());
}

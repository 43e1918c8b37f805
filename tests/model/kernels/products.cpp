// The products alone: they compile in a second, for any instruction set.

#include "products.h"

extern "C" void multiply_int8(
    const int8_t* x, const int8_t* weight, int64_t rows, int64_t outputs, int64_t depth, int32_t* out, int threads) {
    multiply(x, weight, rows, outputs, depth, out, threads);
}
extern "C" const char* int8_instructions() { return instructions(); }

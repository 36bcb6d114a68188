/* The type of bfloat16 and the attributes that all kernels use. */

#ifndef PHIMOE_COMMON_H
#define PHIMOE_COMMON_H

#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

/* Unroll the loop that follows: sums stay in registers only if no loop over them is left. */
#define UNROLLED _Pragma("GCC unroll 16")

#endif

/* What the kernels share. */

#ifndef PHIMOE_COMMON_H
#define PHIMOE_COMMON_H

#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

/* Sums stay in registers only where no loop over them is left. */
#define UNROLLED _Pragma("GCC unroll 16")

#endif

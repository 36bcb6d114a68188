/* What the kernels share: types, and torch's pool of threads. */

#ifndef PHIMOE_COMMON_H
#define PHIMOE_COMMON_H

#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

/* Sums stay in registers only where no loop over them is left. */
#define UNROLLED _Pragma("GCC unroll 8")

/* libgomp as torch has loaded it: one pool of threads for torch and for the kernels. Absent: one thread. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

INLINE int can_use_threads(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }

#endif

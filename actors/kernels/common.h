/* What the kernels share: types, loads and stores of both dtypes, exp, and torch's pool of threads. */

#ifndef PHIMOE_COMMON_H
#define PHIMOE_COMMON_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))

/* libgomp as torch has loaded it: one pool of threads for torch and for the kernels. Absent: one thread. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

INLINE int can_use_threads(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }

AVX512 INLINE __m512 load_bf16(const bf16 *p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

AVX512_BF16 INLINE void store_bf16(bf16 *p, __m512 v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v));
}

/* v as it is after rounding to bfloat16. */
AVX512_BF16 INLINE __m512 round_bf16(__m512 v) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16);
}

/* exp(x) within 2 ulp: 2^n by scalef, 2^f on [-1/2, 1/2] by its Taylor polynomial of degree 7. exp(-inf) is 0. */
AVX512 INLINE __m512 exp_ps(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 ln2_high = _mm512_set1_ps(0.693359375f), ln2_low = _mm512_set1_ps(-2.12194440e-4f);
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x); /* in this order NaN stays */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, ln2_low, _mm512_fnmadd_ps(n, ln2_high, x));
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(y, n);
}

#endif

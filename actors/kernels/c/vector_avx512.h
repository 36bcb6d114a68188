/* Vectors of 16 floats: AVX-512 with its bfloat16 and VNNI instructions. vector_avx2.h defines the same names
 * for 8 floats. */

#include "common.h"

#include <immintrin.h>
#include <string.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")

#define LANES 16
#define COLUMNS 4  /* vectors of outputs in a block of a packed weight */
#define MAX_ROWS 6 /* rows of x whose sums fit into the registers, beside the columns of a block */

typedef __m512 vec;

INLINE vec v_zero(void) { return _mm512_setzero_ps(); }
INLINE vec v_set(float x) { return _mm512_set1_ps(x); }
INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
/* a where a > b, else 0. */
INLINE vec v_above(vec a, vec b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), a); }
INLINE float v_first(vec v) { return _mm512_cvtss_f32(v); }
INLINE float v_sum(vec v) { return _mm512_reduce_add_ps(v); }
INLINE float v_highest(vec v) { return _mm512_reduce_max_ps(v); }

INLINE vec v_load_bf16(const bf16 *p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

INLINE void v_store_bf16(bf16 *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v));
}

/* Round v to bfloat16. The results are float32. */
INLINE vec v_round_bf16(vec v) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16);
}

/* exp(x) within 2 ulp, as 2^n * exp(f) with f = x - n ln 2 and |f| <= ln 2 / 2. scalef multiplies by 2^n.
 * exp(f) is its Taylor polynomial of degree 7. exp(-inf) is 0. */
INLINE vec v_exp(vec x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
    const __m512 ln2_high = _mm512_set1_ps(0.693359375f), ln2_low = _mm512_set1_ps(-2.12194440e-4f);
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x); /* with x as the second argument, NaN stays */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, ln2_low, _mm512_fnmadd_ps(n, ln2_high, x));
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(y, n);
}

/* There are products of bfloat16, so rows of x are not converted. */
#define WIDENS_ROWS 0
typedef bf16 bf16_row;

/* Vectors of 16 int32, or of 32 int16 that stand in pairs. */
typedef __m512i ivec;

INLINE ivec i_zero(void) { return _mm512_setzero_si512(); }
INLINE ivec i_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void i_store(void *p, ivec v) { _mm512_storeu_si512(p, v); }
INLINE vec i_to_float(ivec v) { return _mm512_cvtepi32_ps(v); }

/* The first and the second numbers of 16 pairs of bfloat16, as float32. v_store_pairs is the reverse. */
INLINE vec v_first_of_pairs(ivec pairs) { return (__m512)_mm512_slli_epi32(pairs, 16); }
INLINE vec v_second_of_pairs(ivec pairs) {
    return (__m512)_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000));
}
INLINE void v_store_pairs(bf16 *p, vec first, vec second) {
    i_store(p, _mm512_or_si512(_mm512_srli_epi32((ivec)v_round_bf16(first), 16), (ivec)v_round_bf16(second)));
}

/* out[i] gets the 32-bit word i of every row. Words are counted from `offset` bytes after the row's
 * start. */
INLINE void i_transpose(const char *const *rows, int64_t offset, ivec *out) {
    ivec a[16], b[16];
    UNROLLED for (int i = 0; i < 16; i++) a[i] = i_load(rows[i] + offset);
    UNROLLED for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLLED for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    /* a[4 g + j] now has word j of every quarter of the rows 4 g to 4 g + 3. */
    UNROLLED for (int j = 0; j < 4; j++) {
        ivec low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        ivec high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        ivec low2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        ivec high2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        out[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
        out[8 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        out[4 + j] = _mm512_shuffle_i32x4(high, high2, 0x88);
        out[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
}

/* sum[r][c] += inputs k and k + 1 of row r times their weights in column[c]. A lane of column[c] has the two
 * weights of an output. */
INLINE void v_add_pairs(
    vec sum[][COLUMNS], const bf16_row *const *x, int64_t k, const ivec *column, int num_rows) {
    UNROLLED for (int r = 0; r < num_rows; r++) {
        int32_t pair;
        memcpy(&pair, x[r] + k, sizeof pair);
        __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
        UNROLLED for (int c = 0; c < COLUMNS; c++)
            sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)column[c], both);
    }
}

/* Load the upper bytes that codes stand for, for i_decode. */
INLINE ivec i_values(const uint8_t *values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)values));
}

/* Decode the columns of a coded row (coded.h). */
INLINE void i_decode(ivec *column, const uint8_t *row, ivec values) {
    const __m512i code = _mm512_set1_epi8(15);
    __m512i codes = i_load(row + 2 * COLUMNS * LANES);
    UNROLLED for (int pair = 0; pair < COLUMNS / 2; pair++) {
        __m512i lower = i_load(row + 64 * pair);
        __m512i shifted = pair ? _mm512_srli_epi16(codes, 4) : codes;
        __m512i upper = _mm512_shuffle_epi8(values, _mm512_and_si512(shifted, code));
        column[2 * pair] = _mm512_unpacklo_epi8(lower, upper);
        column[2 * pair + 1] = _mm512_unpackhi_epi8(lower, upper);
    }
}

/* Put the same two int16 into every lane. */
INLINE ivec i_broadcast(const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return _mm512_set1_epi32(both);
}

/* Add the products of the two pairs in every lane to `sum`. */
INLINE ivec i_add_pairs(ivec sum, ivec a, ivec b) { return _mm512_dpwssd_epi32(sum, a, b); }

/* From both halves of every lane, extract field `index` of `num_bits` bits, with its sign. Field 0 is the
 * lowest. */
INLINE ivec i_field(ivec v, const int index, const int num_bits) {
    unsigned above = 16u - (unsigned)(num_bits * (index + 1));
    return _mm512_srai_epi16(above ? _mm512_slli_epi16(v, above) : v, 16u - (unsigned)num_bits);
}

/* The larger of `bits` and the bits of v without sign. NaN counts as the largest value. */
INLINE ivec i_max_magnitude(ivec bits, vec v) {
    return _mm512_max_epi32(bits, _mm512_and_si512((ivec)v, _mm512_set1_epi32(0x7fffffff)));
}

INLINE int32_t i_highest(ivec v) { return _mm512_reduce_max_epi32(v); }

/* Store v as int16, rounded to nearest, ties to even, and saturated. */
INLINE void i_store_halves(int16_t *p, vec v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}

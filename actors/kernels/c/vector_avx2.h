/* Vectors of 8 floats: AVX2 with FMA. vector_avx512.h defines the same names for 16 floats. */

#include "common.h"

#include <immintrin.h>

#pragma GCC target("avx2,fma")

#define LANES 8
#define COLUMNS 2  /* vectors of outputs in a block of a packed weight */
#define MAX_ROWS 4 /* rows of x whose sums fit into the registers, beside the columns of a block */

typedef __m256 vec;

INLINE vec v_zero(void) { return _mm256_setzero_ps(); }
INLINE vec v_set(float x) { return _mm256_set1_ps(x); }
INLINE vec v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
/* a where a > b, else 0. */
INLINE vec v_above(vec a, vec b) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), a); }
INLINE float v_first(vec v) { return _mm256_cvtss_f32(v); }

INLINE float v_sum(vec v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float v_highest(vec v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE vec v_load_bf16(const bf16 *p) {
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}

/* Round v to bfloat16, to nearest, ties to even. The results are in the upper halves of the lanes. NaN
 * becomes quiet. */
INLINE __m256i rounded_bits(vec v) {
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i is_nan = (__m256i)_mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return _mm256_and_si256(_mm256_blendv_epi8(near, quiet, is_nan), upper);
}

INLINE vec v_round_bf16(vec v) { return (__m256)rounded_bits(v); }

INLINE void v_store_bf16(bf16 *p, vec v) {
    __m256i halves = _mm256_srli_epi32(rounded_bits(v), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}

/* exp(x) within 2 ulp, as 2^n * exp(f) with f = x - n ln 2 and |f| <= ln 2 / 2. The factor 2^n is split into
 * two factors that are normal numbers. exp(f) is its Taylor polynomial of degree 7. exp(-inf) is 0. */
INLINE vec v_exp(vec x) {
    const __m256 log2e = _mm256_set1_ps(1.44269504088896341f);
    const __m256 ln2_high = _mm256_set1_ps(0.693359375f), ln2_low = _mm256_set1_ps(-2.12194440e-4f);
    x = _mm256_max_ps(_mm256_set1_ps(-150.0f), x); /* with x as the second argument, NaN stays */
    x = _mm256_min_ps(_mm256_set1_ps(130.0f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_fnmadd_ps(n, ln2_low, _mm256_fnmadd_ps(n, ln2_high, x));
    __m256 y = _mm256_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(factors[i]));
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(whole, half);
    y = _mm256_mul_ps(y, (__m256)_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    return _mm256_mul_ps(y, (__m256)_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
}

/* There are no products of bfloat16: rows of x are converted to float32 once, and weights during the
 * product. */
#define WIDENS_ROWS 1
typedef float bf16_row;

/* Vectors of 8 int32, or of 16 int16 that stand in pairs. */
typedef __m256i ivec;

INLINE ivec i_zero(void) { return _mm256_setzero_si256(); }
INLINE ivec i_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void i_store(void *p, ivec v) { _mm256_storeu_si256((__m256i *)p, v); }
INLINE vec i_to_float(ivec v) { return _mm256_cvtepi32_ps(v); }

/* The first and the second numbers of 8 pairs of bfloat16, as float32. v_store_pairs is the reverse. */
INLINE vec v_first_of_pairs(ivec pairs) { return (__m256)_mm256_slli_epi32(pairs, 16); }
INLINE vec v_second_of_pairs(ivec pairs) {
    return (__m256)_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000));
}
INLINE void v_store_pairs(bf16 *p, vec first, vec second) {
    i_store(p, _mm256_or_si256(_mm256_srli_epi32(rounded_bits(first), 16), rounded_bits(second)));
}

/* out[i] gets the 32-bit word i of every row. Words are counted from `offset` bytes after the row's
 * start. */
INLINE void i_transpose(const char *const *rows, int64_t offset, ivec *out) {
    ivec a[8], b[8];
    UNROLLED for (int i = 0; i < 8; i++) a[i] = i_load(rows[i] + offset);
    UNROLLED for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLLED for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLLED for (int j = 0; j < 4; j++) {
        out[j] = _mm256_permute2x128_si256(a[j], a[4 + j], 0x20);
        out[4 + j] = _mm256_permute2x128_si256(a[j], a[4 + j], 0x31);
    }
}

/* sum[r][c] += inputs k and k + 1 of row r times their weights in both[c]. A lane of both[c] has the two
 * weights of an output. */
INLINE void v_add_pairs(
    vec sum[][COLUMNS], const bf16_row *const *x, int64_t k, const ivec *both, int num_rows) {
    vec column[COLUMNS];
    UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = v_first_of_pairs(both[c]);
    UNROLLED for (int r = 0; r < num_rows; r++) {
        vec value = _mm256_broadcast_ss(x[r] + k);
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_fma(column[c], value, sum[r][c]);
    }
    UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = v_second_of_pairs(both[c]);
    UNROLLED for (int r = 0; r < num_rows; r++) {
        vec value = _mm256_broadcast_ss(x[r] + k + 1);
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_fma(column[c], value, sum[r][c]);
    }
}

/* Load the upper bytes that codes stand for, for i_decode. */
INLINE ivec i_values(const uint8_t *values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values));
}

/* Decode the columns of a coded row (coded.h). */
INLINE void i_decode(ivec *column, const uint8_t *row, ivec values) {
    __m128i codes = _mm_loadu_si128((const __m128i *)(row + 2 * COLUMNS * LANES));
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(codes), _mm_srli_epi16(codes, 4), 1);
    __m256i lower = i_load(row);
    __m256i upper = _mm256_shuffle_epi8(values, _mm256_and_si256(both, _mm256_set1_epi8(15)));
    column[0] = _mm256_unpacklo_epi8(lower, upper);
    column[1] = _mm256_unpackhi_epi8(lower, upper);
}

/* Put the same two int16 into every lane. */
INLINE ivec i_broadcast(const int16_t *pair) { return (ivec)_mm256_broadcast_ss((const float *)pair); }

/* Add the products of the two pairs in every lane to `sum`. The empty asm keeps the compiler from reordering
 * such additions, since it would then need more registers than there are. */
INLINE ivec i_add_pairs(ivec sum, ivec a, ivec b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum));
    return sum;
}

/* From both halves of every lane, extract field `index` of `num_bits` bits, with its sign. Field 0 is the
 * lowest. */
INLINE ivec i_field(ivec v, const int index, const int num_bits) {
    int above = 16 - num_bits * (index + 1);
    return _mm256_srai_epi16(above ? _mm256_slli_epi16(v, above) : v, 16 - num_bits);
}

/* The larger of `bits` and the bits of v without sign. NaN counts as the largest value. */
INLINE ivec i_max_magnitude(ivec bits, vec v) {
    return _mm256_max_epi32(bits, _mm256_and_si256((ivec)v, _mm256_set1_epi32(0x7fffffff)));
}

INLINE int32_t i_highest(ivec v) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/* Store v as int16, rounded to nearest, ties to even, and saturated. */
INLINE void i_store_halves(int16_t *p, vec v) {
    ivec whole = _mm256_cvtps_epi32(v);
    ivec halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(halves));
}

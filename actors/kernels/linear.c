/* out = x * weight^T (+ bias) (* scale of the row) on a CPU, for weights that were packed in blocks of 64 outputs.
 *
 * Legend: M rows of x, N outputs, K inputs, G groups of rows that have a weight each (the experts of a layer).
 *
 *   packed weight   [ceil(N / 64)] [K / P] [64] [P]    P = 2 for bfloat16, 1 for float32; absent outputs are zero
 *
 * A step of few rows takes as long as its weights take to be read, and memory is read fastest as one ascending stream:
 * so a block is walked through once from its first byte to its last while up to 6 rows of x are kept in registers. Every
 * output is one sum over ascending k, whatever rows stand beside its own: results do not depend on M.
 */

#if defined(__x86_64__) && defined(__GNUC__)

#include "linear.h"

#include <string.h>

#define BLOCK 64
#define MAX_ROWS 6
#define PREFETCH_BYTES 4096

INLINE void prefetch(const char *w) {
    for (int line = 0; line < 4; line++) _mm_prefetch(w + PREFETCH_BYTES + 64 * line, _MM_HINT_T0);
}

INLINE int64_t source(const linear_task *t, int64_t row) { return t->sources ? t->sources[row] : row; }

INLINE int64_t target(const linear_task *t, int64_t row) { return t->targets ? t->targets[row] : row; }

INLINE __mmask16 columns(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

/* One block of outputs for ROWS rows. `num_outputs` of the block's 64 exist. */
#define DEFINE_BF16(ROWS)                                                                                      \
    AVX512_BF16 static void bf16_rows_##ROWS(                                                                  \
        const linear_task *t, int64_t row, int64_t block, const void *weight, int64_t num_outputs) {                  \
        const bf16 *x[ROWS], *w = weight;                                                                      \
        for (int r = 0; r < ROWS; r++) x[r] = (const bf16 *)t->x + source(t, row + r) * t->K;                  \
        __m512 sum[ROWS][4];                                                                                   \
        for (int r = 0; r < ROWS; r++)                                                                         \
            for (int c = 0; c < 4; c++) sum[r][c] = _mm512_setzero_ps();                                       \
        for (int64_t k = 0; k < t->K; k += 2, w += 2 * BLOCK) {                                                \
            __m512bh column[4];                                                                                \
            for (int c = 0; c < 4; c++) column[c] = (__m512bh)_mm512_loadu_si512(w + 32 * c);                  \
            prefetch((const char *)w);                                                                         \
            for (int r = 0; r < ROWS; r++) {                                                                   \
                int32_t pair;                                                                                  \
                memcpy(&pair, x[r] + k, sizeof pair);                                                          \
                __m512bh both = (__m512bh)_mm512_set1_epi32(pair);                                             \
                for (int c = 0; c < 4; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], column[c], both);          \
            }                                                                                                  \
        }                                                                                                      \
        for (int r = 0; r < ROWS; r++) {                                                                       \
            bf16 *out = (bf16 *)t->out + target(t, row + r) * t->N + block * BLOCK;                            \
            for (int c = 0; c < 4 && 16 * c < num_outputs; c++) {                                              \
                __mmask16 mask = columns(num_outputs - 16 * c);                                                \
                __m512 y = sum[r][c];                                                                          \
                if (t->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, t->bias + block * BLOCK + 16 * c)); \
                __m256i rounded = (__m256i)_mm512_cvtneps_pbh(y);                                              \
                if (t->scales) {                                                                               \
                    y = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);                         \
                    rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(y, _mm512_set1_ps(t->scales[row + r]))); \
                }                                                                                              \
                _mm256_mask_storeu_epi16(out + 16 * c, mask, rounded);                                         \
            }                                                                                                  \
        }                                                                                                      \
    }

#define DEFINE_F32(ROWS)                                                                                       \
    AVX512 static void f32_rows_##ROWS(                                                                        \
        const linear_task *t, int64_t row, int64_t block, const void *weight, int64_t num_outputs) {                  \
        const float *x[ROWS], *w = weight;                                                                     \
        for (int r = 0; r < ROWS; r++) x[r] = (const float *)t->x + source(t, row + r) * t->K;                 \
        __m512 sum[ROWS][4];                                                                                   \
        for (int r = 0; r < ROWS; r++)                                                                         \
            for (int c = 0; c < 4; c++) sum[r][c] = _mm512_setzero_ps();                                       \
        for (int64_t k = 0; k < t->K; k++, w += BLOCK) {                                                       \
            __m512 column[4];                                                                                  \
            for (int c = 0; c < 4; c++) column[c] = _mm512_loadu_ps(w + 16 * c);                               \
            prefetch((const char *)w);                                                                         \
            for (int r = 0; r < ROWS; r++) {                                                                   \
                __m512 value = _mm512_set1_ps(x[r][k]);                                                        \
                for (int c = 0; c < 4; c++) sum[r][c] = _mm512_fmadd_ps(column[c], value, sum[r][c]);          \
            }                                                                                                  \
        }                                                                                                      \
        for (int r = 0; r < ROWS; r++) {                                                                       \
            float *out = (float *)t->out + target(t, row + r) * t->N + block * BLOCK;                          \
            for (int c = 0; c < 4 && 16 * c < num_outputs; c++) {                                              \
                __mmask16 mask = columns(num_outputs - 16 * c);                                                \
                __m512 y = sum[r][c];                                                                          \
                if (t->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, t->bias + block * BLOCK + 16 * c)); \
                if (t->scales) y = _mm512_mul_ps(y, _mm512_set1_ps(t->scales[row + r]));                       \
                _mm512_mask_storeu_ps(out + 16 * c, mask, y);                                                  \
            }                                                                                                  \
        }                                                                                                      \
    }

#define FOR_ALL_ROWS(DEFINE) DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)

FOR_ALL_ROWS(DEFINE_BF16)
FOR_ALL_ROWS(DEFINE_F32)

typedef void (*kernel)(const linear_task *, int64_t, int64_t, const void *, int64_t);

static const kernel bf16_kernels[] = {
    bf16_rows_1, bf16_rows_2, bf16_rows_3, bf16_rows_4, bf16_rows_5, bf16_rows_6};
static const kernel f32_kernels[] = {f32_rows_1, f32_rows_2, f32_rows_3, f32_rows_4, f32_rows_5, f32_rows_6};

/* Part `part` of `num_parts`: the same share of every group's blocks, so that parts are even whatever the groups are. */
static void run_part(const linear_task *t, const kernel *kernels, size_t element, int part, int num_parts) {
    int64_t num_blocks = (t->N + BLOCK - 1) / BLOCK;
    int64_t first = num_blocks * part / num_parts, end = num_blocks * (part + 1) / num_parts;
    for (int64_t group = 0; group < t->num_groups; group++) {
        int64_t first_row = t->starts[group], num_rows = t->starts[group + 1] - first_row;
        int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
        for (int64_t block = first; block < end; block++) {
            const char *weight = (const char *)t->weights[group] + block * BLOCK * t->K * (int64_t)element;
            int64_t left = t->N - block * BLOCK, num_outputs = left < BLOCK ? left : BLOCK;
            for (int64_t tile = 0; tile < num_tiles; tile++) {
                int64_t row = num_rows * tile / num_tiles, rows = num_rows * (tile + 1) / num_tiles - row;
                kernels[rows - 1](t, first_row + row, block, weight, num_outputs);
            }
        }
    }
}

static void bf16_part(void *t) {
    run_part(t, bf16_kernels, sizeof(bf16), omp_get_thread_num(), omp_get_num_threads());
}

static void f32_part(void *t) {
    run_part(t, f32_kernels, sizeof(float), omp_get_thread_num(), omp_get_num_threads());
}

void linear_run(const linear_task *t, int is_bf16, int num_threads) {
    if (num_threads > 1 && can_use_threads())
        GOMP_parallel(is_bf16 ? bf16_part : f32_part, (void *)t, (unsigned)num_threads, 0);
    else
        run_part(t, is_bf16 ? bf16_kernels : f32_kernels, is_bf16 ? sizeof(bf16) : sizeof(float), 0, 1);
}

int phimoe_has_float32(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

int phimoe_has_bfloat16(void) { return phimoe_has_float32() && __builtin_cpu_supports("avx512bf16"); }

/* x [M, K], out [M, N]; K is even for bfloat16. */
void phimoe_linear(
    const void *x, const void *weight, const float *bias, void *out, int64_t M, int64_t N, int64_t K, int is_bf16,
    int num_threads) {
    int64_t starts[2] = {0, M};
    linear_task t = {.x = x, .starts = starts, .weights = &weight, .bias = bias, .out = out, .num_groups = 1, .N = N, .K = K};
    linear_run(&t, is_bf16, num_threads);
}

#else

int phimoe_has_float32(void) { return 0; }
int phimoe_has_bfloat16(void) { return 0; }

#endif

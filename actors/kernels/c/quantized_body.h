/* out = x * weight^T for weights of 8 or 4 bits. The products are computed in integers.
 *
 * Legend: as in linear_body.h, and C inputs of a group, which share one scale for each output.
 *
 *   packed weight   [ceil(N / B)] [K / C] { scales [B], values [C / P] [B] [P] }
 *                   P = 4 for 8 bits, 8 for 4 bits
 *
 * The P values of an output fill 32 bits. From the lowest bits on, values of 8 bits have the order 0 2 1 3,
 * and values of 4 bits the order 0 2 4 6 1 3 5 7. Shifts within halves of 16 bits then leave neighbouring
 * inputs in the two halves of a lane, as products of pairs need them.
 *
 * Rows of x are written in 16 bits, group by group, as multiples of a power of two. The largest value of the
 * group decides this power. A bfloat16 value stays exact if the largest value is at most 2^7 times as large;
 * other values change by at most 2^-15 of the largest value.
 *
 * The products of a group add up exactly in 32 bits (127 * 32767 * 256 < 2^31), and every output is one
 * float32 sum over ascending groups. So the result of a row depends on that row alone.
 */

#include "tasks.h"

#include <math.h>
#include <stdlib.h>

/* The size in bytes of a row of x in 16 bits: K values, then K / C factors. */
INLINE int64_t coarse_bytes(int64_t K, int64_t group) {
    return K * (int64_t)sizeof(int16_t) + K / group * (int64_t)sizeof(float);
}

INLINE const int16_t *coarse_row(const linear_task *t, int64_t row) {
    return (const int16_t *)((const char *)t->x + row * coarse_bytes(t->K, t->quantized.group));
}

INLINE int64_t group_bytes(const quantization *q) {
    return BLOCK * ((q->has_bf16_scales ? 2 : 4) + q->group * q->num_bits / 8);
}

/* Compute the sums of one group for `num_rows` rows in all columns. They are exact. */
INLINE void sum_group(
    ivec sum[][COLUMNS], const int16_t *const *x, const char *w, int64_t group, const int num_bits,
    const int num_rows) {
    const int per_lane = 32 / num_bits;
    UNROLLED for (int r = 0; r < num_rows; r++)
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = i_zero();
    for (int64_t k = 0; k < group; k += per_lane, w += BLOCK * 4) {
        prefetch(w, BLOCK * 4);
        ivec packed[COLUMNS];
        UNROLLED for (int c = 0; c < COLUMNS; c++) packed[c] = i_load(w + c * LANES * 4);
        UNROLLED for (int pair = 0; pair < per_lane / 2; pair++) {
            ivec column[COLUMNS];
            UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = i_field(packed[c], pair, num_bits);
            UNROLLED for (int r = 0; r < num_rows; r++) {
                ivec value = i_broadcast(x[r] + k + 2 * pair);
                UNROLLED for (int c = 0; c < COLUMNS; c++)
                    sum[r][c] = i_add_pairs(sum[r][c], column[c], value);
            }
        }
    }
}

INLINE void quantized_rows(
    const linear_task *t, int64_t row, int64_t block, const void *weight, int64_t num_outputs,
    const int num_bits, const int num_rows) {
    const quantization *q = &t->quantized;
    const int16_t *x[MAX_ROWS];
    const float *factors[MAX_ROWS];
    const char *w = weight;
    vec total[MAX_ROWS][COLUMNS];
    UNROLLED for (int r = 0; r < num_rows; r++) {
        x[r] = coarse_row(t, row + r);
        factors[r] = (const float *)(x[r] + t->K);
        UNROLLED for (int c = 0; c < COLUMNS; c++) total[r][c] = v_zero();
    }
    for (int64_t group = 0; group < t->K / q->group; group++) {
        ivec sum[MAX_ROWS][COLUMNS];
        sum_group(sum, x, w + BLOCK * (q->has_bf16_scales ? 2 : 4), q->group, num_bits, num_rows);
        vec scale[COLUMNS];
        UNROLLED for (int c = 0; c < COLUMNS; c++) scale[c] = load(w, c * LANES, q->has_bf16_scales);
        UNROLLED for (int r = 0; r < num_rows; r++) {
            vec factor = v_set(factors[r][group]);
            UNROLLED for (int c = 0; c < COLUMNS; c++)
                total[r][c] = v_fma(v_mul(i_to_float(sum[r][c]), scale[c]), factor, total[r][c]);
            x[r] += q->group;
        }
        w += group_bytes(q);
    }
    finish(t, row, block, num_outputs, total, t->is_bf16, num_rows);
}

#define DEFINE_QUANTIZED_ROWS(ROWS)                                                               \
    static void int8_rows_##ROWS(                                                                 \
        const linear_task *t, int64_t row, int64_t block, const void *w, int64_t outputs) {       \
        quantized_rows(t, row, block, w, outputs, 8, ROWS);                                       \
    }                                                                                             \
    static void int4_rows_##ROWS(                                                                 \
        const linear_task *t, int64_t row, int64_t block, const void *w, int64_t outputs) {       \
        quantized_rows(t, row, block, w, outputs, 4, ROWS);                                       \
    }

FOR_EACH_ROWS(DEFINE_QUANTIZED_ROWS)

static const rows_kernel int8_kernels[MAX_ROWS] = UP_TO_MAX(int8_rows_);
static const rows_kernel int4_kernels[MAX_ROWS] = UP_TO_MAX(int4_rows_);

/* The power of two that is the unit of a group: its values are written as multiples of the unit. `largest`
 * has the bits of the group's largest value, without the sign. This value becomes 16384 to 32767 units, or
 * fewer if it is tiny. Returns NaN for infinities and NaN, so that every output of the row is NaN. */
INLINE float unit_of(int32_t largest) {
    const int32_t exponent = largest >> 23;
    float unit = NAN;
    const int32_t bits = (exponent < 27 ? 13 : exponent - 14) << 23;
    if (exponent < 255) memcpy(&unit, &bits, sizeof unit);
    return unit;
}

typedef struct {
    const linear_task *task;
    char *rows; /* [M], in the format that coarse_row reads */
} coarsening;

static void coarsen_row(const void *coarsened, int64_t row) {
    const coarsening *c = coarsened;
    const linear_task *t = c->task;
    int64_t group = t->quantized.group, at = source(t, row) * t->K;
    int16_t *values = (int16_t *)(c->rows + row * coarse_bytes(t->K, group));
    float *factors = (float *)(values + t->K);
    for (int64_t first = 0; first < t->K; first += group) {
        ivec largest = i_zero();
        for (int64_t k = first; k < first + group; k += LANES)
            largest = i_max_magnitude(largest, load(t->x, at + k, t->is_bf16));
        float unit = factors[first / group] = unit_of(i_highest(largest));
        vec inverse = v_set(1.0f / unit);
        for (int64_t k = first; k < first + group; k += LANES)
            i_store_halves(values + k, v_mul(load(t->x, at + k, t->is_bf16), inverse));
    }
}

static int quantized_run(const linear_task *t) {
    int64_t num_rows = t->starts[t->num_groups];
    /* + 1: not NULL without rows */
    char *rows = malloc((size_t)(num_rows * coarse_bytes(t->K, t->quantized.group)) + 1);
    if (!rows) return NO_MEMORY;
    coarsening c = {t, rows};
    phimoe_run(coarsen_row, &c, num_rows, num_rows * t->K > 262144 ? t->num_threads : 1);
    linear_task coarse = *t;
    coarse.x = rows;
    coarse.sources = NULL;
    linear_all(&coarse, t->quantized.num_bits == 8 ? int8_kernels : int4_kernels,
               t->K / t->quantized.group * group_bytes(&t->quantized));
    free(rows);
    return DONE;
}

/* Compute a product with weights of any kind. Returns DONE or NO_MEMORY. */
static int linear_run(const linear_task *t) {
    return t->quantized.num_bits ? quantized_run(t) : whole_run(t);
}

/* out [M, N] = x [M, K] * weight^T + bias. Returns DONE or NO_MEMORY. */
static int product_run(
    const product_weights *w, const void *x, void *out, int64_t M, int64_t N, int64_t K, int is_bf16,
    int num_threads) {
    int64_t starts[2] = {0, M};
    linear_task task = {
        .x = x, .starts = starts, .weights = &w->packed, .bias = w->bias, .out = out, .num_groups = 1, .N = N,
        .K = K, .is_bf16 = is_bf16, .num_threads = num_threads, .quantized = w->quantized};
    return linear_run(&task);
}

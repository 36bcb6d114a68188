/* Sums of up to MAX_ROWS rows for COLUMNS * LANES outputs, in registers. Products with a block of weights and
 * products with a tile's keys use them. With bfloat16, v_add_pairs (vector_*.h) adds two inputs at a time;
 * with float32, v_add_singles adds one input. */

#ifndef PHIMOE_COLUMNS_H
#define PHIMOE_COLUMNS_H

/* sum[r][c] += input k of row r times column[c], the weights of input k. */
INLINE void v_add_singles(
    vec sum[][COLUMNS], const float *const *x, int64_t k, const vec *column, int num_rows) {
    UNROLLED for (int r = 0; r < num_rows; r++) {
        vec value = v_set(x[r][k]);
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_fma(value, column[c], sum[r][c]);
    }
}

/* FOR_EACH_ROWS defines a function for each number of rows, which is then a constant at compile time.
 * UP_TO_MAX lists these functions: the one for n rows is at index n - 1. */
#if MAX_ROWS > 4
#define FOR_EACH_ROWS(DEFINE) DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)
#define UP_TO_MAX(NAME) {NAME##1, NAME##2, NAME##3, NAME##4, NAME##5, NAME##6}
#else
#define FOR_EACH_ROWS(DEFINE) DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4)
#define UP_TO_MAX(NAME) {NAME##1, NAME##2, NAME##3, NAME##4}
#endif

#endif

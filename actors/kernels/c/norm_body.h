/* LayerNorm of rows. It is computed in float32 and rounded once. H is a multiple of 16. */

#include "either.h"
#include "tasks.h"

#include <math.h>

/* Compute the mean first, then the mean square of the differences from it. So large sums are not subtracted
 * from each other. */
INLINE void norm_row(const norm_task *t, int64_t row, int is_bf16) {
    int64_t H = t->hidden_size, at = row * H;
    vec sum = v_zero(), square = v_zero();
    for (int64_t i = 0; i < H; i += LANES) sum = v_add(sum, load(t->x, at + i, is_bf16));
    vec mean = v_set(v_sum(sum) / (float)H);
    for (int64_t i = 0; i < H; i += LANES) {
        vec off = v_sub(load(t->x, at + i, is_bf16), mean);
        square = v_fma(off, off, square);
    }
    vec scale = v_set(1.0f / sqrtf(v_sum(square) / (float)H + t->eps));
    for (int64_t i = 0; i < H; i += LANES) {
        vec y = v_mul(v_sub(load(t->x, at + i, is_bf16), mean), scale);
        y = v_fma(y, load(t->gain, i, is_bf16), load(t->shift, i, is_bf16));
        store(t->out, at + i, y, is_bf16);
    }
}

static void norm_run(const norm_task *t) {
    for (int64_t row = 0; row < t->num_rows; row++) {
        if (t->is_bf16)
            norm_row(t, row, 1);
        else
            norm_row(t, row, 0);
    }
}

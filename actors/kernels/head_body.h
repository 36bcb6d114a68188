/* From the last layer's rows to the scores of their next tokens, and to the tokens where they are drawn as they are. */

#include "either.h"
#include "tasks.h"

#include <string.h>

/* The rows that are asked for, normalised in place. */
static void pick_rows(const head_task *t) {
    size_t row_bytes = (size_t)t->hidden_size * (t->is_bf16 ? 2 : 4);
    for (int64_t row = 0; row < t->num_rows; row++)
        memcpy((char *)t->normed + row * row_bytes, (const char *)t->x + t->picked[row] * row_bytes, row_bytes);
    norm_task norm = {
        t->normed, t->norm.gain, t->norm.shift, t->normed, t->num_rows, t->hidden_size, t->eps, t->is_bf16};
    norm_run(&norm);
}

static void widen_scores(const void *task, int64_t row) {
    const head_task *t = task;
    const bf16 *from = (const bf16 *)t->scores + row * t->vocabulary;
    float *to = t->logits + row * t->vocabulary;
    int64_t i = 0;
    for (; i + LANES <= t->vocabulary; i += LANES) v_store(to + i, v_load_bf16(from + i));
    for (; i < t->vocabulary; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}

static int head_run(const head_task *t) {
    int64_t starts[2] = {0, t->num_rows}, V = t->vocabulary;
    pick_rows(t);
    linear_task product = {
        .x = t->normed, .starts = starts, .weights = &t->product.packed, .bias = t->product.bias,
        .out = t->is_bf16 ? t->scores : (void *)t->logits, .num_groups = 1, .N = V, .K = t->hidden_size,
        .is_bf16 = t->is_bf16, .num_threads = t->num_threads, .quantized = t->product.quantized};
    if (linear_run(&product)) return NO_MEMORY;
    if (t->is_bf16) phimoe_run(widen_scores, t, t->num_rows, t->num_rows * V > 131072 ? t->num_threads : 1);
    if (!t->filters) return DONE;
    sample_task sample = {t->logits, t->filters, t->token_ids, t->num_rows, V, t->num_threads};
    return sample_run(&sample);
}

/* From the rows of the last layer to the scores of their next tokens, and to the tokens themselves if filters
 * are given. */

#include "either.h"
#include "tasks.h"

#include <string.h>

/* Copy the rows that are asked for to `normed`, and normalise them there. */
static void pick_rows(const head_task *t) {
    size_t row_bytes = (size_t)t->hidden_size * (t->is_bf16 ? 2 : 4);
    for (int64_t row = 0; row < t->num_rows; row++)
        memcpy(
            (char *)t->normed + row * row_bytes, (const char *)t->x + t->picked[row] * row_bytes, row_bytes);
    norm_task norm = {
        t->normed, t->norm.gain, t->norm.shift, t->normed, t->num_rows, t->hidden_size, t->eps, t->is_bf16};
    norm_run(&norm);
}

static void widen_scores(const void *task, int64_t row) {
    const head_task *t = task;
    int64_t V = t->vocabulary;
    widen((const bf16 *)t->scores + row * V, t->logits + row * V, V);
}

static int head_run(const head_task *t) {
    int64_t V = t->vocabulary;
    void *out = t->is_bf16 ? t->scores : (void *)t->logits;
    pick_rows(t);
    if (product_run(&t->product, t->normed, out, t->num_rows, V, t->hidden_size, t->is_bf16, t->num_threads))
        return NO_MEMORY;
    if (t->is_bf16) phimoe_run(widen_scores, t, t->num_rows, t->num_rows * V > 131072 ? t->num_threads : 1);
    if (!t->filters) return DONE;
    sample_task sample = {t->logits, t->filters, t->token_ids, t->num_rows, V, t->num_threads};
    return sample_run(&sample);
}

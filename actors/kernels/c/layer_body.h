/* One layer of decoding sequences in the dense actor, in one call: everything from adding the results of the
 * previous layer's experts to choosing the experts of this layer. It is composed of the other kernels and of
 * additions that are rounded as torch rounds them. So a row has the same bits as in a step that calls these
 * kernels one by one. */

#include "either.h"
#include "tasks.h"

/* x += y, where both have `count` numbers. */
INLINE void add_rows(void *x, const void *y, int64_t count, int is_bf16) {
    for (int64_t i = 0; i < count; i += LANES)
        store(x, i, v_add(load(x, i, is_bf16), load(y, i, is_bf16)), is_bf16);
}

static int product(
    const layer_task *t, const void *x, const product_weights *w, void *out, int64_t N, int64_t K) {
    return product_run(w, x, out, t->num_sequences, N, K, t->is_bf16, t->num_threads);
}

static void normalise(const layer_task *t, const norm_weights *w) {
    norm_task task = {
        t->x, w->gain, w->shift, t->normed, t->num_sequences, t->hidden_size, t->eps, t->is_bf16};
    norm_run(&task);
}

static int layer_run(const layer_task *t, const layer_weights *w) {
    int64_t B = t->num_sequences, H = t->hidden_size, D = t->head_dim;
    int64_t width = t->num_heads * D, projected = width + 2 * t->num_groups * D;
    if (t->combined) add_rows(t->x, t->combined, B * H, t->is_bf16);
    normalise(t, &w->input_norm);
    if (product(t, t->normed, &w->qkv, t->qkv, projected, H)) return NO_MEMORY;
    attention_task attention = {
        t->qkv, t->cos, t->sin, w->keys, w->values, t->slots, t->block_table, t->starts, t->ends, t->attended,
        B, t->num_heads, t->num_groups, D, t->table_stride, t->block_size, t->is_bf16, t->num_threads};
    attention_run(&attention);
    if (product(t, t->attended, &w->out, t->normed, H, width)) return NO_MEMORY;
    add_rows(t->x, t->normed, B * H, t->is_bf16);
    normalise(t, &w->post_attention_norm);
    if (product(t, t->normed, &w->gate, t->scores, t->num_experts, H)) return NO_MEMORY;
    phimoe_route(t->scores, B, t->num_experts, t->jitter, t->expert_ids, t->expert_weights, t->is_bf16);
    return DONE;
}

/* Computes all rows of one layer with all experts of an actor. `experts_task` (tasks.h) describes what is
 * given. */

#include "tasks.h"

#include <stdlib.h>

typedef struct {
    const void *hidden; /* [N, 2 F]: w1 x, then w3 x */
    void *activated;    /* [N, F]: silu(w1 x) * (w3 x) */
    int64_t width;
    int is_bf16;
} silu_task;

INLINE vec silu(vec x) {
    return v_div(x, v_add(v_set(1.0f), v_exp(v_sub(v_zero(), x))));
}

/* Round after silu and again after the product, as two separate operations in bfloat16 do. */
static void silu_bf16(const bf16 *hidden, bf16 *out, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        vec gate = v_round_bf16(silu(v_load_bf16(hidden + i)));
        v_store_bf16(out + i, v_mul(gate, v_load_bf16(hidden + width + i)));
    }
}

static void silu_f32(const float *hidden, float *out, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        vec gate = silu(v_load(hidden + i));
        v_store(out + i, v_mul(gate, v_load(hidden + width + i)));
    }
}

static void silu_row(const void *task, int64_t row) {
    const silu_task *t = task;
    int64_t F = t->width;
    if (t->is_bf16)
        silu_bf16((const bf16 *)t->hidden + row * 2 * F, (bf16 *)t->activated + row * F, F);
    else
        silu_f32((const float *)t->hidden + row * 2 * F, (float *)t->activated + row * F, F);
}

/* The results ordered by expert. A group is the rows of one expert, which use the same weights. */
typedef struct {
    int64_t *sources, *targets;   /* [N]: each row's token, and the result that it becomes */
    float *scales;                /* [N]: the routing weight of a row */
    int64_t *ends;                /* [S + 1]: scratch for counting */
    int64_t *starts;              /* [G + 1]: the first row of each group, then N */
    const void **gate_up, **down; /* [G]: packed weights */
    int64_t num_groups;
} grouping;

static int group_by_expert(const experts_task *t, grouping *g) {
    int64_t num_valid = 0, num_entries = t->num_tokens * t->num_choices, num_results = 0;
    for (int64_t s = 0; s <= t->num_slots; s++) g->ends[s] = 0;
    for (int64_t i = 0; i < num_entries; i++) {
        if (t->expert_ids[i] < 0) continue;
        int64_t slot = t->slots[t->expert_ids[i]];
        if (slot < 0) return FOREIGN_EXPERT;
        g->ends[slot + 1]++;
        num_valid++;
    }
    if (num_valid != t->num_results) return WRONG_COUNT;
    g->num_groups = 0;
    for (int64_t s = 0; s < t->num_slots; s++) {
        if (g->ends[s + 1]) {
            g->starts[g->num_groups] = g->ends[s];
            g->gate_up[g->num_groups] = t->gate_up[s];
            g->down[g->num_groups++] = t->down[s];
        }
        g->ends[s + 1] += g->ends[s];
    }
    g->starts[g->num_groups] = num_valid;
    for (int64_t i = 0; i < num_entries; i++) {
        if (t->expert_ids[i] < 0) continue;
        int64_t place = g->ends[t->slots[t->expert_ids[i]]]++;
        g->sources[place] = i / t->num_choices;
        g->targets[place] = num_results++;
        g->scales[place] = t->weights[i];
    }
    return DONE;
}

static int experts_grouped(const experts_task *t, const grouping *g, char *hidden, char *activated) {
    linear_task up = {
        .x = t->rows, .starts = g->starts, .weights = g->gate_up, .sources = g->sources, .out = hidden,
        .num_groups = g->num_groups, .N = 2 * t->width, .K = t->hidden_size, .is_bf16 = t->is_bf16,
        .num_threads = t->num_threads, .quantized = t->gate_up_quantized};
    if (linear_run(&up)) return NO_MEMORY;
    silu_task activation = {hidden, activated, t->width, t->is_bf16};
    phimoe_run(silu_row, &activation, t->num_results, t->num_results * t->width > 65536 ? t->num_threads : 1);
    linear_task down = {
        .x = activated, .starts = g->starts, .weights = g->down, .scales = g->scales, .targets = g->targets,
        .out = t->out, .num_groups = g->num_groups, .N = t->hidden_size, .K = t->width, .is_bf16 = t->is_bf16,
        .num_threads = t->num_threads, .quantized = t->down_quantized};
    return linear_run(&down);
}

static int experts_run(const experts_task *t) {
    size_t N = (size_t)t->num_results, S = (size_t)t->num_slots, element = t->is_bf16 ? 2 : 4;
    size_t lists = (3 * N + 2 * S + 2) * 8 + 2 * S * sizeof(void *);
    char *memory = malloc(lists + 64 + N * (size_t)t->width * 3 * element);
    if (!memory) return NO_MEMORY;
    grouping g = {.sources = (int64_t *)memory};
    g.targets = g.sources + N;
    g.ends = g.targets + N;
    g.starts = g.ends + S + 1;
    g.gate_up = (const void **)(g.starts + S + 1);
    g.down = g.gate_up + S;
    g.scales = (float *)(g.down + S);
    /* hidden [N, 2 F], then activated [N, F], from a multiple of 64 bytes on */
    char *hidden = (char *)(((uintptr_t)(g.scales + N) + 63) & ~(uintptr_t)63);
    int fault = group_by_expert(t, &g);
    if (!fault) fault = experts_grouped(t, &g, hidden, hidden + N * (size_t)t->width * 2 * element);
    free(memory);
    return fault;
}

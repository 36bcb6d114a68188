/* Attention of decoding sequences over the block cache: one query position per sequence, the cache is read in place.
 * Several of them may be positions of one sequence, each with its own end: all keys and values are written first.
 *
 * Legend: B sequences, A query heads, G key-value heads, Q = A / G, D head dimension, R cache rows.
 *
 * Scores, softmax and sums are float32. Positions are taken in ascending order, TILE at a time, with the maximum so far
 * (Milakov and Gimelshein 2018): a sequence's result does not depend on what else is in the batch.
 */

#include "either.h"
#include "tasks.h"

#include <math.h>

#define TILE 64
#define MAX_TOGETHER 4 /* heads of a group that read a key or a value once */

/* Rotate one head (feature i pairs with i + D / 2); the result is rounded to the dtype, as float32 in `out`. */
INLINE void rotate(const attention_task *t, int64_t sequence, int64_t head, float *out, int is_bf16) {
    int64_t D = t->head_dim, half = D / 2, at = (sequence * (t->num_heads + 2 * t->num_groups) + head) * D;
    for (int64_t i = 0; i < half; i += LANES) {
        vec x = load(t->qkv, at + i, is_bf16), y = load(t->qkv, at + half + i, is_bf16);
        vec c = v_load(t->cos + sequence * half + i), s = v_load(t->sin + sequence * half + i);
        vec first = v_sub(v_mul(x, c), v_mul(y, s));
        vec second = v_add(v_mul(y, c), v_mul(x, s));
        v_store(out + i, is_bf16 ? v_round_bf16(first) : first);
        v_store(out + half + i, is_bf16 ? v_round_bf16(second) : second);
    }
}

INLINE void write_cache(const attention_task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t D = t->head_dim, to = (t->slots[sequence] * t->num_groups + group) * D;
    int64_t value = (sequence * (t->num_heads + 2 * t->num_groups) + t->num_heads + t->num_groups + group) * D;
    float key[MAX_DIM];
    rotate(t, sequence, t->num_heads + group, key, is_bf16);
    for (int64_t i = 0; i < D; i += LANES) {
        store(t->keys, to + i, v_load(key + i), is_bf16);
        store(t->values, to + i, load(t->qkv, value + i, is_bf16), is_bf16);
    }
}

/* Where the group's features of a tile's positions are; of those that do not exist, where the last one's are. */
INLINE void find_positions(const attention_task *t, int64_t sequence, int64_t group, int64_t first, int64_t end, int64_t *at) {
    const int32_t *blocks = t->block_table + sequence * t->table_stride;
    for (int64_t p = 0; p < TILE; p++) {
        int64_t position = first + p < end ? first + p : end - 1, row = blocks[position / t->block_size] * t->block_size + position % t->block_size;
        at[p] = (row * t->num_groups + group) * t->head_dim;
    }
}

INLINE void fetch_features(const attention_task *t, const void *base, int64_t at, int is_bf16) {
    const int64_t width = is_bf16 ? 2 : 4;
    for (int64_t i = 0; i < t->head_dim * width; i += 64) __builtin_prefetch((const char *)base + at * width + i);
}

/* The scores of `num_heads` heads, a constant: each key is read once for all of them. Rows of the cache lie apart, so what is needed
 * next is fetched meanwhile: this tile's values, and the keys of the next one. */
INLINE void score_heads(
    const attention_task *t, float query[][MAX_DIM], const int64_t *at, const int64_t *next, int64_t count,
    float score[][TILE], int is_bf16, const int num_heads) {
    for (int64_t p = 0; p < count; p++) {
        fetch_features(t, t->values, at[p], is_bf16);
        fetch_features(t, t->keys, next[p], is_bf16);
        vec dot[MAX_TOGETHER];
        UNROLLED for (int h = 0; h < num_heads; h++) dot[h] = v_zero();
        for (int64_t i = 0; i < t->head_dim; i += LANES) {
            vec key = load(t->keys, at[p] + i, is_bf16);
            UNROLLED for (int h = 0; h < num_heads; h++) dot[h] = v_fma(v_load(query[h] + i), key, dot[h]);
        }
        UNROLLED for (int h = 0; h < num_heads; h++) score[h][p] = v_sum(dot[h]);
    }
}

/* Adds a tile's values to the sums of `num_heads` heads, a constant: each value is read once for all of them, and as the heads'
 * sums do not wait for each other, neither do the additions. */
INLINE void add_values(
    const attention_task *t, float share[][TILE], const int64_t *at, int64_t count, float sum[][MAX_DIM], int is_bf16,
    const int num_heads) {
    for (int64_t i = 0; i < t->head_dim; i += LANES) {
        vec acc[MAX_TOGETHER];
        UNROLLED for (int h = 0; h < num_heads; h++) acc[h] = v_load(sum[h] + i);
        for (int64_t p = 0; p < count; p++) {
            vec value = load(t->values, at[p] + i, is_bf16);
            UNROLLED for (int h = 0; h < num_heads; h++) acc[h] = v_fma(v_set(share[h][p]), value, acc[h]);
        }
        UNROLLED for (int h = 0; h < num_heads; h++) v_store(sum[h] + i, acc[h]);
    }
}

/* A tile's scores become shares of the best score so far, and what was summed up before is measured by that one, too. */
INLINE void weigh_tile(int64_t D, float *score, int64_t count, float *best, float *total, float *sum) {
    for (int64_t p = count; p < TILE; p++) score[p] = -INFINITY;
    vec high = v_load(score);
    for (int64_t p = LANES; p < TILE; p += LANES) high = v_max(high, v_load(score + p));
    float before = *best, highest = v_highest(high);
    *best = highest > before ? highest : before;
    vec m = v_set(*best), added = v_zero();
    for (int64_t p = 0; p < TILE; p += LANES) {
        vec e = v_exp(v_sub(v_load(score + p), m));
        v_store(score + p, e);
        added = v_add(added, e);
    }
    float shrink = v_first(v_exp(v_set(before - *best)));
    *total = *total * shrink + v_sum(added);
    for (int64_t i = 0; i < D; i += LANES) v_store(sum + i, v_mul(v_load(sum + i), v_set(shrink)));
}

/* `num_heads` heads of a group from `head` on, a constant. */
INLINE void attend_heads(
    const attention_task *t, int64_t sequence, int64_t group, int64_t head, int is_bf16, const int num_heads) {
    int64_t D = t->head_dim, places[2][TILE], *at = places[0], *next = places[1];
    float query[MAX_TOGETHER][MAX_DIM], sum[MAX_TOGETHER][MAX_DIM], score[MAX_TOGETHER][TILE];
    float best[MAX_TOGETHER], total[MAX_TOGETHER];
    float scale = 1.0f / sqrtf((float)D);
    for (int h = 0; h < num_heads; h++) {
        rotate(t, sequence, head + h, query[h], is_bf16);
        for (int64_t i = 0; i < D; i += LANES) {
            v_store(query[h] + i, v_mul(v_load(query[h] + i), v_set(scale)));
            v_store(sum[h] + i, v_zero());
        }
        best[h] = -INFINITY;
        total[h] = 0;
    }
    int64_t first = t->starts[sequence], end = t->ends[sequence];
    find_positions(t, sequence, group, first, end, at);
    for (; first < end; first += TILE) {
        int64_t count = end - first < TILE ? end - first : TILE;
        int is_last = first + TILE >= end;
        if (!is_last) find_positions(t, sequence, group, first + TILE, end, next);
        score_heads(t, query, at, is_last ? at : next, count, score, is_bf16, num_heads);
        for (int h = 0; h < num_heads; h++) weigh_tile(D, score[h], count, best + h, total + h, sum[h]);
        add_values(t, score, at, count, sum, is_bf16, num_heads);
        int64_t *done = at;
        at = next;
        next = done;
    }
    for (int h = 0; h < num_heads; h++)
        for (int64_t i = 0; i < D; i += LANES) {
            vec y = v_div(v_load(sum[h] + i), v_set(total[h]));
            store(t->out, (sequence * t->num_heads + head + h) * D + i, y, is_bf16);
        }
}

INLINE void attend_group(const attention_task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t per_group = t->num_heads / t->num_groups, head = group * per_group, end = head + per_group;
    for (; head + MAX_TOGETHER <= end; head += MAX_TOGETHER) attend_heads(t, sequence, group, head, is_bf16, MAX_TOGETHER);
    for (; head < end; head++) attend_heads(t, sequence, group, head, is_bf16, 1);
}

static void attention_unit(const void *task, int64_t unit) {
    const attention_task *t = task;
    if (t->is_bf16)
        attend_group(t, unit / t->num_groups, unit % t->num_groups, 1);
    else
        attend_group(t, unit / t->num_groups, unit % t->num_groups, 0);
}

static void attention_run(const attention_task *t) {
    for (int64_t b = 0; b < t->num_sequences; b++)
        for (int64_t group = 0; group < t->num_groups; group++) {
            if (t->is_bf16)
                write_cache(t, b, group, 1);
            else
                write_cache(t, b, group, 0);
        }
    /* Below some thousand positions, telling other threads takes longer than the work. */
    int64_t work = 0;
    for (int64_t b = 0; b < t->num_sequences; b++) work += (t->ends[b] - t->starts[b]) * t->num_groups;
    phimoe_run(attention_unit, t, t->num_sequences * t->num_groups, work > 2048 ? t->num_threads : 1);
}

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

INLINE void attend_group(const attention_task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t D = t->head_dim, G = t->num_groups, per_group = t->num_heads / G;
    const int32_t *blocks = t->block_table + sequence * t->table_stride;
    int64_t at[TILE];
    float query[MAX_GROUP][MAX_DIM], sum[MAX_GROUP][MAX_DIM], score[MAX_GROUP][TILE];
    float best[MAX_GROUP], total[MAX_GROUP];
    float scale = 1.0f / sqrtf((float)D);
    for (int64_t h = 0; h < per_group; h++) {
        rotate(t, sequence, group * per_group + h, query[h], is_bf16);
        for (int64_t i = 0; i < D; i += LANES) {
            v_store(query[h] + i, v_mul(v_load(query[h] + i), v_set(scale)));
            v_store(sum[h] + i, v_zero());
        }
        best[h] = -INFINITY;
        total[h] = 0;
    }
    for (int64_t first = t->starts[sequence]; first < t->ends[sequence]; first += TILE) {
        int64_t left = t->ends[sequence] - first, count = left < TILE ? left : TILE;
        for (int64_t p = 0; p < count; p++) {
            int64_t position = first + p;
            at[p] = ((blocks[position / t->block_size] * t->block_size + position % t->block_size) * G + group) * D;
            for (int64_t h = 0; h < per_group; h++) {
                vec dot = v_zero();
                for (int64_t i = 0; i < D; i += LANES)
                    dot = v_fma(v_load(query[h] + i), load(t->keys, at[p] + i, is_bf16), dot);
                score[h][p] = v_sum(dot);
            }
        }
        for (int64_t h = 0; h < per_group; h++) {
            for (int64_t p = count; p < TILE; p++) score[h][p] = -INFINITY;
            vec high = v_load(score[h]);
            for (int64_t p = LANES; p < TILE; p += LANES) high = v_max(high, v_load(score[h] + p));
            float before = best[h], highest = v_highest(high);
            best[h] = highest > before ? highest : before;
            vec m = v_set(best[h]), added = v_zero();
            for (int64_t p = 0; p < TILE; p += LANES) {
                vec e = v_exp(v_sub(v_load(score[h] + p), m));
                v_store(score[h] + p, e);
                added = v_add(added, e);
            }
            float shrink = v_first(v_exp(v_set(before - best[h])));
            total[h] = total[h] * shrink + v_sum(added);
            for (int64_t i = 0; i < D; i += LANES) {
                vec acc = v_mul(v_load(sum[h] + i), v_set(shrink));
                v_store(sum[h] + i, acc);
            }
        }
        for (int64_t i = 0; i < D; i += LANES)
            for (int64_t h = 0; h < per_group; h++) {
                vec acc = v_load(sum[h] + i);
                for (int64_t p = 0; p < count; p++) {
                    vec value = load(t->values, at[p] + i, is_bf16);
                    acc = v_fma(v_set(score[h][p]), value, acc);
                }
                v_store(sum[h] + i, acc);
            }
    }
    for (int64_t h = 0; h < per_group; h++)
        for (int64_t i = 0; i < D; i += LANES) {
            vec y = v_div(v_load(sum[h] + i), v_set(total[h]));
            store(t->out, (sequence * t->num_heads + group * per_group + h) * D + i, y, is_bf16);
        }
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

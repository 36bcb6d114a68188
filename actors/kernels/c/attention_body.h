/* Attention of decoding sequences over the block cache. A row is one query position, and the cache is read in
 * place.
 *
 * Several rows may be positions of one sequence, each with its own end. All new keys and values are written
 * first, and neighbouring rows of one sequence read its tiles together. The result of a row does not depend
 * on the rest of the batch.
 *
 * Legend: B rows, A query heads, G key-value heads, D head dimension, R cache rows.
 */

#include "attention_tile.h"

/* Rotate one head, in which feature i pairs with feature i + D / 2. `out` gets the result as float32, rounded
 * to the dtype. */
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

/* Write the new key, rotated, and the new value of one sequence and one key-value head to the cache. */
INLINE void write_cache(const attention_task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t D = t->head_dim, to = (t->slots[sequence] * t->num_groups + group) * D;
    int64_t value =
        (sequence * (t->num_heads + 2 * t->num_groups) + t->num_heads + t->num_groups + group) * D;
    float key[MAX_DIM];
    rotate(t, sequence, t->num_heads + group, key, is_bf16);
    for (int64_t i = 0; i < D; i += LANES) {
        store(t->keys, to + i, v_load(key + i), is_bf16);
        store(t->values, to + i, load(t->qkv, value + i, is_bf16), is_bf16);
    }
}

/* Find the group's features of the tile that begins at position `first`. Positions after the row's last one
 * get the place of the last one. */
INLINE void find_positions(
    const attention_task *t, int64_t row, int64_t group, int64_t first, int64_t *places) {
    const int32_t *blocks = t->block_table + row * t->table_stride;
    int64_t last = t->ends[row] - 1, size = t->block_size;
    for (int64_t p = 0; p < TILE; p++) {
        int64_t position = first + p < last ? first + p : last;
        int64_t place = blocks[position / size] * size + position % size;
        places[p] = (place * t->num_groups + group) * t->head_dim;
    }
}

INLINE void begin_query(
    const attention_task *t, attention_state *s, int64_t query, int64_t row, int64_t head, int is_bf16) {
    int64_t D = t->head_dim;
    float rotated[MAX_DIM];
    rotate(t, row, head, rotated, is_bf16);
    for (int64_t i = 0; i < D; i += LANES) {
        store(s->queries, query * D + i, v_load(rotated + i), is_bf16 && !WIDENS_ROWS);
        v_store(s->sums + query * D + i, v_zero());
    }
    s->best[query] = -INFINITY;
    s->total[query] = 0;
}

INLINE void end_query(
    const attention_task *t, const attention_state *s, int64_t query, int64_t row, int64_t head,
    int is_bf16) {
    int64_t D = t->head_dim, to = (row * t->num_heads + head) * D;
    const float *sums = s->sums + query * D;
    vec total = v_set(s->total[query]);
    for (int64_t i = 0; i < D; i += 2 * LANES) {
        vec first = v_div(v_load(sums + i), total), second = v_div(v_load(sums + i + LANES), total);
        if (is_bf16)
            v_store_pairs((bf16 *)t->out + to + i, first, second);
        else {
            v_store((float *)t->out + to + i, first);
            v_store((float *)t->out + to + i + LANES, second);
        }
    }
}

/* Let the queries from `first` up to `end` attend to the tile that begins at `position`. `seeing` is the row
 * of query `first`. The ends of the rows ascend: if this row sees the whole tile, all rows do; if it ends
 * inside the tile, each row attends for itself to the positions that it sees. */
static void see_rows(
    const attention_task *t, attention_state *s, const tile_kernel *kernels, const tile_places *places,
    int64_t position, int64_t seeing, int64_t num_heads, int64_t first, int64_t end) {
    if (t->ends[seeing] - position < TILE) {
        for (; first < end; first += num_heads, seeing++) {
            int64_t count = t->ends[seeing] - position;
            kernels[num_heads - 1](s, first, places, count < TILE ? count : TILE);
        }
        return;
    }
    int64_t num_parts = (end - first + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t query = first + (end - first) * part / num_parts;
        int64_t next = first + (end - first) * (part + 1) / num_parts;
        kernels[next - query - 1](s, query, places, TILE);
    }
}

/* Compute `num_heads` heads of a group from `head` on, for `num_rows` rows of one sequence from `row` on. */
INLINE void attend_heads(
    const attention_task *t, int64_t row, int64_t num_rows, int64_t group, int64_t head, int64_t num_heads,
    int is_bf16) {
    int64_t last = row + num_rows - 1, num_queries = num_rows * num_heads, num_over = 0;
    attention_state state, *s = &state;
    s->keys = t->keys;
    s->values = t->values;
    s->D = t->head_dim;
    s->scale = 1.0f / sqrtf((float)t->head_dim);
    for (int64_t q = 0; q < num_queries; q++)
        begin_query(t, s, q, row + q / num_heads, head + q % num_heads, is_bf16);
    const tile_kernel *kernels = is_bf16 ? bf16_tiles : f32_tiles;
    tile_places places;
    find_positions(t, last, group, t->starts[row], places.next);
    for (int64_t position = t->starts[row]; position < t->ends[last]; position += TILE) {
        memcpy(places.here, places.next, sizeof places.here);
        if (position + TILE < t->ends[last]) find_positions(t, last, group, position + TILE, places.next);
        transpose_keys(s, &places, is_bf16);
        while (t->ends[row + num_over] <= position) num_over++;
        see_rows(
            t, s, kernels, &places, position, row + num_over, num_heads, num_over * num_heads, num_queries);
    }
    for (int64_t q = 0; q < num_queries; q++)
        end_query(t, s, q, row + q / num_heads, head + q % num_heads, is_bf16);
}

/* Whether a row is a later position of the sequence of the row before: it sees all positions that the row
 * before sees, in the same blocks, and further ones after them. */
static int follows(const attention_task *t, int64_t row) {
    if (t->starts[row] != t->starts[row - 1] || t->ends[row] <= t->ends[row - 1]) return 0;
    const int32_t *blocks = t->block_table + row * t->table_stride;
    size_t num_blocks = (size_t)((t->ends[row - 1] + t->block_size - 1) / t->block_size);
    return !memcmp(blocks, blocks - t->table_stride, num_blocks * sizeof *blocks);
}

/* Compute one key-value head for the run of rows that begins at this row. Rows in the middle of a run return
 * at once. A run is neighbouring rows of one sequence, and a new one begins at every multiple of MAX_RUN. */
static void attention_unit(const void *task, int64_t unit) {
    const attention_task *t = task;
    int64_t row = unit / t->num_groups, group = unit % t->num_groups, num_rows = 1;
    if (row % MAX_RUN && follows(t, row)) return;
    while ((row + num_rows) % MAX_RUN && row + num_rows < t->num_sequences && follows(t, row + num_rows))
        num_rows++;
    int64_t per_group = t->num_heads / t->num_groups, head = group * per_group, end = head + per_group;
    for (; head < end; head += MAX_HEADS) {
        int64_t num_heads = end - head < MAX_HEADS ? end - head : MAX_HEADS;
        if (t->is_bf16)
            attend_heads(t, row, num_rows, group, head, num_heads, 1);
        else
            attend_heads(t, row, num_rows, group, head, num_heads, 0);
    }
}

static void attention_run(const attention_task *t) {
    for (int64_t b = 0; b < t->num_sequences; b++)
        for (int64_t group = 0; group < t->num_groups; group++) {
            if (t->is_bf16)
                write_cache(t, b, group, 1);
            else
                write_cache(t, b, group, 0);
        }
    /* Below some thousand positions, waking other threads takes longer than the work does. */
    int64_t work = 0;
    for (int64_t b = 0; b < t->num_sequences; b++) work += (t->ends[b] - t->starts[b]) * t->num_groups;
    phimoe_run(attention_unit, t, t->num_sequences * t->num_groups, work > 2048 ? t->num_threads : 1);
}

/* Attention of some queries to one tile: TILE positions of their sequence. It consists of two matrix
 * products.
 *
 * Legend: N queries (a query is one head of one row); D head dimension; W 32-bit words of a key: D / 2 pairs
 * of bfloat16, or D float32; R cache rows; G key-value heads.
 *
 *   scores [N, TILE] = queries [N, D] keys^T     keys are transposed once for all queries: [W, TILE]
 *   sums [N, D] += shares [N, TILE] values       values are read in place
 *
 * A share is exp(score - best score so far): the softmax before its division by the total. Tiles are visited
 * one after the other, and a higher best score rescales the sums (Milakov and Gimelshein 2018). Softmax and
 * sums are float32. Every score is one sum over ascending features, and every output is one sum over
 * ascending positions, so the result of a query does not depend on the queries that are computed beside it.
 *
 * The rows of the cache are scattered in memory, so this tile's values are prefetched while its keys are
 * transposed, and the next tile's keys while this tile's values are added.
 */

#include "columns.h"
#include "either.h"
#include "tasks.h"

#include <math.h>

#define TILE 64
#define MAX_HEADS 4 /* heads of one group that read keys and values together */
#define MAX_RUN 16  /* rows of one sequence that read keys and values together */
#define MAX_QUERIES (MAX_HEADS * MAX_RUN)

typedef struct {
    const void *keys, *values; /* [R, G, D] */
    int64_t D;
    float scale;                          /* factor of the scores: 1 / sqrt(D) */
    float queries[MAX_QUERIES * MAX_DIM]; /* [N, D]; with bfloat16 the numbers are of type bf16_row */
    /* [N, D]; with bfloat16 every 2 * LANES features are ordered as LANES even ones, then LANES odd ones. */
    float sums[MAX_QUERIES * MAX_DIM];
    float best[MAX_QUERIES];         /* the highest score so far */
    float total[MAX_QUERIES];        /* the sum of the shares so far */
    float scores[MAX_QUERIES][TILE]; /* scores, which shares then replace */
    uint32_t transposed_keys[MAX_DIM * TILE]; /* [W, TILE] */
} attention_state;

/* For the positions of a tile and of the next one: the index of a position's first feature in `keys` and in
 * `values`. */
typedef struct {
    int64_t here[TILE], next[TILE];
} tile_places;

/* Prefetch 2 * LANES features from `index` on. */
INLINE void fetch(const void *base, int64_t index, int is_bf16) {
    if (is_bf16)
        __builtin_prefetch((const bf16 *)base + index);
    else
        for (int64_t i = 0; i < 2 * LANES; i += 16) __builtin_prefetch((const float *)base + index + i);
}

/* Write the keys of this tile to transposed_keys, and prefetch its values. */
INLINE void transpose_keys(attention_state *s, const tile_places *places, int is_bf16) {
    const int64_t per_word = is_bf16 ? 2 : 1, width = 4 / per_word;
    for (int64_t first = 0; first < TILE; first += LANES) {
        const int64_t *at = places->here + first;
        const char *rows[LANES];
        for (int p = 0; p < LANES; p++) rows[p] = (const char *)s->keys + at[p] * width;
        for (int64_t word = 0; word < s->D / per_word; word += LANES) {
            ivec transposed[LANES];
            for (int p = 0; p < LANES; p++) fetch(s->values, at[p] + word * per_word, is_bf16);
            i_transpose(rows, 4 * word, transposed);
            UNROLLED for (int i = 0; i < LANES; i++)
                i_store(s->transposed_keys + (word + i) * TILE + first, transposed[i]);
        }
    }
}

/* Compute the scores of `num_rows` queries from `query` on. `num_rows` is a constant at compile time. */
INLINE void score_rows(attention_state *s, int64_t query, int is_bf16, const int num_rows) {
    const bf16_row *pairs[MAX_ROWS];
    const float *singles[MAX_ROWS];
    UNROLLED for (int r = 0; r < num_rows; r++) {
        pairs[r] = (const bf16_row *)s->queries + (query + r) * s->D;
        singles[r] = s->queries + (query + r) * s->D;
    }
    for (int64_t first = 0; first < TILE; first += COLUMNS * LANES) {
        const uint32_t *keys = s->transposed_keys + first;
        vec sum[MAX_ROWS][COLUMNS];
        UNROLLED for (int r = 0; r < num_rows; r++)
            UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_zero();
        for (int64_t k = 0; k < s->D; k += is_bf16 ? 2 : 1, keys += TILE) {
            ivec column[COLUMNS];
            UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = i_load(keys + c * LANES);
            if (is_bf16)
                v_add_pairs(sum, pairs, k, column, num_rows);
            else
                v_add_singles(sum, singles, k, (const vec *)column, num_rows);
        }
        UNROLLED for (int r = 0; r < num_rows; r++)
            UNROLLED for (int c = 0; c < COLUMNS; c++)
                v_store(s->scores[query + r] + first + c * LANES, v_mul(sum[r][c], v_set(s->scale)));
    }
}

/* Rescale the sums and the total of a query to a higher best score. */
INLINE void shrink(attention_state *s, int64_t query, float best) {
    float factor = v_first(v_exp(v_set(s->best[query] - best))), *sums = s->sums + query * s->D;
    for (int64_t i = 0; i < s->D; i += LANES) v_store(sums + i, v_mul(v_load(sums + i), v_set(factor)));
    s->total[query] *= factor;
    s->best[query] = best;
}

/* Replace the scores of a query by shares. The query sees the first `count` positions of the tile. */
INLINE void weigh_scores(attention_state *s, int64_t query, int64_t count) {
    float *score = s->scores[query];
    for (int64_t p = count; p < TILE; p++) score[p] = -INFINITY;
    vec high = v_load(score), added = v_zero();
    for (int64_t p = LANES; p < TILE; p += LANES) high = v_max(high, v_load(score + p));
    float highest = v_highest(high);
    if (highest > s->best[query]) shrink(s, query, highest);
    vec best = v_set(s->best[query]);
    for (int64_t p = 0; p < TILE; p += LANES) {
        vec e = v_exp(v_sub(v_load(score + p), best));
        v_store(score + p, e);
        added = v_add(added, e);
    }
    s->total[query] += v_sum(added);
}

/* Load 2 * LANES features of a value. With bfloat16, value[0] gets the even and value[1] the odd features. */
INLINE void load_value(const attention_state *s, int64_t at, vec *value, int is_bf16) {
    if (is_bf16) {
        ivec pairs = i_load((const bf16 *)s->values + at);
        value[0] = v_first_of_pairs(pairs);
        value[1] = v_second_of_pairs(pairs);
    } else {
        value[0] = v_load((const float *)s->values + at);
        value[1] = v_load((const float *)s->values + at + LANES);
    }
}

/* Add the values of the first `count` positions, times their shares, to the sums of `num_rows` queries from
 * `query` on, and prefetch the keys of the next tile. `num_rows` is a constant at compile time. */
INLINE void add_values(
    attention_state *s, int64_t query, const tile_places *places, int64_t count, int is_bf16,
    const int num_rows) {
    for (int64_t i = 0; i < s->D; i += 2 * LANES) {
        float *place[MAX_ROWS];
        vec sum[MAX_ROWS][2];
        UNROLLED for (int r = 0; r < num_rows; r++) {
            place[r] = s->sums + (query + r) * s->D + i;
            sum[r][0] = v_load(place[r]);
            sum[r][1] = v_load(place[r] + LANES);
        }
        for (int64_t p = 0; p < count; p++) {
            vec value[2];
            load_value(s, places->here[p] + i, value, is_bf16);
            fetch(s->keys, places->next[p] + i, is_bf16);
            UNROLLED for (int r = 0; r < num_rows; r++) {
                vec share = v_set(s->scores[query + r][p]);
                sum[r][0] = v_fma(share, value[0], sum[r][0]);
                sum[r][1] = v_fma(share, value[1], sum[r][1]);
            }
        }
        UNROLLED for (int r = 0; r < num_rows; r++) {
            v_store(place[r], sum[r][0]);
            v_store(place[r] + LANES, sum[r][1]);
        }
    }
}

/* Let `num_rows` queries from `query` on attend to the first `count` positions of a tile. The keys of the
 * tile have been transposed. `num_rows` is a constant at compile time. */
INLINE void see_tile(
    attention_state *s, int64_t query, const tile_places *places, int64_t count, int is_bf16,
    const int num_rows) {
    score_rows(s, query, is_bf16, num_rows);
    for (int r = 0; r < num_rows; r++) weigh_scores(s, query + r, count);
    add_values(s, query, places, count, is_bf16, num_rows);
}

typedef void (*tile_kernel)(attention_state *, int64_t, const tile_places *, int64_t);

#define DEFINE_TILE(ROWS)                                                                         \
    static void bf16_tile_##ROWS(                                                                 \
        attention_state *s, int64_t query, const tile_places *places, int64_t count) {            \
        see_tile(s, query, places, count, 1, ROWS);                                               \
    }                                                                                             \
    static void f32_tile_##ROWS(                                                                  \
        attention_state *s, int64_t query, const tile_places *places, int64_t count) {            \
        see_tile(s, query, places, count, 0, ROWS);                                               \
    }

FOR_EACH_ROWS(DEFINE_TILE)

static const tile_kernel bf16_tiles[MAX_ROWS] = UP_TO_MAX(bf16_tile_);
static const tile_kernel f32_tiles[MAX_ROWS] = UP_TO_MAX(f32_tile_);

/* Attention of some queries to TILE positions of their sequence, as two products of rows with a block of columns.
 *
 * Legend: N queries, each of them a head of a row; D head dimension; W words of 32 bits of a key: D / 2 pairs of bfloat16,
 * or D float32; R cache rows, G key-value heads.
 *
 *   scores [N, TILE] = queries [N, D] keys^T     keys are transposed once for all queries: [W, TILE]
 *   sums [N, D] += shares [N, TILE] values       values are read where they are
 *
 * A score is one sum over ascending features, a sum is one over ascending positions, whatever queries stand beside its own.
 * Softmax and sums are float32. Tiles come one after the other, with the best score so far (Milakov and Gimelshein 2018).
 *
 * Rows of the cache lie apart, so what is needed next is fetched meanwhile: this tile's values, and the keys of the next one.
 */

#include "columns.h"
#include "either.h"
#include "tasks.h"

#include <math.h>

#define TILE 64
#define MAX_HEADS 4 /* of a group that read keys and values together */
#define MAX_RUN 16  /* rows of a sequence that do */
#define MAX_QUERIES (MAX_HEADS * MAX_RUN)

typedef struct {
    const void *keys, *values; /* [R, G, D] */
    int64_t D;
    float scale;                            /* of a score */
    float queries[MAX_QUERIES * MAX_DIM];   /* [N, D]; of bfloat16 they are a bf16_row each */
    float sums[MAX_QUERIES * MAX_DIM];      /* [N, D]; of bfloat16 LANES even features, then the odd ones between them */
    float best[MAX_QUERIES];                /* score so far */
    float total[MAX_QUERIES];               /* of shares, measured by the best score */
    float scores[MAX_QUERIES][TILE];        /* and then shares */
    uint32_t transposed_keys[MAX_DIM * TILE];   /* [W, TILE] */
} attention_state;

/* Where the features of a tile's positions are, and those of the next tile's. */
typedef struct {
    int64_t here[TILE], next[TILE];
} tile_places;

/* 2 * LANES features. */
INLINE void fetch(const void *base, int64_t index, int is_bf16) {
    if (is_bf16)
        __builtin_prefetch((const bf16 *)base + index);
    else
        for (int64_t i = 0; i < 2 * LANES; i += 16) __builtin_prefetch((const float *)base + index + i);
}

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
            UNROLLED for (int i = 0; i < LANES; i++) i_store(s->transposed_keys + (word + i) * TILE + first, transposed[i]);
        }
    }
}

/* The scores of `num_rows` queries, a constant, from `query` on. */
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

/* What was summed up so far is measured by a better score. */
INLINE void shrink(attention_state *s, int64_t query, float best) {
    float factor = v_first(v_exp(v_set(s->best[query] - best))), *sums = s->sums + query * s->D;
    for (int64_t i = 0; i < s->D; i += LANES) v_store(sums + i, v_mul(v_load(sums + i), v_set(factor)));
    s->total[query] *= factor;
    s->best[query] = best;
}

/* A query's scores, `count` of which are of positions that it sees, become shares. */
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

/* 2 * LANES features of a value; of bfloat16 the even ones, then the odd ones. */
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

/* Adds `count` positions' values to the sums of `num_rows` queries, a constant, from `query` on. */
INLINE void add_values(
    attention_state *s, int64_t query, const tile_places *places, int64_t count, int is_bf16, const int num_rows) {
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

/* `num_rows` queries, a constant, from `query` on see `count` positions of a tile, whose keys have been transposed. */
INLINE void see_tile(
    attention_state *s, int64_t query, const tile_places *places, int64_t count, int is_bf16, const int num_rows) {
    score_rows(s, query, is_bf16, num_rows);
    for (int r = 0; r < num_rows; r++) weigh_scores(s, query + r, count);
    add_values(s, query, places, count, is_bf16, num_rows);
}

typedef void (*tile_kernel)(attention_state *, int64_t, const tile_places *, int64_t);

#define DEFINE_TILE(ROWS)                                                                                     \
    static void bf16_tile_##ROWS(attention_state *s, int64_t query, const tile_places *places, int64_t count) { \
        see_tile(s, query, places, count, 1, ROWS);                                                           \
    }                                                                                                         \
    static void f32_tile_##ROWS(attention_state *s, int64_t query, const tile_places *places, int64_t count) { \
        see_tile(s, query, places, count, 0, ROWS);                                                           \
    }

FOR_EACH_ROWS(DEFINE_TILE)

static const tile_kernel bf16_tiles[MAX_ROWS] = UP_TO_MAX(bf16_tile_);
static const tile_kernel f32_tiles[MAX_ROWS] = UP_TO_MAX(f32_tile_);

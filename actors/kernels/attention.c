/* Attention of decoding sequences over the block cache: one query position per sequence, the cache is read in place.
 *
 * Legend: B sequences, A query heads, G key-value heads, Q = A / G, D head dimension (a multiple of 32), R cache rows,
 * S context positions.
 *
 *   qkv    [B, (A + 2 G) * D]    as projected: queries, keys, values
 *   cache  [R, G, D] each for keys and values; row slots[b] takes the new position of sequence b
 *
 * Scores, softmax and sums are float32. Positions are taken in ascending order, TILE at a time, with the maximum so far
 * (Milakov and Gimelshein 2018): a sequence's result does not depend on what else is in the batch.
 */

#if defined(__x86_64__) && defined(__GNUC__)

#include "common.h"

#include <math.h>

#define TILE 64
#define MAX_GROUP 16 /* query heads of one key-value head */
#define MAX_DIM 256

typedef struct {
    const void *qkv;
    const float *cos, *sin;  /* [B, D / 2], already scaled */
    void *keys, *values;     /* this layer's cache */
    const int64_t *slots;    /* [B] */
    const int64_t *context;  /* [B, S]: cache rows of positions 0 .. S - 1 */
    const int64_t *starts;   /* [B]: first visible position */
    const int64_t *ends;     /* [B]: behind the last one, which is the new one */
    void *out;               /* [B, A * D] */
    int64_t num_sequences, num_heads, num_groups, head_dim, context_stride;
} task;

AVX512 INLINE __m512 load(const void *base, int64_t index, int is_bf16) {
    return is_bf16 ? load_bf16((const bf16 *)base + index) : _mm512_loadu_ps((const float *)base + index);
}

AVX512_BF16 INLINE void store(void *base, int64_t index, __m512 v, int is_bf16) {
    if (is_bf16)
        store_bf16((bf16 *)base + index, v);
    else
        _mm512_storeu_ps((float *)base + index, v);
}

/* Rotate one head (feature i pairs with i + D / 2); the result is rounded to the dtype, as float32 in `out`. */
AVX512_BF16 INLINE void rotate(const task *t, int64_t sequence, int64_t head, float *out, int is_bf16) {
    int64_t D = t->head_dim, half = D / 2, at = (sequence * (t->num_heads + 2 * t->num_groups) + head) * D;
    for (int64_t i = 0; i < half; i += 16) {
        __m512 x = load(t->qkv, at + i, is_bf16), y = load(t->qkv, at + half + i, is_bf16);
        __m512 c = _mm512_loadu_ps(t->cos + sequence * half + i), s = _mm512_loadu_ps(t->sin + sequence * half + i);
        __m512 first = _mm512_sub_ps(_mm512_mul_ps(x, c), _mm512_mul_ps(y, s));
        __m512 second = _mm512_add_ps(_mm512_mul_ps(y, c), _mm512_mul_ps(x, s));
        _mm512_storeu_ps(out + i, is_bf16 ? round_bf16(first) : first);
        _mm512_storeu_ps(out + half + i, is_bf16 ? round_bf16(second) : second);
    }
}

AVX512_BF16 INLINE void write_cache(const task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t D = t->head_dim, to = (t->slots[sequence] * t->num_groups + group) * D;
    int64_t value = (sequence * (t->num_heads + 2 * t->num_groups) + t->num_heads + t->num_groups + group) * D;
    float key[MAX_DIM];
    rotate(t, sequence, t->num_heads + group, key, is_bf16);
    for (int64_t i = 0; i < D; i += 16) {
        store(t->keys, to + i, _mm512_loadu_ps(key + i), is_bf16);
        store(t->values, to + i, load(t->qkv, value + i, is_bf16), is_bf16);
    }
}

AVX512_BF16 INLINE void attend_group(const task *t, int64_t sequence, int64_t group, int is_bf16) {
    int64_t D = t->head_dim, G = t->num_groups, per_group = t->num_heads / G;
    const int64_t *rows = t->context + sequence * t->context_stride;
    float query[MAX_GROUP][MAX_DIM], sum[MAX_GROUP][MAX_DIM], score[MAX_GROUP][TILE];
    float best[MAX_GROUP], total[MAX_GROUP];
    write_cache(t, sequence, group, is_bf16);
    float scale = 1.0f / sqrtf((float)D);
    for (int64_t h = 0; h < per_group; h++) {
        rotate(t, sequence, group * per_group + h, query[h], is_bf16);
        for (int64_t i = 0; i < D; i += 16) {
            _mm512_storeu_ps(query[h] + i, _mm512_mul_ps(_mm512_loadu_ps(query[h] + i), _mm512_set1_ps(scale)));
            _mm512_storeu_ps(sum[h] + i, _mm512_setzero_ps());
        }
        best[h] = -INFINITY;
        total[h] = 0;
    }
    for (int64_t first = t->starts[sequence]; first < t->ends[sequence]; first += TILE) {
        int64_t left = t->ends[sequence] - first, count = left < TILE ? left : TILE;
        for (int64_t p = 0; p < count; p++) {
            int64_t at = (rows[first + p] * G + group) * D;
            for (int64_t h = 0; h < per_group; h++) {
                __m512 dot = _mm512_setzero_ps();
                for (int64_t i = 0; i < D; i += 16)
                    dot = _mm512_fmadd_ps(_mm512_loadu_ps(query[h] + i), load(t->keys, at + i, is_bf16), dot);
                score[h][p] = _mm512_reduce_add_ps(dot);
            }
        }
        for (int64_t h = 0; h < per_group; h++) {
            for (int64_t p = count; p < TILE; p++) score[h][p] = -INFINITY;
            __m512 high = _mm512_loadu_ps(score[h]);
            for (int64_t p = 16; p < TILE; p += 16) high = _mm512_max_ps(high, _mm512_loadu_ps(score[h] + p));
            float before = best[h], highest = _mm512_reduce_max_ps(high);
            best[h] = highest > before ? highest : before;
            __m512 m = _mm512_set1_ps(best[h]), added = _mm512_setzero_ps();
            for (int64_t p = 0; p < TILE; p += 16) {
                __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(score[h] + p), m));
                _mm512_storeu_ps(score[h] + p, e);
                added = _mm512_add_ps(added, e);
            }
            float shrink = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(before - best[h])));
            total[h] = total[h] * shrink + _mm512_reduce_add_ps(added);
            for (int64_t i = 0; i < D; i += 16) {
                __m512 acc = _mm512_mul_ps(_mm512_loadu_ps(sum[h] + i), _mm512_set1_ps(shrink));
                _mm512_storeu_ps(sum[h] + i, acc);
            }
        }
        for (int64_t i = 0; i < D; i += 16)
            for (int64_t h = 0; h < per_group; h++) {
                __m512 acc = _mm512_loadu_ps(sum[h] + i);
                for (int64_t p = 0; p < count; p++) {
                    __m512 value = load(t->values, (rows[first + p] * G + group) * D + i, is_bf16);
                    acc = _mm512_fmadd_ps(_mm512_set1_ps(score[h][p]), value, acc);
                }
                _mm512_storeu_ps(sum[h] + i, acc);
            }
    }
    for (int64_t h = 0; h < per_group; h++)
        for (int64_t i = 0; i < D; i += 16) {
            __m512 y = _mm512_div_ps(_mm512_loadu_ps(sum[h] + i), _mm512_set1_ps(total[h]));
            store(t->out, (sequence * t->num_heads + group * per_group + h) * D + i, y, is_bf16);
        }
}

AVX512_BF16 static void attend_bf16(const task *t, int64_t sequence, int64_t group) {
    attend_group(t, sequence, group, 1);
}

AVX512_BF16 static void attend_f32(const task *t, int64_t sequence, int64_t group) {
    attend_group(t, sequence, group, 0);
}

typedef struct {
    task t;
    int is_bf16;
} job;

static void run_part(const job *j, int64_t part, int64_t num_parts) {
    int64_t count = j->t.num_sequences * j->t.num_groups;
    for (int64_t unit = part; unit < count; unit += num_parts)
        (j->is_bf16 ? attend_bf16 : attend_f32)(&j->t, unit / j->t.num_groups, unit % j->t.num_groups);
}

static void run_in_pool(void *j) { run_part(j, omp_get_thread_num(), omp_get_num_threads()); }

/* Whether these shapes fit the kernel's buffers. */
int phimoe_can_attend(int64_t num_heads, int64_t num_groups, int64_t head_dim) {
    return head_dim % 32 == 0 && head_dim <= MAX_DIM && num_heads / num_groups <= MAX_GROUP;
}

void phimoe_decode_attention(
    const void *qkv, const float *cos, const float *sin, void *keys, void *values, const int64_t *slots,
    const int64_t *context, const int64_t *starts, const int64_t *ends, void *out, int64_t num_sequences,
    int64_t num_heads, int64_t num_groups, int64_t head_dim, int64_t context_stride, int is_bf16, int num_threads) {
    job j = {{qkv, cos, sin, keys, values, slots, context, starts, ends, out, num_sequences, num_heads, num_groups,
              head_dim, context_stride},
             is_bf16};
    /* Below some thousand positions, waking a thread takes longer than the work. */
    int64_t work = 0;
    for (int64_t b = 0; b < num_sequences; b++) work += (ends[b] - starts[b]) * num_groups;
    if (num_threads > 1 && work > 2048 && can_use_threads())
        GOMP_parallel(run_in_pool, &j, (unsigned)num_threads, 0);
    else
        run_part(&j, 0, 1);
}

#endif

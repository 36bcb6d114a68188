/* All rows of one layer through all experts of a rank: w2(silu(w1 x) * (w3 x)) * weight.
 *
 * Legend: T tokens, H hidden, K experts per token, F expert width, S slots (experts of this rank), N results.
 */

#if defined(__x86_64__) && defined(__GNUC__)

#include "linear.h"

#include <stdlib.h>

enum { DONE = 0, FOREIGN_EXPERT = 1, WRONG_COUNT = 2, NO_MEMORY = 3 };

typedef struct {
    const void *hidden; /* [N, 2 F]: w1 x, then w3 x */
    void *activated;    /* [N, F] */
    int64_t num_rows, width;
    int is_bf16;
} silu_task;

AVX512 INLINE __m512 silu(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* Rounded after silu and after the product, as two operations in bfloat16 are. */
AVX512_BF16 static void silu_bf16(const bf16 *hidden, bf16 *out, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) {
        __m512 gate = round_bf16(silu(load_bf16(hidden + i)));
        store_bf16(out + i, _mm512_mul_ps(gate, load_bf16(hidden + width + i)));
    }
}

AVX512 static void silu_f32(const float *hidden, float *out, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) {
        __m512 gate = silu(_mm512_loadu_ps(hidden + i));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(gate, _mm512_loadu_ps(hidden + width + i)));
    }
}

static void silu_rows(const silu_task *t, int64_t part, int64_t num_parts) {
    int64_t F = t->width;
    for (int64_t row = t->num_rows * part / num_parts; row < t->num_rows * (part + 1) / num_parts; row++) {
        if (t->is_bf16)
            silu_bf16((const bf16 *)t->hidden + row * 2 * F, (bf16 *)t->activated + row * F, F);
        else
            silu_f32((const float *)t->hidden + row * 2 * F, (float *)t->activated + row * F, F);
    }
}

static void silu_in_pool(void *t) { silu_rows(t, omp_get_thread_num(), omp_get_num_threads()); }

/* rows [T, H], expert_ids [T, K] with -1 for one that is elsewhere, weights [T, K], slots [E + 1]: expert id -> slot,
 * behind the last expert and for other ranks' experts a negative number; gate_up and down [S] packed; out [N, H], one
 * row for each valid (t, k), row-major. F is a multiple of 16. */
int phimoe_experts(
    const void *rows, const int64_t *expert_ids, const float *weights, const int64_t *slots,
    const void *const *gate_up, const void *const *down, void *out, int64_t num_tokens, int64_t num_choices,
    int64_t num_slots, int64_t num_results, int64_t hidden_size, int64_t width, int is_bf16, int num_threads) {
    size_t element = is_bf16 ? 2 : 4;
    size_t lists = (size_t)(3 * num_results + 2 * num_slots + 2) * 8 + (size_t)(2 * num_slots) * sizeof(void *);
    size_t buffers = (size_t)num_results * (size_t)width * 3 * element;
    char *memory = malloc(lists + 64 + buffers);
    if (!memory) return NO_MEMORY;
    int64_t *sources = (int64_t *)memory, *targets = sources + num_results, *ends = targets + num_results;
    int64_t *starts = ends + num_slots + 1;
    float *scales = (float *)(starts + num_slots + 1);
    const void **first = (const void **)(scales + 2 * num_results), **second = first + num_slots;
    char *hidden = (char *)(((uintptr_t)(second + num_slots) + 63) & ~(uintptr_t)63);
    char *activated = hidden + (size_t)num_results * (size_t)width * 2 * element;
    int64_t valid = 0, num_groups = 0;
    for (int64_t s = 0; s <= num_slots; s++) ends[s] = 0;
    for (int64_t i = 0; i < num_tokens * num_choices; i++) {
        if (expert_ids[i] < 0) continue;
        int64_t slot = slots[expert_ids[i]];
        if (slot < 0) {
            free(memory);
            return FOREIGN_EXPERT;
        }
        ends[slot + 1]++;
        valid++;
    }
    if (valid != num_results) {
        free(memory);
        return WRONG_COUNT;
    }
    for (int64_t s = 0; s < num_slots; s++) {
        if (ends[s + 1]) {
            starts[num_groups] = ends[s];
            first[num_groups] = gate_up[s];
            second[num_groups++] = down[s];
        }
        ends[s + 1] += ends[s];
    }
    starts[num_groups] = num_results;
    for (int64_t i = 0, result = 0; i < num_tokens * num_choices; i++) {
        if (expert_ids[i] < 0) continue;
        int64_t place = ends[slots[expert_ids[i]]]++;
        sources[place] = i / num_choices;
        targets[place] = result++;
        scales[place] = weights[i];
    }
    linear_task up = {.x = rows, .starts = starts, .weights = first, .sources = sources, .out = hidden,
                      .num_groups = num_groups, .N = 2 * width, .K = hidden_size};
    linear_run(&up, is_bf16, num_threads);
    silu_task activation = {hidden, activated, num_results, width, is_bf16};
    if (num_threads > 1 && num_results * width > 65536 && can_use_threads())
        GOMP_parallel(silu_in_pool, &activation, (unsigned)num_threads, 0);
    else
        silu_rows(&activation, 0, 1);
    linear_task down_task = {.x = activated, .starts = starts, .weights = second, .scales = scales, .targets = targets,
                             .out = out, .num_groups = num_groups, .N = hidden_size, .K = width};
    linear_run(&down_task, is_bf16, num_threads);
    free(memory);
    return DONE;
}

#endif

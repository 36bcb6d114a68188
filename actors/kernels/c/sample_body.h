/* The token of each row of logits: the likeliest one, or one sampled at random.
 *
 * Legend: B rows, V vocabulary.
 *
 * The share of a token is exp((logit - highest) / temperature), which is its probability up to a constant
 * factor. A NaN counts as a share of 0. Tokens are ordered by falling share, and by id if shares are equal.
 * Each filter keeps a first part of this order: min_p keeps the tokens with at least min_p of the largest
 * share, top_k keeps the first top_k of these, and top_p keeps the fewest of the rest that have top_p of the
 * sum. So the last token that is kept describes the whole choice (share_cut). This token is found without
 * sorting the row: the shares' upper bits are counted in a histogram, and only one slice of the histogram is
 * sorted. Shares are computed anew, in float32, whenever they are needed. Sums are float64. */

#include "tasks.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SEGMENT 512
#define SLICE_SHIFT 17 /* makes 64 slices per factor of two */
#define FIRST_SLICE ((127 - 32) << 6) /* begins at 2^-32; smaller shares are counted in it, too */
#define NUM_SLICES ((32 << 6) + 1)

typedef struct {
    const float *logits;
    int64_t V;
    float highest, temperature;
} share_row;

/* A token is kept if its share is larger than `least`, or if its share is `least` and its id is at most
 * `last`. */
typedef struct {
    float least;
    int64_t last;
} share_cut;

typedef struct {
    int64_t counts[NUM_SLICES];
    double sums[NUM_SLICES];
} share_slices;

/* Return the first token with the highest logit, which `highest` gets. NaN is ignored. */
static int64_t likeliest(const float *x, int64_t V, float *highest) {
    int64_t at = 0;
    *highest = -INFINITY;
    for (int64_t first = 0; first < V; first += SEGMENT) {
        int64_t end = first + SEGMENT < V ? first + SEGMENT : V, i = first;
        vec high = v_set(-INFINITY);
        /* v_max returns its second argument if the first one is NaN, so NaN is ignored. */
        for (; i + LANES <= end; i += LANES) high = v_max(v_load(x + i), high);
        float here = v_highest(high);
        for (; i < end; i++) here = x[i] > here ? x[i] : here;
        if (here > *highest) {
            *highest = here;
            at = first;
        }
    }
    while (at < V && x[at] != *highest) at++;
    return at < V ? at : 0;
}

/* The shares of LANES tokens from `first` on. After the last token they are 0. */
INLINE vec shares_of(const share_row *r, int64_t first) {
    vec x;
    if (first + LANES <= r->V) {
        x = v_load(r->logits + first);
    } else {
        float rest[LANES];
        for (int64_t i = 0; i < LANES; i++) rest[i] = first + i < r->V ? r->logits[first + i] : -INFINITY;
        x = v_load(rest);
    }
    return v_exp(v_div(v_sub(x, v_set(r->highest)), v_set(r->temperature)));
}

/* The shares of LANES tokens from `first` on, with 0 for tokens that are not kept. */
INLINE vec kept_of(const share_row *r, const share_cut *cut, int64_t first) {
    vec shares = shares_of(r, first);
    if (first > cut->last) return v_above(shares, v_set(cut->least));
    if (first + LANES - 1 <= cut->last) return v_above(shares, v_set(nextafterf(cut->least, -1.0f)));
    float each[LANES];
    v_store(each, shares);
    for (int64_t i = 0; i < LANES; i++)
        if (!(each[i] > cut->least || (each[i] == cut->least && first + i <= cut->last))) each[i] = 0;
    return v_load(each);
}

INLINE uint32_t bits_of(float share) {
    uint32_t bits;
    memcpy(&bits, &share, sizeof bits);
    return bits;
}

INLINE int64_t slice_of(float share) {
    int64_t slice = (int64_t)(bits_of(share) >> SLICE_SHIFT) - FIRST_SLICE;
    return slice < 0 ? 0 : slice < NUM_SLICES ? slice : NUM_SLICES - 1;
}

static void slice_shares(const share_row *r, const share_cut *cut, share_slices *s) {
    memset(s, 0, sizeof *s);
    for (int64_t first = 0; first < r->V; first += LANES) {
        float each[LANES];
        v_store(each, kept_of(r, cut, first));
        for (int64_t i = 0; i < LANES; i++) {
            if (each[i] == 0) continue;
            int64_t slice = slice_of(each[i]);
            s->counts[slice]++;
            s->sums[slice] += each[i];
        }
    }
}

/* The place of a token in the order, as a number: earlier tokens have smaller numbers. */
INLINE uint64_t place_of(float share, int64_t id) { return (uint64_t)~bits_of(share) << 32 | (uint64_t)id; }

INLINE float share_at(uint64_t place) {
    uint32_t bits = ~(uint32_t)(place >> 32);
    float share;
    memcpy(&share, &bits, sizeof share);
    return share;
}

static int compare_places(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Return the sorted places of the kept tokens in a slice, or NULL if there is no memory. The caller frees
 * them. */
static uint64_t *sort_slice(const share_row *r, const share_cut *cut, const share_slices *s, int64_t slice) {
    uint64_t *places = malloc((size_t)s->counts[slice] * sizeof *places);
    int64_t count = 0;
    if (!places) return NULL;
    for (int64_t first = 0; first < r->V; first += LANES) {
        float each[LANES];
        v_store(each, kept_of(r, cut, first));
        for (int64_t i = 0; i < LANES; i++)
            if (each[i] != 0 && slice_of(each[i]) == slice) places[count++] = place_of(each[i], first + i);
    }
    qsort(places, (size_t)count, sizeof *places, compare_places);
    return places;
}

/* Keep the first tokens, at most `most` of them, and stop once their shares add up to `enough`. `sum` gets
 * the sum of the kept shares. Returns DONE or NO_MEMORY. */
static int cut_off(
    const share_row *r, const share_slices *s, int64_t most, double enough, share_cut *cut, double *sum) {
    int64_t slice = NUM_SLICES - 1;
    *sum = 0;
    for (; slice >= 0 && s->counts[slice] < most && *sum + s->sums[slice] < enough; slice--) {
        most -= s->counts[slice];
        *sum += s->sums[slice];
    }
    if (slice < 0) return DONE; /* all tokens are kept */
    uint64_t *places = sort_slice(r, cut, s, slice);
    if (!places) return NO_MEMORY;
    for (int64_t i = 0; i < s->counts[slice] && i < most && *sum < enough; i++) {
        *sum += share_at(places[i]);
        cut->least = share_at(places[i]);
        cut->last = (int64_t)(uint32_t)places[i];
    }
    free(places);
    return DONE;
}

static int apply_filters(const share_row *r, const sample_filters *f, share_cut *cut) {
    *cut = (share_cut){0, -1};
    if (f->min_p > 0) *cut = (share_cut){(float)f->min_p, r->V};
    int64_t most = f->top_k > 0 && f->top_k < r->V ? (int64_t)f->top_k : r->V;
    int has_top_p = f->top_p < 1;
    if (most == r->V && !has_top_p) return DONE;
    share_slices slices;
    slice_shares(r, cut, &slices);
    share_cut by_count = *cut, by_sum = *cut;
    double sum = 0, ignored;
    if (cut_off(r, &slices, most, INFINITY, &by_count, &sum)) return NO_MEMORY;
    double enough = fmax(f->top_p * sum, DBL_MIN); /* above 0: the likeliest token stays */
    if (has_top_p && cut_off(r, &slices, most, enough, &by_sum, &ignored)) return NO_MEMORY;
    *cut = has_top_p ? by_sum : by_count;
    return DONE;
}

/* Return the token at which the kept shares, added up in order of ids, exceed `draw` times their sum.
 * Returns `best` if rounding leaves no token. */
static int64_t draw_token(const share_row *r, const share_cut *cut, double draw, int64_t best) {
    double total = 0, before = 0;
    for (int64_t first = 0; first < r->V; first += LANES) total += v_sum(kept_of(r, cut, first));
    double target = draw * total;
    for (int64_t first = 0; first < r->V; first += LANES) {
        vec kept = kept_of(r, cut, first);
        double behind = before + v_sum(kept);
        if (behind > target) {
            float each[LANES];
            int64_t last = best; /* stays if rounding leaves no token */
            v_store(each, kept);
            for (int64_t i = 0; i < LANES && before <= target; i++) {
                if (each[i] > 0) last = first + i;
                before += each[i];
            }
            return last;
        }
        before = behind;
    }
    return best;
}

static void sample_row(const void *task, int64_t row) {
    const sample_task *t = task;
    const sample_filters *f = t->filters + row;
    share_row r = {.logits = t->logits + row * t->V, .V = t->V};
    int64_t best = likeliest(r.logits, r.V, &r.highest);
    t->token_ids[row] = best;
    if (!(f->temperature > 0)) return;
    r.temperature = f->temperature > 1e-30 ? (float)f->temperature : 1e-30f;
    share_cut cut;
    t->token_ids[row] = apply_filters(&r, f, &cut) ? -1 : draw_token(&r, &cut, f->draw, best);
}

static int sample_run(const sample_task *t) {
    phimoe_run(sample_row, t, t->num_rows, t->num_rows * t->V > 131072 ? t->num_threads : 1);
    for (int64_t row = 0; row < t->num_rows; row++)
        if (t->token_ids[row] < 0) return NO_MEMORY;
    return DONE;
}

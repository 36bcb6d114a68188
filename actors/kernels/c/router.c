/* The sparse mixer in its inference form, which actors/dense/layers/router.py describes. It computes one row
 * at a time, in float32. */

#include "tasks.h"

#include <math.h>
#include <string.h>

#define MAX_EXPERTS 256

static float from_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Return the expert with the highest score, except `taken`. `weight` gets its softmax weight among the rivals
 * within the window. */
static int64_t choose(const float *scores, int64_t num_experts, int64_t taken, float window, float *weight) {
    int64_t best = taken == 0 ? 1 : 0;
    for (int64_t e = 0; e < num_experts; e++)
        if (e != taken && (scores[e] > scores[best] || (isnan(scores[e]) && !isnan(scores[best])))) best = e;
    float total = 0, top = scores[best];
    for (int64_t e = 0; e < num_experts; e++) {
        float magnitude = fabsf(scores[e]), reach = magnitude > top || isnan(magnitude) ? magnitude : top;
        if (e != taken && !((top - scores[e]) / reach > window)) total += expf(scores[e] - top);
    }
    *weight = 1.0f / total;
    return best;
}

void phimoe_route(
    const void *scores, int64_t num_tokens, int64_t num_experts, float jitter, int64_t *ids, float *weights,
    int is_bf16) {
    float row[MAX_EXPERTS];
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t e = 0; e < num_experts; e++)
            row[e] = is_bf16 ? from_bf16(((const bf16 *)scores)[t * num_experts + e])
                             : ((const float *)scores)[t * num_experts + e];
        ids[2 * t] = choose(row, num_experts, -1, 2 * jitter, weights + 2 * t);
        ids[2 * t + 1] = choose(row, num_experts, ids[2 * t], 2 * jitter, weights + 2 * t + 1);
    }
}

#ifndef PHIMOE_LINEAR_H
#define PHIMOE_LINEAR_H

#include "common.h"

/* out = x * weight^T for rows in G groups that have a weight each. */
typedef struct {
    const void *x;              /* [*, K] */
    const int64_t *starts;      /* [G + 1]: group g has rows starts[g] .. starts[g + 1] - 1 */
    const void *const *weights; /* [G], packed */
    const float *bias;          /* [N] or NULL, the same for all groups */
    const float *scales;        /* [M] or NULL: factor of a row's result, after the result was rounded */
    const int64_t *sources;     /* [M] or NULL: which row of x each row is; itself if NULL */
    const int64_t *targets;     /* [M] or NULL: which row of out it becomes; itself if NULL */
    void *out;                  /* [M, N] */
    int64_t num_groups, N, K;
} linear_task;

void linear_run(const linear_task *t, int is_bf16, int num_threads);

#endif

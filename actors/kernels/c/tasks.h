/* What the kernels are asked to do, and the table of a processor's kernels. */

#ifndef PHIMOE_TASKS_H
#define PHIMOE_TASKS_H

#include "common.h"
#include "pool.h"
#include "exchange.h"

enum { DONE = 0, FOREIGN_EXPERT = 1, WRONG_COUNT = 2, NO_MEMORY = 3, UNKNOWN_TOKEN = 4 };

/* How a quantized weight is packed (quantized_body.h). */
typedef struct {
    int64_t group; /* inputs that share a scale; a multiple of 8 that divides the number of inputs, at most 256 */
    int num_bits;  /* 8 or 4; 0 for a weight that is not quantized */
    int has_bf16_scales; /* else float32 */
} quantization;

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
    int is_bf16, num_threads; /* is_bf16: x and out, and the weights where they are not quantized */
    quantization quantized;
} linear_task;

/* All rows of one layer through all experts of a rank: w2(silu(w1 x) * (w3 x)) * weight.
 *
 * Legend: T tokens, H hidden, K experts per token, F expert width, S slots (experts of this rank), N results. */
typedef struct {
    const void *rows;           /* [T, H] */
    const int64_t *expert_ids;  /* [T, K], -1 for one that is elsewhere */
    const float *weights;       /* [T, K] */
    const int64_t *slots;       /* [E + 1]: expert id -> slot; behind the last and for other ranks' experts negative */
    const void *const *gate_up; /* [S], packed */
    const void *const *down;    /* [S], packed */
    void *out;                  /* [N, H], one row for each valid (t, k), row-major */
    int64_t num_tokens, num_choices, num_slots, num_results, hidden_size;
    int64_t width; /* a multiple of 16 */
    int is_bf16, num_threads;
    quantization gate_up_quantized, down_quantized;
} experts_task;

/* Legend: B sequences, A query heads, G key-value heads, D head dimension, R cache rows, M blocks of a sequence. */
typedef struct {
    const void *qkv;         /* [B, (A + 2 G) * D] as projected: queries, keys, values */
    const float *cos, *sin;  /* [B, D / 2], already scaled */
    void *keys, *values;     /* [R, G, D]: this layer's cache; row slots[b] takes the new position of sequence b */
    const int64_t *slots;    /* [B] */
    const int32_t *block_table; /* [B, M]: position p is row block_table[p / block_size] * block_size + p % block_size */
    const int32_t *starts;   /* [B]: first visible position */
    const int32_t *ends;     /* [B]: behind the last one, which is the new one */
    void *out;               /* [B, A * D] */
    int64_t num_sequences, num_heads, num_groups, head_dim, table_stride, block_size;
    int is_bf16, num_threads;
} attention_task;

typedef struct {
    const void *x, *gain, *shift; /* [M, H], [H], [H] */
    void *out;                    /* [M, H] */
    int64_t num_rows, hidden_size;
    float eps;
    int is_bf16;
} norm_task;

/* How a row's token is drawn; actors/dense/sampling/cpu_choice.py has the same fields. */
typedef struct {
    double temperature; /* 0: the likeliest, and nothing else counts */
    double top_k;       /* 0: no bound */
    double top_p, min_p;
    double draw; /* in [0, 1) */
} sample_filters;

typedef struct {
    const float *logits; /* [B, V] */
    const sample_filters *filters; /* [B] */
    int64_t *token_ids; /* [B]: out */
    int64_t num_rows, V;
    int num_threads;
} sample_task;

typedef struct {
    const void *packed;
    const float *bias; /* or NULL */
    quantization quantized;
} product_weights;

typedef struct {
    const void *gain, *shift;
} norm_weights;

/* A token of a decoding step. actors/dense/fast_paths/cpu_rows.py has the same fields. */
typedef struct {
    int64_t token_id, position;
    int64_t is_long; /* 1: LongRoPE's long list, 0: the short one */
    const int32_t *blocks; /* of its sequence, in order of position */
} decode_row;

/* What the rows of a step are made from. actors/kernels/layer.py has the same fields.
 *
 * Legend: B rows, H hidden, V vocabulary, D head dimension, P positions. */
typedef struct {
    const decode_row *rows; /* [B] */
    const void *embedding;  /* [V, H] */
    const float *cos_tables[2], *sin_tables[2]; /* [P, D / 2] of the short list and of the long one */
    int64_t vocabulary;
    int64_t window; /* positions that a row sees; 0: all before it */
} rows_task;

/* A layer without its experts, and its cache. actors/kernels/layer.py has the same fields. */
typedef struct {
    norm_weights input_norm;
    product_weights qkv, out;
    norm_weights post_attention_norm;
    product_weights gate;
    void *keys, *values;
} layer_weights;

/* A step of decoding sequences. actors/kernels/layer.py has the same fields.
 *
 * Legend: B sequences, H hidden, A query heads, G key-value heads, D head dimension, E experts. */
typedef struct {
    void *x;              /* [B, H]: the residual stream, in and out */
    const void *combined; /* [B, H] or NULL: what the experts of the layer before have added to it */
    void *normed;         /* [B, H]: out, what the experts are given */
    void *qkv;            /* [B, (A + 2 G) * D]: room */
    void *attended;       /* [B, A * D]: room */
    void *scores;         /* [B, E]: room */
    int64_t *expert_ids;  /* [B, 2]: out */
    float *expert_weights; /* [B, 2]: out */
    float *cos, *sin;       /* as in attention_task, down to ends */
    int64_t *slots;
    int32_t *block_table, *starts, *ends;
    int64_t num_sequences, hidden_size, num_heads, num_groups, head_dim, table_stride, block_size, num_experts;
    float eps, jitter;
    int is_bf16, num_threads;
} layer_task;

/* Writes x, cos, sin and what follows down to ends for the rows of a step. DONE, or UNKNOWN_TOKEN, and nothing is written. */
int phimoe_fill_rows(const rows_task *from, const layer_task *to);

/* From rows of the last layer to their next tokens. actors/kernels/layer.py has the same fields.
 *
 * Legend: R rows that are asked for, H hidden, V vocabulary. */
typedef struct {
    const void *x;         /* [*, H] */
    const int64_t *picked; /* [R]: which of x */
    norm_weights norm;
    product_weights product;
    void *normed;  /* [R, H]: room */
    void *scores;  /* [R, V]: room, in bfloat16 */
    float *logits; /* [R, V]: out */
    const sample_filters *filters; /* [R], or NULL: no token is drawn */
    int64_t *token_ids;            /* [R]: out */
    int64_t num_rows, hidden_size, vocabulary;
    float eps;
    int is_bf16, num_threads;
} head_task;

/* scores [T, E] -> ids [T, 2], weights [T, 2]. At most 256 experts, at least 2. */
void phimoe_route(
    const void *scores, int64_t num_tokens, int64_t num_experts, float jitter, int64_t *ids, float *weights,
    int is_bf16);

#define MAX_DIM 256

typedef struct {
    const char *name;
    int64_t block_outputs; /* outputs in a block of a packed weight */
    int64_t lanes;
    int (*linear)(const linear_task *);   /* DONE or NO_MEMORY */
    int (*experts)(const experts_task *); /* DONE or what is wrong */
    void (*attention)(const attention_task *);
    void (*norm)(const norm_task *);
    int (*sample)(const sample_task *); /* DONE or NO_MEMORY */
    int (*layer)(const layer_task *, const layer_weights *); /* DONE or NO_MEMORY */
    int (*head)(const head_task *); /* DONE or NO_MEMORY */
    int (*step)(layer_task *, const layer_weights *, int64_t, exchange_task *, int64_t *);
} kernel_table;

extern const kernel_table phimoe_avx2, phimoe_avx512;

#endif

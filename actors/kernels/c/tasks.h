/* The tasks that the kernels are given, and the table of the kernels for one kind of processor. */

#ifndef PHIMOE_TASKS_H
#define PHIMOE_TASKS_H

#include "common.h"
#include "pool.h"
#include "exchange.h"

enum { DONE = 0, FOREIGN_EXPERT = 1, WRONG_COUNT = 2, NO_MEMORY = 3, UNKNOWN_TOKEN = 4 };

/* How a quantized weight is packed (quantized_body.h). */
typedef struct {
    int64_t group; /* inputs per scale: a multiple of 8, at most 256, which divides the number of inputs */
    int num_bits;  /* 8 or 4; 0 for a weight that is not quantized */
    int has_bf16_scales; /* whether scales are bfloat16; otherwise they are float32 */
} quantization;

/* out = x * weight^T for M rows in G groups, each with a weight of its own. The result has N outputs from K
 * inputs. */
typedef struct {
    const void *x;              /* [*, K] */
    const int64_t *starts;      /* [G + 1]: group g has the rows from starts[g] to starts[g + 1] - 1 */
    const void *const *weights; /* [G], packed */
    const float *bias;          /* [N] or NULL; all groups have the same bias */
    const float *scales;        /* [M] or NULL: factor of each row, applied to its rounded result */
    const int64_t *sources;     /* [M] or NULL: the row of x that row m reads; row m if NULL */
    const int64_t *targets;     /* [M] or NULL: the row of out that row m writes; row m if NULL */
    void *out;                  /* [M, N] */
    int64_t num_groups, N, K;
    int is_bf16; /* whether x, out and weights that are not quantized are bfloat16, not float32 */
    int num_threads;
    quantization quantized;
} linear_task;

/* Compute all rows of one layer with all experts of an actor: w2(silu(w1 x) * (w3 x)) * weight.
 *
 * Legend: T tokens, H hidden, K experts per token, E experts of the model, F expert width, S slots (experts
 * of this actor), N results. */
typedef struct {
    const void *rows;           /* [T, H] */
    const int64_t *expert_ids;  /* [T, K]: -1 for an expert that another actor computes */
    const float *weights;       /* [T, K]: routing weights */
    const int64_t *slots;       /* [E + 1]: slot of each expert; negative for foreign experts and for id E */
    const void *const *gate_up; /* [S], packed: w1, then w3 */
    const void *const *down;    /* [S], packed: w2 */
    void *out;                  /* [N, H]: one row for each (t, k) with an expert id, in order of t, then k */
    int64_t num_tokens, num_choices, num_slots, num_results, hidden_size;
    int64_t width; /* F, a multiple of 16 */
    int is_bf16, num_threads;
    quantization gate_up_quantized, down_quantized;
} experts_task;

/* Attention of decoding sequences (attention_body.h).
 *
 * Legend: B sequences, A query heads, G key-value heads, D head dimension, R cache rows, M blocks of a
 * sequence. */
typedef struct {
    const void *qkv;        /* [B, (A + 2 G) * D] as projected: queries, keys, values */
    const float *cos, *sin; /* [B, D / 2], already scaled */
    void *keys, *values;    /* [R, G, D]: this layer's cache */
    const int64_t *slots;   /* [B]: the cache row of the sequence's new position */
    /* [B, M]: position p is in the cache row block_table[p / block_size] * block_size + p % block_size */
    const int32_t *block_table;
    const int32_t *starts; /* [B]: first visible position */
    const int32_t *ends;   /* [B]: last visible position + 1; the last one is the new position */
    void *out;             /* [B, A * D] */
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

/* How a row's token is sampled. actors/dense/sampling/cpu_choice.py has the same fields. */
typedef struct {
    double temperature; /* 0: the likeliest token is taken, and the other fields are not used */
    double top_k;       /* 0: no limit */
    double top_p, min_p;
    double draw; /* a random number in [0, 1) */
} sample_filters;

typedef struct {
    const float *logits; /* [B, V] */
    const sample_filters *filters; /* [B] */
    int64_t *token_ids; /* [B]: output */
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

/* A row of a decoding step: one token. actors/dense/fast_paths/cpu_rows.py has the same fields. */
typedef struct {
    int64_t token_id, position;
    int64_t is_long; /* 1 for LongRoPE's long list of factors, 0 for the short list */
    const int32_t *blocks; /* the blocks of its sequence, in order of position */
} decode_row;

/* What the rows of a step are filled from. actors/kernels/layer.py has the same fields.
 *
 * Legend: B rows, H hidden, V vocabulary, D head dimension, P positions. */
typedef struct {
    const decode_row *rows; /* [B] */
    const void *embedding;  /* [V, H] */
    const float *cos_tables[2], *sin_tables[2]; /* [P, D / 2] for the short list and for the long list */
    int64_t vocabulary;
    int64_t window; /* number of positions that a row sees; 0: the row sees all positions up to its own */
} rows_task;

/* The weights of a layer without its experts, and its cache. actors/kernels/layer.py has the same fields. */
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
    const void *combined; /* [B, H] or NULL: results of the previous layer's experts, which are added to x */
    void *normed;         /* [B, H]: output, the input of the experts */
    void *qkv;            /* [B, (A + 2 G) * D]: scratch */
    void *attended;       /* [B, A * D]: scratch */
    void *scores;         /* [B, E]: scratch */
    int64_t *expert_ids;  /* [B, 2]: output */
    float *expert_weights; /* [B, 2]: output */
    float *cos, *sin;      /* these fields down to `ends` are those of attention_task */
    int64_t *slots;
    int32_t *block_table, *starts, *ends;
    int64_t num_sequences, hidden_size, num_heads, num_groups, head_dim, table_stride, block_size;
    int64_t num_experts;
    float eps, jitter;
    int is_bf16, num_threads;
} layer_task;

/* Write x and the fields from cos to ends for the rows of a step. Returns DONE, or UNKNOWN_TOKEN without
 * writing anything. */
int phimoe_fill_rows(const rows_task *from, const layer_task *to);

/* From rows of the last layer to their next tokens. actors/kernels/layer.py has the same fields.
 *
 * Legend: R rows whose tokens are asked for, H hidden, V vocabulary. */
typedef struct {
    const void *x;         /* [*, H] */
    const int64_t *picked; /* [R]: the rows of x that are asked for */
    norm_weights norm;
    product_weights product;
    void *normed;  /* [R, H]: scratch */
    void *scores;  /* [R, V]: scratch, used with bfloat16 */
    float *logits; /* [R, V]: output */
    const sample_filters *filters; /* [R]; NULL: no token is sampled */
    int64_t *token_ids;            /* [R]: output */
    int64_t num_rows, hidden_size, vocabulary;
    float eps;
    int is_bf16, num_threads;
} head_task;

/* Choose two experts per token: scores [T, E] -> ids [T, 2], weights [T, 2]. E is from 2 to 256. */
void phimoe_route(
    const void *scores, int64_t num_tokens, int64_t num_experts, float jitter, int64_t *ids, float *weights,
    int is_bf16);

#define MAX_DIM 256

typedef struct {
    const char *name;
    int64_t block_outputs; /* outputs of a block of a packed weight */
    int64_t lanes;
    int (*linear)(const linear_task *);   /* DONE or NO_MEMORY */
    int (*experts)(const experts_task *); /* DONE, FOREIGN_EXPERT, WRONG_COUNT or NO_MEMORY */
    void (*attention)(const attention_task *);
    void (*norm)(const norm_task *);
    int (*sample)(const sample_task *); /* DONE or NO_MEMORY */
    int (*layer)(const layer_task *, const layer_weights *); /* DONE or NO_MEMORY */
    int (*head)(const head_task *); /* DONE or NO_MEMORY */
    int (*step)(layer_task *, const layer_weights *, int64_t, exchange_task *, int64_t *);
} kernel_table;

extern const kernel_table phimoe_avx2, phimoe_avx512;

#endif

/* What an expert actor does for its links, as actors/exchange/links/expert/server.py does it, for the plain course of things. */

#ifndef PHIMOE_SERVE_H
#define PHIMOE_SERVE_H

#include "tasks.h"

/* A link and what is under way on it. actors/kernels/serve.py has the same fields. */
typedef struct {
    int64_t descriptor, epoch;
    uint8_t *incoming, *outgoing; /* room for the largest message */
    int64_t num_read;             /* bytes of the message so far, in and out */
    int64_t num_bytes, num_sent;  /* out, of the last answer; both 0 before the first one */
} serve_link;

/* The experts of a layer; see experts_task. actors/kernels/serve.py has the same fields. */
typedef struct {
    const int64_t *slots;
    const void *const *gate_up, *const *down;
    int64_t num_slots;
    quantization gate_up_quantized, down_quantized;
} serve_layer;

/* Legend: P links, L layers, E experts, T tokens of a message, K experts per token. actors/kernels/serve.py has the same fields. */
typedef struct {
    serve_link *links;         /* [P] */
    const serve_layer *layers; /* [L] */
    int64_t *expert_rows;      /* [E]: out, rows of each expert are added */
    int64_t *expert_ids;       /* [T, K]: room */
    int64_t num_links, num_layers, num_experts, num_choices, max_tokens, hidden_size, width, row_bytes, magic, wakeup;
    int is_bf16, num_threads;
} serve_task;

/* Answer one message after the other until something is not as usual; links then say how far everything is. */
void phimoe_serve(serve_task *t, int (*experts)(const experts_task *));

#endif

/* What an expert actor does for its links in the plain case. It does what
 * actors/exchange/links/expert/server.py does, which also handles all other cases. */

#ifndef PHIMOE_SERVE_H
#define PHIMOE_SERVE_H

#include "tasks.h"

/* A link, and the message and the answer that are under way on it. actors/kernels/serve.py has the same
 * fields. */
typedef struct {
    int64_t descriptor, epoch;
    uint8_t *incoming, *outgoing; /* buffers for the largest message */
    int64_t num_read;             /* input and output: bytes of the message that were read */
    int64_t num_bytes, num_sent;  /* output: size of the last answer and bytes sent of it; 0 without one */
} serve_link;

/* The experts of a layer, as experts_task takes them. actors/kernels/serve.py has the same fields. */
typedef struct {
    const int64_t *slots;
    const void *const *gate_up, *const *down;
    int64_t num_slots;
    quantization gate_up_quantized, down_quantized;
} serve_layer;

/* All links of an expert actor. actors/kernels/serve.py has the same fields.
 *
 * Legend: P links, L layers, E experts, T tokens of a message, K experts per token. */
typedef struct {
    serve_link *links;         /* [P] */
    const serve_layer *layers; /* [L] */
    int64_t *expert_rows;      /* [E]: output, the rows of each expert are added to it */
    int64_t *expert_ids;       /* [T, K]: scratch */
    int64_t num_links, num_layers, num_experts, num_choices, max_tokens, hidden_size, width, row_bytes, magic;
    int64_t wakeup; /* file descriptor that becomes readable when the call shall end */
    int is_bf16, num_threads;
} serve_task;

/* Answer one message after the other until anything but the plain case happens. The fields of the links then
 * say how far each of them is. */
void phimoe_serve(serve_task *t, int (*experts)(const experts_task *));

#endif

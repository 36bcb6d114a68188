/* One layer's exchange over TCP links, as actors/exchange/links/dense/exchange.py does it, for the plain course of things. */

#ifndef PHIMOE_EXCHANGE_H
#define PHIMOE_EXCHANGE_H

#include <stdint.h>

#define NUM_CHOICES 2 /* experts per token */

/* A link and what is under way on it. actors/kernels/exchange.py has the same fields. */
typedef struct {
    int64_t descriptor, epoch;
    uint8_t *outgoing, *incoming; /* room for the largest message */
    int64_t sequence;             /* of the message that was composed last */
    int64_t num_results;          /* that its answer has; 0: the peer was not asked */
    int64_t num_bytes, num_sent;  /* of the message */
    int64_t num_read;             /* bytes of the answer so far */
    int64_t sent_ns, answered_ns; /* monotonic clock; answered_ns is 0 until all of the answer is there */
} exchange_peer;

/* Legend: B sequences, H hidden, E experts, P peers, L layers. actors/kernels/exchange.py has the same fields. */
typedef struct {
    exchange_peer *peers;       /* [P] */
    const int32_t *holders; /* [E, P]: peers that hold an expert, then -1 */
    const int64_t *hedge_delay_ns; /* [64]: how long an answer may take, by the number of bits of its number of rows */
    int64_t *answers;       /* [L * P, 2]: out, rows of each answer that came, and how long it took in nanoseconds */
    int64_t *expert_rows;   /* [L, E]: out, rows of each expert are added */
    const uint8_t **places; /* [B, 2]: room */
    int32_t *owners;        /* [E]: out, who was asked for an expert in the last layer */
    void *combined;         /* [B, H]: out */
    int64_t num_peers, num_experts, magic, next_sequence, row_bytes, wakeup;
    int64_t num_answers; /* out */
} exchange_task;

enum { EXCHANGE_DONE = 0, EXCHANGE_UNFINISHED = 16 };

/* Send rows [B, H] to holders of their experts and wait until all answers are there: places then says where the result of
 * each (sequence, choice) lies. EXCHANGE_UNFINISHED: something else has happened, peers say how far everything is. */
int phimoe_exchange(
    exchange_task *t, int64_t layer, int64_t num_rows, const void *rows, const int64_t *expert_ids, const float *weights);

#endif

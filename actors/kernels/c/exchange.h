/* One layer's exchange over TCP links in the plain case. It does what actors/exchange/links/dense/exchange.py
 * does, which also handles all other cases. */

#ifndef PHIMOE_EXCHANGE_H
#define PHIMOE_EXCHANGE_H

#include <stdint.h>

#define NUM_CHOICES 2 /* experts per token */

/* A link, and the message and the answer that are under way on it. actors/kernels/exchange.py has the same
 * fields. */
typedef struct {
    int64_t descriptor, epoch;
    uint8_t *outgoing, *incoming; /* buffers for the largest message */
    int64_t sequence;             /* number of the last message that was composed */
    int64_t num_results;          /* rows of the answer to it; 0 if the peer was not asked */
    int64_t num_bytes, num_sent;  /* size of the message, and bytes of it that were sent */
    int64_t num_read;             /* bytes of the answer that were read */
    int64_t sent_ns, answered_ns; /* on the monotonic clock; answered_ns is 0 until the answer is whole */
} exchange_peer;

/* Legend: B sequences, H hidden, E experts, P peers, L layers. actors/kernels/exchange.py has the same
 * fields. */
typedef struct {
    exchange_peer *peers;          /* [P] */
    const int32_t *holders;        /* [E, P]: the peers that hold an expert, then -1 */
    const int64_t *hedge_delay_ns; /* [64]: how long an answer of n rows may take, by n's bit length */
    int64_t *answers;              /* [L * P, 2]: output, rows and nanoseconds of each answer */
    int64_t *expert_rows;          /* [L, E]: output, the rows of each expert are added to it */
    const uint8_t **places;        /* [B, 2]: scratch, where the result of each choice lies */
    int32_t *owners;               /* [E]: output, the peer asked for each expert in the last layer */
    void *combined;                /* [B, H]: output, the sum of the results of both choices */
    int64_t num_peers, num_experts, magic, next_sequence, row_bytes;
    int64_t wakeup;      /* file descriptor that becomes readable when the call shall end */
    int64_t num_answers; /* output, the number of rows of `answers` */
} exchange_task;

enum { EXCHANGE_DONE = 0, EXCHANGE_UNFINISHED = 16 };

/* Send rows [B, H] to holders of their experts and wait until all answers have arrived. `places` then says
 * where the result of each (sequence, choice) lies. Returns EXCHANGE_DONE, or EXCHANGE_UNFINISHED if anything
 * but the plain case happened; the fields of the peers then say how far each of them is. */
int phimoe_exchange(
    exchange_task *t, int64_t layer, int64_t num_rows, const void *rows, const int64_t *expert_ids,
    const float *weights);

#endif

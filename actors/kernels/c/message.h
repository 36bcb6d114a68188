/* The format of a link's messages, as actors/exchange/message.py defines it. */

#ifndef PHIMOE_MESSAGE_H
#define PHIMOE_MESSAGE_H

#include <stdint.h>

enum { HEADER_BYTES = 64, ALIGNMENT = 64, ROWS = 1, RESULTS = 2 };

typedef struct {
    int64_t magic, kind, epoch, sequence, layer, num_tokens, num_results, num_bytes;
} header;

/* The offset of the payload in bytes. It follows the routing of `num_tokens` tokens. */
static inline int64_t payload_offset(int64_t num_tokens, int64_t num_choices) {
    int64_t end = HEADER_BYTES + num_tokens * num_choices * 8;
    return (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

#endif

/* Weights of bfloat16 in 12 bits each, to the bit.
 *
 * The lower byte of a bfloat16 has the fraction and the last bit of the exponent, which are as good as random. The upper byte has
 * the sign and the rest of the exponent: of these seven bits eight values make up nearly all of a weight's numbers, which lie
 * within 2^16 of each other. So the lower byte stays as it is, and the upper one becomes four bits, the sign and which of the
 * eight. A row that has any other value stays as it was. What is read of memory in a step of few rows, its time, is a quarter less.
 *
 * Legend: N outputs, K inputs, B outputs of a block; a row is inputs k and k + 1 of a block's outputs, 2 B numbers.
 *
 *   weight   where its blocks begin, in bytes from here: int64 [ceil(N / B)], then the blocks
 *   block    head, then K / 2 rows
 *   head     the upper bytes that codes 0 to 15 stand for; a bit for each row, from the lowest of each word: 1 for a plain one
 *   row      coded: lower bytes [2 B], codes [B], two in a byte
 *            plain: [B] [2]
 *
 * Within a coded row numbers are in the order that suits the processor's vectors (`i_decode`, coded.c). */

#ifndef PHIMOE_CODED_H
#define PHIMOE_CODED_H

#include "common.h"

enum { NUM_CODES = 16, HEAD_UNIT = 64, ROWS_PER_WORD = 64 };

typedef struct {
    uint8_t values[NUM_CODES];
    uint64_t is_plain[];
} coded_head;

/* Of the head of a block of so many rows. */
static inline int64_t coded_head_bytes(int64_t num_rows) {
    int64_t words = (num_rows + ROWS_PER_WORD - 1) / ROWS_PER_WORD;
    int64_t num_bytes = NUM_CODES + words * (int64_t)sizeof(uint64_t);
    return (num_bytes + HEAD_UNIT - 1) / HEAD_UNIT * HEAD_UNIT;
}

/* The most bytes that a weight can take. */
int64_t coded_bound(int64_t num_blocks, int64_t num_rows, int64_t row);

/* numbers [num_blocks] [num_rows] [row], a row being 2 B of them. Returns the bytes of the coded weight. */
int64_t code_weight(
    const bf16 *numbers, int64_t num_blocks, int64_t num_rows, int64_t row, int64_t vector_bytes, uint8_t *out);

#endif

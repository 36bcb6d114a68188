/* Weights of bfloat16 in 12 bits per number, without loss.
 *
 * The lower byte of a bfloat16 has the fraction and the last bit of the exponent, which are as good as
 * random. The upper byte has the sign and the other seven bits of the exponent. Nearly all numbers of a
 * weight lie within a factor of 2^16 of each other, so eight values of these seven bits cover them. The lower
 * byte therefore stays as it is, and four bits replace the upper byte: the sign, and which of the eight
 * values it is. A row that has any other value stays as it was. A step with few rows takes as long as its
 * weights take to be read, so such a step takes a quarter less time.
 *
 * Legend: N outputs, K inputs, B outputs of a block. A row is inputs k and k + 1 of a block's outputs: 2 B
 * numbers.
 *
 *   weight   offsets of its blocks, in bytes from its start: int64 [ceil(N / B)]; then the blocks
 *   block    head, then K / 2 rows
 *   head     the upper bytes that codes 0 to 15 stand for;
 *            then a bit for each row, from the lowest bit of each word: 1 for a plain row
 *   row      coded: lower bytes [2 B], codes [B], two in a byte
 *            plain: [B] [2]
 *
 * Offsets and heads are padded to a multiple of HEAD_UNIT bytes. The order of the numbers within a coded row
 * suits the vectors of the processor (`i_decode` in vector_*.h, `split_row` in coded.c). */

#ifndef PHIMOE_CODED_H
#define PHIMOE_CODED_H

#include "common.h"

enum { NUM_CODES = 16, HEAD_UNIT = 64, ROWS_PER_WORD = 64 };

typedef struct {
    uint8_t values[NUM_CODES];
    uint64_t is_plain[];
} coded_head;

/* The size of the head of a block with `num_rows` rows. */
static inline int64_t coded_head_bytes(int64_t num_rows) {
    int64_t words = (num_rows + ROWS_PER_WORD - 1) / ROWS_PER_WORD;
    int64_t num_bytes = NUM_CODES + words * (int64_t)sizeof(uint64_t);
    return (num_bytes + HEAD_UNIT - 1) / HEAD_UNIT * HEAD_UNIT;
}

/* The largest size of a coded weight, in bytes. A block has `num_rows` rows, and a row has `row` numbers. */
int64_t coded_bound(int64_t num_blocks, int64_t num_rows, int64_t row);

/* Write the coded weight to `out` and return its size in bytes. numbers [num_blocks] [num_rows] [row], where
 * a row is 2 B numbers. `vector_bytes` is the size of the processor's vectors. */
int64_t code_weight(
    const bf16 *numbers, int64_t num_blocks, int64_t num_rows, int64_t row, int64_t vector_bytes,
    uint8_t *out);

#endif

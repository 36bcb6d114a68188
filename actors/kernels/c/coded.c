/* Codes weights of bfloat16 in 12 bits per number. coded.h describes the format. */

#include "coded.h"

#include <string.h>

enum { MAX_ROW = 128, NUM_UPPER = 128, RUN = 8, UNCODED = 0x80, COUNTED_ROWS = 4 };

/* Split a row into its lower and its upper bytes, in the order that decoding needs. Decoding makes two
 * vectors of numbers from a vector of lower bytes and a vector of upper bytes. It interleaves the first RUN
 * bytes of each 16 bytes for the first vector, and the second RUN bytes for the second vector. So runs of the
 * two vectors alternate here. */
static void split_row(
    const bf16 *numbers, int64_t row, int64_t vector_bytes, uint8_t *lower, uint8_t *upper) {
    int64_t runs_per_vector = vector_bytes / 2 / RUN;
    for (int64_t run = 0; run < row / RUN; run++, numbers += RUN) {
        int64_t vector = run / runs_per_vector, within = run % runs_per_vector;
        int64_t at = vector / 2 * vector_bytes + (2 * within + vector % 2) * RUN;
        for (int i = 0; i < RUN; i++) lower[at + i] = (uint8_t)numbers[i];
        for (int i = 0; i < RUN; i++) upper[at + i] = (uint8_t)(numbers[i] >> 8);
    }
}

/* Choose the upper bytes that the codes stand for: the eight most frequent of the block without the sign,
 * then the same with the sign. Only every COUNTED_ROWS-th row is counted. */
static void choose_values(const bf16 *numbers, int64_t num_rows, int64_t row, uint8_t *values) {
    int64_t counts[NUM_UPPER] = {0};
    for (int64_t r = 0; r < num_rows; r += COUNTED_ROWS)
        for (int64_t i = 0; i < row; i++) counts[numbers[r * row + i] >> 8 & 0x7f]++;
    for (int code = 0; code < NUM_CODES / 2; code++) {
        int most = 0;
        for (int i = 1; i < NUM_UPPER; i++)
            if (counts[i] > counts[most]) most = i;
        counts[most] = -1;
        values[code] = (uint8_t)most;
        values[code + NUM_CODES / 2] = (uint8_t)(most | 0x80);
    }
}

/* Write the codes of a row. Returns 0 if one of its upper bytes has no code. */
static int code_row(const uint8_t *upper, int64_t row, const uint8_t *values, uint8_t *codes) {
    uint8_t each[MAX_ROW], all = 0;
    memset(each, UNCODED, sizeof each);
    for (int code = 0; code < NUM_CODES; code++)
        for (int64_t i = 0; i < row; i++) each[i] = upper[i] == values[code] ? (uint8_t)code : each[i];
    for (int64_t i = 0; i < row; i++) all |= each[i];
    for (int64_t i = 0; i < row / 2; i++) codes[i] = (uint8_t)(each[i] | each[i + row / 2] << 4);
    return all < UNCODED;
}

/* Write one block to `out`. Returns its size in bytes. */
static int64_t code_block(
    const bf16 *numbers, int64_t num_rows, int64_t row, int64_t vector_bytes, uint8_t *out) {
    coded_head *head = (coded_head *)out;
    int64_t at = coded_head_bytes(num_rows);
    memset(out, 0, (size_t)at);
    choose_values(numbers, num_rows, row, head->values);
    for (int64_t r = 0; r < num_rows; r++, numbers += row) {
        uint8_t upper[MAX_ROW];
        split_row(numbers, row, vector_bytes, out + at, upper);
        if (code_row(upper, row, head->values, out + at + row)) {
            at += row + row / 2;
        } else {
            memcpy(out + at, numbers, (size_t)row * sizeof(bf16));
            head->is_plain[r / ROWS_PER_WORD] |= UINT64_C(1) << r % ROWS_PER_WORD;
            at += 2 * row;
        }
    }
    return at;
}

static int64_t offsets_bytes(int64_t num_blocks) {
    return (num_blocks * (int64_t)sizeof(int64_t) + HEAD_UNIT - 1) / HEAD_UNIT * HEAD_UNIT;
}

int64_t coded_bound(int64_t num_blocks, int64_t num_rows, int64_t row) {
    return offsets_bytes(num_blocks) + num_blocks * (coded_head_bytes(num_rows) + num_rows * 2 * row);
}

int64_t code_weight(
    const bf16 *numbers, int64_t num_blocks, int64_t num_rows, int64_t row, int64_t vector_bytes,
    uint8_t *out) {
    int64_t at = offsets_bytes(num_blocks);
    memset(out, 0, (size_t)at);
    for (int64_t block = 0; block < num_blocks; block++) {
        memcpy(out + block * (int64_t)sizeof at, &at, sizeof at);
        at += code_block(numbers + block * num_rows * row, num_rows, row, vector_bytes, out + at);
    }
    return at;
}

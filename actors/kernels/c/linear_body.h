/* out = x * weight^T (+ bias) (* scale of the row) on a CPU, for weights that are packed in blocks of
 * outputs.
 *
 * Legend: M rows of x, N outputs, K inputs, G groups of rows, each with a weight of its own (the experts of a
 * layer), B = COLUMNS * LANES outputs of a block.
 *
 *   packed weight   [ceil(N / B)] [K / P] [B] [P]
 *                   P = 2 for bfloat16, 1 for float32; outputs beyond N are zero
 *
 * A packed weight of bfloat16 is then coded in 12 bits per number (coded.h), and the product decodes it. On
 * processors that widen rows to float32 (WIDENS_ROWS), a block with many rows is decoded and widened once for
 * all of them.
 *
 * A step with few rows takes as long as its weights take to be read, and memory is read fastest as one
 * ascending stream. So a block is read once, from its first byte to its last, while the sums of up to
 * MAX_ROWS rows of x stay in registers. Every output is one sum over ascending k, whatever rows are computed
 * beside it, so results do not depend on M.
 */

#include "coded.h"
#include "columns.h"
#include "either.h"
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK (COLUMNS * LANES)
#define PREFETCH_BYTES 4096
#define PLAIN_BYTES (4 * BLOCK) /* size of a plain row of a coded weight */
#define CODED_BYTES (3 * BLOCK) /* size of a coded row */

INLINE void prefetch(const void *w, int num_bytes) {
    for (int at = 0; at < num_bytes; at += 64) __builtin_prefetch((const char *)w + PREFETCH_BYTES + at);
}

INLINE int64_t source(const linear_task *t, int64_t row) { return t->sources ? t->sources[row] : row; }

INLINE int64_t target(const linear_task *t, int64_t row) { return t->targets ? t->targets[row] : row; }

/* Apply bias, rounding and scale to LANES outputs of a row from `first` on, and write them to `out`. Only the
 * first `count` of them exist if `count` is below LANES. */
INLINE void finish_some(const linear_task *t, int64_t row, int64_t first, int64_t count, vec y, int is_bf16) {
    int64_t at = target(t, row) * t->N + first;
    size_t num_outputs = count < LANES ? (size_t)count : LANES;
    if (t->bias) {
        float bias[LANES] = {0};
        memcpy(bias, t->bias + first, num_outputs * sizeof(float));
        y = v_add(y, v_load(bias));
    }
    if (t->scales) y = v_mul(is_bf16 ? v_round_bf16(y) : y, v_set(t->scales[row]));
    float whole[LANES];
    bf16 halves[LANES];
    if (is_bf16) {
        v_store_bf16(halves, y);
        memcpy((bf16 *)t->out + at, halves, num_outputs * sizeof(bf16));
    } else {
        v_store(whole, y);
        memcpy((float *)t->out + at, whole, num_outputs * sizeof(float));
    }
}

INLINE void finish(
    const linear_task *t, int64_t row, int64_t block, int64_t num_outputs, vec sum[][COLUMNS], int is_bf16,
    const int num_rows) {
    float y[MAX_ROWS][BLOCK];
    UNROLLED for (int r = 0; r < num_rows; r++)
        UNROLLED for (int c = 0; c < COLUMNS; c++) v_store(y[r] + c * LANES, sum[r][c]);
    UNROLLED for (int r = 0; r < num_rows; r++)
        for (int64_t first = 0; first < num_outputs; first += LANES)
            finish_some(
                t, row + r, block * BLOCK + first, num_outputs - first, v_load(y[r] + first), is_bf16);
}

/* Load the columns of one row of a coded weight. Returns the size of the row in bytes. */
INLINE int64_t take_row(ivec *column, const char *w, ivec values, int is_plain) {
    prefetch(w, CODED_BYTES);
    if (__builtin_expect(is_plain, 0)) {
        UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = i_load(w + 4 * LANES * c);
        return PLAIN_BYTES;
    }
    i_decode(column, (const uint8_t *)w, values);
    return CODED_BYTES;
}

/* Compute one block of outputs for `num_rows` rows, a constant at compile time. Only the first `num_outputs`
 * outputs of the block exist. */
INLINE void bf16_rows(
    const linear_task *t, int64_t row, int64_t block, const void *weight, int64_t num_outputs,
    const int num_rows) {
    const coded_head *head = weight;
    const char *w = (const char *)weight + coded_head_bytes(t->K / 2);
    const ivec values = i_values(head->values);
    const bf16_row *x[MAX_ROWS];
    vec sum[MAX_ROWS][COLUMNS];
    UNROLLED for (int r = 0; r < num_rows; r++) {
        x[r] = (const bf16_row *)t->x + source(t, row + r) * t->K;
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_zero();
    }
    for (int64_t k = 0; k < t->K;) {
        uint64_t is_plain = head->is_plain[k / (2 * ROWS_PER_WORD)];
        int64_t end = k + 2 * ROWS_PER_WORD < t->K ? k + 2 * ROWS_PER_WORD : t->K;
        for (; k < end; k += 2, is_plain >>= 1) {
            ivec column[COLUMNS];
            w += take_row(column, w, values, is_plain & 1);
            v_add_pairs(sum, x, k, column, num_rows);
        }
    }
    finish(t, row, block, num_outputs, sum, 1, num_rows);
}

INLINE void f32_rows(
    const linear_task *t, int64_t row, int64_t block, const void *weight, int64_t num_outputs,
    const int num_rows) {
    const float *x[MAX_ROWS], *w = weight;
    vec sum[MAX_ROWS][COLUMNS];
    UNROLLED for (int r = 0; r < num_rows; r++) {
        x[r] = (const float *)t->x + source(t, row + r) * t->K;
        UNROLLED for (int c = 0; c < COLUMNS; c++) sum[r][c] = v_zero();
    }
    for (int64_t k = 0; k < t->K; k++, w += BLOCK) {
        vec column[COLUMNS];
        UNROLLED for (int c = 0; c < COLUMNS; c++) column[c] = v_load(w + LANES * c);
        prefetch(w, BLOCK * sizeof(float));
        v_add_singles(sum, x, k, column, num_rows);
    }
    finish(t, row, block, num_outputs, sum, t->is_bf16, num_rows);
}

typedef void (*rows_kernel)(const linear_task *, int64_t, int64_t, const void *, int64_t);

#define DEFINE_ROWS(ROWS)                                                                         \
    static void bf16_rows_##ROWS(                                                                 \
        const linear_task *t, int64_t row, int64_t block, const void *w, int64_t outputs) {       \
        bf16_rows(t, row, block, w, outputs, ROWS);                                               \
    }                                                                                             \
    static void f32_rows_##ROWS(                                                                  \
        const linear_task *t, int64_t row, int64_t block, const void *w, int64_t outputs) {       \
        f32_rows(t, row, block, w, outputs, ROWS);                                                \
    }

FOR_EACH_ROWS(DEFINE_ROWS)

static const rows_kernel bf16_kernels[MAX_ROWS] = UP_TO_MAX(bf16_rows_);
static const rows_kernel f32_kernels[MAX_ROWS] = UP_TO_MAX(f32_rows_);

/* A product in chunks. A chunk is some neighbouring blocks of one group's outputs. Chunks are small enough
 * that all threads end at about the same time. */
typedef struct {
    const linear_task *task;
    const rows_kernel *kernels; /* the kernel for n rows is at index n - 1; NULL for a coded weight */
    int64_t block_bytes;
    int64_t blocks_per_chunk, chunks_per_group;
} linear_chunks;

/* Compute one block of outputs for all rows of a group. */
static void linear_block(
    const linear_task *t, const rows_kernel *kernels, int64_t group, int64_t block, const void *weight) {
    int64_t first_row = t->starts[group], num_rows = t->starts[group + 1] - first_row;
    int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    int64_t left = t->N - block * BLOCK, num_outputs = left < BLOCK ? left : BLOCK;
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        int64_t row = num_rows * tile / num_tiles, rows = num_rows * (tile + 1) / num_tiles - row;
        kernels[rows - 1](t, first_row + row, block, weight, num_outputs);
    }
}

#if WIDENS_ROWS

#define MIN_WIDENED_ROWS (8 * MAX_ROWS)
#define MAX_WIDENED_BYTES (1 << 19) /* size of a block on the stack; it should fit the second-level cache */

static int is_widened(const linear_task *t, int64_t group) {
    return t->starts[group + 1] - t->starts[group] >= MIN_WIDENED_ROWS &&
           t->K * BLOCK * (int64_t)sizeof(float) <= MAX_WIDENED_BYTES;
}

/* Decode and widen a block, then compute it for all rows of a group. The sums and their order are those of
 * bf16_rows. */
static __attribute__((noinline)) void widened_block(
    const linear_task *t, int64_t group, int64_t block, const void *weight) {
    float widened[MAX_WIDENED_BYTES / sizeof(float)] __attribute__((aligned(64))), *out = widened;
    const coded_head *head = weight;
    const char *w = (const char *)weight + coded_head_bytes(t->K / 2);
    const ivec values = i_values(head->values);
    for (int64_t row = 0; row < t->K / 2; row++, out += 2 * BLOCK) {
        ivec column[COLUMNS];
        w += take_row(column, w, values, head->is_plain[row / ROWS_PER_WORD] >> row % ROWS_PER_WORD & 1);
        UNROLLED for (int c = 0; c < COLUMNS; c++) {
            v_store(out + LANES * c, v_first_of_pairs(column[c]));
            v_store(out + BLOCK + LANES * c, v_second_of_pairs(column[c]));
        }
    }
    linear_block(t, f32_kernels, group, block, widened);
}

static void coded_block(const linear_task *t, int64_t group, int64_t block, const void *weight) {
    if (is_widened(t, group))
        widened_block(t, group, block, weight);
    else
        linear_block(t, bf16_kernels, group, block, weight);
}

#else

static void coded_block(const linear_task *t, int64_t group, int64_t block, const void *weight) {
    linear_block(t, bf16_kernels, group, block, weight);
}

#endif

static void linear_chunk(const void *chunks, int64_t chunk) {
    const linear_chunks *c = chunks;
    const linear_task *t = c->task;
    int64_t num_blocks = (t->N + BLOCK - 1) / BLOCK;
    int64_t group = chunk / c->chunks_per_group, first = chunk % c->chunks_per_group * c->blocks_per_chunk;
    int64_t end = first + c->blocks_per_chunk < num_blocks ? first + c->blocks_per_chunk : num_blocks;
    const char *weight = t->weights[group];
    for (int64_t block = first; block < end; block++) {
        if (c->kernels)
            linear_block(t, c->kernels, group, block, weight + block * c->block_bytes);
        else
            coded_block(t, group, block, weight + ((const int64_t *)weight)[block]);
    }
}

/* A product that reads fewer bytes of weights ends before a helper thread could begin. Bytes are counted as
 * if no weight were quantized, and once for every tile of rows. */
#define MIN_SHARED_BYTES (1 << 19)

static int is_shared(const linear_task *t) {
    int64_t tiles = t->num_groups + t->starts[t->num_groups] / MAX_ROWS;
    return tiles * t->N * t->K * (int64_t)(t->is_bf16 ? sizeof(bf16) : sizeof(float)) > MIN_SHARED_BYTES;
}

static void linear_all(const linear_task *t, const rows_kernel *kernels, int64_t block_bytes) {
    int64_t num_blocks = (t->N + BLOCK - 1) / BLOCK;
    int64_t outputs = t->starts[t->num_groups] > 8 * MAX_ROWS ? 16 : 64;
    linear_chunks c = {
        .task = t, .kernels = kernels, .block_bytes = block_bytes,
        .blocks_per_chunk = outputs > BLOCK ? outputs / BLOCK : 1};
    c.chunks_per_group = (num_blocks + c.blocks_per_chunk - 1) / c.blocks_per_chunk;
    phimoe_run(linear_chunk, &c, t->num_groups * c.chunks_per_group, is_shared(t) ? t->num_threads : 1);
}

static void linear_bf16(const linear_task *t) { linear_all(t, NULL, 0); }

static void linear_f32(const linear_task *t) {
    linear_all(t, f32_kernels, BLOCK * t->K * (int64_t)sizeof(float));
}

#if WIDENS_ROWS

typedef struct {
    const linear_task *task;
    float *rows; /* [M, K] */
} widening;

static void widen_row(const void *widened, int64_t row) {
    const widening *w = widened;
    int64_t K = w->task->K;
    widen((const bf16 *)w->task->x + source(w->task, row) * K, w->rows + row * K, K);
}

static int whole_run(const linear_task *t) {
    if (!t->is_bf16) {
        linear_f32(t);
        return DONE;
    }
    int64_t num_rows = t->starts[t->num_groups], num_values = num_rows * t->K;
    float *rows = malloc((size_t)num_values * sizeof(float) + 1); /* + 1: not NULL without rows */
    if (!rows) return NO_MEMORY;
    widening w = {t, rows};
    phimoe_run(widen_row, &w, num_rows, num_values > 262144 ? t->num_threads : 1);
    linear_task widened = *t;
    widened.x = rows;
    widened.sources = NULL;
    linear_bf16(&widened);
    free(rows);
    return DONE;
}

#else

static int whole_run(const linear_task *t) {
    if (t->is_bf16)
        linear_bf16(t);
    else
        linear_f32(t);
    return DONE;
}

#endif

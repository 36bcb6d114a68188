/* The rows of a decoding step: what the layers read of a row's token, position and blocks. */

#include "tasks.h"

#include <string.h>

static void fill_row(const rows_task *t, int64_t index) {
    const decode_row *row = t->rows + index;
    int64_t num_blocks = row->position / t->block_size + 1, end = row->position + 1;
    const float *cos = t->cos_tables[row->is_long], *sin = t->sin_tables[row->is_long];
    size_t angles = (size_t)t->num_angles * sizeof(float);
    memcpy((char *)t->x + index * t->row_bytes, (const char *)t->embedding + row->token_id * t->row_bytes, (size_t)t->row_bytes);
    memcpy(t->cos + index * t->num_angles, cos + row->position * t->num_angles, angles);
    memcpy(t->sin + index * t->num_angles, sin + row->position * t->num_angles, angles);
    memcpy(t->block_table + index * t->table_stride, row->blocks, (size_t)num_blocks * sizeof(int32_t));
    t->slots[index] = row->blocks[num_blocks - 1] * t->block_size + row->position % t->block_size;
    t->starts[index] = t->window && end > t->window ? (int32_t)(end - t->window) : 0;
    t->ends[index] = (int32_t)end;
}

int phimoe_fill_rows(const rows_task *t) {
    for (int64_t index = 0; index < t->num_rows; index++)
        if (t->rows[index].token_id < 0 || t->rows[index].token_id >= t->vocabulary) return UNKNOWN_TOKEN;
    for (int64_t index = 0; index < t->num_rows; index++) fill_row(t, index);
    return DONE;
}

/* The rows of a decoding step: what the layers read of each row's token, position and blocks. */

#include "tasks.h"

#include <string.h>

static void fill_row(const rows_task *from, const layer_task *to, int64_t index) {
    const decode_row *row = from->rows + index;
    int64_t num_blocks = row->position / to->block_size + 1, end = row->position + 1;
    int64_t num_angles = to->head_dim / 2;
    const float *cos = from->cos_tables[row->is_long], *sin = from->sin_tables[row->is_long];
    int64_t row_bytes = to->hidden_size * (to->is_bf16 ? (int64_t)sizeof(bf16) : (int64_t)sizeof(float));
    size_t angle_bytes = (size_t)num_angles * sizeof(float);
    memcpy(
        (char *)to->x + index * row_bytes, (const char *)from->embedding + row->token_id * row_bytes,
        (size_t)row_bytes);
    memcpy(to->cos + index * num_angles, cos + row->position * num_angles, angle_bytes);
    memcpy(to->sin + index * num_angles, sin + row->position * num_angles, angle_bytes);
    memcpy(to->block_table + index * to->table_stride, row->blocks, (size_t)num_blocks * sizeof(int32_t));
    to->slots[index] = row->blocks[num_blocks - 1] * to->block_size + row->position % to->block_size;
    to->starts[index] = from->window && end > from->window ? (int32_t)(end - from->window) : 0;
    to->ends[index] = (int32_t)end;
}

int phimoe_fill_rows(const rows_task *from, const layer_task *to) {
    for (int64_t index = 0; index < to->num_sequences; index++)
        if (from->rows[index].token_id < 0 || from->rows[index].token_id >= from->vocabulary)
            return UNKNOWN_TOKEN;
    for (int64_t index = 0; index < to->num_sequences; index++) fill_row(from, to, index);
    return DONE;
}

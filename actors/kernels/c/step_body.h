/* A decoding step: layer after layer, each followed by its exchange, for as long as nothing unusual
 * happens. */

#include "exchange.h"

/* combined = results of the first choice + results of the second choice, rounded once. */
static void add_choices(const exchange_task *t, int64_t num_rows, int64_t H, int is_bf16) {
    for (int64_t row = 0; row < num_rows; row++) {
        const uint8_t *first = t->places[NUM_CHOICES * row], *second = t->places[NUM_CHOICES * row + 1];
        for (int64_t i = 0; i < H; i += LANES)
            store(
                t->combined, row * H + i, v_add(load(first, i, is_bf16), load(second, i, is_bf16)), is_bf16);
    }
}

/* Compute the layers from *layer on. Afterwards *layer is the first layer that is not complete, and x is
 * complete if no layer is left. Returns DONE, NO_MEMORY, or EXCHANGE_UNFINISHED if only the exchange of that
 * layer is not complete. */
static int step_run(
    layer_task *task, const layer_weights *weights, int64_t num_layers, exchange_task *exchange,
    int64_t *layer) {
    for (; *layer < num_layers; ++*layer) {
        int fault = layer_run(task, weights + *layer);
        if (!fault)
            fault = phimoe_exchange(
                exchange, *layer, task->num_sequences, task->normed, task->expert_ids, task->expert_weights);
        if (fault) return fault;
        add_choices(exchange, task->num_sequences, task->hidden_size, task->is_bf16);
        task->combined = exchange->combined;
    }
    if (task->combined)
        add_rows(task->x, task->combined, task->num_sequences * task->hidden_size, task->is_bf16);
    return DONE;
}

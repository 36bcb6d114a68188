/* The functions that Python calls. They use the kernels that suit the processor. */

#include "coded.h"
#include "serve.h"
#include "tasks.h"

#if defined(__x86_64__) && defined(__GNUC__)

static const kernel_table *chosen(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bf16"))
        return &phimoe_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &phimoe_avx2 : NULL;
}

#else

static const kernel_table *chosen(void) { return NULL; }

#endif

/* "avx512", "avx2", or NULL if there are no kernels for this processor. After NULL, call nothing else. */
const char *phimoe_kernels(void) { return chosen() ? chosen()->name : NULL; }

int64_t phimoe_block_outputs(void) { return chosen()->block_outputs; }

/* The largest size in bytes of a coded weight with `num_blocks` blocks and K inputs. */
int64_t phimoe_coded_bound(int64_t num_blocks, int64_t K) {
    return coded_bound(num_blocks, K / 2, 2 * chosen()->block_outputs);
}

/* Code numbers [num_blocks, K / 2, B, 2] into `out`. Returns the size of the coded weight in bytes. */
int64_t phimoe_code(const bf16 *numbers, int64_t num_blocks, int64_t K, void *out) {
    const kernel_table *kernels = chosen();
    return code_weight(numbers, num_blocks, K / 2, 2 * kernels->block_outputs, 4 * kernels->lanes, out);
}

/* out [M, N] = x [M, K] * weight^T + bias. K is even for bfloat16. num_bits is 0 if the weight is not
 * quantized and has the dtype of x. Returns DONE or NO_MEMORY. */
int phimoe_linear(
    const void *x, const void *weight, const float *bias, void *out, int64_t M, int64_t N, int64_t K,
    int is_bf16, int num_threads, int num_bits, int has_bf16_scales, int64_t group) {
    int64_t starts[2] = {0, M};
    linear_task t = {
        .x = x, .starts = starts, .weights = &weight, .bias = bias, .out = out, .num_groups = 1, .N = N,
        .K = K, .is_bf16 = is_bf16, .num_threads = num_threads,
        .quantized = {group, num_bits, has_bf16_scales}};
    return chosen()->linear(&t);
}

/* See experts_task. num_bits is 0 if the weights are not quantized and have the dtype of the rows. Returns
 * DONE or what is wrong. */
int phimoe_experts(
    const void *rows, const int64_t *expert_ids, const float *weights, const int64_t *slots,
    const void *const *gate_up, const void *const *down, void *out, int64_t num_tokens, int64_t num_choices,
    int64_t num_slots, int64_t num_results, int64_t hidden_size, int64_t width, int is_bf16, int num_threads,
    int num_bits, int has_bf16_scales, int64_t gate_up_group, int64_t down_group) {
    experts_task t = {
        rows, expert_ids, weights, slots, gate_up, down, out, num_tokens, num_choices, num_slots, num_results,
        hidden_size, width, is_bf16, num_threads, {gate_up_group, num_bits, has_bf16_scales},
        {down_group, num_bits, has_bf16_scales}};
    return chosen()->experts(&t);
}

/* Whether the attention kernel takes heads of this dimension. */
int phimoe_can_attend(int64_t head_dim) {
    return head_dim % (2 * chosen()->lanes) == 0 && head_dim <= MAX_DIM;
}

void phimoe_decode_attention(
    const void *qkv, const float *cos, const float *sin, void *keys, void *values, const int64_t *slots,
    const int32_t *block_table, const int32_t *starts, const int32_t *ends, void *out, int64_t num_sequences,
    int64_t num_heads, int64_t num_groups, int64_t head_dim, int64_t table_stride, int64_t block_size,
    int is_bf16, int num_threads) {
    attention_task t = {
        qkv, cos, sin, keys, values, slots, block_table, starts, ends, out, num_sequences, num_heads,
        num_groups, head_dim, table_stride, block_size, is_bf16, num_threads};
    chosen()->attention(&t);
}

/* x and out are [M, H], gain and shift are [H]. H is a multiple of 16. */
void phimoe_layer_norm(
    const void *x, const void *gain, const void *shift, void *out, int64_t M, int64_t H, float eps,
    int is_bf16) {
    norm_task t = {x, gain, shift, out, M, H, eps, is_bf16};
    chosen()->norm(&t);
}

/* logits are [B, V], filters and token_ids are [B]. Returns DONE or NO_MEMORY. */
int phimoe_sample(
    const float *logits, const sample_filters *filters, int64_t *token_ids, int64_t B, int64_t V,
    int num_threads) {
    sample_task t = {logits, filters, token_ids, B, V, num_threads};
    return chosen()->sample(&t);
}

int phimoe_decode_layer(const layer_task *task, const layer_weights *weights) {
    return chosen()->layer(task, weights);
}

int phimoe_decode_head(const head_task *task) { return chosen()->head(task); }

int phimoe_decode_step(
    layer_task *task, const layer_weights *weights, int64_t num_layers, exchange_task *exchange,
    int64_t *layer) {
    return chosen()->step(task, weights, num_layers, exchange, layer);
}

void phimoe_serve_links(serve_task *task) { phimoe_serve(task, chosen()->experts); }

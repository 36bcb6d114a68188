/* The kernels for processors with AVX2 and FMA. */

#if defined(__x86_64__) && defined(__GNUC__)

#include "vector_avx2.h"

#include "either.h"

#include "linear_body.h"

#include "quantized_body.h"

#include "experts_body.h"

#include "attention_body.h"

#include "norm_body.h"

#include "sample_body.h"

#include "head_body.h"

#include "layer_body.h"

#include "step_body.h"

const kernel_table phimoe_avx2 = {
    "avx2", BLOCK, LANES, linear_run, experts_run, attention_run,
    norm_run, sample_run, layer_run, head_run, step_run};

#endif

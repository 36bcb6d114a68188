/* Loads and stores of numbers that are either bfloat16 or float32. */

#ifndef PHIMOE_EITHER_H
#define PHIMOE_EITHER_H

#include <string.h>

INLINE vec load(const void *base, int64_t index, int is_bf16) {
    return is_bf16 ? v_load_bf16((const bf16 *)base + index) : v_load((const float *)base + index);
}

INLINE void store(void *base, int64_t index, vec v, int is_bf16) {
    if (is_bf16)
        v_store_bf16((bf16 *)base + index, v);
    else
        v_store((float *)base + index, v);
}

/* Convert `count` numbers from bfloat16 to float32. */
INLINE void widen(const bf16 *from, float *to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) v_store(to + i, v_load_bf16(from + i));
    for (; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}

#endif

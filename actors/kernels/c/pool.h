/* Threads that compute one region at a time, chunk by chunk. */

#ifndef PHIMOE_POOL_H
#define PHIMOE_POOL_H

#include <stdint.h>

typedef void (*chunk_work)(const void *task, int64_t chunk);

/* work(task, c) for every c below num_chunks, on the calling thread and up to num_threads - 1 helpers; returns when all are
 * done. Whoever is free takes the next chunk, so a helper that gets no core costs nothing but the chunk that it holds.
 * A second thread that comes while a region is under way computes alone. */
void phimoe_run(chunk_work work, const void *task, int64_t num_chunks, int num_threads);

/* From any thread, once: of num_threads, so many are this process's share of the cores. Helpers beyond run only where a core
 * would idle (SCHED_IDLE), on all cores that the calling thread may use. */
void phimoe_share_cores(int num_own);

#endif

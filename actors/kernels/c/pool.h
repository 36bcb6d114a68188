/* A pool of threads that computes one region at a time, chunk by chunk. */

#ifndef PHIMOE_POOL_H
#define PHIMOE_POOL_H

#include <stdint.h>

typedef void (*chunk_work)(const void *task, int64_t chunk);

/* Call work(task, c) for every c below num_chunks, on the calling thread and on up to num_threads - 1
 * helpers. Returns when all chunks are done. A free thread takes the next chunk, so a helper that gets no
 * core delays nothing but the chunk that it holds. A second thread that calls this while a region is under
 * way computes its chunks alone. */
void phimoe_run(chunk_work work, const void *task, int64_t num_chunks, int num_threads);

/* Say how many of num_threads are this process's share of the cores. Helpers beyond this number run only
 * where a core would be idle (SCHED_IDLE), on all cores that the calling thread may use. Call this once, from
 * any thread, before the first region. */
void phimoe_share_cores(int num_own);

#endif

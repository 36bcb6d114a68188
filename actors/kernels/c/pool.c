/* A pool of threads for regions that take less time than waking a thread does.
 *
 * One 64-bit word, the ticket, describes a region: generation, number of chunks, next chunk. A thread that
 * adds one to the ticket takes a chunk, and the old value says to which region the chunk belongs. That region
 * cannot end before the chunk is done, so its task still exists. A helper polls the ticket for a while after
 * each region, then sleeps until it is woken. The caller never waits for a helper that has not begun: the
 * caller takes chunks until none is left, then waits for the chunks that helpers hold.
 *
 * A helper beyond this process's share of the cores is a spare helper. It has the scheduling class SCHED_IDLE
 * (sched(7)) and gives way to every other thread of the machine, so it may stay awake longer. A core that it
 * keeps awake also answers a message sooner than a halted core. A thread in user mode gives way only at an
 * interrupt, which may come late (in a virtual machine, or with lazy preemption at the next tick). So a spare
 * helper makes a system call between chunks and while it polls. If another thread waits for the core, the
 * helper gives way before the call returns. A spare helper on the caller's own core would never run, so the
 * caller moves it to the other cores. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "pool.h"

#ifdef __linux__

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_HELPERS = 255,
    COUNT_BITS = 20,
    /* A region with more chunks gets no helpers. Half of the values of COUNT_BITS bits are left for helpers
     * that add to the ticket when no chunk is left. */
    MAX_CHUNKS = 1 << 19,
    OWN_AWAKE_NS = 20000,       /* covers the time from one region of a call to the next */
    SPARE_AWAKE_NS = 1000000,   /* covers the time from one call to the next */
    CALLER_AWAKE_NS = 100000,   /* covers the time until helpers have done the last chunks */
    POLLS_PER_CLOCK_READ = 256, /* take some microseconds */
    NO_CORE = -1,
};

#define COUNT_MASK ((UINT64_C(1) << COUNT_BITS) - 1)

static struct {
    _Atomic uint64_t ticket; /* generation << 40 | number of chunks << 20 | next chunk */
    _Atomic uint32_t num_done;
    _Atomic uint32_t wakeup; /* counts the regions; helpers sleep on this word */
    _Atomic int num_asleep, caller_sleeps, width;
    chunk_work work;
    const void *task;
    uint64_t generation;
    int num_helpers, num_own;
    cpu_set_t cores;
    /* Two values per helper: the core on which a spare helper was seen last, or NO_CORE for other helpers and
     * before it runs; and the id of its thread. */
    _Atomic int seen_on[MAX_HELPERS];
    pid_t threads[MAX_HELPERS];
} pool = {.num_own = INT_MAX};

/* The thread that runs a region holds this lock. */
static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER;

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static uint64_t next_of(uint64_t ticket) { return ticket & COUNT_MASK; }

static uint64_t count_of(uint64_t ticket) { return ticket >> COUNT_BITS & COUNT_MASK; }

/* Compute one chunk of the current region. Returns 0 if none is left. */
static int take_chunk(void) {
    uint64_t ticket = atomic_load(&pool.ticket);
    if (next_of(ticket) >= count_of(ticket)) return 0;
    ticket = atomic_fetch_add(&pool.ticket, 1);
    uint64_t chunk = next_of(ticket), count = count_of(ticket);
    if (chunk >= count) return 0;
    pool.work(pool.task, (int64_t)chunk);
    if (atomic_fetch_add(&pool.num_done, 1) + 1 == count && atomic_load(&pool.caller_sleeps))
        futex(&pool.num_done, FUTEX_WAKE, INT_MAX);
    return 1;
}

static void sleep_until_woken(void) {
    uint32_t before = atomic_load(&pool.wakeup);
    atomic_fetch_add(&pool.num_asleep, 1);
    uint64_t ticket = atomic_load(&pool.ticket);
    if (next_of(ticket) >= count_of(ticket)) futex(&pool.wakeup, FUTEX_WAIT, before);
    atomic_fetch_sub(&pool.num_asleep, 1);
}

/* Let another thread have this core if one waits for it. The kernel sees to this at the end of any system
 * call. */
static void give_way(void) { syscall(SYS_getppid); }

static void become_spare(int index) {
    sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    sched_setaffinity(0, sizeof pool.cores, &pool.cores);
    pool.threads[index] = (pid_t)syscall(SYS_gettid);
    atomic_store(&pool.seen_on[index], sched_getcpu());
}

static void *help(void *number) {
    int index = (int)(intptr_t)number, is_spare = index + 1 >= pool.num_own;
    int64_t awake_ns = is_spare ? SPARE_AWAKE_NS : OWN_AWAKE_NS, since = now_ns();
    if (is_spare) become_spare(index);
    for (unsigned num_polls = 1;; num_polls++) {
        if (index + 1 < atomic_load(&pool.width) && take_chunk()) {
            do {
                if (is_spare) give_way();
            } while (take_chunk());
            since = now_ns();
        }
        relax();
        if (num_polls % POLLS_PER_CLOCK_READ) continue;
        if (is_spare) {
            sched_yield(); /* gives way also to the spare helpers of other processes */
            atomic_store(&pool.seen_on[index], sched_getcpu());
        }
        if (now_ns() - since > awake_ns) {
            sleep_until_woken();
            since = now_ns();
        }
    }
    return NULL;
}

/* Start again without helpers in a forked child, which has no threads of its parent. */
static void forget_helpers(void) {
    pool.num_helpers = 0;
    atomic_store(&pool.num_asleep, 0);
    atomic_store(&pool.ticket, 0);
    pthread_mutex_init(&in_use, NULL);
}

/* Start helpers until there are `num_helpers`, or as many as the system allows. */
static void provide(int num_helpers) {
    static int is_prepared;
    if (pool.num_helpers >= num_helpers) return;
    if (!is_prepared) pthread_atfork(NULL, NULL, forget_helpers);
    is_prepared = 1;
    if (!CPU_COUNT(&pool.cores)) sched_getaffinity(0, sizeof pool.cores, &pool.cores);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.num_helpers < num_helpers && pool.num_helpers < MAX_HELPERS) {
        pthread_t thread;
        atomic_store(&pool.seen_on[pool.num_helpers], NO_CORE);
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)pool.num_helpers)) break;
        pthread_detach(thread);
        pool.num_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void wait_for_others(uint32_t count) {
    int64_t since = now_ns();
    for (unsigned num_polls = 1; atomic_load(&pool.num_done) != count; num_polls++) {
        relax();
        if (num_polls % POLLS_PER_CLOCK_READ || now_ns() - since < CALLER_AWAKE_NS) continue;
        atomic_store(&pool.caller_sleeps, 1);
        for (uint32_t done; (done = atomic_load(&pool.num_done)) != count;)
            futex(&pool.num_done, FUTEX_WAIT, done);
        atomic_store(&pool.caller_sleeps, 0);
    }
}

/* Move the spare helpers on the calling thread's core to the other cores. */
static void send_away(int num_helpers) {
    int here = sched_getcpu();
    for (int i = 0; i < num_helpers && i < pool.num_helpers; i++) {
        if (atomic_load(&pool.seen_on[i]) != here) continue;
        cpu_set_t others = pool.cores;
        CPU_CLR(here, &others);
        if (CPU_COUNT(&others)) sched_setaffinity(pool.threads[i], sizeof others, &others);
    }
}

static void run_region(chunk_work work, const void *task, int64_t num_chunks, int num_threads) {
    send_away(num_threads - 1);
    pool.work = work;
    pool.task = task;
    atomic_store(&pool.num_done, 0);
    atomic_store(&pool.width, num_threads);
    atomic_store(&pool.ticket, ++pool.generation << 2 * COUNT_BITS | (uint64_t)num_chunks << COUNT_BITS);
    atomic_fetch_add(&pool.wakeup, 1);
    if (atomic_load(&pool.num_asleep)) futex(&pool.wakeup, FUTEX_WAKE, INT_MAX);
    while (take_chunk()) {}
    wait_for_others((uint32_t)num_chunks);
}

void phimoe_run(chunk_work work, const void *task, int64_t num_chunks, int num_threads) {
    if (num_threads < 2 || num_chunks < 2 || num_chunks > MAX_CHUNKS || pthread_mutex_trylock(&in_use)) {
        for (int64_t chunk = 0; chunk < num_chunks; chunk++) work(task, chunk);
        return;
    }
    provide(num_threads - 1);
    run_region(work, task, num_chunks, num_threads);
    pthread_mutex_unlock(&in_use);
}

void phimoe_share_cores(int num_own) {
    pthread_mutex_lock(&in_use);
    pool.num_own = num_own;
    sched_getaffinity(0, sizeof pool.cores, &pool.cores);
    pthread_mutex_unlock(&in_use);
}

#else

void phimoe_run(chunk_work work, const void *task, int64_t num_chunks, int num_threads) {
    (void)num_threads;
    for (int64_t chunk = 0; chunk < num_chunks; chunk++) work(task, chunk);
}

void phimoe_share_cores(int num_own) { (void)num_own; }

#endif

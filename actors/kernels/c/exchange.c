/* One exchange in the plain case: every expert has a holder, every message is sent whole, and every answer
 * arrives in time.
 *
 * Anything else (a wakeup, an error, an answer that is late or not the expected one) ends the call at once.
 * The caller then goes on from what the peers' fields say. Nothing here decides what to do about a fault. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "message.h"
#include "exchange.h"

#ifdef __linux__

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_PEERS = 64 };

/* Computing this many rows takes as long as reading the weights of an expert
 * (actors/exchange/row_assignment.py). */
enum { MIN_PART_ROWS = 64 };

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Choose the peer that is asked for each expert: its only holder, or the least busy of its holders. Experts
 * with one holder are assigned first. Returns 0 if an expert with rows has no holder. */
static int choose_owners(exchange_task *t, const int64_t *counts) {
    int64_t P = t->num_peers, work[MAX_PEERS] = {0};
    for (int is_free = 0; is_free < 2; is_free++)
        for (int64_t e = 0; e < t->num_experts; e++) {
            const int32_t *holders = t->holders + e * P;
            int64_t num_holders = 0;
            while (num_holders < P && holders[num_holders] >= 0) num_holders++;
            if (!counts[e] || (num_holders > 1) != is_free) continue;
            if (!num_holders) return 0;
            /* Among equally busy holders the expert's number decides, so that not all dense actors ask the
             * same one. */
            int32_t chosen = holders[e % num_holders];
            for (int64_t i = 0; i < num_holders; i++) {
                int32_t other = holders[(e + i) % num_holders];
                if (work[other] < work[chosen]) chosen = other;
            }
            work[chosen] += MIN_PART_ROWS + counts[e];
            t->owners[e] = chosen;
        }
    return 1;
}

/* Compose the message to one peer: the rows that need its experts, with -1 in place of the experts that other
 * peers are asked for. `places` gets the places of the results in the peer's answer. */
static void compose(
    exchange_task *t, int64_t index, int64_t layer, int64_t num_rows, const uint8_t *rows,
    const int64_t *expert_ids, const float *weights) {
    exchange_peer *p = t->peers + index;
    int64_t num_tokens = 0, num_results = 0;
    for (int64_t r = 0; r < num_rows; r++) {
        int here = 0;
        for (int k = 0; k < NUM_CHOICES; k++) here += t->owners[expert_ids[NUM_CHOICES * r + k]] == index;
        num_tokens += here > 0;
        num_results += here;
    }
    p->num_results = num_results;
    p->num_sent = p->num_read = p->num_bytes = p->answered_ns = 0;
    if (!num_results) return;
    int32_t *ids = (int32_t *)(p->outgoing + HEADER_BYTES);
    float *scales = (float *)(ids + NUM_CHOICES * num_tokens);
    uint8_t *payload = p->outgoing + payload_offset(num_tokens, NUM_CHOICES);
    const uint8_t *result = p->incoming + HEADER_BYTES;
    for (int64_t r = 0; r < num_rows; r++) {
        int is_here[NUM_CHOICES], here = 0;
        for (int k = 0; k < NUM_CHOICES; k++)
            here += is_here[k] = t->owners[expert_ids[NUM_CHOICES * r + k]] == index;
        if (!here) continue;
        for (int k = 0; k < NUM_CHOICES; k++) {
            *ids++ = is_here[k] ? (int32_t)expert_ids[NUM_CHOICES * r + k] : -1;
            *scales++ = weights[NUM_CHOICES * r + k];
            if (!is_here[k]) continue;
            t->places[NUM_CHOICES * r + k] = result;
            result += t->row_bytes;
        }
        memcpy(payload, rows + r * t->row_bytes, (size_t)t->row_bytes);
        payload += t->row_bytes;
    }
    p->sequence = t->next_sequence++;
    p->num_bytes = payload - p->outgoing;
    header h = {t->magic, ROWS, p->epoch, p->sequence, layer, num_tokens, num_results, p->num_bytes};
    memcpy(p->outgoing, &h, sizeof h);
}

/* Send every message. Returns 0 if a message was not sent whole. */
static int send_all(exchange_task *t) {
    int is_whole = 1;
    for (int64_t i = 0; i < t->num_peers; i++) {
        exchange_peer *p = t->peers + i;
        if (!p->num_results) continue;
        p->sent_ns = now_ns();
        ssize_t count =
            send((int)p->descriptor, p->outgoing, (size_t)p->num_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        p->num_sent = count > 0 ? count : 0;
        is_whole &= p->num_sent == p->num_bytes;
    }
    return is_whole;
}

/* Read what has arrived of an answer. Returns 0 if it is not the expected answer or the link has ended. */
static int read_answer(const exchange_task *t, exchange_peer *p, int64_t layer) {
    int64_t expected = HEADER_BYTES + p->num_results * t->row_bytes;
    ssize_t count =
        recv((int)p->descriptor, p->incoming + p->num_read, (size_t)(expected - p->num_read), MSG_DONTWAIT);
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    if (count == 0) return 0;
    p->num_read += count;
    if (p->num_read < HEADER_BYTES) return 1;
    header h;
    memcpy(&h, p->incoming, sizeof h);
    if (h.magic != t->magic || h.kind != RESULTS || h.epoch != p->epoch || h.sequence != p->sequence ||
        h.layer != layer || h.num_results != p->num_results || h.num_bytes != expected)
        return 0;
    if (p->num_read == expected) p->answered_ns = now_ns();
    return 1;
}

static int is_owed(const exchange_peer *p) { return p->num_results && !p->answered_ns; }

/* Wait once for the answers that are owed, and read what has arrived. Returns 0 on a wakeup, on a fault, or
 * if an answer is late. */
static int wait_once(exchange_task *t, int64_t layer) {
    struct pollfd watched[MAX_PEERS + 1];
    int64_t late_ns = INT64_MAX, count = 0;
    int64_t index[MAX_PEERS];
    for (int64_t i = 0; i < t->num_peers; i++) {
        exchange_peer *p = t->peers + i;
        if (!is_owed(p)) continue;
        int64_t due = p->sent_ns + t->hedge_delay_ns[64 - __builtin_clzll((uint64_t)p->num_results)];
        if (due < late_ns) late_ns = due;
        watched[count] = (struct pollfd){.fd = (int)p->descriptor, .events = POLLIN};
        index[count++] = i;
    }
    if (!count) return 1;
    watched[count] = (struct pollfd){.fd = (int)t->wakeup, .events = POLLIN};
    int64_t left_ns = late_ns - now_ns();
    if (left_ns <= 0) return 0;
    struct timespec left = {left_ns / 1000000000, left_ns % 1000000000};
    int num_ready = ppoll(watched, (nfds_t)count + 1, &left, NULL);
    if (num_ready < 0) return errno == EINTR;
    if (num_ready == 0 || watched[count].revents) return 0;
    for (int64_t i = 0; i < count; i++)
        if (watched[i].revents && !read_answer(t, t->peers + index[i], layer)) return 0;
    return 1;
}

int phimoe_exchange(
    exchange_task *t, int64_t layer, int64_t num_rows, const void *rows, const int64_t *expert_ids,
    const float *weights) {
    int64_t *counts = t->expert_rows + layer * t->num_experts, here[256] = {0};
    for (int64_t i = 0; i < NUM_CHOICES * num_rows; i++) here[expert_ids[i]]++;
    for (int64_t i = 0; i < t->num_peers; i++) t->peers[i].num_results = 0;
    if (t->num_peers > MAX_PEERS || !choose_owners(t, here)) return EXCHANGE_UNFINISHED;
    for (int64_t e = 0; e < t->num_experts; e++) counts[e] += here[e];
    for (int64_t i = 0; i < t->num_peers; i++) compose(t, i, layer, num_rows, rows, expert_ids, weights);
    if (!send_all(t)) return EXCHANGE_UNFINISHED;
    for (int is_owing = 1; is_owing;) {
        if (!wait_once(t, layer)) return EXCHANGE_UNFINISHED;
        is_owing = 0;
        for (int64_t i = 0; i < t->num_peers; i++) is_owing |= is_owed(t->peers + i);
    }
    for (int64_t i = 0; i < t->num_peers; i++) {
        exchange_peer *p = t->peers + i;
        if (!p->num_results) continue;
        int64_t *answer = t->answers + 2 * t->num_answers++;
        answer[0] = p->num_results;
        answer[1] = p->answered_ns - p->sent_ns;
    }
    return EXCHANGE_DONE;
}

#else

int phimoe_exchange(
    exchange_task *t, int64_t layer, int64_t num_rows, const void *rows, const int64_t *expert_ids,
    const float *weights) {
    (void)layer, (void)num_rows, (void)rows, (void)expert_ids, (void)weights;
    for (int64_t i = 0; i < t->num_peers; i++) t->peers[i].num_results = 0;
    return EXCHANGE_UNFINISHED;
}

#endif

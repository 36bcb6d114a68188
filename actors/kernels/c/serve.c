/* Serving links in the plain case: one message arrives at a time, has the agreed form, and its answer is sent
 * whole.
 *
 * Anything else (a wakeup, messages on two links at once, the end of a link, bytes that were not expected, an
 * expert that this actor does not hold, an answer that is not sent whole) ends the call. The caller then goes
 * on from what the links' fields say. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "message.h"
#include "serve.h"

#ifdef __linux__

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

enum { MAX_LINKS = 64 };
enum { PARTIAL, WHOLE, UNUSUAL };

/* Whether the header is that of a message with rows for this link, of sizes that were agreed on. */
static int is_plain(const serve_task *t, const serve_link *l, const header *h) {
    return h->magic == t->magic && h->kind == ROWS && h->epoch == l->epoch && h->layer >= 0 &&
           h->layer < t->num_layers && h->num_tokens > 0 && h->num_tokens <= t->max_tokens &&
           h->num_results > 0 &&
           h->num_results <= h->num_tokens * t->num_choices &&
           h->num_bytes == payload_offset(h->num_tokens, t->num_choices) + h->num_tokens * t->row_bytes;
}

/* Read what has arrived of a message. Returns PARTIAL, WHOLE or UNUSUAL. */
static int read_message(const serve_task *t, serve_link *l, header *h) {
    for (;;) {
        int64_t end = HEADER_BYTES;
        if (l->num_read >= HEADER_BYTES) {
            memcpy(h, l->incoming, sizeof *h);
            if (!is_plain(t, l, h)) return UNUSUAL;
            end = h->num_bytes;
            if (l->num_read == end) return WHOLE;
        }
        ssize_t count =
            recv((int)l->descriptor, l->incoming + l->num_read, (size_t)(end - l->num_read), MSG_DONTWAIT);
        if (count < 0) return errno == EAGAIN || errno == EINTR ? PARTIAL : UNUSUAL;
        if (count == 0) return UNUSUAL;
        l->num_read += count;
    }
}

/* Copy ids as int64. Returns 0 if an id is neither -1 nor that of an expert. */
static int widen_ids(const serve_task *t, const int32_t *ids, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < -1 || ids[i] >= t->num_experts) return 0;
        t->expert_ids[i] = ids[i];
    }
    return 1;
}

/* Compute what a whole message asks for, and send the answer. Returns 0 if it could not be computed or was
 * not sent whole. */
static int answer(serve_task *t, serve_link *l, const header *h, int (*experts)(const experts_task *)) {
    int64_t count = h->num_tokens * t->num_choices;
    const int32_t *ids = (const int32_t *)(l->incoming + HEADER_BYTES);
    if (!widen_ids(t, ids, count)) return 0;
    const serve_layer *layer = t->layers + h->layer;
    experts_task work = {
        .rows = l->incoming + payload_offset(h->num_tokens, t->num_choices),
        .expert_ids = t->expert_ids,
        .weights = (const float *)(ids + count),
        .slots = layer->slots, .gate_up = layer->gate_up, .down = layer->down,
        .out = l->outgoing + HEADER_BYTES,
        .num_tokens = h->num_tokens, .num_choices = t->num_choices, .num_slots = layer->num_slots,
        .num_results = h->num_results, .hidden_size = t->hidden_size, .width = t->width,
        .is_bf16 = t->is_bf16, .num_threads = t->num_threads,
        .gate_up_quantized = layer->gate_up_quantized, .down_quantized = layer->down_quantized};
    if (experts(&work) != DONE) return 0;
    for (int64_t i = 0; i < count; i++)
        if (ids[i] >= 0) t->expert_rows[ids[i]]++;
    header out = *h;
    out.kind = RESULTS;
    out.num_bytes = HEADER_BYTES + h->num_results * t->row_bytes;
    memcpy(l->outgoing, &out, sizeof out);
    l->num_read = 0;
    l->num_bytes = out.num_bytes;
    ssize_t sent = send((int)l->descriptor, l->outgoing, (size_t)l->num_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    l->num_sent = sent > 0 ? sent : 0;
    return l->num_sent == l->num_bytes;
}

/* Wait for bytes and return the only link that has some. Returns NULL if several links have some, or on a
 * wakeup. */
static serve_link *wait_for_one(serve_task *t) {
    struct pollfd watched[MAX_LINKS + 1];
    for (int64_t i = 0; i < t->num_links; i++)
        watched[i] = (struct pollfd){.fd = (int)t->links[i].descriptor, .events = POLLIN};
    watched[t->num_links] = (struct pollfd){.fd = (int)t->wakeup, .events = POLLIN};
    int num_ready;
    do num_ready = poll(watched, (nfds_t)t->num_links + 1, -1);
    while (num_ready < 0 && errno == EINTR);
    if (num_ready != 1 || watched[t->num_links].revents) return NULL;
    serve_link *found = t->links;
    while (!watched[found - t->links].revents) found++;
    return found;
}

void phimoe_serve(serve_task *t, int (*experts)(const experts_task *)) {
    if (t->num_links > MAX_LINKS) return;
    for (;;) {
        serve_link *link = wait_for_one(t);
        if (!link) return;
        header h;
        int state = read_message(t, link, &h);
        if (state == UNUSUAL || (state == WHOLE && !answer(t, link, &h, experts))) return;
    }
}

#else

void phimoe_serve(serve_task *t, int (*experts)(const experts_task *)) { (void)t, (void)experts; }

#endif

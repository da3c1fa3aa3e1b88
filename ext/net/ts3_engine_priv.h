/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The inside of an engine, shared by the callers' side (ts3_engine.c) and the loop.
 *
 * Owner: the caller of ts3_engine_new.  Thread and lock: fields are grouped by who may touch them
 * when.  The mutex is held for moments only, and nothing is called under it that blocks.
 * Errors and limits: see ts3_engine.h. */
#ifndef TS3_ENGINE_PRIV_H
#define TS3_ENGINE_PRIV_H

#include <pthread.h>

#include "net/ts3_loop.h"

#define TS3_TABLE_BUCKETS 1024

struct ts3_engine {
    /* constant after new */
    const struct ts3_alloc *alloc;
    const struct ts3_clock *clock;
    const struct ts3_rand *given_rand; /* NULL: the loop's own */
    struct ts3_site site;
    struct ts3_shared *shared;
    struct ts3_digest *digest;
    bool sign_payload;
    uint32_t max_connections;
    uint32_t connect_ms;
    uint32_t workers;
    int retry_tokens;
    size_t max_open; /* requests whose final event was not drained */
    int event_fd;

    atomic_uint_fast64_t creds_version; /* written under the mutex, read without it */

    pthread_mutex_t mutex;
    /* under the mutex */
    struct ts3_link inbox;                        /* ts3_request.queue */
    struct ts3_link cancels;                      /* ts3_request.cancel */
    struct ts3_link events;                       /* ts3_note.link */
    struct ts3_request *table[TS3_TABLE_BUCKETS]; /* by id; those without final event */
    uint64_t next_id;
    size_t open;       /* submitted, final event not drained */
    size_t unfinished; /* of those, the ones without final event */
    size_t undrained;  /* in events */
    uint64_t signals;  /* written to event_fd, or about to be, and not read back */
    struct ts3_creds creds;
    bool started;
    bool closing;
    uint64_t submitted[TS3_METHOD_COUNT];

    pthread_mutex_t signing_mutex; /* only ever tried */
    struct ts3_signing signing;    /* under it: for who submits */

    pthread_mutex_t joining; /* held while the threads are joined: who closes too waits for it */
    bool joined;             /* under it */

    pthread_t thread;
    struct ts3_pool pool;
    struct ts3_loop loop;
};

/* The loop: queues the event that more of the request's window is ready. */
void ts3_engine_tell(struct ts3_engine *engine, struct ts3_request *request);
/* The loop: queues the final events of all requests in the list (links: queue), which is empty
 * afterwards; the requests are the caller's from here on. */
void ts3_engine_finish(struct ts3_engine *engine, struct ts3_link *ended);
/* The loop: takes what was submitted, and which are to be cancelled (links: queue, cancel). */
void ts3_engine_collect(struct ts3_engine *engine, struct ts3_link *inbox, struct ts3_link *cancels,
                        bool *closing);
/* The loop: the next of cancels, or NULL. Under the mutex, since ts3_engine_cancel looks at the links
 * of requests, whatever list they are in. */
struct ts3_link *ts3_engine_next_cancel(struct ts3_engine *engine, struct ts3_link *cancels);
/* The loop: copies the credentials when they are newer than its copy. */
enum ts3_err ts3_engine_refresh_creds(struct ts3_engine *engine, struct ts3_creds *creds);

#endif

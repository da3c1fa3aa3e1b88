/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The loop: the one thread that talks to libcurl, and the state that belongs to it alone.
 *
 * Owner: the engine, which makes it before the thread starts and frees it after the thread was
 *   joined.
 * Thread: everything in struct ts3_loop is the loop thread's, but for the atomics, which others
 *   read for statistics.
 * Errors: of init: TS3_ENOMEM, TS3_EIO, TS3_ENET, TS3_ECRYPTO.  Afterwards errors end single
 *   requests.
 * Limits: max_connections transfers at a time; places are kept free for the more urgent; few new
 *   connections at once. */
#ifndef TS3_LOOP_H
#define TS3_LOOP_H

#include <curl/curl.h>
#include <stdatomic.h>

#include "core/ts3_gather.h"
#include "core/ts3_retry.h"
#include "net/ts3_hist.h"
#include "net/ts3_nap.h"
#include "net/ts3_request.h"
#include "net/ts3_signing.h"
#include "net/ts3_slot.h"
#include "net/ts3_sockets.h"
#include "net/ts3_timer.h"
#include "net/ts3_worker.h"

#define TS3_PRIORITIES 3
#define TS3_LOOP_CONNECTING 8 /* connections being made (name, TCP, TLS) at a time */
/* Connections, as a multiple of the places: those in use, those that are idle, and those that are being
 * closed. libcurl waits for the other side of these for up to two seconds since 8.12, of any number. */
#define TS3_LOOP_CONNECTIONS 3

struct ts3_engine;

struct ts3_loop {
    struct ts3_engine *engine;
    const struct ts3_alloc *alloc;
    const struct ts3_clock *clock;
    const struct ts3_site *site;
    struct ts3_shared *shared;
    struct ts3_pool *pool;
    int epoll_fd;
    CURLM *multi;
    bool counts_sent; /* CURLINFO_REQUEST_SIZE has all that was sent */
    struct ts3_sockets sockets;
    struct ts3_gather gather;
    struct ts3_timers timers;
    struct ts3_timer idle_timer; /* armed while connections are idle */
    struct ts3_slots slots;
    struct ts3_link waiting; /* slots whose transfers have received their share of a turn */
    uint64_t turn;           /* which one this is, from 1 */
    struct ts3_link all;                         /* every request the loop owns */
    struct ts3_link body_queue[TS3_PRIORITIES];  /* STAGE_BODY */
    struct ts3_link ready_queue[TS3_PRIORITIES]; /* STAGE_READY */
    size_t live;                                 /* in all */
    struct ts3_link ended; /* requests whose final event was not told yet, within a turn */
    size_t ended_count;
    uint32_t places;                             /* max_connections */
    uint32_t active;                             /* in libcurl's hands */
    uint32_t streaming;                          /* of these, in the middle of a body */
    uint32_t connecting;                         /* of those, without a connection yet */
    size_t body_bytes;                           /* of the budget, held by bodies */
    struct ts3_signing signing;
    char region[64];        /* written once more at the most, just before region_adopted is set */
    atomic_bool region_adopted; /* then other threads may read region */
    struct ts3_retry_quota quota;
    struct ts3_rand rand;
    struct ts3_rand_state rand_state;
    uint32_t connect_ms;
    int64_t now_us;      /* the engine's clock, once a turn */
    int64_t curl_due_us; /* libcurl's own timer, on the real clock; TS3_TIMER_NEVER */
    int64_t looked_us;   /* when it was known which idle sockets are readable, on the real clock */
    /* Places were given back after the last scheduling, or it left something for the next turn: do
     * not sleep before that. */
    bool hurry;
    bool closing;
    atomic_int_fast64_t skew_s;
    atomic_bool skew_adopted;
    atomic_uint_fast64_t in_flight;
    atomic_uint_fast64_t attempts;
    atomic_uint_fast64_t retries;
    atomic_uint_fast64_t retries_denied;
    atomic_uint_fast64_t succeeded;
    atomic_uint_fast64_t failed;
    atomic_uint_fast64_t bytes_up;
    atomic_uint_fast64_t bytes_down;
    struct ts3_nap nap;
    struct ts3_hist busy; /* how long each turn was away from its poll */
    struct ts3_hist cpu;  /* the processor time of each turn, or what it was at most */
    int64_t cpu_us;       /* of the thread, at the end of the last turn that was long */
};

enum ts3_err ts3_loop_init(struct ts3_loop *loop, struct ts3_engine *engine);
void ts3_loop_free(struct ts3_loop *loop);
void *ts3_loop_main(void *loop);

/* --- for the other files of the loop's thread --- */

/* Sees to it that no idle connection has unread input, to the best of what can be known. */
void ts3_loop_look(struct ts3_loop *loop);
/* Begins a phase of the active attempt, with its timer. */
void ts3_loop_phase(struct ts3_loop *loop, struct ts3_request *request, enum ts3_phase phase);
/* The attempt has ended: without a timer, where the next one begins. */
void ts3_loop_no_phase(struct ts3_loop *loop, struct ts3_request *request);
/* Puts a request (in no queue) where its next attempt starts from: at once, or after a delay. */
void ts3_loop_again(struct ts3_loop *loop, struct ts3_request *request, int64_t delay_ms);
/* Ends a request that is in no queue and not active: final event now, or when its worker lets go
 * of the body. */
void ts3_loop_end(struct ts3_loop *loop, struct ts3_request *request, bool failed);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_schedule.h. */
#include "net/ts3_schedule.h"

#include <stdint.h>

#include "net/ts3_attempt.h"
#include "net/ts3_engine_priv.h"
#include "net/ts3_value.h"
#include "net/ts3_verdict.h"

#define PLAIN_CONNECTING 32 /* over http there is no handshake to wait for */
/* Beginning a TLS connection takes libcurl and OpenSSL a millisecond or two, so in one turn only so
 * many are begun beyond those for which an idle connection may serve. */
#define TLS_BEGUN 1

uint32_t ts3_schedule_places(uint32_t places, int priority)
{
    uint32_t kept = places < 2 ? 0 : (places + 7) / 8; /* for each more urgent priority */
    uint32_t all = kept * (uint32_t)priority;
    return all < places ? places - all : 1;
}

static void fail_local(struct ts3_loop *loop, struct ts3_request *request, enum ts3_err err,
                       const char *what)
{
    request->sent = false;
    ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true, "%s: %s", what,
                      ts3_err_text(err));
    ts3_verdict_fault(loop, request);
}

static void make_ready(struct ts3_loop *loop, struct ts3_request *request)
{
    request->stage = TS3_STAGE_READY;
    ts3_list_push(&loop->ready_queue[request->priority], &request->queue);
}

static void prepare(struct ts3_loop *loop, struct ts3_request *request)
{
    request->stage = TS3_STAGE_WORK;
    enum ts3_err err = ts3_body_prepare(&request->body, loop->pool, request->priority == 0);
    if (err != TS3_OK)
        fail_local(loop, request, err, "the body cannot be prepared");
    else if (request->body.prepared)
        make_ready(loop, request);
}

void ts3_schedule_admit(struct ts3_loop *loop, struct ts3_request *request)
{
    ts3_list_push(&loop->all, &request->all);
    loop->live++;
    enum ts3_err err = ts3_timers_reserve(&loop->timers, 2 * loop->live + 1);
    if (err != TS3_OK) {
        fail_local(loop, request, err, "the request cannot be queued");
        return;
    }
    if (request->deadline_ms > 0)
        ts3_timers_set(&loop->timers, &request->deadline_alarm.timer,
                       request->submitted_us + (int64_t)request->deadline_ms * 1000);
    if (ts3_body_cost(&request->body) == 0) {
        prepare(loop, request);
        return;
    }
    request->stage = TS3_STAGE_BODY;
    ts3_list_push(&loop->body_queue[request->priority], &request->queue);
}

/* Room in the budget for a body, so that windows and bodies cannot starve each other. */
static bool charge_body(struct ts3_loop *loop, struct ts3_request *request)
{
    size_t cost = ts3_body_cost(&request->body);
    if (loop->body_bytes == 0)
        ts3_shared_force(loop->shared, cost);
    else if (loop->body_bytes + cost > loop->shared->limit_bytes / 2 ||
             ts3_shared_charge(loop->shared, cost) != TS3_OK)
        return false;
    request->body_charge = cost;
    loop->body_bytes += cost;
    return true;
}

/* In strict order within and between priorities: else large bodies would wait for ever. */
static void load_bodies(struct ts3_loop *loop)
{
    /* Said before looking, so that room that is made meanwhile wakes the loop again. */
    atomic_store(&loop->shared->wanted, true);
    for (int priority = 0; priority < TS3_PRIORITIES; priority++) {
        while (!ts3_list_empty(&loop->body_queue[priority])) {
            struct ts3_link *first = loop->body_queue[priority].next;
            struct ts3_request *request = TS3_MEMBER(first, struct ts3_request, queue);
            if (!charge_body(loop, request))
                return;
            ts3_list_remove(first);
            prepare(loop, request);
        }
    }
    atomic_store(&loop->shared->wanted, false);
}

static bool may_connect(const struct ts3_loop *loop)
{
    size_t limit = loop->site->tls ? TS3_LOOP_CONNECTING : PLAIN_CONNECTING;
    return loop->connecting < limit + loop->sockets.idle_count;
}

static bool any(const struct ts3_link *queues)
{
    for (int priority = 0; priority < TS3_PRIORITIES; priority++)
        if (!ts3_list_empty(&queues[priority]))
            return true;
    return false;
}

bool ts3_schedule_waits(const struct ts3_loop *loop)
{
    return any(loop->ready_queue) || any(loop->body_queue);
}

static void start_ready(struct ts3_loop *loop)
{
    if (!any(loop->ready_queue))
        return;
    ts3_loop_look(loop);
    size_t may_begin = loop->site->tls ? loop->sockets.idle_count + TLS_BEGUN : SIZE_MAX;
    for (int priority = 0; priority < TS3_PRIORITIES; priority++) {
        uint32_t places = ts3_schedule_places(loop->places, priority);
        while (!ts3_list_empty(&loop->ready_queue[priority]) && loop->active < places &&
               may_connect(loop)) {
            if (may_begin-- == 0) {
                loop->hurry = true;
                return;
            }
            struct ts3_link *first = ts3_list_pop(&loop->ready_queue[priority]);
            struct ts3_request *request = TS3_MEMBER(first, struct ts3_request, queue);
            enum ts3_err err = ts3_attempt_start(loop, request);
            if (err != TS3_OK)
                fail_local(loop, request, err, "the request cannot be sent");
        }
    }
}

void ts3_schedule_run(struct ts3_loop *loop)
{
    load_bodies(loop);
    start_ready(loop);
}

void ts3_schedule_body_done(struct ts3_loop *loop, struct ts3_request *request)
{
    ts3_body_done(&request->body);
    if (request->stage == TS3_STAGE_ENDING) {
        ts3_loop_end(loop, request, request->event.failed);
    } else if (request->stage == TS3_STAGE_WORK) {
        if (request->body.prepared) {
            make_ready(loop, request);
            return;
        }
        request->sent = false;
        ts3_value_body_fault(request);
        ts3_verdict_fault(loop, request);
    } else if (request->stage == TS3_STAGE_ACTIVE && request->body.error != TS3_OK) {
        ts3_verdict_attempt(loop, request, CURLE_OK);
    } else if (request->stage == TS3_STAGE_ACTIVE && request->paused) {
        request->paused = false;
        (void)curl_easy_pause(request->slot->easy, CURLPAUSE_CONT);
    }
}

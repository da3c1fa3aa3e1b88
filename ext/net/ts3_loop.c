/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_loop.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_loop.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "net/ts3_attempt.h"
#include "net/ts3_engine_priv.h"
#include "net/ts3_schedule.h"
#include "net/ts3_turn.h"
#include "net/ts3_verdict.h"

#define LOOP_EVENTS 64
#define LOOP_ENDED 64 /* requests that have ended before their events are told, at the most */
#define LOOP_LOOK_US 200 /* for so long is it known which idle sockets are readable */
#define LOOP_LONG_US 200 /* of turns that take longer, the processor time is looked at */
#define LOOP_SLICE_US 250 /* for so long are sockets worked on in one turn */
#define IDLE_US ((int64_t)TS3_SLOT_IDLE_S * 1000000)
#define LOOP_SLEEP_MS                                                                              \
    60000 /* the longest poll; there is nothing to do then, it only bounds the arithmetic */

/* --- making and freeing --- */

static int64_t real_us(void)
{
    const struct ts3_clock *clock = ts3_clock_system();
    return clock->mono_us(clock->ctx);
}

/* Of this thread; 0 where the system does not count it. */
static int64_t thread_cpu_us(void)
{
    struct timespec spent;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent) != 0)
        return 0;
    return (int64_t)spent.tv_sec * 1000000 + spent.tv_nsec / 1000;
}

static int on_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct ts3_loop *loop = arg;
    (void)multi;
    loop->curl_due_us = timeout_ms < 0 ? TS3_TIMER_NEVER : real_us() + (int64_t)timeout_ms * 1000;
    return 0;
}

static enum ts3_err init_multi(struct ts3_loop *loop)
{
    loop->multi = curl_multi_init();
    if (loop->multi == NULL)
        return TS3_ENOMEM;
    CURLMcode code = ts3_sockets_attach_multi(&loop->sockets, loop->multi);
    if (code == CURLM_OK)
        code = curl_multi_setopt(loop->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    if (code == CURLM_OK)
        code = curl_multi_setopt(loop->multi, CURLMOPT_TIMERDATA, loop);
    if (code == CURLM_OK)
        code = curl_multi_setopt(loop->multi, CURLMOPT_MAXCONNECTS, (long)loop->places);
    if (code == CURLM_OK)
        code = curl_multi_setopt(loop->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
                                 (long)loop->places * TS3_LOOP_CONNECTIONS);
    if (code == CURLM_OK)
        code = curl_multi_setopt(loop->multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
    return code == CURLM_OK ? TS3_OK : TS3_ENET;
}

static enum ts3_err init_poll(struct ts3_loop *loop)
{
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0)
        return TS3_EIO;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = loop->shared->wake_fd};
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->shared->wake_fd, &event) == 0 ? TS3_OK
                                                                                        : TS3_EIO;
}

static void init_plain(struct ts3_loop *loop, struct ts3_engine *engine)
{
    memset(loop, 0, sizeof *loop);
    loop->engine = engine;
    loop->alloc = engine->alloc;
    loop->clock = engine->clock;
    loop->site = &engine->site;
    loop->shared = engine->shared;
    loop->pool = &engine->pool;
    loop->places = engine->max_connections;
    loop->connect_ms = engine->connect_ms;
    loop->epoll_fd = -1;
    loop->curl_due_us = TS3_TIMER_NEVER;
    ts3_list_init(&loop->all);
    ts3_list_init(&loop->ended);
    ts3_list_init(&loop->waiting);
    for (int i = 0; i < TS3_PRIORITIES; i++) {
        ts3_list_init(&loop->body_queue[i]);
        ts3_list_init(&loop->ready_queue[i]);
    }
    ts3_timers_init(&loop->timers, loop->alloc);
    ts3_nap_init(&loop->nap);
    (void)snprintf(loop->region, sizeof loop->region, "%s", loop->site->region);
    ts3_retry_quota_init(&loop->quota, engine->retry_tokens);
    if (engine->given_rand != NULL)
        loop->rand = *engine->given_rand;
    else
        ts3_rand_system(&loop->rand, &loop->rand_state);
}

enum ts3_err ts3_loop_init(struct ts3_loop *loop, struct ts3_engine *engine)
{
    init_plain(loop, engine);
    enum ts3_err err = init_poll(loop);
    loop->counts_sent = curl_version_info(CURLVERSION_NOW)->version_num >= CURL_VERSION_BITS(8, 22, 0);
    ts3_sockets_init(&loop->sockets, loop->alloc, loop->epoll_fd, &loop->now_us);
    ts3_gather_init(&loop->gather, loop->alloc,
                    loop->site->tls ? curl_version_info(CURLVERSION_NOW)->ssl_version : NULL);
    if (err == TS3_OK)
        err = ts3_timers_reserve(&loop->timers, 1);
    if (err == TS3_OK)
        err = ts3_slots_init(&loop->slots, loop->alloc, loop->places, loop->site->origin);
    if (err == TS3_OK)
        err = ts3_signing_init(&loop->signing, loop->alloc, engine->digest, loop->site);
    if (err == TS3_OK)
        err = init_multi(loop);
    if (err != TS3_OK)
        ts3_loop_free(loop);
    return err;
}

static void free_curl(struct ts3_loop *loop)
{
    ts3_slots_free(&loop->slots, loop->alloc);
    if (loop->multi != NULL)
        (void)curl_multi_cleanup(loop->multi);
    loop->multi = NULL;
    ts3_gather_free(&loop->gather);
    ts3_sockets_free(&loop->sockets);
}

void ts3_loop_free(struct ts3_loop *loop)
{
    free_curl(loop);
    ts3_signing_free(&loop->signing);
    ts3_timers_free(&loop->timers);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    loop->epoll_fd = -1;
}

/* --- the stages of a request --- */

/* Of two limits, where 0 is none. */
static int64_t longer_us(uint32_t a_ms, uint32_t b_ms)
{
    return a_ms == 0 || b_ms == 0 ? 0 : (int64_t)(a_ms > b_ms ? a_ms : b_ms) * 1000;
}

static int64_t phase_limit_us(const struct ts3_loop *loop, const struct ts3_request *request)
{
    switch (request->phase) {
    case TS3_PHASE_CONNECT:
        return (int64_t)loop->connect_ms * 1000;
    case TS3_PHASE_WAIT:
        return (int64_t)request->first_byte_ms * 1000;
    case TS3_PHASE_RECEIVE:
        /* Services send the head of these at once, and the rest when the work is done. */
        if (request->parse == TS3_PARSE_COMPLETE || request->parse == TS3_PARSE_COPY)
            return longer_us(request->stall_ms, request->first_byte_ms);
        break;
    case TS3_PHASE_SEND:
        break;
    }
    return (int64_t)request->stall_ms * 1000;
}

/* In the middle of a body. */
static bool streams(const struct ts3_request *request)
{
    return request->phase == TS3_PHASE_SEND || request->phase == TS3_PHASE_RECEIVE;
}

static void set_phase(struct ts3_loop *loop, struct ts3_request *request, enum ts3_phase phase)
{
    loop->streaming -= streams(request);
    request->phase = phase;
    loop->streaming += streams(request);
}

void ts3_loop_no_phase(struct ts3_loop *loop, struct ts3_request *request)
{
    ts3_timers_clear(&loop->timers, &request->phase_alarm.timer);
    set_phase(loop, request, TS3_PHASE_CONNECT);
}

void ts3_loop_phase(struct ts3_loop *loop, struct ts3_request *request, enum ts3_phase phase)
{
    set_phase(loop, request, phase);
    request->progress_us = loop->now_us;
    request->unsent_bytes = -1;
    int64_t limit_us = phase_limit_us(loop, request);
    if (limit_us > 0)
        ts3_timers_set(&loop->timers, &request->phase_alarm.timer, loop->now_us + limit_us);
    else
        ts3_timers_clear(&loop->timers, &request->phase_alarm.timer);
}

void ts3_loop_again(struct ts3_loop *loop, struct ts3_request *request, int64_t delay_ms)
{
    if (delay_ms <= 0) {
        request->stage = TS3_STAGE_READY;
        ts3_list_push(&loop->ready_queue[request->priority], &request->queue);
        return;
    }
    request->stage = TS3_STAGE_BACKOFF;
    ts3_timers_set(&loop->timers, &request->phase_alarm.timer, loop->now_us + delay_ms * 1000);
}

/* Every event that is told by itself wakes the caller's thread, at a cost like a request's own;
 * telling of several at once keeps that off the loop. */
static void tell_ended(struct ts3_loop *loop)
{
    if (loop->ended_count == 0)
        return;
    loop->ended_count = 0;
    ts3_engine_finish(loop->engine, &loop->ended);
}

static void release(struct ts3_loop *loop, struct ts3_request *request)
{
    bool failed = request->event.failed;
    ts3_request_fill_event(request, failed, loop->now_us, atomic_load(&loop->skew_s));
    loop->body_bytes -= request->body_charge;
    ts3_request_let_go(request);
    ts3_list_remove(&request->all);
    loop->live--;
    request->stage = TS3_STAGE_ENDED;
    atomic_fetch_add(failed ? &loop->failed : &loop->succeeded, 1);
    ts3_list_push(&loop->ended, &request->queue);
    if (++loop->ended_count >= LOOP_ENDED)
        tell_ended(loop);
}

void ts3_loop_end(struct ts3_loop *loop, struct ts3_request *request, bool failed)
{
    ts3_timers_clear(&loop->timers, &request->phase_alarm.timer);
    ts3_timers_clear(&loop->timers, &request->deadline_alarm.timer);
    request->event.failed = failed;
    if (request->body.working && ts3_pool_withdraw(loop->pool, &request->body.job))
        request->body.working = false;
    if (request->body.working) {
        atomic_store(&request->body.job.stop, true);
        request->stage = TS3_STAGE_ENDING;
        return;
    }
    release(loop, request);
}

/* Ends a request early, in whatever stage it is. */
static void interrupt(struct ts3_loop *loop, struct ts3_request *request, enum ts3_kind kind,
                      enum ts3_transport transport, const char *why)
{
    if (request->stage == TS3_STAGE_ENDING || request->stage == TS3_STAGE_ENDED)
        return;
    /* What the last attempt ended in was judged already; what this one is ending in might be judged
     * as worth another, though this is the end. */
    memset(&request->fault, 0, sizeof request->fault);
    if (request->stage == TS3_STAGE_ACTIVE) {
        ts3_request_fault(request, kind, transport, true, "%s", why);
        ts3_verdict_attempt(loop, request, CURLE_OK);
        return;
    }
    ts3_list_remove(&request->queue);
    request->sent = false;
    ts3_request_fault(request, kind, transport, true, "%s", why);
    ts3_verdict_fault(loop, request);
}

/* --- timers --- */

/* Whether the kernel still gets rid of what libcurl gave it: then a slow line is no silence. */
static bool kernel_sends(struct ts3_request *request)
{
    int unsent = 0;
    if (request->slot->fd == CURL_SOCKET_BAD || ioctl(request->slot->fd, SIOCOUTQ, &unsent) != 0 ||
        unsent == 0)
        return false;
    bool moved = request->unsent_bytes < 0 || unsent != request->unsent_bytes;
    request->unsent_bytes = unsent;
    return moved;
}

static void on_silence(struct ts3_loop *loop, struct ts3_request *request)
{
    static const struct {
        enum ts3_transport transport;
        const char *text;
    } reasons[] = {
        [TS3_PHASE_CONNECT] = {TS3_TRANSPORT_CONNECT, "no connection in time"},
        [TS3_PHASE_SEND] = {TS3_TRANSPORT_STALL, "sending stalled"},
        [TS3_PHASE_WAIT] = {TS3_TRANSPORT_FIRST_BYTE, "no answer in time"},
        [TS3_PHASE_RECEIVE] = {TS3_TRANSPORT_STALL, "receiving stalled"},
    };
    if (request->half_closed && !request->answer.complete_head) {
        ts3_request_fault(request, TS3_KIND_TRANSPORT, TS3_TRANSPORT_SEND, false,
                          "the service closed the connection while the request was being sent");
        ts3_verdict_attempt(loop, request, CURLE_OK);
        return;
    }
    bool sending = request->phase == TS3_PHASE_SEND || request->phase == TS3_PHASE_WAIT;
    if (request->paused || ts3_turn_waits(request->slot) || (sending && kernel_sends(request)))
        request->progress_us = loop->now_us;
    int64_t due_us = request->progress_us + phase_limit_us(loop, request);
    if (due_us > loop->now_us) {
        ts3_timers_set(&loop->timers, &request->phase_alarm.timer, due_us);
        return;
    }
    ts3_request_fault(request, TS3_KIND_TIMEOUT, reasons[request->phase].transport, false, "%s",
                      reasons[request->phase].text);
    ts3_verdict_attempt(loop, request, CURLE_OK);
}

static void fire_timers(struct ts3_loop *loop)
{
    struct ts3_timer *timer;
    while ((timer = ts3_timers_pop(&loop->timers, loop->now_us)) != NULL) {
        if (timer == &loop->idle_timer) {
            ts3_sockets_expire(&loop->sockets, loop->now_us - IDLE_US);
            if (loop->live == 0)
                ts3_blocks_trim(&loop->shared->blocks, 0);
            continue;
        }
        struct ts3_alarm *alarm = TS3_MEMBER(timer, struct ts3_alarm, timer);
        struct ts3_request *request = alarm->request;
        if (alarm->deadline)
            interrupt(loop, request, TS3_KIND_TIMEOUT, TS3_TRANSPORT_DEADLINE,
                      "the deadline has passed");
        else if (request->stage == TS3_STAGE_BACKOFF)
            ts3_loop_again(loop, request, 0);
        else if (request->stage == TS3_STAGE_ACTIVE)
            on_silence(loop, request);
    }
}

/* --- a turn of the loop --- */

static void take_jobs(struct ts3_loop *loop)
{
    struct ts3_link done;
    struct ts3_link *link;
    ts3_list_init(&done);
    ts3_pool_take(loop->pool, &done);
    while ((link = ts3_list_pop(&done)) != NULL) {
        struct ts3_job *job = TS3_MEMBER(link, struct ts3_job, link);
        struct ts3_body *body = TS3_MEMBER(job, struct ts3_body, job);
        ts3_schedule_body_done(loop, TS3_MEMBER(body, struct ts3_request, body));
    }
}

static void end_all(struct ts3_loop *loop)
{
    struct ts3_link *link = loop->all.next;
    while (link != &loop->all) {
        struct ts3_request *request = TS3_MEMBER(link, struct ts3_request, all);
        link = link->next; /* ending takes this one out of the list, and no other */
        interrupt(loop, request, TS3_KIND_CLOSED, TS3_TRANSPORT_CANCELLED, "the engine was closed");
    }
}

static void take_posted(struct ts3_loop *loop)
{
    struct ts3_link inbox;
    struct ts3_link cancels;
    struct ts3_link *link;
    ts3_list_init(&inbox);
    ts3_list_init(&cancels);
    ts3_engine_collect(loop->engine, &inbox, &cancels, &loop->closing);
    loop->now_us = loop->clock->mono_us(loop->clock->ctx); /* not before these were submitted */
    while ((link = ts3_list_pop(&inbox)) != NULL)
        ts3_schedule_admit(loop, TS3_MEMBER(link, struct ts3_request, queue));
    while ((link = ts3_engine_next_cancel(loop->engine, &cancels)) != NULL)
        interrupt(loop, TS3_MEMBER(link, struct ts3_request, cancel), TS3_KIND_CANCELLED,
                  TS3_TRANSPORT_CANCELLED, "cancelled");
    take_jobs(loop);
    if (loop->closing)
        end_all(loop);
}

/* True when any has ended: then there is a place for another. */
static bool take_finished(struct ts3_loop *loop)
{
    CURLMsg *message;
    int left;
    bool any = false;
    while ((message = curl_multi_info_read(loop->multi, &left)) != NULL) {
        struct ts3_slot *slot = NULL;
        if (message->msg != CURLMSG_DONE)
            continue;
        CURLcode code = message->data.result;
        if (curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &slot) == CURLE_OK &&
            slot->request != NULL)
            ts3_verdict_attempt(loop, slot->request, code);
        any = true;
    }
    return any;
}

static int sleep_ms(const struct ts3_loop *loop, bool posted)
{
    if (posted)
        return 0;
    int64_t wait_us = (int64_t)LOOP_SLEEP_MS * 1000;
    if (loop->curl_due_us != TS3_TIMER_NEVER) {
        int64_t left_us = loop->curl_due_us - real_us();
        wait_us = left_us < wait_us ? left_us : wait_us;
    }
    int64_t next_us = ts3_timers_next_us(&loop->timers);
    if (next_us != TS3_TIMER_NEVER) {
        int64_t left_us = next_us - loop->clock->mono_us(loop->clock->ctx);
        wait_us = left_us < wait_us ? left_us : wait_us;
    }
    return wait_us <= 0 ? 0 : (int)((wait_us + 999) / 1000);
}

/* Idle connections that have something to say first: libcurl may start a transfer on one while it
 * works on another socket of the same turn. */
static void drop_stale(struct ts3_loop *loop, struct epoll_event *events, int count)
{
    if (loop->sockets.idle_count == 0)
        return;
    for (int i = 0; i < count; i++)
        if (ts3_sockets_readable(&loop->sockets, events[i].data.fd))
            events[i].data.fd = loop->shared->wake_fd; /* done with */
}

/* Not all of them where that would take long: what is left is told again by the next poll, behind
 * those that were not, and in between there is time for what was posted and for timers. */
static void act(struct ts3_loop *loop, const struct epoll_event *events, int count,
                int64_t until_us)
{
    int running;
    for (int i = 0; i < count && (i == 0 || real_us() < until_us); i++) {
        uint32_t what = events[i].events;
        int bits = (what & EPOLLIN ? CURL_CSELECT_IN : 0) |
                   (what & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (what & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
        if (events[i].data.fd != loop->shared->wake_fd)
            (void)curl_multi_socket_action(loop->multi, events[i].data.fd, bits, &running);
        if ((i + 1) % LOOP_ENDED == 0 && take_finished(loop))
            tell_ended(loop); /* the caller can go on while the rest is being looked at */
    }
}

/* libcurl tells of its timer only when the time changes, and may find that it is not due yet by
 * its own clock (it counts in milliseconds): then the same time stays without being told again, so
 * it is asked for.  Each of these calls takes all transfers further that want it, a large
 * answer by up to 100 pieces (7.88), so a turn that has been long already leaves it to the next. */
static void run_curl_timer(struct ts3_loop *loop, int64_t until_us)
{
    int running;
    long left_ms = -1;
    int64_t now_us = real_us();
    if (loop->curl_due_us == TS3_TIMER_NEVER || loop->curl_due_us > now_us || now_us >= until_us)
        return;
    loop->curl_due_us = TS3_TIMER_NEVER;
    (void)curl_multi_socket_action(loop->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    if (loop->curl_due_us == TS3_TIMER_NEVER &&
        curl_multi_timeout(loop->multi, &left_ms) == CURLM_OK && left_ms >= 0)
        loop->curl_due_us = real_us() + (left_ms > 0 ? (int64_t)left_ms * 1000 : 1000);
}

/* The epoll set told at the turn's beginning which idle sockets are readable; in a long turn that is
 * no longer fresh. */
void ts3_loop_look(struct ts3_loop *loop)
{
    int64_t now_us = real_us();
    if (now_us - loop->looked_us < LOOP_LOOK_US)
        return;
    ts3_sockets_sweep(&loop->sockets);
    loop->looked_us = now_us;
}

/* The processor's clock costs a system call, so a short turn is counted with its time by the other
 * clock, which it cannot exceed.  The difference to the last time it was read is that of all turns
 * since. */
static void count_turn(struct ts3_loop *loop, int64_t busy_us)
{
    int64_t cpu_us = busy_us;
    ts3_hist_add(&loop->busy, (uint64_t)busy_us);
    if (busy_us >= LOOP_LONG_US) {
        int64_t now_us = thread_cpu_us();
        if (now_us - loop->cpu_us < busy_us)
            cpu_us = now_us - loop->cpu_us;
        loop->cpu_us = now_us;
    }
    ts3_hist_add(&loop->cpu, (uint64_t)cpu_us);
}

/* 0 where the time is over, or something was posted. */
static int look(struct ts3_loop *loop, struct epoll_event *events, int64_t until_us)
{
    int count;
    do {
        ts3_nap_let_others(&loop->nap);
        count = epoll_wait(loop->epoll_fd, events, LOOP_EVENTS, 0);
    } while (count == 0 && !atomic_load(&loop->shared->posted) && real_us() < until_us);
    return count;
}

/* What the epoll set tells, and when. */
static int await_events(struct ts3_loop *loop, struct epoll_event *events, int64_t *now_us)
{
    int64_t begun_us = real_us();
    bool quiet = loop->active <= 1 && loop->streaming == 0;
    int64_t awake_us = ts3_nap_awake_us(&loop->nap, quiet);
    int count = awake_us > 0 ? look(loop, events, begun_us + awake_us) : 0;
    if (count == 0) {
        bool posted = ts3_shared_sleep(loop->shared);
        count =
            epoll_wait(loop->epoll_fd, events, LOOP_EVENTS, sleep_ms(loop, posted || loop->hurry));
    }
    *now_us = real_us();
    ts3_nap_note(&loop->nap, quiet, *now_us - begun_us);
    return count > 0 ? count : 0; /* EINTR; there is no other reason for this descriptor */
}

static void turn(struct ts3_loop *loop)
{
    struct epoll_event events[LOOP_EVENTS];
    int64_t begun_us;
    int count = await_events(loop, events, &begun_us);
    bool posted = ts3_shared_awake(loop->shared);
    loop->now_us = loop->clock->mono_us(loop->clock->ctx);
    loop->looked_us = count < LOOP_EVENTS ? begun_us : begun_us - LOOP_LOOK_US;
    int64_t until_us = begun_us + LOOP_SLICE_US;
    loop->turn++;
    ts3_shared_clear(loop->shared, false);
    drop_stale(loop, events, count);
    if (posted) {
        take_posted(loop);
        tell_ended(loop); /* what was cancelled, before sockets take their time */
    }
    bool some_wait = !ts3_list_empty(&loop->waiting);
    act(loop, events, count, some_wait ? until_us - LOOP_SLICE_US / 2 : until_us);
    if (some_wait)
        ts3_turn_go_on(loop, until_us);
    run_curl_timer(loop, until_us);
    (void)take_finished(loop);
    tell_ended(loop);
    fire_timers(loop);
    loop->hurry = false;
    ts3_schedule_run(loop);
    uint32_t connecting = loop->connecting;
    run_curl_timer(loop, until_us); /* what was started goes out now, not a poll later */
    bool room = take_finished(loop) || loop->connecting < connecting;
    tell_ended(loop);
    loop->hurry = ((loop->hurry || room) && ts3_schedule_waits(loop)) ||
                  !ts3_list_empty(&loop->waiting);
    if (loop->sockets.idle_count > 0 && loop->idle_timer.slot == 0)
        ts3_timers_set(&loop->timers, &loop->idle_timer, loop->now_us + IDLE_US);
    count_turn(loop, real_us() - begun_us);
}

void *ts3_loop_main(void *arg)
{
    struct ts3_loop *loop = arg;
    while (!loop->closing || loop->live > 0)
        turn(loop);
    ts3_shared_clear(loop->shared, true);
    free_curl(loop); /* here, where SIGPIPE is blocked: closing TLS connections writes */
    return NULL;
}

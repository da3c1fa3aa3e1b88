/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The callers' side of an engine.  See ts3_engine.h and ts3_engine_priv.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_engine_priv.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#if LIBCURL_VERSION_NUM < TS3_ENGINE_LIBCURL_NUM
#error "libcurl 7.87.0 or later is needed (for CURLOPT_QUICK_EXIT)"
#endif

/* --- making --- */

static enum ts3_err refuse(char *why, size_t why_size, const char *text)
{
    if (why != NULL && why_size > 0)
        (void)snprintf(why, why_size, "%s", text);
    return TS3_EINVAL;
}

static enum ts3_err check_config(const struct ts3_engine_config *config, char *why, size_t why_size)
{
    if (config->max_connections < 1 || config->max_connections > 1024)
        return refuse(why, why_size, "the number of connections is not between 1 and 1024");
    if (config->max_queue < 1 || config->max_queue > 1000000)
        return refuse(why, why_size, "the length of the queue is not between 1 and 1000000");
    if (config->workers < 1 || config->workers > TS3_POOL_WORKERS)
        return refuse(why, why_size, "the number of workers is not between 1 and 16");
    if (config->buffer_budget_bytes == 0)
        return refuse(why, why_size, "the byte budget is zero");
    if (curl_version_info(CURLVERSION_NOW)->version_num < TS3_ENGINE_LIBCURL_NUM)
        return refuse(why, why_size,
                      "the libcurl on this system is older than " TS3_ENGINE_LIBCURL_TEXT);
    return TS3_OK;
}

static void take_config(struct ts3_engine *engine, const struct ts3_engine_config *config)
{
    engine->given_rand = config->rand;
    engine->clock = config->clock ? config->clock : ts3_clock_system();
    engine->sign_payload = config->sign_payload;
    engine->max_connections = config->max_connections;
    engine->connect_ms = config->connect_ms ? config->connect_ms : 10000;
    engine->workers = config->workers;
    engine->retry_tokens =
        config->retry_tokens ? (int)config->retry_tokens : TS3_RETRY_QUOTA_TOKENS;
    engine->max_open = (size_t)config->max_queue + config->max_connections;
    engine->next_id = 1;
    ts3_list_init(&engine->inbox);
    ts3_list_init(&engine->cancels);
    ts3_list_init(&engine->events);
}

/* The parts that must be undone one by one; each label undoes what was made before it. */
static enum ts3_err make_parts(struct ts3_engine *engine, const struct ts3_engine_config *config,
                               char *why, size_t why_size)
{
    enum ts3_err err = ts3_site_init(&engine->site, engine->alloc, config, why, why_size);
    if (err != TS3_OK)
        return err;
    err = ts3_shared_new(engine->alloc, config->buffer_budget_bytes, &engine->shared);
    if (err != TS3_OK)
        goto no_shared;
    err = ts3_digest_new(engine->alloc, &engine->digest);
    if (err != TS3_OK)
        goto no_digest;
    err = ts3_pool_init(&engine->pool, engine->shared);
    if (err != TS3_OK)
        goto no_pool;
    err = TS3_EIO;
    engine->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->event_fd < 0)
        goto no_event_fd;
    if (pthread_mutex_init(&engine->mutex, NULL) != 0)
        goto no_mutex;
    if (pthread_mutex_init(&engine->joining, NULL) != 0)
        goto no_joining;
    if (pthread_mutex_init(&engine->signing_mutex, NULL) != 0)
        goto no_signing_mutex;
    err = ts3_signing_init(&engine->signing, engine->alloc, engine->digest, &engine->site);
    if (err == TS3_OK)
        err = ts3_loop_init(&engine->loop, engine);
    if (err == TS3_OK)
        return TS3_OK;
    ts3_signing_free(&engine->signing);
    pthread_mutex_destroy(&engine->signing_mutex);
no_signing_mutex:
    pthread_mutex_destroy(&engine->joining);
no_joining:
    pthread_mutex_destroy(&engine->mutex);
no_mutex:
    close(engine->event_fd);
no_event_fd:
    ts3_pool_free(&engine->pool);
no_pool:
    ts3_digest_free(engine->digest);
no_digest:
    ts3_shared_unref(engine->shared);
no_shared:
    ts3_site_free(&engine->site);
    return err;
}

enum ts3_err ts3_engine_new(const struct ts3_engine_config *config, struct ts3_engine **engine,
                            char *why, size_t why_size)
{
    if (why != NULL && why_size > 0)
        why[0] = '\0';
    enum ts3_err err = check_config(config, why, why_size);
    if (err != TS3_OK)
        return err;
    const struct ts3_alloc *alloc = config->alloc ? config->alloc : ts3_alloc_libc();
    struct ts3_engine *made = ts3_alloc_zero(alloc, 1, sizeof *made);
    if (made == NULL)
        return TS3_ENOMEM;
    made->alloc = alloc;
    take_config(made, config);
    ts3_creds_init(&made->creds, alloc);
    atomic_init(&made->creds_version, 0);
    err = make_parts(made, config, why, why_size);
    if (err != TS3_OK) {
        ts3_alloc_free(alloc, made);
        return err;
    }
    *engine = made;
    return TS3_OK;
}

/* --- credentials --- */

static bool token_is_sound(const char *token)
{
    for (; *token != '\0'; token++)
        if ((unsigned char)*token < ' ' || *token == 127)
            return false;
    return true;
}

enum ts3_err ts3_engine_set_credentials(struct ts3_engine *engine, const char *access_key_id,
                                        const void *secret, size_t secret_size, const char *token)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    const char *text = token ? token : "";
    if (access_key_id[0] == '\0' || secret_size == 0 || !token_is_sound(text))
        return TS3_EINVAL;
    struct ts3_creds fresh;
    ts3_creds_init(&fresh, engine->alloc);
    enum ts3_err err = ts3_creds_set(&fresh, ts3_str_of(access_key_id),
                                     (struct ts3_str){secret, secret_size}, ts3_str_of(text));
    if (err == TS3_OK) {
        pthread_mutex_lock(&engine->mutex);
        struct ts3_creds old = engine->creds;
        fresh.version = old.version + 1;
        engine->creds = fresh;
        atomic_store(&engine->creds_version, fresh.version);
        pthread_mutex_unlock(&engine->mutex);
        fresh = old;
    }
    ts3_creds_free(&fresh);
    return err;
}

enum ts3_err ts3_engine_refresh_creds(struct ts3_engine *engine, struct ts3_creds *creds)
{
    enum ts3_err err = TS3_OK;
    /* This is once for each attempt, and who submits wants the mutex all the time. */
    if (creds->version == atomic_load(&engine->creds_version))
        return TS3_OK;
    pthread_mutex_lock(&engine->mutex);
    if (creds->version != engine->creds.version)
        err = ts3_creds_copy(creds, &engine->creds);
    pthread_mutex_unlock(&engine->mutex);
    return err;
}

/* --- requests --- */

/* All signals blocked in the threads: they are for the program's own. */
static enum ts3_err start_threads(struct ts3_engine *engine)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    int failed = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (failed != 0) {
        errno = failed;
        return TS3_EIO;
    }
    enum ts3_err err = ts3_pool_start(&engine->pool, engine->workers);
    if (err == TS3_OK) {
        failed = pthread_create(&engine->thread, NULL, ts3_loop_main, &engine->loop);
        if (failed != 0) {
            ts3_pool_stop(&engine->pool);
            engine->pool.quitting = false;
            err = TS3_EIO;
        } else {
            (void)pthread_setname_np(engine->thread, "tahoe-s3");
        }
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0)
        errno = failed;
    return err;
}

static struct ts3_request **table_place(struct ts3_engine *engine, uint64_t id)
{
    struct ts3_request **place = &engine->table[id % TS3_TABLE_BUCKETS];
    while (*place != NULL && (*place)->id != id)
        place = &(*place)->next_in_table;
    return place;
}

/* Under the mutex. */
static enum ts3_err enqueue(struct ts3_engine *engine, struct ts3_request *request)
{
    if (engine->closing)
        return TS3_ECLOSED;
    if (engine->creds.version == 0)
        return TS3_EINVAL;
    if (engine->open >= engine->max_open)
        return TS3_EFULL;
    if (!engine->started) {
        enum ts3_err err = start_threads(engine);
        if (err != TS3_OK)
            return err;
        engine->started = true;
    }
    request->id = engine->next_id++;
    request->submitted_us = engine->clock->mono_us(engine->clock->ctx);
    request->next_in_table = engine->table[request->id % TS3_TABLE_BUCKETS];
    engine->table[request->id % TS3_TABLE_BUCKETS] = request;
    ts3_list_push(&engine->inbox, &request->queue);
    engine->open++;
    engine->unfinished++;
    engine->submitted[request->method]++;
    return TS3_OK;
}

/* Of a request without a body (ts3_signing.h).  Whoever else submits at this moment leaves it to the
 * loop. */
static void sign_early(struct ts3_engine *engine, struct ts3_request *request)
{
    struct ts3_loop *loop = &engine->loop;
    bool ready = request->body.kind == TS3_BODY_NONE && request->body.prepared;
    if (!ready || pthread_mutex_trylock(&engine->signing_mutex) != 0)
        return;
    bool adopted = atomic_load(&loop->region_adopted);
    struct ts3_moment moment = {engine->clock->wall_s(engine->clock->ctx),
                                atomic_load(&loop->skew_s),
                                adopted ? loop->region : engine->site.region};
    if (ts3_engine_refresh_creds(engine, &engine->signing.creds) == TS3_OK)
        ts3_signing_early(&engine->signing, request, &moment);
    pthread_mutex_unlock(&engine->signing_mutex);
}

enum ts3_err ts3_engine_submit(struct ts3_engine *engine, const struct ts3_request_spec *spec,
                               uint64_t *id)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    struct ts3_request *request = NULL;
    enum ts3_err err = ts3_request_new(engine->alloc, engine->shared, &engine->site, engine->digest,
                                       engine->sign_payload, spec, &request);
    if (err != TS3_OK)
        return err;
    sign_early(engine, request);
    pthread_mutex_lock(&engine->mutex);
    err = enqueue(engine, request);
    if (err == TS3_OK)
        *id = request->id; /* the request may be gone as soon as the mutex is free */
    pthread_mutex_unlock(&engine->mutex);
    if (err != TS3_OK) {
        int number = errno;
        ts3_request_free(request);
        errno = number;
        return err;
    }
    ts3_shared_wake(engine->shared);
    return TS3_OK;
}

enum ts3_err ts3_engine_cancel(struct ts3_engine *engine, uint64_t id)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    pthread_mutex_lock(&engine->mutex);
    struct ts3_request *request = *table_place(engine, id);
    if (request != NULL && !ts3_link_used(&request->cancel))
        ts3_list_push(&engine->cancels, &request->cancel);
    pthread_mutex_unlock(&engine->mutex);
    if (request != NULL)
        ts3_shared_wake(engine->shared);
    return TS3_OK;
}

void ts3_engine_collect(struct ts3_engine *engine, struct ts3_link *inbox, struct ts3_link *cancels,
                        bool *closing)
{
    pthread_mutex_lock(&engine->mutex);
    ts3_list_move(inbox, &engine->inbox);
    ts3_list_move(cancels, &engine->cancels);
    *closing = engine->closing;
    pthread_mutex_unlock(&engine->mutex);
}

struct ts3_link *ts3_engine_next_cancel(struct ts3_engine *engine, struct ts3_link *cancels)
{
    if (ts3_list_empty(cancels))
        return NULL;
    pthread_mutex_lock(&engine->mutex);
    struct ts3_link *link = ts3_list_pop(cancels);
    pthread_mutex_unlock(&engine->mutex);
    return link;
}

/* --- events --- */

static void signal_events(const struct ts3_engine *engine)
{
    uint64_t one = 1;
    while (write(engine->event_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

/* Under the mutex.  A signal that is still on its way is taken back the next time. */
static void unsignal_events(struct ts3_engine *engine)
{
    uint64_t count = 0;
    while (read(engine->event_fd, &count, sizeof count) < 0 && errno == EINTR)
        continue;
    engine->signals -= count;
}

/* Under the mutex.  Returns whether the caller has to signal, once the mutex is free: who is woken
 * would only run into it, and be put to sleep again. */
static bool add_event(struct ts3_engine *engine, struct ts3_note *note)
{
    bool was_empty = ts3_list_empty(&engine->events);
    ts3_list_push(&engine->events, &note->link);
    engine->undrained++;
    engine->signals += was_empty;
    return was_empty;
}

void ts3_engine_tell(struct ts3_engine *engine, struct ts3_request *request)
{
    bool signals = false;
    pthread_mutex_lock(&engine->mutex);
    /* An event that says "more is ready" and was not drained yet says it for this time too. */
    if (!ts3_link_used(&request->armed_note.link))
        signals = add_event(engine, &request->armed_note);
    pthread_mutex_unlock(&engine->mutex);
    if (signals)
        signal_events(engine);
}

void ts3_engine_finish(struct ts3_engine *engine, struct ts3_link *ended)
{
    bool signals = false;
    struct ts3_link *link;
    pthread_mutex_lock(&engine->mutex);
    while ((link = ts3_list_pop(ended)) != NULL) {
        struct ts3_request *request = TS3_MEMBER(link, struct ts3_request, queue);
        signals |= add_event(engine, &request->final_note);
        *table_place(engine, request->id) = request->next_in_table;
        /* wherever it is: also in the list the loop is working on */
        ts3_list_remove(&request->cancel);
        engine->unfinished--;
    }
    pthread_mutex_unlock(&engine->mutex);
    /* The events may have been drained by now; then the descriptor is readable once for nothing. */
    if (signals)
        signal_events(engine);
}

static void take_note(struct ts3_engine *engine, struct ts3_note *note, struct ts3_event *event)
{
    struct ts3_request *request = note->request;
    engine->undrained--;
    if (note->final) {
        engine->open--;
        *event = request->event;
        return;
    }
    memset(event, 0, sizeof *event);
    event->id = request->id;
    event->user = request->user;
}

size_t ts3_engine_drain(struct ts3_engine *engine, struct ts3_event *events, size_t max)
{
    if (ts3_shared_forked(engine->shared))
        return 0;
    size_t count = 0;
    pthread_mutex_lock(&engine->mutex);
    while (count < max) {
        struct ts3_link *link = ts3_list_pop(&engine->events);
        if (link == NULL)
            break;
        take_note(engine, TS3_MEMBER(link, struct ts3_note, link), &events[count++]);
    }
    if (engine->signals > 0 && ts3_list_empty(&engine->events))
        unsignal_events(engine);
    pthread_mutex_unlock(&engine->mutex);
    return count;
}

int ts3_engine_fd(const struct ts3_engine *engine)
{
    return ts3_shared_forked(engine->shared) ? -1 : engine->event_fd;
}

enum ts3_err ts3_engine_stats(struct ts3_engine *engine, struct ts3_engine_stats *stats)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    struct ts3_loop *loop = &engine->loop;
    memset(stats, 0, sizeof *stats);
    stats->attempts = atomic_load(&loop->attempts);
    stats->retries = atomic_load(&loop->retries);
    stats->succeeded = atomic_load(&loop->succeeded);
    stats->failed = atomic_load(&loop->failed);
    stats->retries_denied = atomic_load(&loop->retries_denied);
    stats->bytes_up = atomic_load(&loop->bytes_up);
    stats->bytes_down = atomic_load(&loop->bytes_down);
    stats->connections_opened = atomic_load(&loop->sockets.opened_total);
    stats->connections_open = atomic_load(&loop->sockets.open_now);
    stats->connections_dropped_stale = atomic_load(&loop->sockets.stale_total);
    stats->in_flight = atomic_load(&loop->in_flight);
    stats->budget_used_bytes = atomic_load(&engine->shared->used_bytes);
    stats->budget_bytes = engine->shared->limit_bytes;
    struct ts3_hist_summary busy = ts3_hist_take(&loop->busy);
    stats->loop_turns = busy.count;
    stats->loop_p999_us = busy.p999_us;
    stats->loop_max_us = busy.max_us;
    struct ts3_hist_summary cpu = ts3_hist_take(&loop->cpu);
    stats->loop_cpu_p999_us = cpu.p999_us;
    stats->loop_cpu_max_us = cpu.max_us;
    stats->skew_s = atomic_load(&loop->skew_s);
    stats->skew_adopted = atomic_load(&loop->skew_adopted);
    const char *region = atomic_load(&loop->region_adopted) ? loop->region : loop->site->region;
    (void)snprintf(stats->region, sizeof stats->region, "%s", region);
    pthread_mutex_lock(&engine->mutex);
    memcpy(stats->requests, engine->submitted, sizeof stats->requests);
    uint64_t unfinished = engine->unfinished;
    stats->undrained = engine->undrained;
    pthread_mutex_unlock(&engine->mutex);
    stats->queued = unfinished > stats->in_flight ? unfinished - stats->in_flight : 0;
    return TS3_OK;
}

enum ts3_err ts3_engine_wake(struct ts3_engine *engine)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    ts3_shared_wake(engine->shared);
    return TS3_OK;
}

enum ts3_err ts3_window_new(struct ts3_engine *engine, size_t size_bytes,
                            struct ts3_window **window)
{
    return ts3_window_new_over(engine, NULL, size_bytes, window);
}

enum ts3_err ts3_window_new_over(struct ts3_engine *engine, void *memory, size_t size_bytes,
                                 struct ts3_window **window)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    pthread_mutex_lock(&engine->mutex);
    bool closing = engine->closing;
    pthread_mutex_unlock(&engine->mutex);
    return closing ? TS3_ECLOSED : ts3_window_make(engine->shared, memory, size_bytes, window);
}

/* --- the end --- */

enum ts3_err ts3_engine_close(struct ts3_engine *engine)
{
    if (ts3_shared_forked(engine->shared))
        return TS3_EFORKED;
    pthread_mutex_lock(&engine->mutex);
    engine->closing = true;
    bool started = engine->started; /* and from here on nobody starts threads */
    pthread_mutex_unlock(&engine->mutex);
    pthread_mutex_lock(&engine->joining);
    if (started && !engine->joined) {
        ts3_shared_wake(engine->shared);
        pthread_join(engine->thread, NULL);
        ts3_pool_stop(&engine->pool);
        engine->joined = true;
    }
    pthread_mutex_unlock(&engine->joining);
    return TS3_OK;
}

void ts3_engine_free(struct ts3_engine *engine)
{
    if (engine == NULL || ts3_shared_forked(engine->shared))
        return;
    (void)ts3_engine_close(engine);
    struct ts3_event event;
    while (ts3_engine_drain(engine, &event, 1) == 1)
        ts3_event_clear(&event);
    ts3_loop_free(&engine->loop);
    ts3_signing_free(&engine->signing);
    ts3_creds_free(&engine->creds);
    pthread_mutex_destroy(&engine->signing_mutex);
    pthread_mutex_destroy(&engine->joining);
    pthread_mutex_destroy(&engine->mutex);
    close(engine->event_fd);
    ts3_pool_free(&engine->pool);
    ts3_digest_free(engine->digest);
    ts3_site_free(&engine->site);
    struct ts3_shared *shared = engine->shared;
    ts3_alloc_free(engine->alloc, engine);
    ts3_shared_unref(shared);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_worker.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_worker.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#include "core/ts3_time.h"

#define LONG_KEPT_US 1000 /* longer than a turn of a loop's */
#define TAKEN_BACK_US 500

enum ts3_err ts3_pool_init(struct ts3_pool *pool, struct ts3_shared *shared)
{
    memset(pool, 0, sizeof *pool);
    pool->shared = shared;
    ts3_list_init(&pool->todo);
    ts3_list_init(&pool->done);
    int failed = pthread_mutex_init(&pool->mutex, NULL);
    if (failed == 0) {
        failed = pthread_cond_init(&pool->work, NULL);
        if (failed != 0)
            pthread_mutex_destroy(&pool->mutex);
    }
    if (failed != 0) {
        errno = failed;
        return TS3_EIO;
    }
    return TS3_OK;
}

/* Under the mutex. Where it goes on from: before all others, but for urgent ones, of which it is
 * none. */
static void put_back(struct ts3_pool *pool, struct ts3_job *job)
{
    struct ts3_link *place = pool->todo.next;
    while (!job->urgent && place != &pool->todo &&
           TS3_MEMBER(place, struct ts3_job, link)->urgent)
        place = place->next;
    job->waiting = true;
    ts3_list_push(place, &job->link);
}

/* A worker has always something to do, and what it takes from a loop or a program that want the
 * same core, it would take for a whole tick of the kernel's (4 ms and more), while all transfers
 * stand still.  Who kept it for so long that it was no turn of a loop's, a program that computes
 * without end for one, gets nothing for a while: it would else have twenty parts in one.  A loop
 * that comes meanwhile waits that long. */
static void let_others(struct ts3_pool *pool, int64_t *not_before_us)
{
    const struct ts3_clock *clock = ts3_clock_system();
    int64_t begun_us = clock->mono_us(clock->ctx);
    if (begun_us < *not_before_us)
        return;
    pthread_mutex_unlock(&pool->mutex);
    (void)sched_yield();
    int64_t ended_us = clock->mono_us(clock->ctx);
    if (ended_us - begun_us >= LONG_KEPT_US)
        *not_before_us = ended_us + TAKEN_BACK_US;
    pthread_mutex_lock(&pool->mutex);
}

/* Under the mutex. */
static void wake_one(struct ts3_pool *pool)
{
    if (pool->idle == 0)
        return;
    pool->idle--;
    pool->woken++;
    pthread_cond_signal(&pool->work);
}

static void wait_for_work(struct ts3_pool *pool)
{
    pool->idle++;
    while (pool->woken == 0 && !pool->quitting)
        pthread_cond_wait(&pool->work, &pool->mutex);
    if (pool->woken > 0)
        pool->woken--;
    else
        pool->idle--;
}

/* What a worker has in its hands. */
struct hand {
    struct ts3_job *job[TS3_POOL_TOGETHER];
    size_t count;
    size_t places; /* how many of the pool's are this worker's */
};

/* Jobs that began in step would end in step, all of them to be sent at once, with nobody at work
 * meanwhile on what comes behind: one that is new waits until the one before is a part ahead. */
static bool may_join(const struct ts3_job *last, const struct ts3_job *next)
{
    if (next->run_together != last->run_together || next->may_block != last->may_block)
        return false;
    return next->taken > 0 || (uint64_t)last->taken * TS3_POOL_TOGETHER >= last->steps;
}

/* Under the mutex. The jobs to advance next: the first that waits, and if it is of that kind, those
 * right behind it that go together with it. */
static void take_up(struct ts3_pool *pool, struct hand *hand)
{
    pool->places -= hand->places;
    hand->places = 0;
    hand->count = 0;
    while (hand->count < TS3_POOL_TOGETHER && !ts3_list_empty(&pool->todo)) {
        struct ts3_job *next = TS3_MEMBER(pool->todo.next, struct ts3_job, link);
        if (hand->count > 0 && !may_join(hand->job[hand->count - 1], next))
            break;
        ts3_list_remove(&next->link);
        next->waiting = false;
        hand->job[hand->count++] = next;
        if (next->run_together == NULL)
            break;
        hand->places = next->may_block ? 0 : TS3_POOL_PLACES;
    }
    pool->places += hand->places;
    if (!ts3_list_empty(&pool->todo) && pool->together > pool->places)
        wake_one(pool);
}

static void advance(const struct hand *hand, bool *more)
{
    if (hand->job[0]->run_together != NULL) {
        hand->job[0]->run_together(hand->job, hand->count, more);
        for (size_t i = 0; i < hand->count; i++)
            hand->job[i]->taken++;
    } else {
        more[0] = hand->job[0]->run(hand->job[0]);
    }
}

/* Under the mutex. True when one of the jobs goes on. */
static bool lay_down(struct ts3_pool *pool, const struct hand *hand, const bool *more)
{
    bool goes_on = false;
    for (size_t i = hand->count; i-- > 0;) { /* so that they stand as they stood */
        if (more[i]) {
            put_back(pool, hand->job[i]);
            goes_on = true;
        } else {
            pool->together -= hand->job[i]->run_together != NULL;
            ts3_list_push(&pool->done, &hand->job[i]->link);
            ts3_shared_wake(pool->shared);
        }
    }
    return goes_on;
}

static void *worker_main(void *arg)
{
    struct ts3_pool *pool = arg;
    struct hand hand = {.count = 0};
    int64_t not_before_us = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        take_up(pool, &hand);
        if (hand.count == 0) {
            if (pool->quitting)
                break;
            wait_for_work(pool);
            continue;
        }
        pthread_mutex_unlock(&pool->mutex);
        bool more[TS3_POOL_TOGETHER];
        advance(&hand, more);
        pthread_mutex_lock(&pool->mutex);
        if (lay_down(pool, &hand, more))
            let_others(pool, &not_before_us);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

enum ts3_err ts3_pool_start(struct ts3_pool *pool, uint32_t threads)
{
    if (threads == 0 || threads > TS3_POOL_WORKERS)
        return TS3_EINVAL;
    while (pool->threads < threads) {
        int failed = pthread_create(&pool->thread[pool->threads], NULL, worker_main, pool);
        if (failed != 0) {
            ts3_pool_stop(pool);
            pool->quitting = false;
            errno = failed;
            return TS3_EIO;
        }
        pool->threads++;
    }
    return TS3_OK;
}

void ts3_pool_submit(struct ts3_pool *pool, struct ts3_job *job, bool urgent)
{
    pthread_mutex_lock(&pool->mutex);
    job->waiting = true;
    job->urgent = urgent;
    if (urgent)
        ts3_list_push_front(&pool->todo, &job->link);
    else
        ts3_list_push(&pool->todo, &job->link);
    pool->together += job->run_together != NULL;
    if (urgent || job->run_together == NULL || job->may_block || pool->together > pool->places)
        wake_one(pool);
    pthread_mutex_unlock(&pool->mutex);
}

bool ts3_pool_withdraw(struct ts3_pool *pool, struct ts3_job *job)
{
    pthread_mutex_lock(&pool->mutex);
    bool waiting = job->waiting;
    if (waiting) {
        ts3_list_remove(&job->link);
        pool->together -= job->run_together != NULL;
    }
    job->waiting = false;
    pthread_mutex_unlock(&pool->mutex);
    return waiting;
}

void ts3_pool_take(struct ts3_pool *pool, struct ts3_link *list)
{
    pthread_mutex_lock(&pool->mutex);
    ts3_list_move(list, &pool->done);
    pthread_mutex_unlock(&pool->mutex);
}

void ts3_pool_stop(struct ts3_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pool->quitting = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (; pool->threads > 0; pool->threads--)
        pthread_join(pool->thread[pool->threads - 1], NULL);
}

void ts3_pool_free(struct ts3_pool *pool)
{
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
}

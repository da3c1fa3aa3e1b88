/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A few threads that do what the loop must not wait for: reading files and hashing, in steps.
 * Jobs that gain by it are advanced side by side by one worker, and those that never wait for a disk
 * wake a second one only when there are many: a second core for them is taken from who sends.
 * Between two steps of a job a worker lets others have the core, and an urgent job goes first;
 * the job can be withdrawn then, so that a worker that is not given the core holds up nobody.
 * Owner: the engine.  Thread: submit and take are the loop's; a job's data belongs to the worker
 *   between submit and its return by take, and to the loop otherwise (the pool's lock orders the
 *   two).  stop may be set at any time.
 * Lock: one mutex, for the two lists.  Errors: TS3_EIO from start (errno says why).  Limits: jobs
 *   are queued without allocation; how many there can be is the caller's matter. */
#ifndef TS3_WORKER_H
#define TS3_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ts3_err.h"
#include "net/ts3_list.h"
#include "net/ts3_shared.h"

#define TS3_POOL_WORKERS 16
/* so many jobs, at most, a worker advances with one call, where they gain by it */
#define TS3_POOL_TOGETHER 3
/* and so many can wait for one worker before another one is woken */
#define TS3_POOL_PLACES (2 * TS3_POOL_TOGETHER)

struct ts3_job {
    struct ts3_link link;
    bool (*run)(struct ts3_job *job); /* one step; true: there is more to do */
    /* NULL, or in place of run: one step of each of up to TS3_POOL_TOGETHER jobs that have the same
     * function here and the same may_block; more: what run would return of each. */
    void (*run_together)(struct ts3_job *const *jobs, size_t count, bool *more);
    /* Of a job with run_together only: */
    uint32_t steps; /* that it takes */
    uint32_t taken; /* of them */
    bool may_block; /* a step may wait for a disk: other jobs do not count on its worker */
    atomic_bool stop; /* asks for an early end: run then does nothing, and returns false */
    bool urgent;      /* before all that wait and are not */
    bool waiting;     /* under the pool's mutex: no worker is at it */
};

struct ts3_pool {
    struct ts3_shared *shared; /* woken when a job is done */
    pthread_mutex_t mutex;
    pthread_cond_t work;
    struct ts3_link todo;
    struct ts3_link done;
    bool quitting;
    uint32_t threads;
    uint32_t idle;   /* threads that wait for work and were not woken yet */
    uint32_t woken;  /* and those that were, until they have noticed */
    size_t together; /* jobs with run_together that have not ended */
    size_t places;   /* how many of them need no further worker, for those that are at some */
    pthread_t thread[TS3_POOL_WORKERS];
};

enum ts3_err ts3_pool_init(struct ts3_pool *pool, struct ts3_shared *shared);
/* All signals are blocked in the threads. On an error none runs. */
enum ts3_err ts3_pool_start(struct ts3_pool *pool, uint32_t threads);
/* urgent: before all that wait. */
void ts3_pool_submit(struct ts3_pool *pool, struct ts3_job *job, bool urgent);
/* Takes back a job that no worker has begun with, or that is between two steps: true; it will not be
 * among the finished ones.  False: a step is being run, or all are. */
bool ts3_pool_withdraw(struct ts3_pool *pool, struct ts3_job *job);
/* Moves all finished jobs to the list. */
void ts3_pool_take(struct ts3_pool *pool, struct ts3_link *list);
/* Joins the threads after the queue was worked off; callers set stop on their jobs first. */
void ts3_pool_stop(struct ts3_pool *pool);
void ts3_pool_free(struct ts3_pool *pool);

#endif

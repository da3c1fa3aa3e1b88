/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The workers' queue, and bodies that are read and hashed by it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "net/ts3_body.h"
#include "net/ts3_worker.h"
#include "ts3_test.h"

enum { BODIES = 4, PART = 700 * 1024 + 11 };

/* A pool whose threads are not started. */
struct workers {
    struct ts3_shared *shared;
    struct ts3_pool pool;
};

static void open_pool(struct workers *here)
{
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), (size_t)BODIES * PART, &here->shared));
    CHECK_OK(ts3_pool_init(&here->pool, here->shared));
}

/* After ts3_pool_stop. */
static void close_pool(struct workers *here)
{
    ts3_pool_free(&here->pool);
    ts3_shared_unref(here->shared);
}

struct held_job {
    struct ts3_job job;
    sem_t begun;
    sem_t go_on;
};

static bool run_held(struct ts3_job *job)
{
    struct held_job *held = (struct held_job *)(void *)job;
    sem_post(&held->begun);
    sem_wait(&held->go_on);
    return false;
}

static bool never_run(struct ts3_job *job)
{
    CHECK(job == NULL); /* a job that was withdrawn was run */
    return false;
}

TEST(jobs_that_nobody_has_begun_with_can_be_withdrawn)
{
    struct workers here;
    struct held_job first = {.job = {.run = run_held}};
    struct ts3_job second = {.run = never_run};
    open_pool(&here);
    CHECK(sem_init(&first.begun, 0, 0) == 0 && sem_init(&first.go_on, 0, 0) == 0);
    CHECK_OK(ts3_pool_start(&here.pool, 1));
    ts3_pool_submit(&here.pool, &first.job, false);
    sem_wait(&first.begun);
    ts3_pool_submit(&here.pool, &second, false);
    CHECK(!ts3_pool_withdraw(&here.pool, &first.job)); /* being run */
    CHECK(ts3_pool_withdraw(&here.pool, &second));
    CHECK(!ts3_pool_withdraw(&here.pool, &second));
    sem_post(&first.go_on);
    ts3_pool_stop(&here.pool);
    CHECK(!ts3_pool_withdraw(&here.pool, &first.job)); /* finished */
    struct ts3_link done;
    ts3_list_init(&done);
    ts3_pool_take(&here.pool, &done);
    CHECK(ts3_list_pop(&done) == &first.job.link && ts3_list_empty(&done));
    sem_destroy(&first.begun);
    sem_destroy(&first.go_on);
    close_pool(&here);
}

struct long_job {
    struct ts3_job job;
    atomic_int steps;
    const struct long_job *other; /* how far that was when this ran first, and last */
    int seen_first, seen_last;
    int left; /* steps, or for ever */
};

static bool run_long(struct ts3_job *job)
{
    struct long_job *mine = (struct long_job *)(void *)job;
    mine->seen_last = mine->other != NULL ? atomic_load(&mine->other->steps) : 0;
    if (atomic_fetch_add(&mine->steps, 1) == 0)
        mine->seen_first = mine->seen_last;
    return !atomic_load(&job->stop) && (mine->left < 0 || --mine->left > 0);
}

static void wait_for_steps(const struct long_job *job, int steps)
{
    while (atomic_load(&job->steps) < steps)
        (void)usleep(100);
}

TEST(jobs_can_be_withdrawn_between_two_steps)
{
    struct workers here;
    open_pool(&here);
    CHECK_OK(ts3_pool_start(&here.pool, 2));
    for (int i = 0; i < 50; i++) {
        struct long_job job = {.job = {.run = run_long}, .left = -1};
        ts3_pool_submit(&here.pool, &job.job, false);
        wait_for_steps(&job, 1 + i);
        while (!ts3_pool_withdraw(&here.pool, &job.job))
            continue;
        int steps = atomic_load(&job.steps);
        (void)usleep(200);
        CHECK_INT(atomic_load(&job.steps), steps);
    }
    ts3_pool_stop(&here.pool);
    CHECK(ts3_list_empty(&here.pool.done));
    close_pool(&here);
}

/* Steps as run_long does, of several at once; the largest number of jobs in one call so far. */
static atomic_int most_together;

static void run_long_together(struct ts3_job *const *jobs, size_t count, bool *more)
{
    CHECK(count >= 1 && count <= TS3_POOL_TOGETHER);
    if ((int)count > atomic_load(&most_together))
        atomic_store(&most_together, (int)count);
    for (size_t i = 0; i < count; i++)
        more[i] = run_long(jobs[i]);
}

static uint32_t idle_workers(struct ts3_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    uint32_t idle = pool->idle;
    pthread_mutex_unlock(&pool->mutex);
    return idle;
}

TEST(jobs_that_gain_by_it_go_together)
{
    struct workers here;
    open_pool(&here);
    CHECK_OK(ts3_pool_start(&here.pool, 2));
    struct long_job job[TS3_POOL_PLACES + 1];
    atomic_store(&most_together, 0);
    for (size_t i = 0; i < TS3_POOL_TOGETHER; i++) {
        job[i] = (struct long_job){.job = {.run_together = run_long_together}, .left = -1};
        ts3_pool_submit(&here.pool, &job[i].job, false);
        wait_for_steps(&job[i], 1);
    }
    while (atomic_load(&most_together) < TS3_POOL_TOGETHER)
        (void)usleep(100);
    for (int tries = 0; idle_workers(&here.pool) != 1 && tries < 50000; tries++)
        (void)usleep(100); /* it may not have come to its first wait yet */
    CHECK_INT(idle_workers(&here.pool), 1);
    /* More than one worker has places for, one that may wait for a disk, one of another kind, and an
     * urgent one: none waits for those that have no end. */
    for (size_t i = TS3_POOL_TOGETHER; i <= TS3_POOL_PLACES; i++) {
        job[i] = (struct long_job){.job = {.run_together = run_long_together}, .left = 10};
        ts3_pool_submit(&here.pool, &job[i].job, false);
    }
    for (size_t i = TS3_POOL_TOGETHER; i <= TS3_POOL_PLACES; i++)
        wait_for_steps(&job[i], 10);
    struct long_job reads = {.job = {.run_together = run_long_together, .may_block = true},
                             .left = 10};
    ts3_pool_submit(&here.pool, &reads.job, false);
    wait_for_steps(&reads, 10);
    struct long_job other = {.job = {.run = run_long}, .left = 10};
    ts3_pool_submit(&here.pool, &other.job, false);
    wait_for_steps(&other, 10);
    struct long_job urgent = {.job = {.run_together = run_long_together}, .left = 10};
    ts3_pool_submit(&here.pool, &urgent.job, true);
    wait_for_steps(&urgent, 10);
    while (!ts3_pool_withdraw(&here.pool, &job[1].job))
        continue;
    int steps = atomic_load(&job[1].steps);
    wait_for_steps(&job[2], atomic_load(&job[2].steps) + 10);
    CHECK_INT(atomic_load(&job[1].steps), steps);
    atomic_store(&job[0].job.stop, true);
    atomic_store(&job[2].job.stop, true);
    ts3_pool_stop(&here.pool);
    CHECK_INT(here.pool.together, 0);
    CHECK_INT(here.pool.places, 0);
    close_pool(&here);
}

TEST(a_job_joins_when_the_one_before_is_a_part_ahead)
{
    struct workers here;
    open_pool(&here);
    enum { STEPS = 300 };
    struct long_job job[TS3_POOL_TOGETHER];
    for (size_t i = 0; i < TS3_POOL_TOGETHER; i++) {
        job[i] = (struct long_job){
            .job = {.run_together = run_long_together, .steps = STEPS},
            .other = i > 0 ? &job[i - 1] : NULL,
            .left = STEPS,
        };
        ts3_pool_submit(&here.pool, &job[i].job, false);
    }
    CHECK_OK(ts3_pool_start(&here.pool, 1));
    ts3_pool_stop(&here.pool);
    for (size_t i = 1; i < TS3_POOL_TOGETHER; i++)
        CHECK_INT(job[i].seen_first, STEPS / TS3_POOL_TOGETHER + 1);
    CHECK_INT(atomic_load(&job[TS3_POOL_TOGETHER - 1].steps), STEPS);
    close_pool(&here);
}

/* Regions of one file and one body from memory, at once. cold: as much of it as the kernel lets go of is
 * on the disk alone. */
static void prepare_bodies(struct ts3_digest *digest, FILE *file, const unsigned char *content,
                           bool cold)
{
    struct workers here;
    struct ts3_body body[BODIES];
    open_pool(&here);
    CHECK_OK(ts3_pool_start(&here.pool, 2));
    if (cold)
        CHECK(posix_fadvise(fileno(file), 0, 0, POSIX_FADV_DONTNEED) == 0);
    for (size_t i = 0; i < BODIES; i++) {
        bool in_memory = i == 1;
        ts3_body_init(&body[i], here.shared, digest, in_memory ? content + i * PART : NULL,
                      in_memory ? -1 : dup(fileno(file)), i * PART, PART - 100 * i);
        body[i].want_sha256 = true;
        CHECK_OK(ts3_body_prepare(&body[i], &here.pool, false));
        CHECK(body[i].working);
    }
    for (size_t ended = 0; ended < BODIES;) {
        struct ts3_link done, *link;
        ts3_list_init(&done);
        ts3_pool_take(&here.pool, &done);
        while ((link = ts3_list_pop(&done)) != NULL) {
            ts3_body_done(TS3_MEMBER(link, struct ts3_body, job));
            ended++;
        }
        (void)usleep(100);
    }
    ts3_pool_stop(&here.pool);
    for (size_t i = 0; i < BODIES; i++) {
        char expected[TS3_SHA256_HEX_BYTES];
        CHECK_OK(body[i].error);
        CHECK(body[i].prepared);
        CHECK_OK(ts3_sha256_hex(digest, content + i * PART, PART - 100 * i, expected));
        CHECK_STR(ts3_str_of(body[i].sha256), ts3_str_of(expected));
        ts3_body_free(&body[i]);
    }
    close_pool(&here);
}

TEST(bodies_of_files_are_hashed_together_from_the_cache_and_from_the_disk)
{
    struct ts3_digest *digest;
    unsigned char *content = malloc((size_t)BODIES * PART);
    FILE *file = tmpfile();
    CHECK(content != NULL && file != NULL);
    for (size_t i = 0; i < (size_t)BODIES * PART; i++)
        content[i] = (unsigned char)(i * i / 7);
    CHECK_INT(fwrite(content, 1, (size_t)BODIES * PART, file), (int64_t)BODIES * PART);
    CHECK(fflush(file) == 0 && fsync(fileno(file)) == 0);
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    for (int i = 0; i < 10; i++)
        prepare_bodies(digest, file, content, i % 2 != 0);
    ts3_digest_leave_to_openssl(digest);
    prepare_bodies(digest, file, content, true);
    ts3_digest_free(digest);
    fclose(file);
    free(content);
}

/* Jobs come while workers fall asleep and wake up; none is forgotten. */
TEST(no_job_is_left_lying)
{
    struct workers here;
    enum { JOBS = 6 };
    open_pool(&here);
    CHECK_OK(ts3_pool_start(&here.pool, 3));
    for (int round = 0; round < 3000; round++) {
        struct long_job job[JOBS];
        for (int i = 0; i < JOBS; i++) {
            job[i] = (struct long_job){.job = {.run = run_long}, .left = 1 + (round + i) % 3};
            if ((round >> i & 1) != 0)
                job[i].job.run_together = run_long_together;
            ts3_pool_submit(&here.pool, &job[i].job, (round + i) % 5 == 0);
        }
        for (int ended = 0; ended < JOBS;) {
            struct ts3_link done;
            ts3_list_init(&done);
            ts3_pool_take(&here.pool, &done);
            while (ts3_list_pop(&done) != NULL)
                ended++;
        }
    }
    pthread_mutex_lock(&here.pool.mutex);
    CHECK_INT(here.pool.together, 0);
    pthread_mutex_unlock(&here.pool.mutex);
    ts3_pool_stop(&here.pool);
    close_pool(&here);
}

TEST(urgent_jobs_go_first_between_two_steps)
{
    struct workers here;
    open_pool(&here);
    CHECK_OK(ts3_pool_start(&here.pool, 1));
    struct long_job slow = {.job = {.run = run_long}, .left = -1};
    ts3_pool_submit(&here.pool, &slow.job, false);
    wait_for_steps(&slow, 10);
    struct long_job urgent = {.job = {.run = run_long}, .left = 1000, .other = &slow};
    struct long_job behind = {.job = {.run = run_long}, .left = 1, .other = &slow};
    ts3_pool_submit(&here.pool, &behind.job, false);
    ts3_pool_submit(&here.pool, &urgent.job, true);
    wait_for_steps(&urgent, 1000);
    CHECK_INT(urgent.seen_last, urgent.seen_first); /* it was not interrupted */
    CHECK_INT(atomic_load(&behind.steps), 0);
    atomic_store(&slow.job.stop, true);
    ts3_pool_stop(&here.pool);
    CHECK_INT(atomic_load(&behind.steps), 1); /* all were worked off */
    close_pool(&here);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Parts of the net room that need no network: the histogram, the blocks kept for reuse. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net/ts3_blocks.h"
#include "net/ts3_hist.h"
#include "net/ts3_nap.h"
#include "net/ts3_shared.h"
#include "ts3_failing.h"
#include "ts3_test.h"

TEST(histogram_of_nothing)
{
    struct ts3_hist hist = {0};
    struct ts3_hist_summary summary = ts3_hist_take(&hist);
    CHECK_INT(summary.count, 0);
    CHECK_INT(summary.p999_us, 0);
    CHECK_INT(summary.max_us, 0);
}

TEST(histogram_is_at_most_a_fifth_off)
{
    struct ts3_hist hist = {0};
    for (uint64_t time_us = 0; time_us < 3000000; time_us += 1 + time_us / 7) {
        ts3_test_label("%llu us", (unsigned long long)time_us);
        for (int i = 0; i < 999; i++)
            ts3_hist_add(&hist, time_us);
        ts3_hist_add(&hist, 50000000);
        struct ts3_hist_summary summary = ts3_hist_take(&hist);
        CHECK_INT(summary.count, 1000);
        CHECK_INT(summary.max_us, 50000000);
        CHECK(summary.p999_us >= time_us && summary.p999_us <= time_us + time_us / 4);
        CHECK_INT(ts3_hist_take(&hist).count, 0);
    }
}

TEST(histogram_tells_the_tail)
{
    struct ts3_hist hist = {0};
    for (int i = 0; i < 9980; i++)
        ts3_hist_add(&hist, 100);
    for (int i = 0; i < 20; i++)
        ts3_hist_add(&hist, UINT64_MAX);
    struct ts3_hist_summary summary = ts3_hist_take(&hist);
    CHECK(summary.p999_us > 1000000);
    CHECK(summary.max_us == UINT64_MAX);
}

TEST(short_waits_in_a_row_keep_awake)
{
    struct ts3_nap nap = {0};
    for (int i = 0; i < TS3_NAP_IN_A_ROW; i++) {
        CHECK_INT(ts3_nap_awake_us(&nap, true), 0);
        ts3_nap_note(&nap, true, TS3_NAP_SHORT_US);
    }
    CHECK_INT(ts3_nap_awake_us(&nap, true), TS3_NAP_AWAKE_US);
    CHECK_INT(ts3_nap_awake_us(&nap, false), 0);
    ts3_nap_note(&nap, true, 0);
    CHECK_INT(ts3_nap_awake_us(&nap, true), TS3_NAP_AWAKE_US);
}

TEST(a_longer_wait_or_more_to_do_ends_it)
{
    static const struct {
        bool quiet;
        int64_t waited_us;
    } ends[] = {{true, TS3_NAP_SHORT_US + 1}, {true, 60000000}, {false, 1}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        struct ts3_nap nap = {0};
        for (int j = 0; j < 2 * TS3_NAP_IN_A_ROW; j++)
            ts3_nap_note(&nap, true, 10);
        ts3_nap_note(&nap, ends[i].quiet, ends[i].waited_us);
        for (int j = 0; j < TS3_NAP_IN_A_ROW; j++) {
            CHECK_INT(ts3_nap_awake_us(&nap, true), 0);
            ts3_nap_note(&nap, true, 10);
        }
        CHECK_INT(ts3_nap_awake_us(&nap, true), TS3_NAP_AWAKE_US);
    }
}

static void *on_the_same_core(void *arg)
{
    atomic_bool *ran = arg;
    atomic_store(ran, true);
    return NULL;
}

/* Within a time in which nobody would have been made to give up the core. */
static bool others_have_run(const struct ts3_nap *nap)
{
    atomic_bool ran = false;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, on_the_same_core, &ran) == 0);
    for (int i = 0; i < 1000 && !atomic_load(&ran); i++)
        ts3_nap_let_others(nap);
    bool in_time = atomic_load(&ran);
    CHECK(pthread_join(thread, NULL) == 0);
    return in_time;
}

TEST(whether_there_is_one_core)
{
    cpu_set_t all, one;
    struct ts3_nap nap;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    ts3_nap_init(&nap);
    CHECK(nap.one_core == (CPU_COUNT(&all) == 1));
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    ts3_nap_init(&nap);
    CHECK(nap.one_core);
    CHECK(others_have_run(&nap));
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
}

/* A block of the size, written to its last byte. */
static struct ts3_block take(struct ts3_blocks *blocks, size_t size_bytes, size_t room_bytes)
{
    struct ts3_block block = {0};
    CHECK_OK(ts3_blocks_take(blocks, size_bytes, room_bytes, &block));
    CHECK(block.size_bytes >= size_bytes);
    memset(block.data, 7, block.size_bytes);
    return block;
}

#define MIB ((size_t)1 << 20)

TEST(blocks_come_back)
{
    struct ts3_blocks blocks;
    CHECK_OK(ts3_blocks_init(&blocks, ts3_alloc_libc()));
    struct ts3_block block = take(&blocks, 8 * MIB, 64 * MIB);
    CHECK_INT((uintptr_t)block.data % TS3_BLOCK_HUGE_BYTES, 0);
    unsigned char *data = block.data;
    ts3_blocks_give(&blocks, 64 * MIB, &block);
    CHECK(block.data == NULL);
    CHECK_INT(blocks.kept_bytes, 8 * MIB);
    struct ts3_block half = take(&blocks, 4 * MIB, 64 * MIB); /* would waste half */
    CHECK(half.data != data);
    block = take(&blocks, 8 * MIB - 100, 64 * MIB);
    CHECK(block.data == data);
    CHECK_INT(blocks.kept_bytes, 0);
    ts3_blocks_give(&blocks, 64 * MIB, &block);
    ts3_blocks_give(&blocks, 64 * MIB, &block); /* nothing is given twice */
    ts3_blocks_give(&blocks, 64 * MIB, &half);
    CHECK_INT(blocks.kept_bytes, 12 * MIB);
    ts3_blocks_trim(&blocks, 5 * MIB);
    CHECK_INT(blocks.kept_bytes, 4 * MIB); /* the longest kept went */
    CHECK_INT(atomic_load(&blocks.mapped_bytes), 4 * MIB);
    ts3_blocks_free(&blocks);
    CHECK_INT(atomic_load(&blocks.mapped_bytes), 0);
}

static struct ts3_shared *shared_of(struct ts3_failing *failing)
{
    struct ts3_shared *shared = NULL;
    ts3_failing_init(failing);
    CHECK_OK(ts3_shared_new(&failing->alloc, MIB, &shared));
    return shared;
}

static void bury(struct ts3_shared *shared, const struct ts3_alloc *alloc, size_t size_bytes)
{
    ts3_shared_bury(shared, ts3_alloc_zero(alloc, 1, size_bytes), size_bytes);
}

TEST(what_is_buried_is_freed_later)
{
    struct ts3_failing failing;
    struct ts3_shared *shared = shared_of(&failing);
    size_t before = failing.live;
    bury(shared, &failing.alloc, sizeof(void *));
    bury(shared, &failing.alloc, 4097);
    bury(shared, &failing.alloc, TS3_SHARED_SPENT_BYTES - 1);
    CHECK_INT(failing.live, before + 3);
    /* What is too small for a link, or is mapped by itself, goes at once. */
    bury(shared, &failing.alloc, 1);
    bury(shared, &failing.alloc, TS3_SHARED_SPENT_BYTES);
    CHECK_INT(failing.live, before + 3);
    ts3_shared_clear(shared, false);
    CHECK_INT(failing.live, before);
    ts3_shared_clear(shared, false);
    bury(shared, &failing.alloc, 100);
    ts3_shared_unref(shared); /* nobody has cleared it */
    CHECK_INT(failing.live, 0);
}

TEST(what_is_buried_is_bounded)
{
    struct ts3_failing failing;
    struct ts3_shared *shared = shared_of(&failing);
    size_t before = failing.live;
    enum { SIZE = 64 << 10, FIT = TS3_SHARED_BURIED_BYTES / SIZE };
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 2 * FIT; i++)
            bury(shared, &failing.alloc, SIZE);
        CHECK_INT(failing.live, before + FIT);
        ts3_shared_clear(shared, false);
        CHECK_INT(failing.live, before);
    }
    bury(shared, &failing.alloc, SIZE);
    ts3_shared_clear(shared, true); /* the loop ends */
    CHECK_INT(failing.live, before);
    bury(shared, &failing.alloc, SIZE);
    CHECK_INT(failing.live, before);
    ts3_shared_unref(shared);
    CHECK_INT(failing.live, 0);
}

TEST(blocks_are_kept_within_limits)
{
    struct ts3_blocks blocks;
    CHECK_OK(ts3_blocks_init(&blocks, ts3_alloc_libc()));
    struct ts3_block block[2 * TS3_BLOCKS_KEPT];
    for (int i = 0; i < 2 * TS3_BLOCKS_KEPT; i++)
        block[i] = take(&blocks, MIB, 64 * MIB);
    for (int i = 0; i < 2 * TS3_BLOCKS_KEPT; i++)
        ts3_blocks_give(&blocks, 64 * MIB, &block[i]);
    CHECK_INT(blocks.count, TS3_BLOCKS_KEPT);
    struct ts3_block other = take(&blocks, 2 * MIB, 3 * MIB); /* there is not room for all beside it */
    CHECK_INT(blocks.kept_bytes, 3 * MIB);
    ts3_blocks_give(&blocks, 2 * MIB, &other);
    CHECK_INT(blocks.kept_bytes, 2 * MIB);
    struct ts3_block small = take(&blocks, 1000, 64 * MIB);
    ts3_blocks_give(&blocks, 64 * MIB, &small); /* not worth it */
    struct ts3_block large = take(&blocks, 9 * MIB, 64 * MIB);
    ts3_blocks_give(&blocks, 8 * MIB, &large); /* no room */
    CHECK_INT(blocks.kept_bytes, 2 * MIB);
    ts3_blocks_free(&blocks);
    CHECK_INT(atomic_load(&blocks.mapped_bytes), 0);
}

TEST(connections_have_a_part_of_the_budget)
{
    struct ts3_shared *shared = NULL;
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), 8000, &shared));
    ts3_shared_reserve(shared, 600);
    CHECK_OK(ts3_shared_charge(shared, 7000));
    CHECK_INT(ts3_shared_charge(shared, 401), TS3_EBUDGET);
    CHECK_OK(ts3_shared_charge(shared, 400));
    ts3_shared_reserve(shared, SIZE_MAX / 2); /* an eighth in all, however many there are */
    ts3_shared_discharge(shared, 1000);
    CHECK_INT(ts3_shared_charge(shared, 601), TS3_EBUDGET);
    CHECK_OK(ts3_shared_charge(shared, 600));
    ts3_shared_discharge(shared, 7000);
    CHECK_OK(ts3_shared_charge(shared, 8000)); /* alone the whole goes */
    CHECK_INT(ts3_shared_charge(shared, 1), TS3_EBUDGET);
    ts3_shared_discharge(shared, 8000);
    ts3_shared_unref(shared);
}

TEST(forked_children_are_known)
{
    struct ts3_shared *shared = NULL;
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), 1000, &shared));
    volatile unsigned char *mine = shared->mine;
    for (int round = 0; round < 2; round++) { /* the second: as on a kernel without such pages */
        CHECK(!ts3_shared_forked(shared));
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            _exit(ts3_shared_forked(shared) ? 7 : 8);
        int status = 0;
        CHECK_INT(waitpid(child, &status, 0), child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
        shared->mine = NULL;
    }
    shared->mine = mine;
    ts3_shared_unref(shared);
}

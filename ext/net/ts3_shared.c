/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_shared.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_shared.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static volatile unsigned char *map_mine(void)
{
#ifdef MADV_WIPEONFORK
    void *page = mmap(NULL, page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return NULL;
    if (madvise(page, page_bytes(), MADV_WIPEONFORK) == 0) {
        *(volatile unsigned char *)page = 1;
        return page;
    }
    (void)munmap(page, page_bytes());
#endif
    return NULL;
}

static void unmap_mine(struct ts3_shared *shared)
{
    if (shared->mine != NULL)
        (void)munmap((void *)shared->mine, page_bytes());
}

enum ts3_err ts3_shared_new(const struct ts3_alloc *alloc, size_t limit_bytes,
                            struct ts3_shared **shared)
{
    struct ts3_shared *made = ts3_alloc_zero(alloc, 1, sizeof *made);
    if (made == NULL)
        return TS3_ENOMEM;
    made->alloc = alloc;
    made->limit_bytes = limit_bytes;
    made->pid = getpid();
    made->mine = map_mine();
    made->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum ts3_err err = made->wake_fd < 0 ? TS3_EIO : ts3_blocks_init(&made->blocks, alloc);
    if (err != TS3_OK) {
        if (made->wake_fd >= 0)
            close(made->wake_fd);
        unmap_mine(made);
        ts3_alloc_free(alloc, made);
        return err;
    }
    atomic_init(&made->used_bytes, 0);
    atomic_init(&made->reserved_bytes, 0);
    atomic_init(&made->spent, NULL);
    atomic_init(&made->spent_bytes, 0);
    atomic_init(&made->refs, 1);
    atomic_init(&made->posted, false);
    atomic_init(&made->sleeping, false);
    atomic_init(&made->wanted, false);
    *shared = made;
    return TS3_OK;
}

void ts3_shared_ref(struct ts3_shared *shared)
{
    atomic_fetch_add(&shared->refs, 1);
}

void ts3_shared_unref(struct ts3_shared *shared)
{
    if (atomic_fetch_sub(&shared->refs, 1) != 1)
        return;
    close(shared->wake_fd);
    ts3_shared_clear(shared, true);
    ts3_blocks_free(&shared->blocks);
    unmap_mine(shared);
    ts3_alloc_free(shared->alloc, shared);
}

bool ts3_shared_forked(const struct ts3_shared *shared)
{
    return shared->mine != NULL ? *shared->mine == 0 : getpid() != shared->pid;
}

void ts3_shared_wake(struct ts3_shared *shared)
{
    atomic_store(&shared->posted, true);
    if (!atomic_exchange(&shared->sleeping, false))
        return;
    uint64_t one = 1;
    while (write(shared->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

bool ts3_shared_sleep(struct ts3_shared *shared)
{
    atomic_store(&shared->sleeping, true);
    return atomic_load(&shared->posted);
}

bool ts3_shared_awake(struct ts3_shared *shared)
{
    atomic_store(&shared->sleeping, false);
    return atomic_exchange(&shared->posted, false);
}

void ts3_shared_reserve(struct ts3_shared *shared, size_t bytes)
{
    size_t most = shared->limit_bytes / 8;
    size_t reserved = atomic_load(&shared->reserved_bytes);
    size_t wanted;
    do {
        wanted = bytes > most - reserved ? most : reserved + bytes;
    } while (!atomic_compare_exchange_weak(&shared->reserved_bytes, &reserved, wanted));
}

enum ts3_err ts3_shared_charge(struct ts3_shared *shared, size_t bytes)
{
    size_t limit = shared->limit_bytes - atomic_load(&shared->reserved_bytes);
    size_t used = atomic_load(&shared->used_bytes);
    do {
        /* Alone anything up to the whole limit goes, or it would never go. */
        size_t most = used == 0 ? shared->limit_bytes : limit;
        if (bytes > most || used > most - bytes)
            return TS3_EBUDGET;
    } while (!atomic_compare_exchange_weak(&shared->used_bytes, &used, used + bytes));
    return TS3_OK;
}

void ts3_shared_force(struct ts3_shared *shared, size_t bytes)
{
    atomic_fetch_add(&shared->used_bytes, bytes);
}

void ts3_shared_discharge(struct ts3_shared *shared, size_t bytes)
{
    atomic_fetch_sub(&shared->used_bytes, bytes);
    if (atomic_load(&shared->wanted))
        ts3_shared_wake(shared);
}

/* How much may be kept for later, beside what is used. */
static size_t room_bytes(const struct ts3_shared *shared)
{
    size_t used = atomic_load(&shared->used_bytes) + atomic_load(&shared->reserved_bytes);
    return used < shared->limit_bytes ? shared->limit_bytes - used : 0;
}

enum ts3_err ts3_shared_take(struct ts3_shared *shared, size_t bytes, struct ts3_block *block)
{
    return ts3_blocks_take(&shared->blocks, bytes, room_bytes(shared), block);
}

void ts3_shared_give(struct ts3_shared *shared, struct ts3_block *block)
{
    /* It is still charged. */
    ts3_blocks_give(&shared->blocks, room_bytes(shared) + block->size_bytes, block);
}

void ts3_shared_bury(struct ts3_shared *shared, void *memory, size_t size_bytes)
{
    if (size_bytes < sizeof(struct ts3_spent) || size_bytes >= TS3_SHARED_SPENT_BYTES ||
        atomic_load(&shared->spent_bytes) >= TS3_SHARED_BURIED_BYTES) {
        ts3_alloc_free(shared->alloc, memory);
        return;
    }
    atomic_fetch_add(&shared->spent_bytes, size_bytes);
    struct ts3_spent *spent = memory;
    spent->next = atomic_load(&shared->spent);
    while (!atomic_compare_exchange_weak(&shared->spent, &spent->next, spent))
        continue;
}

void ts3_shared_clear(struct ts3_shared *shared, bool last)
{
    if (!last && atomic_load_explicit(&shared->spent_bytes, memory_order_relaxed) == 0)
        return;
    atomic_store(&shared->spent_bytes, last ? TS3_SHARED_BURIED_BYTES : 0);
    struct ts3_spent *spent = atomic_exchange(&shared->spent, NULL);
    while (spent != NULL) {
        struct ts3_spent *next = spent->next;
        ts3_alloc_free(shared->alloc, spent);
        spent = next;
    }
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What may outlive an engine, because windows do: its byte budget, and the way to wake its loop.
 * Owner: counted references; the engine holds one, each window one.  Thread: any, all state is
 *   atomic or (blocks) has its own lock.
 * Errors: TS3_ENOMEM, TS3_EIO from new; TS3_EBUDGET from charge.  Limits: used and reserved together
 *   never exceed limit but by force, or where all of used is one charge. */
#ifndef TS3_SHARED_H
#define TS3_SHARED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"
#include "net/ts3_blocks.h"

/* What is freed by itself, whoever does it: the heap maps such memory one by one. */
#define TS3_SHARED_SPENT_BYTES ((size_t)128 << 10)
#define TS3_SHARED_BURIED_BYTES ((size_t)1 << 20) /* and what is beyond so much between two turns */

struct ts3_spent {
    struct ts3_spent *next;
};

struct ts3_shared {
    const struct ts3_alloc *alloc;
    size_t limit_bytes;
    pid_t pid; /* who made it; a forked child must touch nothing */
    /* A page that the kernel clears in a forked child, which is cheaper to ask than it; NULL where
     * there is no such thing (before Linux 4.14). */
    volatile unsigned char *mine;
    int wake_fd; /* eventfd in the loop's epoll set; never read: each write is an edge */
    atomic_size_t used_bytes;
    atomic_size_t reserved_bytes; /* of the limit, for what connections hold: an eighth at most */
    struct ts3_blocks blocks; /* of windows and bodies; used and kept together stay below the limit */
    _Atomic(struct ts3_spent *) spent; /* memory of the loop's that others are done with ... */
    atomic_size_t spent_bytes;         /* ... so much, or TS3_SHARED_BURIED_BYTES: nobody clears */
    atomic_uint refs;
    atomic_bool posted;   /* something for the loop to look at */
    atomic_bool sleeping; /* the loop is in, or about to enter, its poll: write to wake_fd */
    atomic_bool wanted;   /* a request inside the engine waits for bytes of the budget */
};

enum ts3_err ts3_shared_new(const struct ts3_alloc *alloc, size_t limit_bytes,
                            struct ts3_shared **shared);
void ts3_shared_ref(struct ts3_shared *shared);
void ts3_shared_unref(struct ts3_shared *shared);
bool ts3_shared_forked(const struct ts3_shared *shared);

/* Tells the loop to look at what was handed to it before this call. */
void ts3_shared_wake(struct ts3_shared *shared);
/* The loop: before polling; true when there is something to look at, so that it must not sleep. */
bool ts3_shared_sleep(struct ts3_shared *shared);
/* The loop: after polling; true when there is something to look at. */
bool ts3_shared_awake(struct ts3_shared *shared);

enum ts3_err ts3_shared_charge(struct ts3_shared *shared, size_t bytes);
/* For what cannot be refused; may take used beyond the limit. */
void ts3_shared_force(struct ts3_shared *shared, size_t bytes);
void ts3_shared_discharge(struct ts3_shared *shared, size_t bytes);
/* Keeps so much of the limit free from now on, for a connection's own buffers. */
void ts3_shared_reserve(struct ts3_shared *shared, size_t bytes);
/* Memory for bytes that were charged before; to be given back before they are discharged. */
enum ts3_err ts3_shared_take(struct ts3_shared *shared, size_t bytes, struct ts3_block *block);
void ts3_shared_give(struct ts3_shared *shared, struct ts3_block *block);
/* Any thread: the loop allocated this (size_bytes, at least a pointer's), and is to free it in its next
 * turn.  In a heap two threads wait for each other by system calls, and libcurl allocates some forty
 * times for a request: with answers of 4 KiB freed elsewhere, every fourth request waited. */
void ts3_shared_bury(struct ts3_shared *shared, void *memory, size_t size_bytes);
/* The loop: frees what was buried.  At its end, with last: from then on who buries frees. */
void ts3_shared_clear(struct ts3_shared *shared, bool last);

#endif

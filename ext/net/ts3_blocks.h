/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Large blocks of memory, kept for reuse.
 *
 * The first touch of a fresh page costs more than copying a page's bytes, so a few blocks that were
 * given back are kept.  Those of TS3_BLOCK_KEEP_BYTES or more are mapped one by one, since between
 * the small objects of a heap they would leave gaps that are never given back to the system; those
 * of TS3_BLOCK_HUGE_BYTES or more are aligned for huge pages, and ask for them.
 *
 * Owner: struct ts3_shared, which outlives windows and bodies.  A block is its taker's until given
 *   back.
 * Thread: any; a mutex of its own, held for moments but where blocks are freed.
 * Errors: TS3_ENOMEM.
 * Limits: at most TS3_BLOCKS_KEPT blocks and TS3_BLOCKS_KEPT_BYTES are kept, and never more than the
 *   caller's budget leaves room for; smaller ones than TS3_BLOCK_KEEP_BYTES are not kept at all. */
#ifndef TS3_BLOCKS_H
#define TS3_BLOCKS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"

#define TS3_BLOCKS_KEPT 16
#define TS3_BLOCKS_KEPT_BYTES ((size_t)64 << 20)
#define TS3_BLOCK_KEEP_BYTES ((size_t)128 << 10)
#define TS3_BLOCK_HUGE_BYTES ((size_t)2 << 20)

struct ts3_block {
    unsigned char *data; /* NULL: no block */
    size_t size_bytes;   /* what was asked for, or somewhat more */
};

struct ts3_blocks {
    const struct ts3_alloc *alloc;
    pthread_mutex_t mutex;
    struct ts3_block kept[TS3_BLOCKS_KEPT]; /* the latest given back last */
    size_t count;
    size_t kept_bytes;
    atomic_size_t mapped_bytes; /* kept or with their takers; 0 when all is freed */
};

enum ts3_err ts3_blocks_init(struct ts3_blocks *blocks, const struct ts3_alloc *alloc);
void ts3_blocks_free(struct ts3_blocks *blocks);
/* A block of at least size_bytes (not 0), its bytes not set.  room_bytes: how much may be kept
 * beside it; more than that is freed first. */
enum ts3_err ts3_blocks_take(struct ts3_blocks *blocks, size_t size_bytes, size_t room_bytes,
                             struct ts3_block *block);
/* Gives a block back; *block is empty afterwards, and may have been before.  room_bytes as above. */
void ts3_blocks_give(struct ts3_blocks *blocks, size_t room_bytes, struct ts3_block *block);
/* Asks for huge pages for the whole pages of memory that need not be a block, such as that of a
 * Python bytes object, and of a size that can have one: its first touch is most of what filling it costs
 * beside the copy, and malloc gives large pieces back to the system sooner than they are wanted
 * again.  Only advice; the memory stays its owner's, and is not touched. */
void ts3_blocks_advise(void *data, size_t size_bytes);
/* Frees kept blocks, the longest kept first, until no more than room_bytes are left. */
void ts3_blocks_trim(struct ts3_blocks *blocks, size_t room_bytes);

#endif

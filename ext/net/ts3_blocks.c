/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_blocks.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_blocks.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum ts3_err ts3_blocks_init(struct ts3_blocks *blocks, const struct ts3_alloc *alloc)
{
    memset(blocks, 0, sizeof *blocks);
    blocks->alloc = alloc;
    return pthread_mutex_init(&blocks->mutex, NULL) == 0 ? TS3_OK : TS3_ENOMEM;
}

void ts3_blocks_free(struct ts3_blocks *blocks)
{
    ts3_blocks_trim(blocks, 0);
    pthread_mutex_destroy(&blocks->mutex);
}

static enum ts3_err make(const struct ts3_alloc *alloc, size_t size_bytes, struct ts3_block *block)
{
    size_t slack_bytes = size_bytes >= TS3_BLOCK_HUGE_BYTES ? TS3_BLOCK_HUGE_BYTES : 0;
    if (size_bytes > SIZE_MAX - slack_bytes)
        return TS3_ENOMEM;
    block->memory = ts3_alloc_resize(alloc, NULL, size_bytes + slack_bytes, 1);
    if (block->memory == NULL)
        return TS3_ENOMEM;
    block->data = block->memory;
    block->size_bytes = size_bytes;
    if (slack_bytes > 0) {
        block->data += slack_bytes - (uintptr_t)block->memory % slack_bytes;
        /* Only advice: where huge pages are switched off, small ones do. */
        (void)madvise(block->data, size_bytes - size_bytes % slack_bytes, MADV_HUGEPAGE);
    }
    return TS3_OK;
}

/* Under the mutex.  Takes out the kept block at the index. */
static struct ts3_block take_out(struct ts3_blocks *blocks, size_t index)
{
    struct ts3_block block = blocks->kept[index];
    blocks->count--;
    memmove(&blocks->kept[index], &blocks->kept[index + 1],
            (blocks->count - index) * sizeof *blocks->kept);
    blocks->kept_bytes -= block.size_bytes;
    return block;
}

/* Under the mutex. */
static void trim(struct ts3_blocks *blocks, size_t room_bytes)
{
    while (blocks->count > 0 && blocks->kept_bytes > room_bytes)
        ts3_alloc_free(blocks->alloc, take_out(blocks, 0).memory);
}

void ts3_blocks_trim(struct ts3_blocks *blocks, size_t room_bytes)
{
    pthread_mutex_lock(&blocks->mutex);
    trim(blocks, room_bytes);
    pthread_mutex_unlock(&blocks->mutex);
}

/* Whether a block serves a request for size_bytes without wasting more than an eighth. */
static bool fits(const struct ts3_block *block, size_t size_bytes)
{
    return block->size_bytes >= size_bytes && block->size_bytes - size_bytes <= size_bytes / 8;
}

enum ts3_err ts3_blocks_take(struct ts3_blocks *blocks, size_t size_bytes, size_t room_bytes,
                             struct ts3_block *block)
{
    if (size_bytes < TS3_BLOCK_KEEP_BYTES)
        return make(blocks->alloc, size_bytes, block);
    pthread_mutex_lock(&blocks->mutex);
    for (size_t i = blocks->count; i > 0; i--) {
        if (fits(&blocks->kept[i - 1], size_bytes)) {
            *block = take_out(blocks, i - 1);
            pthread_mutex_unlock(&blocks->mutex);
            return TS3_OK;
        }
    }
    trim(blocks, room_bytes);
    pthread_mutex_unlock(&blocks->mutex);
    return make(blocks->alloc, size_bytes, block);
}

void ts3_blocks_give(struct ts3_blocks *blocks, size_t room_bytes, struct ts3_block *block)
{
    struct ts3_block given = *block;
    memset(block, 0, sizeof *block);
    if (given.data == NULL)
        return;
    size_t limit = room_bytes < TS3_BLOCKS_KEPT_BYTES ? room_bytes : TS3_BLOCKS_KEPT_BYTES;
    if (given.size_bytes < TS3_BLOCK_KEEP_BYTES || given.size_bytes > limit) {
        ts3_alloc_free(blocks->alloc, given.memory);
        return;
    }
    pthread_mutex_lock(&blocks->mutex);
    trim(blocks, limit - given.size_bytes);
    if (blocks->count == TS3_BLOCKS_KEPT)
        ts3_alloc_free(blocks->alloc, take_out(blocks, 0).memory);
    blocks->kept[blocks->count++] = given;
    blocks->kept_bytes += given.size_bytes;
    pthread_mutex_unlock(&blocks->mutex);
}

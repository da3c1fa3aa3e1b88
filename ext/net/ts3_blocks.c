/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_blocks.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_blocks.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

static size_t rounded_up(size_t size_bytes, size_t unit_bytes)
{
    return (size_bytes + unit_bytes - 1) / unit_bytes * unit_bytes;
}

void ts3_blocks_advise(void *data, size_t size_bytes)
{
    if (size_bytes < TS3_BLOCK_HUGE_BYTES)
        return;
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t before = (page_bytes - (uintptr_t)data % page_bytes) % page_bytes;
    uintptr_t behind = ((uintptr_t)data + size_bytes) % page_bytes;
    /* Where huge pages are switched off, small ones do. */
    (void)madvise((unsigned char *)data + before, size_bytes - before - behind, MADV_HUGEPAGE);
}

/* Mapped memory, aligned for huge pages where it is large enough for one. */
static unsigned char *map(struct ts3_blocks *blocks, size_t size_bytes)
{
    size_t slack_bytes = size_bytes >= TS3_BLOCK_HUGE_BYTES ? TS3_BLOCK_HUGE_BYTES : 0;
    unsigned char *from = mmap(NULL, size_bytes + slack_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED)
        return NULL;
    unsigned char *data = from;
    if (slack_bytes > 0) {
        size_t before = (slack_bytes - (uintptr_t)from % slack_bytes) % slack_bytes;
        data += before;
        if (before > 0)
            (void)munmap(from, before);
        if (before < slack_bytes)
            (void)munmap(data + size_bytes, slack_bytes - before);
    }
    ts3_blocks_advise(data, size_bytes);
    atomic_fetch_add(&blocks->mapped_bytes, size_bytes);
    return data;
}

static enum ts3_err make(struct ts3_blocks *blocks, size_t size_bytes, struct ts3_block *block)
{
    if (size_bytes > SIZE_MAX / 2)
        return TS3_ENOMEM;
    bool large = size_bytes >= TS3_BLOCK_KEEP_BYTES;
    size_t size = large ? rounded_up(size_bytes, (size_t)sysconf(_SC_PAGESIZE)) : size_bytes;
    block->data = large ? map(blocks, size) : ts3_alloc_resize(blocks->alloc, NULL, size, 1);
    block->size_bytes = size;
    return block->data != NULL ? TS3_OK : TS3_ENOMEM;
}

static void drop(struct ts3_blocks *blocks, struct ts3_block block)
{
    if (block.size_bytes < TS3_BLOCK_KEEP_BYTES) {
        ts3_alloc_free(blocks->alloc, block.data);
        return;
    }
    (void)munmap(block.data, block.size_bytes);
    atomic_fetch_sub(&blocks->mapped_bytes, block.size_bytes);
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
        drop(blocks, take_out(blocks, 0));
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
        return make(blocks, size_bytes, block);
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
    return make(blocks, size_bytes, block);
}

void ts3_blocks_give(struct ts3_blocks *blocks, size_t room_bytes, struct ts3_block *block)
{
    struct ts3_block given = *block;
    memset(block, 0, sizeof *block);
    if (given.data == NULL)
        return;
    size_t limit = room_bytes < TS3_BLOCKS_KEPT_BYTES ? room_bytes : TS3_BLOCKS_KEPT_BYTES;
    if (given.size_bytes < TS3_BLOCK_KEEP_BYTES || given.size_bytes > limit) {
        drop(blocks, given);
        return;
    }
    pthread_mutex_lock(&blocks->mutex);
    trim(blocks, limit - given.size_bytes);
    if (blocks->count == TS3_BLOCKS_KEPT)
        drop(blocks, take_out(blocks, 0));
    blocks->kept[blocks->count++] = given;
    blocks->kept_bytes += given.size_bytes;
    pthread_mutex_unlock(&blocks->mutex);
}

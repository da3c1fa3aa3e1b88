/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arena: a list of chunks, each twice as large as the one before up to a bound. See
 * ts3_arena.h. */
#include "core/ts3_arena.h"

#include <stdalign.h>
#include <stdint.h>

enum { FIRST_CHUNK_BYTES = 1 << 10, LAST_CHUNK_BYTES = 1 << 16 };

struct ts3_arena_chunk {
    struct ts3_arena_chunk *next;
    size_t used_bytes;
    size_t size_bytes;
    alignas(max_align_t) unsigned char bytes[];
};

void ts3_arena_init(struct ts3_arena *arena, const struct ts3_alloc *alloc, size_t max_bytes)
{
    *arena = (struct ts3_arena){.alloc = alloc, .max_bytes = max_bytes};
}

void ts3_arena_free(struct ts3_arena *arena)
{
    while (arena->chunks) {
        struct ts3_arena_chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        ts3_alloc_free(arena->alloc, chunk);
    }
    arena->used_bytes = 0;
    arena->over = false;
}

static struct ts3_arena_chunk *add_chunk(struct ts3_arena *arena, size_t need_bytes)
{
    size_t size_bytes = FIRST_CHUNK_BYTES;
    if (arena->chunks) {
        size_bytes = arena->chunks->size_bytes * 2;
        if (size_bytes > LAST_CHUNK_BYTES)
            size_bytes = LAST_CHUNK_BYTES;
    }
    if (size_bytes < need_bytes)
        size_bytes = need_bytes;
    if (size_bytes > SIZE_MAX - sizeof(struct ts3_arena_chunk))
        return NULL;
    struct ts3_arena_chunk *chunk =
        ts3_alloc_resize(arena->alloc, NULL, sizeof(*chunk) + size_bytes, 1);
    if (!chunk)
        return NULL;
    chunk->next = arena->chunks;
    chunk->used_bytes = 0;
    chunk->size_bytes = size_bytes;
    arena->chunks = chunk;
    return chunk;
}

static void *take(struct ts3_arena *arena, size_t size_bytes, size_t align_bytes)
{
    struct ts3_arena_chunk *chunk = arena->chunks;
    size_t start = chunk ? (chunk->used_bytes + align_bytes - 1) / align_bytes * align_bytes : 0;
    if (size_bytes > arena->max_bytes - arena->used_bytes) {
        arena->over = true;
        return NULL;
    }
    if (!chunk || start > chunk->size_bytes || size_bytes > chunk->size_bytes - start) {
        chunk = add_chunk(arena, size_bytes);
        if (!chunk)
            return NULL;
        start = 0;
    }
    chunk->used_bytes = start + size_bytes;
    arena->used_bytes += size_bytes;
    return chunk->bytes + start;
}

void *ts3_arena_get(struct ts3_arena *arena, size_t size_bytes)
{
    return take(arena, size_bytes ? size_bytes : 1, alignof(max_align_t));
}

char *ts3_arena_copy(struct ts3_arena *arena, const char *bytes, size_t size_bytes)
{
    if (size_bytes == SIZE_MAX)
        return NULL;
    char *copy = take(arena, size_bytes + 1, 1);
    if (!copy)
        return NULL;
    if (size_bytes)
        memcpy(copy, bytes, size_bytes);
    copy[size_bytes] = '\0';
    return copy;
}

bool ts3_arena_copy_str(struct ts3_arena *arena, struct ts3_str from, struct ts3_str *to)
{
    to->data = ts3_arena_copy(arena, from.data, from.len);
    to->len = from.len;
    return to->data != NULL;
}

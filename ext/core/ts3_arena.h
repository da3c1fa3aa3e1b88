/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory that is handed out in pieces and freed all at once; what a parsed document's strings live
 * in.
 * Owner: who calls init calls free, which ends everything handed out. Thread: one at a time.
 * Errors: NULL when the allocator says no or max_bytes would be exceeded (over tells which). */
#ifndef TS3_ARENA_H
#define TS3_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_alloc.h"
#include "core/ts3_str.h"

struct ts3_arena_chunk;

struct ts3_arena {
    const struct ts3_alloc *alloc;
    struct ts3_arena_chunk *chunks; /* the newest first */
    size_t used_bytes;              /* handed out, with padding */
    size_t max_bytes;
    bool over; /* a request was refused because of max_bytes */
};

/* Allocates nothing. */
void ts3_arena_init(struct ts3_arena *arena, const struct ts3_alloc *alloc, size_t max_bytes);
/* A zeroed struct is fine too; the arena can be used again. */
void ts3_arena_free(struct ts3_arena *arena);
/* Not zeroed, aligned for any type; size_bytes 0 gives a pointer too. */
void *ts3_arena_get(struct ts3_arena *arena, size_t size_bytes);
/* A NUL-terminated copy. */
char *ts3_arena_copy(struct ts3_arena *arena, const char *bytes, size_t size_bytes);
/* The same of a string, which may be empty and have no data; false where there is no copy. */
bool ts3_arena_copy_str(struct ts3_arena *arena, struct ts3_str from, struct ts3_str *to);

#endif

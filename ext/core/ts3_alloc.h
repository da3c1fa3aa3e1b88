/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The allocator that is passed to everything that allocates, so that tests can make any allocation
 * fail.
 * Thread: as safe as its realloc function; ts3_alloc_libc() is safe on any thread.
 * Owner: whoever passes an allocator keeps it alive for as long as anything made with it lives. */
#ifndef TS3_ALLOC_H
#define TS3_ALLOC_H

#include <stddef.h>

struct ts3_alloc {
    /* p == NULL allocates, size_bytes == 0 frees and returns NULL, otherwise resizes; NULL means no
     * memory, and then p is still valid. */
    void *(*realloc)(void *ctx, void *p, size_t size_bytes);
    void *ctx;
};

/* The C library's allocator. */
const struct ts3_alloc *ts3_alloc_libc(void);

/* count * size_bytes zeroed bytes; NULL for no memory, an overflow, or a product of 0. */
void *ts3_alloc_zero(const struct ts3_alloc *alloc, size_t count, size_t size_bytes);

/* p resized to count * size_bytes bytes, the new ones not set; NULL (and p still valid) for no
 * memory, an overflow, or a product of 0. */
void *ts3_alloc_resize(const struct ts3_alloc *alloc, void *p, size_t count, size_t size_bytes);

/* Frees p; NULL is fine. */
void ts3_alloc_free(const struct ts3_alloc *alloc, void *p);

/* Overwrites size_bytes bytes in a way that compilers keep, then frees p; NULL is fine. */
void ts3_alloc_cleanse(const struct ts3_alloc *alloc, void *p, size_t size_bytes);

#endif

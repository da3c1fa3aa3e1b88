/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Allocation through a passed-in allocator. See ts3_alloc.h. */
#include "core/ts3_alloc.h"

#include <openssl/crypto.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void *libc_realloc(void *ctx, void *p, size_t size_bytes)
{
    (void)ctx;
    if (size_bytes == 0) {
        free(p);
        return NULL;
    }
    return realloc(p, size_bytes);
}

static const struct ts3_alloc libc_alloc = {libc_realloc, NULL};

const struct ts3_alloc *ts3_alloc_libc(void)
{
    return &libc_alloc;
}

void *ts3_alloc_resize(const struct ts3_alloc *alloc, void *p, size_t count, size_t size_bytes)
{
    if (count == 0 || size_bytes == 0 || count > SIZE_MAX / size_bytes)
        return NULL;
    return alloc->realloc(alloc->ctx, p, count * size_bytes);
}

void *ts3_alloc_zero(const struct ts3_alloc *alloc, size_t count, size_t size_bytes)
{
    void *p = ts3_alloc_resize(alloc, NULL, count, size_bytes);
    if (p)
        memset(p, 0, count * size_bytes);
    return p;
}

void ts3_alloc_free(const struct ts3_alloc *alloc, void *p)
{
    if (p)
        alloc->realloc(alloc->ctx, p, 0);
}

void ts3_alloc_cleanse(const struct ts3_alloc *alloc, void *p, size_t size_bytes)
{
    if (p) {
        OPENSSL_cleanse(p, size_bytes);
        ts3_alloc_free(alloc, p);
    }
}

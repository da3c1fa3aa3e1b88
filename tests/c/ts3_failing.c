/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_failing.h. */
#include "ts3_failing.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD_BYTES = 16 }; /* before each block: its size, and what keeps blocks aligned */

static void *failing_realloc(void *ctx, void *p, size_t size_bytes)
{
    struct ts3_failing *failing = ctx;
    char *old = p ? (char *)p - HEAD_BYTES : NULL;
    size_t old_bytes = 0;
    if (old)
        memcpy(&old_bytes, old, sizeof(old_bytes));
    if (size_bytes == 0) {
        failing->live -= old != NULL;
        free(old);
        return NULL;
    }
    if (++failing->calls == failing->fail_at) {
        failing->failed = true;
        return NULL;
    }
    char *made = malloc(size_bytes + HEAD_BYTES);
    if (!made)
        abort();
    memcpy(made, &size_bytes, sizeof(size_bytes));
    memset(made + HEAD_BYTES, 0xa5, size_bytes);
    if (old)
        memcpy(made + HEAD_BYTES, p, old_bytes < size_bytes ? old_bytes : size_bytes);
    else
        failing->live++;
    free(old);
    return made + HEAD_BYTES;
}

void ts3_failing_init(struct ts3_failing *failing)
{
    memset(failing, 0, sizeof(*failing));
    failing->alloc = (struct ts3_alloc){failing_realloc, failing};
}

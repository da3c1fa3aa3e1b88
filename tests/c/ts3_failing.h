/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The allocator of the C tests and of the fuzz targets. Thread: one. Owner: whoever has the struct, which must not
 * move while blocks of it are out. Errors: out of real memory ends the process. */
#ifndef TS3_FAILING_H
#define TS3_FAILING_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_alloc.h"

/* An allocator that counts what it gave out and can be told to fail; every block is moved when it
 * is resized, so that a pointer kept too long is found by the sanitizers. */
struct ts3_failing {
    struct ts3_alloc alloc; /* hand out &alloc */
    size_t live;            /* blocks given out and not freed */
    size_t calls;           /* allocations and resizes asked for */
    size_t fail_at;         /* the call that fails, from 1; 0: none */
    bool failed;
};

void ts3_failing_init(struct ts3_failing *failing);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The inside of a window (its interface is in ts3_engine.h).
 * Owner: counted references: the caller's, and the request's that fills it.
 * Thread: size and block never change.  ready is written by the loop alone (release) and read by
 *   any (acquire).  armed is set by callers and taken back by whoever sees first that it is due:
 *   the arming call itself, or the loop.  busy is set by submit and cleared by the loop.
 * Errors and limits: see ts3_engine.h. */
#ifndef TS3_WINDOW_H
#define TS3_WINDOW_H

#include <stdatomic.h>
#include <stdbool.h>

#include "net/ts3_engine.h"
#include "net/ts3_shared.h"

struct ts3_window {
    struct ts3_shared *shared;
    struct ts3_block block; /* of size 0 where the memory is the caller's */
    size_t size_bytes;
    atomic_uint refs;
    atomic_size_t ready_bytes;
    atomic_size_t armed_bytes; /* 0: not armed */
    atomic_bool busy;          /* target of an unfinished request */
};

/* The window of a budget, over `memory` or, where that is NULL, memory of its own; ts3_window_new_over
 * is this behind the checks of the engine. */
enum ts3_err ts3_window_make(struct ts3_shared *shared, void *memory, size_t size_bytes,
                             struct ts3_window **window);
void ts3_window_ref(struct ts3_window *window);
/* The loop: appends bytes at ready; more than there is room for is TS3_ELIMIT, and nothing is
 * taken. */
enum ts3_err ts3_window_append(struct ts3_window *window, const void *bytes, size_t size_bytes);
/* The loop, after an append: true once for an arming that is due now. */
bool ts3_window_fire(struct ts3_window *window);

#endif

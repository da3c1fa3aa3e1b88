/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine's own timers: a binary heap on the clock that was passed to the engine.
 * Owner: the loop.  Thread: the loop's.  Errors: TS3_ENOMEM from reserve alone; arming never fails
 *   once room is reserved.
 * Limits: as many armed timers as were reserved. */
#ifndef TS3_TIMER_H
#define TS3_TIMER_H

#include <stddef.h>
#include <stdint.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"

struct ts3_timer {
    int64_t due_us;
    size_t slot; /* place in the heap counted from 1; 0: not armed */
};

struct ts3_timers {
    const struct ts3_alloc *alloc;
    struct ts3_timer **heap;
    size_t count;
    size_t cap;
};

#define TS3_TIMER_NEVER INT64_MAX

void ts3_timers_init(struct ts3_timers *timers, const struct ts3_alloc *alloc);
void ts3_timers_free(struct ts3_timers *timers);
/* Room for count timers in all. */
enum ts3_err ts3_timers_reserve(struct ts3_timers *timers, size_t count);
/* Arms, or moves when armed already. */
void ts3_timers_set(struct ts3_timers *timers, struct ts3_timer *timer, int64_t due_us);
void ts3_timers_clear(struct ts3_timers *timers, struct ts3_timer *timer);
/* TS3_TIMER_NEVER when none is armed. */
int64_t ts3_timers_next_us(const struct ts3_timers *timers);
/* Disarms and returns the earliest that is due, or NULL. */
struct ts3_timer *ts3_timers_pop(struct ts3_timers *timers, int64_t now_us);

#endif

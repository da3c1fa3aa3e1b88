/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_timer.h. */
#include "net/ts3_timer.h"

#include <string.h>

void ts3_timers_init(struct ts3_timers *timers, const struct ts3_alloc *alloc)
{
    memset(timers, 0, sizeof *timers);
    timers->alloc = alloc;
}

void ts3_timers_free(struct ts3_timers *timers)
{
    ts3_alloc_free(timers->alloc, timers->heap);
    timers->heap = NULL;
    timers->count = 0;
    timers->cap = 0;
}

enum ts3_err ts3_timers_reserve(struct ts3_timers *timers, size_t count)
{
    if (count <= timers->cap)
        return TS3_OK;
    size_t cap = timers->cap ? timers->cap : 64;
    while (cap < count)
        cap *= 2;
    void *heap = ts3_alloc_resize(timers->alloc, timers->heap, cap, sizeof *timers->heap);
    if (heap == NULL)
        return TS3_ENOMEM;
    timers->heap = heap;
    timers->cap = cap;
    return TS3_OK;
}

static void place(struct ts3_timers *timers, size_t slot, struct ts3_timer *timer)
{
    timers->heap[slot - 1] = timer;
    timer->slot = slot;
}

static void sift_up(struct ts3_timers *timers, size_t slot, struct ts3_timer *timer)
{
    while (slot > 1 && timers->heap[slot / 2 - 1]->due_us > timer->due_us) {
        place(timers, slot, timers->heap[slot / 2 - 1]);
        slot /= 2;
    }
    place(timers, slot, timer);
}

static void sift_down(struct ts3_timers *timers, size_t slot, struct ts3_timer *timer)
{
    for (;;) {
        size_t child = slot * 2;
        if (child > timers->count)
            break;
        if (child < timers->count && timers->heap[child]->due_us < timers->heap[child - 1]->due_us)
            child++;
        if (timers->heap[child - 1]->due_us >= timer->due_us)
            break;
        place(timers, slot, timers->heap[child - 1]);
        slot = child;
    }
    place(timers, slot, timer);
}

void ts3_timers_clear(struct ts3_timers *timers, struct ts3_timer *timer)
{
    size_t slot = timer->slot;
    if (slot == 0)
        return;
    struct ts3_timer *last = timers->heap[timers->count - 1];
    timers->count--;
    timer->slot = 0;
    if (last == timer)
        return;
    if (slot > 1 && timers->heap[slot / 2 - 1]->due_us > last->due_us)
        sift_up(timers, slot, last);
    else
        sift_down(timers, slot, last);
}

void ts3_timers_set(struct ts3_timers *timers, struct ts3_timer *timer, int64_t due_us)
{
    ts3_timers_clear(timers, timer);
    timer->due_us = due_us;
    timers->count++;
    sift_up(timers, timers->count, timer);
}

int64_t ts3_timers_next_us(const struct ts3_timers *timers)
{
    return timers->count ? timers->heap[0]->due_us : TS3_TIMER_NEVER;
}

struct ts3_timer *ts3_timers_pop(struct ts3_timers *timers, int64_t now_us)
{
    if (timers->count == 0 || timers->heap[0]->due_us > now_us)
        return NULL;
    struct ts3_timer *first = timers->heap[0];
    ts3_timers_clear(timers, first);
    return first;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_hist.h. */
#include "net/ts3_hist.h"

/* The octave is where the highest bit is, the quarter what the two bits behind it say; times below
 * 4 us have an octave without quarters. */
static unsigned bucket_of(uint64_t time_us)
{
    if (time_us < 4)
        return (unsigned)time_us;
    unsigned high = 63 - (unsigned)__builtin_clzll(time_us);
    unsigned bucket = 4 * (high - 1) + (unsigned)(time_us >> (high - 2) & 3);
    return bucket < TS3_HIST_BUCKETS ? bucket : TS3_HIST_BUCKETS - 1;
}

/* The longest time that belongs to a bucket. */
static uint64_t end_of(unsigned bucket)
{
    if (bucket < 4)
        return bucket;
    unsigned high = bucket / 4 + 1;
    return ((uint64_t)(4 + bucket % 4 + 1) << (high - 2)) - 1;
}

void ts3_hist_add(struct ts3_hist *hist, uint64_t time_us)
{
    atomic_fetch_add_explicit(&hist->count[bucket_of(time_us)], 1, memory_order_relaxed);
    if (time_us > atomic_load_explicit(&hist->max_us, memory_order_relaxed))
        atomic_store_explicit(&hist->max_us, time_us, memory_order_relaxed);
}

struct ts3_hist_summary ts3_hist_take(struct ts3_hist *hist)
{
    struct ts3_hist_summary summary = {.max_us = atomic_exchange(&hist->max_us, 0)};
    uint64_t count[TS3_HIST_BUCKETS];
    for (unsigned i = 0; i < TS3_HIST_BUCKETS; i++) {
        count[i] = atomic_exchange(&hist->count[i], 0);
        summary.count += count[i];
    }
    uint64_t above = 0; /* how many were longer than the bucket looked at */
    for (unsigned i = TS3_HIST_BUCKETS; i > 0; i--) {
        above += count[i - 1];
        if (above > summary.count / 1000) {
            summary.p999_us = end_of(i - 1) < summary.max_us ? end_of(i - 1) : summary.max_us;
            break;
        }
    }
    return summary;
}

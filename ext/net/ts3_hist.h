/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A histogram of times, for statistics: four buckets an octave, so that what it tells is at most a
 * fifth too much.
 * Owner: whoever embeds it; zeroed is empty.  Thread: one adds, one other may take at the same time.
 * Errors: none.  Limits: times of 2^TS3_HIST_OCTAVES us and more count as just below that. */
#ifndef TS3_HIST_H
#define TS3_HIST_H

#include <stdatomic.h>
#include <stdint.h>

#define TS3_HIST_OCTAVES 26 /* a minute */
#define TS3_HIST_BUCKETS (4 * TS3_HIST_OCTAVES)

struct ts3_hist {
    atomic_uint_fast64_t count[TS3_HIST_BUCKETS];
    atomic_uint_fast64_t max_us;
};

struct ts3_hist_summary {
    uint64_t count;
    uint64_t p999_us; /* 999 of 1,000 were at most so long; rounded up to the bucket's end or max_us */
    uint64_t max_us;  /* exact */
};

void ts3_hist_add(struct ts3_hist *hist, uint64_t time_us);
/* What was added since the last call; the histogram is empty afterwards. */
struct ts3_hist_summary ts3_hist_take(struct ts3_hist *hist);

#endif

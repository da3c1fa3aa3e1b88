/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_nap.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_nap.h"

#include <sched.h>

void ts3_nap_init(struct ts3_nap *nap)
{
    cpu_set_t cores;
    nap->in_a_row = 0;
    /* It fails where there are more cores than the set has room for. */
    nap->one_core = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) < 2;
}

int64_t ts3_nap_awake_us(const struct ts3_nap *nap, bool quiet)
{
    return quiet && nap->in_a_row >= TS3_NAP_IN_A_ROW ? TS3_NAP_AWAKE_US : 0;
}

void ts3_nap_let_others(const struct ts3_nap *nap)
{
    if (nap->one_core)
        (void)sched_yield();
}

void ts3_nap_note(struct ts3_nap *nap, bool quiet, int64_t waited_us)
{
    if (!quiet || waited_us > TS3_NAP_SHORT_US)
        nap->in_a_row = 0;
    else if (nap->in_a_row < TS3_NAP_IN_A_ROW)
        nap->in_a_row++;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether the loop, before it sleeps, looks a while whether there is something to do.
 *
 * To be woken costs as much as a small request to a service on the same machine or next to it, and
 * each has two wakes: for its answer, and for the next request of a caller who goes on from there.
 * So where one wait after another is as short as that, with no more than one transfer under way,
 * the loop stays awake for as long as such a wait takes; but not in the middle of a body, where
 * waits are as short and it would only look and look (a sixth of the processor time of streaming).
 * On one core, who is waited for may need it, and gets it between two looks.  Services that are
 * farther away and callers who pause never see any of it: one longer wait ends it, as where others
 * want the core, until some shorter ones in a row have begun it again.
 *
 * Owner: the loop.  Thread: the loop's.  Errors: none. */
#ifndef TS3_NAP_H
#define TS3_NAP_H

#include <stdbool.h>
#include <stdint.h>

#define TS3_NAP_AWAKE_US 50 /* so long it stays awake, at the most, and all in vain once */
#define TS3_NAP_SHORT_US 100 /* a short wait, the wake included */
#define TS3_NAP_IN_A_ROW 4

struct ts3_nap {
    unsigned in_a_row; /* short waits, up to TS3_NAP_IN_A_ROW */
    bool one_core;     /* all that this process may use */
};

void ts3_nap_init(struct ts3_nap *nap);
/* For how many microseconds the next wait is to begin awake; quiet: no more than one transfer is
 * under way, and not in the middle of a body. */
int64_t ts3_nap_awake_us(const struct ts3_nap *nap, bool quiet);
/* To be called between two looks. */
void ts3_nap_let_others(const struct ts3_nap *nap);
/* How long a wait was. */
void ts3_nap_note(struct ts3_nap *nap, bool quiet, int64_t waited_us);

#endif

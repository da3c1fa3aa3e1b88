/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which request goes next: bodies into memory as the budget allows, attempts onto connection
 * places by priority.
 * Owner: the loop.  Thread: the loop's.  Errors: end single requests.
 * Limits: places by priority and connections being made, see the two functions; bodies in memory:
 * half of the budget, but always at least one. */
#ifndef TS3_SCHEDULE_H
#define TS3_SCHEDULE_H

#include "net/ts3_loop.h"

/* How many transfers there may be when one of this priority is started: the rest is kept for the
 * more urgent. */
uint32_t ts3_schedule_places(uint32_t places, int priority);
/* A request that comes from submit. */
void ts3_schedule_admit(struct ts3_loop *loop, struct ts3_request *request);
/* Starts whatever may start now. */
void ts3_schedule_run(struct ts3_loop *loop);
/* Whether any request waits for a body in memory or for a place. */
bool ts3_schedule_waits(const struct ts3_loop *loop);
/* A worker has returned the body of a request. */
void ts3_schedule_body_done(struct ts3_loop *loop, struct ts3_request *request);

#endif

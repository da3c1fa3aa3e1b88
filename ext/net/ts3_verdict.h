/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the end of an attempt means: success with its value, another attempt, or a failure.
 * Owner: the loop.  Thread: the loop's.  Errors: none; they become the request's failure. */
#ifndef TS3_VERDICT_H
#define TS3_VERDICT_H

#include "net/ts3_loop.h"

/* libcurl has ended the active attempt with code, or, where the request has a fault already, it is
 * to be ended now. Takes it back from libcurl and sends the request on its way. */
void ts3_verdict_attempt(struct ts3_loop *loop, struct ts3_request *request, CURLcode code);

/* The same for a request that could not be started, or is not active: its fault is set. */
void ts3_verdict_fault(struct ts3_loop *loop, struct ts3_request *request);

#endif

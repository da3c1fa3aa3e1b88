/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One attempt of a request: signed and handed to libcurl, fed by libcurl's callbacks, taken back.
 * What its end means is decided in ts3_verdict.h.
 * Owner: the loop.  Thread: the loop's.  Errors: from start: TS3_ENOMEM, TS3_ECRYPTO, TS3_EINVAL,
 * TS3_ENET; in the callbacks a fault is recorded in the request and libcurl is told to stop. */
#ifndef TS3_ATTEMPT_H
#define TS3_ATTEMPT_H

#include "core/ts3_str.h"
#include "net/ts3_loop.h"

/* Takes a slot; on success the request is ACTIVE. */
enum ts3_err ts3_attempt_start(struct ts3_loop *loop, struct ts3_request *request);
/* Takes the request back from libcurl and frees the slot. */
void ts3_attempt_stop(struct ts3_loop *loop, struct ts3_request *request);

void ts3_attempt_on_connected(struct ts3_loop *loop, struct ts3_slot *slot);
/* While the request is sent, libcurl has stopped to receive: the service has closed its side. */
void ts3_attempt_on_half_closed(struct ts3_loop *loop, struct ts3_request *request);
/* False: a fault was recorded. */
bool ts3_attempt_on_header(struct ts3_loop *loop, struct ts3_request *request, struct ts3_str line);
bool ts3_attempt_on_body(struct ts3_loop *loop, struct ts3_request *request, const char *bytes,
                         size_t size);
/* What libcurl's read callback returns. */
size_t ts3_attempt_on_read(struct ts3_loop *loop, struct ts3_request *request, char *out,
                           size_t size);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From a whole answer to the value of an event, or to the reason why there is none.
 * Owner: the loop; the value belongs to the request.  Thread: the loop's.
 * Errors: become the request's fault (PROTOCOL, LOCAL) or its code (an error document within a
 *   200). */
#ifndef TS3_VALUE_H
#define TS3_VALUE_H

#include "net/ts3_request.h"

/* Parses the body of a 2xx as the request's parse says. */
void ts3_value_parse(const struct ts3_alloc *alloc, struct ts3_request *request);
/* Takes code, message and region of an error document, and ids where the headers had none. */
void ts3_value_take_error(struct ts3_request *request, const struct ts3_xml_error *error);
/* The body could not be read or hashed: a LOCAL fault. */
void ts3_value_body_fault(struct ts3_request *request);

#endif

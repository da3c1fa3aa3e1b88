/* SPDX-License-Identifier: GPL-2.0-or-later */
/* S3's Error documents. Owner, thread, errors, limits: see ts3_xml.h. */
#ifndef TS3_XML_ERROR_H
#define TS3_XML_ERROR_H

#include <stdint.h>

#include "core/ts3_time.h"
#include "xml/ts3_xml.h"

struct ts3_xml_error {
    struct ts3_arena arena;
    struct ts3_str code;    /* never empty after success */
    struct ts3_str message; /* what is missing is empty */
    struct ts3_str region;  /* <Region>: of AuthorizationHeaderMalformed and the like */
    struct ts3_str request_id;
    struct ts3_str host_id;
    /* <ServerTime>: of RequestTimeTooSkewed; TS3_TIME_NONE when missing or unreadable. */
    int64_t server_time_s;
};

/* Takes <Error> as the root, or within <ErrorResponse> or <Response><Errors>. An answer that is not
 * such a document (HTML of a proxy, empty, a cut one) is TS3_EXML: the caller then has only the
 * status. */
enum ts3_err ts3_xml_error_parse(const struct ts3_alloc *alloc, const char *document,
                                 size_t size_bytes, struct ts3_xml_error *error,
                                 struct ts3_xml_fault *fault);
void ts3_xml_error_free(struct ts3_xml_error *error);

#endif

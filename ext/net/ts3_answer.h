/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What one attempt was answered: status, the headers that matter, and the body where it is kept.
 * Owner: the request.  Thread: the loop's, until the final event is drained; then the drainer's.
 * Errors: TS3_ELIMIT, TS3_ENOMEM from keeping a body.
 * Limits: header values longer than their array count as not sent (an ETag: as one that never
 *   matches). */
#ifndef TS3_ANSWER_H
#define TS3_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ts3_buf.h"
#include "core/ts3_time.h"

#define TS3_ANSWER_UNKNOWN UINT64_MAX
/* of all header lines of an attempt together, those of interim answers too; what is longer is no
 * answer */
#define TS3_ANSWER_HEAD_BYTES ((size_t)256 << 10)
/* what is kept of the body of an error; the rest is dropped */
#define TS3_ANSWER_ERROR_BYTES ((size_t)64 << 10)

/* how much of a body that is not used is read, so that its connection can be used again */
#define TS3_ANSWER_IDLE_BYTES ((size_t)1 << 20)

struct ts3_answer {
    int status;         /* 0: none yet */
    bool begun;         /* some byte came */
    bool complete_head; /* the empty line behind the headers came, and it was not an interim (1xx)
                           answer's */
    size_t head_bytes;  /* of header lines so far; beyond TS3_ANSWER_HEAD_BYTES it is no answer */
    uint64_t length;    /* Content-Length, or UNKNOWN */
    bool bad_length;    /* it is no number, or there are two that differ: the body's end is unsure */
    bool chunked;       /* the body tells its own end */
    bool has_range;     /* Content-Range: bytes first-last/total */
    uint64_t range_first;
    uint64_t range_last;
    uint64_t range_total; /* also of "bytes * / total"; UNKNOWN */
    int64_t date_s;       /* TS3_TIME_NONE */
    int64_t modified_s;   /* TS3_TIME_NONE */
    int64_t retry_after_s; /* Retry-After as a number of seconds; -1 */
    int64_t retry_at_s;    /* ... as a date; TS3_TIME_NONE */
    char etag[256];       /* without quotes; "" when there was none */
    char request_id[128];
    char host_id[256];
    char region[64];
    size_t idle_bytes; /* of a body that is not used */
    struct ts3_buf body;
    bool cut; /* body holds only the beginning */
};

/* The body is what the answer owns: ts3_buf_free, or ts3_shared_bury. */
void ts3_answer_init(struct ts3_answer *answer, const struct ts3_alloc *alloc);
/* For the next attempt; the body's memory is kept, with the new limit. */
void ts3_answer_reset(struct ts3_answer *answer, size_t max_body_bytes);
/* One line as libcurl hands it on, line end included. Since 8.18 it hands on one that was cut off as
 * well, when it ends the transfer, which could be half of a number or of the empty line. */
void ts3_answer_header(struct ts3_answer *answer, struct ts3_str line);
/* Appends to the body up to max; what is beyond sets cut. */
enum ts3_err ts3_answer_keep(struct ts3_answer *answer, const void *bytes, size_t size_bytes);
/* How long the service asks to wait before another attempt, as it tells the time itself; 0 where it
 * does not. */
int64_t ts3_answer_wait_s(const struct ts3_answer *answer);
/* Without the quotes around it. */
struct ts3_str ts3_answer_unquote(struct ts3_str etag);

#endif

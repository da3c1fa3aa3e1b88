/* SPDX-License-Identifier: GPL-2.0-or-later */
/* AWS Signature Version 4 in an Authorization header, by S3's rules: the path is percent-encoded
 * once and never normalised, the query is sorted by its encoded bytes. (S3 API reference,
 * "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk".)
 *
 * struct ts3_sigv4 is a signer. It keeps the derived key of the last (secret, day, region, service)
 * as two digest states that are copied for every signature, and scratch memory, so that signing
 * allocates nothing once warm.
 * Owner: the caller; ts3_sigv4_free overwrites the secret and all that was derived from it.
 * Thread: one at a time. Time and credentials are arguments, so each attempt can be signed with
 * those of its moment.
 * Errors: TS3_EINVAL (see the fields), TS3_ELIMIT, TS3_ENOMEM, TS3_ECRYPTO; then the output is
 * emptied. */
#ifndef TS3_SIGV4_H
#define TS3_SIGV4_H

#include <stddef.h>
#include <stdint.h>

#include "core/ts3_buf.h"
#include "core/ts3_digest.h"
#include "core/ts3_err.h"
#include "core/ts3_str.h"
#include "core/ts3_time.h"

#define TS3_UNSIGNED_PAYLOAD "UNSIGNED-PAYLOAD"

enum {
    TS3_SIGV4_MAX_PAIRS = 64,          /* query pairs, and headers */
    TS3_SIGV4_MAX_CANONICAL = 1 << 17, /* bytes of the canonical request */
    TS3_SIGV4_MAX_PATH = 4096,         /* bytes of the raw path */
    TS3_SIGV4_MAX_SCOPE = 128,         /* bytes of region, and of service */
    TS3_SIGV4_MAX_KEY_ID = 256,        /* bytes of the access key id */
    TS3_SIGV4_MAX_SECRET = 1024        /* bytes of the secret */
};

struct ts3_sigv4_request {
    struct ts3_str method; /* A-Z only */
    /* As sent, with the port unless it is the scheme's own; not empty, printable ASCII. */
    struct ts3_str host;
    struct ts3_str path;          /* raw bytes, not encoded; begins with "/" ("" counts as "/") */
    const struct ts3_pair *query; /* raw bytes; names may be empty and may repeat */
    size_t query_count;
    /* All that are sent and known beforehand, but neither host, x-amz-date, authorization nor (for
     * s3) x-amz-content-sha256, which the signer says (TS3_EINVAL). Names are tokens in any case;
     * values hold no control character but the tab. Each is signed, white space folded, repeated
     * names joined with ",", but for those that proxies and libcurl change: accept-encoding,
     * connection, expect, keep-alive, proxy-*, te, trailer, transfer-encoding, upgrade, user-agent,
     * x-amzn-trace-id. */
    const struct ts3_pair *headers;
    size_t header_count;
    struct ts3_str payload; /* SHA-256 of the body in lower-case hex, or TS3_UNSIGNED_PAYLOAD */
    int64_t time_s;
    struct ts3_str region; /* not empty, no "/" or control character */
    /* Empty stands for "s3". x-amz-content-sha256 is a header of s3 alone. */
    struct ts3_str service;
    struct ts3_str access_key_id; /* not empty, printable ASCII without space and "," */
    struct ts3_str secret;        /* not empty; any bytes */
};

/* What must go on the wire, byte for byte, besides the headers that were passed in, Host, and
 * "x-amz-content-sha256: <payload>". */
struct ts3_sigv4_out {
    struct ts3_buf authorization; /* value of the Authorization header */
    struct ts3_buf path;          /* encoded, begins with "/" */
    struct ts3_buf query; /* encoded and sorted, without "?"; a name without value has its "=" */
    char amz_date[TS3_TIME_AMZ_BYTES]; /* value of the x-amz-date header */
};

struct ts3_sigv4;

void ts3_sigv4_out_init(struct ts3_sigv4_out *out, const struct ts3_alloc *alloc);
void ts3_sigv4_out_free(struct ts3_sigv4_out *out);

/* digest outlives the signer. */
enum ts3_err ts3_sigv4_new(const struct ts3_alloc *alloc, const struct ts3_digest *digest,
                           struct ts3_sigv4 **signer);
/* NULL is fine. */
void ts3_sigv4_free(struct ts3_sigv4 *signer);
/* Overwrites the cached key; the next signature derives it again. */
void ts3_sigv4_forget(struct ts3_sigv4 *signer);
/* out is emptied first; its memory is used again. */
enum ts3_err ts3_sigv4_sign(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                            struct ts3_sigv4_out *out);
/* The canonical request that the last successful or failed ts3_sigv4_sign of this signer got to,
 * for tests and for SignatureDoesNotMatch; valid until the next call. It holds header values (a
 * session token too): never log it. */
struct ts3_str ts3_sigv4_canonical(const struct ts3_sigv4 *signer);

#endif

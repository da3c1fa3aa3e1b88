/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an attempt's end means, how long to wait before the next, and how many retries a client may
 * spend. Pure functions on plain structs. Owner: the caller. Thread: one at a time for one quota.
 * The numbers are those of AWS's standard retry mode (AWS SDKs reference guide, "Retry behavior").
 * Errors: none. */
#ifndef TS3_RETRY_H
#define TS3_RETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ts3_rand.h"
#include "core/ts3_str.h"

/* How an attempt ended below HTTP. */
enum ts3_transport {
    TS3_TRANSPORT_OK = 0,     /* a whole response came: look at status and code */
    TS3_TRANSPORT_RESOLVE,    /* the name was not resolved */
    TS3_TRANSPORT_CONNECT,    /* no connection, or its time ran out: nothing was sent */
    TS3_TRANSPORT_TLS,        /* handshake broke off: nothing was sent */
    TS3_TRANSPORT_TRUST,      /* certificate or CA file not acceptable; retrying is of no use */
    TS3_TRANSPORT_SEND,       /* broke off while or after sending, before a whole response */
    TS3_TRANSPORT_RECEIVE,    /* broke off within the response (body cut short) */
    TS3_TRANSPORT_FIRST_BYTE, /* sent, but no answer in time */
    TS3_TRANSPORT_STALL,      /* no progress for too long */
    TS3_TRANSPORT_PROTOCOL,   /* the answer is not HTTP, or too large, or not what was asked for */
    TS3_TRANSPORT_LOCAL,      /* this side failed: no memory, file cannot be read */
    TS3_TRANSPORT_DEADLINE,   /* the caller's deadline passed */
    TS3_TRANSPORT_CANCELLED   /* the caller cancelled, or the engine closed */
};

enum ts3_retry_class {
    TS3_RETRY_NONE = 0,  /* success: 2xx without an error code */
    TS3_RETRY_FINAL,     /* report it */
    TS3_RETRY_TRANSIENT, /* try again after a short delay */
    TS3_RETRY_THROTTLE,  /* try again after a longer delay */
    TS3_RETRY_SKEW,      /* correct the signing time from the service's clock and try again, once */
    TS3_RETRY_REGION     /* sign for the region the reply names, once; final without */
};

enum ts3_outcome {
    TS3_OUTCOME_NOT_APPLIED = 0, /* the service did not and will not do it */
    TS3_OUTCOME_UNKNOWN          /* it may have done it, or may still */
};

struct ts3_attempt {
    enum ts3_transport transport;
    int status; /* HTTP status, 0 when none came */
    /* S3's error code from the body, also of an error within a 200; empty when none. */
    struct ts3_str code;
    bool sent; /* whether any byte of the request may have left this machine */
};

struct ts3_verdict {
    enum ts3_retry_class what;
    enum ts3_outcome outcome; /* of this attempt alone; NOT_APPLIED where what is NONE too */
};

/* 401 and 403 are final but for skew (some services lock a key out after repeated failures). A body
 * cut short is transient. An error code within a 200 is judged by the code; one that is not known,
 * as transient. Throttles are 429 and the codes that say so (SlowDown, ...), 503 without a code
 * too. 301, 307 and 400 are REGION only with the codes that say so: for a reply without a body (to
 * a HEAD) the caller looks for x-amz-bucket-region before it takes FINAL as final. */
struct ts3_verdict ts3_retry_judge(const struct ts3_attempt *attempt);

/* Full jitter: random in [0, min(base * 2^retry, 20 s)], base 50 ms, or 1 s for a throttle. retry
 * counts from 0.
 * SKEW and REGION: 0. */
int64_t ts3_retry_delay_ms(enum ts3_retry_class what, unsigned retry, const struct ts3_rand *rand);

/* No service can make a request wait longer than the longest backoff. */
enum { TS3_RETRY_AFTER_MAX_MS = 20000 };

/* A delay, made longer where the service has asked for it with Retry-After (asked_s seconds; 0 or
 * less: it has not), within TS3_RETRY_AFTER_MAX_MS. */
int64_t ts3_retry_after_ms(int64_t delay_ms, int64_t asked_s);

enum { TS3_RETRY_QUOTA_TOKENS = 500, TS3_RETRY_COST = 14, TS3_RETRY_COST_THROTTLE = 5 };

/* A client's retry quota: a service that is down is not hammered by the retries of many
 * requests. */
struct ts3_retry_quota {
    int tokens;
    int max_tokens;
};

void ts3_retry_quota_init(struct ts3_retry_quota *quota, int max_tokens);
/* Whether a retry may be made; *cost is what it took, to be given back when the request succeeds
 * (SKEW and REGION cost nothing). False takes nothing and sets *cost to 0. */
bool ts3_retry_quota_take(struct ts3_retry_quota *quota, enum ts3_retry_class what, int *cost);
/* A request succeeded: gives back what its last retry took, or 1 token for a success at the first
 * attempt (cost 0). */
void ts3_retry_quota_give(struct ts3_retry_quota *quota, int cost);

#endif

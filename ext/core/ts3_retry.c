/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Judging attempts, waiting, and the quota. See ts3_retry.h. */
#include "core/ts3_retry.h"

#include <stddef.h>

enum { BASE_MS = 50, THROTTLE_BASE_MS = 1000, MAX_MS = TS3_RETRY_AFTER_MAX_MS };

struct known_code {
    const char *text;
    enum ts3_retry_class what;
};

/* S3 API reference, "Error responses"; AWS SDKs reference guide, "Retry behavior"; and the
 * throttles that imitators send (MinIO's SlowDownRead and SlowDownWrite, Cloudflare's
 * TooManyRequests). */
static const struct known_code codes[] = {
    {"SlowDown", TS3_RETRY_THROTTLE},
    {"SlowDownRead", TS3_RETRY_THROTTLE},
    {"SlowDownWrite", TS3_RETRY_THROTTLE},
    {"BandwidthLimitExceeded", TS3_RETRY_THROTTLE},
    {"RequestLimitExceeded", TS3_RETRY_THROTTLE},
    {"RequestThrottled", TS3_RETRY_THROTTLE},
    {"RequestThrottledException", TS3_RETRY_THROTTLE},
    {"Throttling", TS3_RETRY_THROTTLE},
    {"ThrottlingException", TS3_RETRY_THROTTLE},
    {"ThrottledException", TS3_RETRY_THROTTLE},
    {"TooManyRequests", TS3_RETRY_THROTTLE},
    {"TooManyRequestsException", TS3_RETRY_THROTTLE},
    {"PriorRequestNotComplete", TS3_RETRY_THROTTLE},
    {"InternalError", TS3_RETRY_TRANSIENT},
    {"ServiceUnavailable", TS3_RETRY_TRANSIENT},
    {"RequestTimeout", TS3_RETRY_TRANSIENT},
    {"RequestTimeoutException", TS3_RETRY_TRANSIENT},
    {"OperationAborted", TS3_RETRY_TRANSIENT},
    /* What arrived is not what was sent. */
    {"IncompleteBody", TS3_RETRY_TRANSIENT},
    {"BadDigest", TS3_RETRY_TRANSIENT},
    {"XAmzContentSHA256Mismatch", TS3_RETRY_TRANSIENT},
    {"RequestTimeTooSkewed", TS3_RETRY_SKEW},
    {"RequestInTheFuture", TS3_RETRY_SKEW},
    {"AuthorizationHeaderMalformed", TS3_RETRY_REGION},
    {"PermanentRedirect", TS3_RETRY_REGION},
    {"TemporaryRedirect", TS3_RETRY_REGION},
    {"IllegalLocationConstraintException", TS3_RETRY_REGION},
    {"IncorrectEndpoint", TS3_RETRY_REGION},
};

static const struct known_code *find_code(struct ts3_str code)
{
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        if (ts3_str_eq(code, ts3_str_of(codes[i].text)))
            return &codes[i];
    }
    return NULL;
}

/* The class by the status alone, for replies without a known code. */
static enum ts3_retry_class by_status(int status, bool has_code)
{
    if (status >= 200 && status < 300)
        return has_code ? TS3_RETRY_TRANSIENT : TS3_RETRY_NONE;
    switch (status) {
    case 408:
    case 425:
        return TS3_RETRY_TRANSIENT;
    case 429:
        return TS3_RETRY_THROTTLE;
    case 501:
    case 505:
        return TS3_RETRY_FINAL;
    case 503:
        return has_code ? TS3_RETRY_TRANSIENT : TS3_RETRY_THROTTLE;
    default:
        return status >= 300 && status < 500 ? TS3_RETRY_FINAL : TS3_RETRY_TRANSIENT;
    }
}

static struct ts3_verdict judge_reply(const struct ts3_attempt *attempt)
{
    int status = attempt->status;
    const struct known_code *known = find_code(attempt->code);
    struct ts3_verdict verdict = {by_status(status, attempt->code.len != 0), TS3_OUTCOME_UNKNOWN};
    if (known)
        verdict.what = known->what;
    if ((status == 401 || status == 403) && verdict.what != TS3_RETRY_SKEW)
        verdict.what = TS3_RETRY_FINAL;
    /* A refusal says that nothing was done, and so does an explicit throttle. Any other 5xx, and an
     * error that came after a 200 was sent, may hide work that was done. */
    if (verdict.what == TS3_RETRY_NONE || (status >= 300 && status < 500 && status != 408) ||
        status == 501 || status == 505 || (known && known->what == TS3_RETRY_THROTTLE))
        verdict.outcome = TS3_OUTCOME_NOT_APPLIED;
    return verdict;
}

struct ts3_verdict ts3_retry_judge(const struct ts3_attempt *attempt)
{
    enum ts3_outcome if_sent = attempt->sent ? TS3_OUTCOME_UNKNOWN : TS3_OUTCOME_NOT_APPLIED;
    switch (attempt->transport) {
    case TS3_TRANSPORT_OK:
        return judge_reply(attempt);
    case TS3_TRANSPORT_RESOLVE:
    case TS3_TRANSPORT_CONNECT:
    case TS3_TRANSPORT_TLS:
        return (struct ts3_verdict){TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED};
    case TS3_TRANSPORT_TRUST:
        return (struct ts3_verdict){TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED};
    case TS3_TRANSPORT_SEND:
    case TS3_TRANSPORT_RECEIVE:
    case TS3_TRANSPORT_FIRST_BYTE:
    case TS3_TRANSPORT_STALL:
    case TS3_TRANSPORT_PROTOCOL:
        /* The status line of a refusal did arrive, and counts, whatever became of the rest. */
        if (attempt->status >= 300)
            return judge_reply(attempt);
        return (struct ts3_verdict){TS3_RETRY_TRANSIENT, if_sent};
    case TS3_TRANSPORT_LOCAL:
    case TS3_TRANSPORT_DEADLINE:
    case TS3_TRANSPORT_CANCELLED:
        break;
    }
    return (struct ts3_verdict){TS3_RETRY_FINAL, if_sent};
}

int64_t ts3_retry_delay_ms(enum ts3_retry_class what, unsigned retry, const struct ts3_rand *rand)
{
    int64_t cap_ms = what == TS3_RETRY_THROTTLE ? THROTTLE_BASE_MS : BASE_MS;
    if (what != TS3_RETRY_TRANSIENT && what != TS3_RETRY_THROTTLE)
        return 0;
    for (unsigned i = 0; i < retry && cap_ms < MAX_MS; i++)
        cap_ms *= 2;
    if (cap_ms > MAX_MS)
        cap_ms = MAX_MS;
    return (int64_t)ts3_rand_below(rand, (uint64_t)cap_ms + 1);
}

int64_t ts3_retry_after_ms(int64_t delay_ms, int64_t asked_s)
{
    int64_t asked_ms = asked_s < 0                               ? 0
                       : asked_s > TS3_RETRY_AFTER_MAX_MS / 1000 ? TS3_RETRY_AFTER_MAX_MS
                                                                 : asked_s * 1000;
    return asked_ms > delay_ms ? asked_ms : delay_ms;
}

void ts3_retry_quota_init(struct ts3_retry_quota *quota, int max_tokens)
{
    quota->tokens = quota->max_tokens = max_tokens;
}

bool ts3_retry_quota_take(struct ts3_retry_quota *quota, enum ts3_retry_class what, int *cost)
{
    *cost = 0;
    if (what == TS3_RETRY_SKEW || what == TS3_RETRY_REGION)
        return true;
    int price = what == TS3_RETRY_THROTTLE ? TS3_RETRY_COST_THROTTLE : TS3_RETRY_COST;
    if (quota->tokens < price)
        return false;
    quota->tokens -= price;
    *cost = price;
    return true;
}

void ts3_retry_quota_give(struct ts3_retry_quota *quota, int cost)
{
    int back = cost > 0 ? cost : 1;
    if (back > quota->max_tokens - quota->tokens)
        back = quota->max_tokens - quota->tokens;
    quota->tokens += back;
}

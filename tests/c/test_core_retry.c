/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The retry policy: what every kind of end means, how long the waits are, and the quota. */
#include "core/ts3_retry.h"
#include "ts3_test.h"

TEST(retry_judges_replies)
{
    static const struct {
        int status;
        const char *code;
        enum ts3_retry_class what;
        enum ts3_outcome outcome;
    } rows[] = {
        {200, "", TS3_RETRY_NONE, TS3_OUTCOME_NOT_APPLIED},
        {204, "", TS3_RETRY_NONE, TS3_OUTCOME_NOT_APPLIED},
        {206, "", TS3_RETRY_NONE, TS3_OUTCOME_NOT_APPLIED},
        /* an answer to a condition, which only a caller can have set, and to whom it says no */
        {304, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        /* an error within a 200 */
        {200, "InternalError", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {200, "Whatever", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {200, "SlowDown", TS3_RETRY_THROTTLE, TS3_OUTCOME_NOT_APPLIED},
        /* refusals */
        {400, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {400, "InvalidArgument", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {400, "ExpiredToken", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {401, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {403, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {403, "AccessDenied", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {403, "SignatureDoesNotMatch", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {403, "SlowDown", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {404, "NoSuchKey", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {404, "NoSuchUpload", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {405, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {409, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {412, "PreconditionFailed", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {416, "InvalidRange", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {301, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {302, "", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {501, "NotImplemented", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        /* to be tried again */
        {400, "RequestTimeout", TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {400, "BadDigest", TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {400, "IncompleteBody", TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {408, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {409, "OperationAborted", TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {429, "", TS3_RETRY_THROTTLE, TS3_OUTCOME_NOT_APPLIED},
        {429, "TooManyRequests", TS3_RETRY_THROTTLE, TS3_OUTCOME_NOT_APPLIED},
        {500, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {500, "InternalError", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {502, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {503, "", TS3_RETRY_THROTTLE, TS3_OUTCOME_UNKNOWN},
        {503, "SlowDown", TS3_RETRY_THROTTLE, TS3_OUTCOME_NOT_APPLIED},
        {503, "SlowDownWrite", TS3_RETRY_THROTTLE, TS3_OUTCOME_NOT_APPLIED},
        {503, "ServiceUnavailable", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {503, "XMinioServerNotInitialized", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {504, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {522, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {0, "", TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        /* clock and region */
        {403, "RequestTimeTooSkewed", TS3_RETRY_SKEW, TS3_OUTCOME_NOT_APPLIED},
        {400, "AuthorizationHeaderMalformed", TS3_RETRY_REGION, TS3_OUTCOME_NOT_APPLIED},
        {301, "PermanentRedirect", TS3_RETRY_REGION, TS3_OUTCOME_NOT_APPLIED},
        {307, "TemporaryRedirect", TS3_RETRY_REGION, TS3_OUTCOME_NOT_APPLIED},
        {403, "AuthorizationHeaderMalformed", TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_attempt attempt = {TS3_TRANSPORT_OK, rows[i].status, ts3_str_of(rows[i].code),
                                      true};
        struct ts3_verdict verdict = ts3_retry_judge(&attempt);
        ts3_test_label("%d %s", rows[i].status, rows[i].code);
        CHECK_INT(verdict.what, rows[i].what);
        CHECK_INT(verdict.outcome, rows[i].outcome);
    }
}

TEST(retry_judges_transport)
{
    static const struct {
        enum ts3_transport transport;
        int status;
        bool sent;
        enum ts3_retry_class what;
        enum ts3_outcome outcome;
    } rows[] = {
        {TS3_TRANSPORT_RESOLVE, 0, false, TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_CONNECT, 0, false, TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_TLS, 0, false, TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_TRUST, 0, false, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_SEND, 0, false, TS3_RETRY_TRANSIENT, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_SEND, 0, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_RECEIVE, 200, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_RECEIVE, 403, true, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_RECEIVE, 500, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_FIRST_BYTE, 0, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_FIRST_BYTE, 403, true, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_STALL, 403, true, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_STALL, 500, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_PROTOCOL, 404, true, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_STALL, 206, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_PROTOCOL, 206, true, TS3_RETRY_TRANSIENT, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_LOCAL, 0, false, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_LOCAL, 0, true, TS3_RETRY_FINAL, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_DEADLINE, 0, true, TS3_RETRY_FINAL, TS3_OUTCOME_UNKNOWN},
        {TS3_TRANSPORT_CANCELLED, 0, false, TS3_RETRY_FINAL, TS3_OUTCOME_NOT_APPLIED},
        {TS3_TRANSPORT_CANCELLED, 0, true, TS3_RETRY_FINAL, TS3_OUTCOME_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_attempt attempt = {rows[i].transport, rows[i].status, {NULL, 0}, rows[i].sent};
        struct ts3_verdict verdict = ts3_retry_judge(&attempt);
        ts3_test_label("row %zu", i);
        CHECK_INT(verdict.what, rows[i].what);
        CHECK_INT(verdict.outcome, rows[i].outcome);
    }
}

TEST(retry_delays_are_full_jitter)
{
    struct ts3_rand_state state;
    struct ts3_rand rand;
    ts3_rand_seeded(&rand, &state, 7);
    for (unsigned retry = 0; retry < 40; retry++) {
        int64_t transient_cap = retry < 9 ? 50 << retry : 20000;
        int64_t throttle_cap = retry < 5 ? 1000 << retry : 20000;
        int64_t transient_max = 0, throttle_max = 0, transient_min = 20000;
        for (int i = 0; i < 500; i++) {
            int64_t transient = ts3_retry_delay_ms(TS3_RETRY_TRANSIENT, retry, &rand);
            int64_t throttle = ts3_retry_delay_ms(TS3_RETRY_THROTTLE, retry, &rand);
            transient_max = transient > transient_max ? transient : transient_max;
            transient_min = transient < transient_min ? transient : transient_min;
            throttle_max = throttle > throttle_max ? throttle : throttle_max;
        }
        ts3_test_label("retry %u", retry);
        CHECK(transient_min >= 0 && transient_min <= transient_cap / 20 + 1);
        CHECK(transient_max <= transient_cap && transient_max > transient_cap * 9 / 10);
        CHECK(throttle_max <= throttle_cap && throttle_max > throttle_cap * 9 / 10);
    }
    CHECK_INT(ts3_retry_delay_ms(TS3_RETRY_SKEW, 3, &rand), 0);
    CHECK_INT(ts3_retry_delay_ms(TS3_RETRY_REGION, 3, &rand), 0);
    CHECK(ts3_retry_delay_ms(TS3_RETRY_TRANSIENT, UINT32_MAX, &rand) <= 20000);
}

TEST(retry_after_makes_a_delay_longer)
{
    static const struct {
        int64_t delay_ms, asked_s, want_ms;
    } rows[] = {
        {30, 0, 30},          {30, -1, 30},           {30, INT64_MIN, 30},
        {30, 1, 1000},        {1500, 1, 1500},        {0, 20, 20000},
        {30, 21, 20000},      {19000, 86400, 20000},  {30, INT64_MAX, 20000},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ts3_test_label("row %zu", i);
        CHECK_INT(ts3_retry_after_ms(rows[i].delay_ms, rows[i].asked_s), rows[i].want_ms);
    }
}

TEST(retry_quota)
{
    struct ts3_retry_quota quota;
    int cost = -1, retries = 0;
    ts3_retry_quota_init(&quota, TS3_RETRY_QUOTA_TOKENS);
    while (ts3_retry_quota_take(&quota, TS3_RETRY_TRANSIENT, &cost)) {
        CHECK_INT(cost, TS3_RETRY_COST);
        retries++;
    }
    CHECK_INT(retries, 35);
    CHECK_INT(cost, 0);
    CHECK_INT(quota.tokens, 10);
    CHECK(ts3_retry_quota_take(&quota, TS3_RETRY_THROTTLE, &cost));
    CHECK_INT(cost, TS3_RETRY_COST_THROTTLE);
    CHECK(ts3_retry_quota_take(&quota, TS3_RETRY_THROTTLE, &cost));
    CHECK(!ts3_retry_quota_take(&quota, TS3_RETRY_THROTTLE, &cost));
    CHECK(ts3_retry_quota_take(&quota, TS3_RETRY_SKEW, &cost));
    CHECK(ts3_retry_quota_take(&quota, TS3_RETRY_REGION, &cost));
    CHECK_INT(cost, 0);
    CHECK_INT(quota.tokens, 0);
    ts3_retry_quota_give(&quota, 0);
    CHECK_INT(quota.tokens, 1);
    ts3_retry_quota_give(&quota, TS3_RETRY_COST);
    CHECK_INT(quota.tokens, 15);
    for (int i = 0; i < 1000; i++)
        ts3_retry_quota_give(&quota, i % 2 ? TS3_RETRY_COST : 0);
    CHECK_INT(quota.tokens, TS3_RETRY_QUOTA_TOKENS);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must happen in a cell of the fault matrix, by the rules. See test_net_matrix.h. */
#include <string.h>

#include "test_net_matrix.h"

enum { COST = 14, COST_THROTTLE = 5, BASE_MS = 50, BASE_THROTTLE_MS = 1000, WAIT_LIMIT_MS = 20000,
       IDLE_MS = 10000 /* that a connection may lie idle */ };

enum again { FINAL, TRANSIENT, THROTTLE };

struct judgement {
    enum again again;
    bool applied_perhaps;
};

static bool one_of(const char *code, const char *const *codes)
{
    for (; *codes != NULL; codes++)
        if (strcmp(code, *codes) == 0)
            return true;
    return false;
}

/* A status, and the code of the document where one could be read.
 *
 * 401 and 403 are final, whatever else is said. Then the code counts, then the status: what the
 * client did wrong (3xx, 4xx) is final, but for a time that ran out and for being asked to slow
 * down; what the service did wrong is not, but for what it cannot do at all (501, 505).
 * A refusal was not applied, and neither was a request that came too early; of all else nobody
 * knows. */
static struct judgement judge(int status, const char *code)
{
    static const char *const throttles[] = {"SlowDown", "TooManyRequests", NULL};
    static const char *const transients[] = {
        "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted",
        "BadDigest",     "IncompleteBody",     NULL};
    bool client = status >= 300 && status < 500;
    bool never = status == 501 || status == 505;
    struct judgement is = {client || never ? FINAL : TRANSIENT, !client && !never};
    if (status == 408 || status == 425)
        is.again = TRANSIENT;
    if (status == 429 || (status == 503 && code[0] == '\0'))
        is.again = THROTTLE;
    if (status == 408)
        is.applied_perhaps = true;
    if (one_of(code, transients))
        is.again = TRANSIENT;
    if (one_of(code, throttles))
        is = (struct judgement){THROTTLE, false};
    if (status == 401 || status == 403)
        is = (struct judgement){FINAL, false};
    return is;
}

static int64_t silence_of(const struct matrix_op *op, enum matrix_silence silence)
{
    int64_t body_ms = MATRIX_STALL_MS;
    switch (silence) {
    case NOT_SILENT:
        return 0;
    case SILENT_CONNECT:
        return MATRIX_CONNECT_MS;
    case SILENT_SEND:
        return MATRIX_STALL_MS;
    case SILENT_WAIT:
        return op->first_byte_ms;
    case SILENT_BODY:
        if (op->traits & OP_SLOW && op->first_byte_ms > body_ms)
            body_ms = op->first_byte_ms;
        return body_ms;
    }
    return 0;
}

static struct judgement judge_fault(const struct matrix_op *op, const struct matrix_fault *fault,
                                    struct matrix_expect *expect)
{
    expect->kinds = fault->kinds;
    expect->status = -1;
    switch (fault->harm) {
    case HARM_NONE:
    case HARM_LENIENT:
    case HARM_BROKEN:
        return (struct judgement){TRANSIENT, true};
    case HARM_UNSENT:
        return (struct judgement){TRANSIENT, false};
    case HARM_CHANGED:
    case HARM_TRUST:
        expect->code = fault->code;
        return (struct judgement){FINAL, false};
    case HARM_ANSWER:
    case HARM_CORRECTED:
        break;
    }
    expect->status = fault->status;
    expect->code = fault->code != NULL && !(op->traits & OP_HEAD) ? fault->code : "";
    bool denied = fault->status == 401 || fault->status == 403;
    expect->kinds = 1u << (denied ? TS3_KIND_AUTH : TS3_KIND_SERVICE);
    return judge(fault->status, expect->code);
}

static void set_delays(const struct matrix_fault *fault, enum again again,
                       struct matrix_expect *expect)
{
    for (int i = 0; i + 1 < expect->attempts; i++) {
        int64_t delay_ms = (int64_t)(again == THROTTLE ? BASE_THROTTLE_MS : BASE_MS) << i;
        int64_t asked_ms = fault->wait_ms < WAIT_LIMIT_MS ? fault->wait_ms : WAIT_LIMIT_MS;
        expect->delays_ms[i] = asked_ms > delay_ms ? asked_ms : delay_ms;
    }
}

bool matrix_expect(const struct matrix_op *op, const struct matrix_fault *fault,
                   enum matrix_mode mode, struct matrix_expect *expect)
{
    memset(expect, 0, sizeof *expect);
    struct judgement is = judge_fault(op, fault, expect);
    int cost = is.again == THROTTLE ? COST_THROTTLE : COST;
    bool perhaps = is.applied_perhaps && !(op->traits & OP_SAFE);
    expect->outcomes = 1u << (perhaps ? TS3_OUTCOME_UNKNOWN : TS3_OUTCOME_NOT_APPLIED);
    if (fault->special == AT_ACCEPT)
        expect->outcomes |= 1u << TS3_OUTCOME_NOT_APPLIED;
    expect->silence_ms = silence_of(op, fault->silence);
    expect->connection = fault->connection;
    expect->either = fault->harm == HARM_LENIENT;
    expect->tokens = 1; /* the least there is: enough for no retry */
    expect->attempts = 1;
    expect->faulty = 1;
    if (fault->harm == HARM_NONE) {
        expect->success = true;
        return mode == MODE_ONCE;
    }
    if (fault->harm == HARM_CORRECTED) {
        expect->attempts = 2;
        expect->faulty = mode == MODE_ONCE ? 1 : 2;
        expect->success = mode == MODE_ONCE;
        return mode != MODE_SPENT;
    }
    if (is.again == FINAL)
        return mode == MODE_ONCE;
    switch (mode) {
    case MODE_ONCE:
        expect->success = true;
        expect->attempts = 2;
        expect->tokens = cost;
        break;
    case MODE_ALWAYS:
        expect->attempts = expect->faulty = MATRIX_ATTEMPTS;
        expect->tokens = (MATRIX_ATTEMPTS - 1) * cost;
        break;
    case MODE_SPENT:
        expect->attempts = expect->faulty = MATRIX_ATTEMPTS - 1;
        expect->tokens = (MATRIX_ATTEMPTS - 1) * cost - 1;
        expect->denied = 1;
        break;
    }
    set_delays(fault, is.again, expect);
    if (expect->delays_ms[0] >= IDLE_MS)
        expect->connection = CONN_LOST;
    /* What libcurl sends again by itself is not paid for. */
    return mode != MODE_SPENT || !(expect->either || fault->special == WARM);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_verdict.h. */
#include "net/ts3_verdict.h"

#include <stdio.h>
#include <string.h>

#include "net/ts3_attempt.h"
#include "net/ts3_value.h"

#define SKEW_SUSPECT_S                                                                             \
    840 /* S3 allows 15 minutes; an answer without a body cannot say that this was the reason */
#define SKEW_NOISE_S 5 /* a correction this small would change nothing */

/* --- what libcurl says --- */

static enum ts3_transport transport_of(CURLcode code, const struct ts3_answer *answer)
{
    switch (code) {
    case CURLE_OK:
        return TS3_TRANSPORT_OK;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
        return TS3_TRANSPORT_RESOLVE;
    case CURLE_COULDNT_CONNECT:
    case CURLE_PROXY:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_INTERFACE_FAILED:
        return TS3_TRANSPORT_CONNECT;
    case CURLE_SSL_CONNECT_ERROR:
        return TS3_TRANSPORT_TLS;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
        return TS3_TRANSPORT_TRUST;
    case CURLE_OUT_OF_MEMORY:
    case CURLE_READ_ERROR:
    case CURLE_ABORTED_BY_CALLBACK:
    case CURLE_BAD_FUNCTION_ARGUMENT:
    case CURLE_FAILED_INIT:
        return TS3_TRANSPORT_LOCAL;
    case CURLE_SEND_ERROR:
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_GOT_NOTHING:
        return TS3_TRANSPORT_SEND;
    case CURLE_RECV_ERROR:
    case CURLE_PARTIAL_FILE:
    case CURLE_SSL_SHUTDOWN_FAILED:
        return answer->begun ? TS3_TRANSPORT_RECEIVE : TS3_TRANSPORT_SEND;
    default:
        return TS3_TRANSPORT_PROTOCOL;
    }
}

static void fault_of_code(struct ts3_request *request, CURLcode code, const char *detail)
{
    enum ts3_transport transport = transport_of(code, &request->answer);
    /* A refusal that came while the body was still going out counts, though the connection broke
     * then. */
    if (transport == TS3_TRANSPORT_SEND && request->answer.complete_head)
        transport = TS3_TRANSPORT_RECEIVE;
    /* libcurl's word for a header line beyond its limit too (100 KiB). */
    if (code == CURLE_OUT_OF_MEMORY && request->sent && !request->answer.complete_head)
        transport = TS3_TRANSPORT_PROTOCOL;
    enum ts3_kind kind = TS3_KIND_TRANSPORT;
    if (transport == TS3_TRANSPORT_LOCAL)
        kind = TS3_KIND_LOCAL;
    else if (transport == TS3_TRANSPORT_PROTOCOL)
        kind = TS3_KIND_PROTOCOL;
    else if (code == CURLE_OPERATION_TIMEDOUT)
        kind = TS3_KIND_TIMEOUT;
    const char *what = detail[0] != '\0' ? detail : curl_easy_strerror(code);
    if (transport == TS3_TRANSPORT_TRUST && !request->fault.set)
        (void)snprintf(request->code, sizeof request->code, "%s", TS3_CODE_UNTRUSTED);
    ts3_request_fault(request, kind, transport, false, "%s", what);
}

/* --- what the service says --- */

/* A status that is no success: code and message from the body where it is S3's error document. */
static void read_refusal(struct ts3_loop *loop, struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    struct ts3_xml_error error;
    memset(&error, 0, sizeof error);
    enum ts3_err err = TS3_EXML;
    if (answer->body.len > 0)
        err = ts3_xml_error_parse(loop->alloc, ts3_buf_text(&answer->body), answer->body.len,
                                  &error, NULL);
    if (err == TS3_OK)
        ts3_value_take_error(request, &error);
    ts3_xml_error_free(&error);
    if (request->region[0] == '\0')
        memcpy(request->region, answer->region, sizeof answer->region);
}

static void fault_of_status(struct ts3_request *request, const char *message)
{
    int status = request->answer.status;
    enum ts3_kind kind = status == 401 || status == 403 ? TS3_KIND_AUTH : TS3_KIND_SERVICE;
    if (message[0] != '\0')
        ts3_request_fault(request, kind, TS3_TRANSPORT_OK, false, "%s", message);
    else
        ts3_request_fault(request, kind, TS3_TRANSPORT_OK, false,
                          "the service answered with status %d", status);
}

/* A status that does not exist is one as well: its body is not what was asked for. */
static bool refused(const struct ts3_request *request)
{
    int status = request->answer.status;
    return status < 200 || status >= 300;
}

/* Whether the window has all that the answer promised; a connection that breaks after that does
 * not matter. */
static bool window_is_whole(const struct ts3_request *request)
{
    if (request->into == NULL)
        return true;
    return request->answer.complete_head && ts3_window_ready(request->into) == request->target;
}

/* The connection broke, or nothing more came: perhaps when all that counts had arrived. */
static bool broke_off(const struct ts3_fault *fault)
{
    return fault->set && !fault->final &&
           (fault->transport == TS3_TRANSPORT_SEND || fault->transport == TS3_TRANSPORT_RECEIVE ||
            fault->transport == TS3_TRANSPORT_STALL);
}

/* Looks at the answer; where it is a success, its value is in the event. */
static void read_answer(struct ts3_loop *loop, struct ts3_request *request)
{
    struct ts3_fault *fault = &request->fault;
    if (!request->answer.complete_head) {
        if (request->answer.status != 0)
            ts3_request_fault(request, TS3_KIND_TRANSPORT, TS3_TRANSPORT_RECEIVE, false,
                              "the answer was cut short");
        else
            ts3_request_fault(request, TS3_KIND_PROTOCOL, TS3_TRANSPORT_PROTOCOL, false,
                              "the answer is not HTTP");
        return;
    }
    bool late = broke_off(fault);
    if (refused(request)) {
        /* What goes wrong behind the head of a refusal changes nothing about it. */
        bool odd = fault->set && !fault->final && fault->transport == TS3_TRANSPORT_PROTOCOL;
        if ((late || odd) && request->answer.status >= 300)
            memset(fault, 0, sizeof *fault);
        if (!fault->set)
            read_refusal(loop, request);
        return;
    }
    if (request->into != NULL) {
        if (late && request->target > 0 && window_is_whole(request))
            memset(fault, 0, sizeof *fault);
        if (!fault->set && !window_is_whole(request))
            ts3_request_fault(request, TS3_KIND_TRANSPORT, TS3_TRANSPORT_RECEIVE, false,
                              "the answer was cut short");
        return;
    }
    if (!fault->set)
        ts3_value_parse(loop->alloc, request);
}

/* --- what follows --- */

static bool adopt_skew(struct ts3_loop *loop, struct ts3_request *request)
{
    int64_t server_s = request->answer.date_s;
    if (request->skew_tried || server_s == TS3_TIME_NONE)
        return false;
    int64_t skew_s = server_s - loop->clock->wall_s(loop->clock->ctx);
    int64_t change_s = skew_s - request->signed_skew_s;
    if (change_s > -SKEW_NOISE_S && change_s < SKEW_NOISE_S)
        return false;
    request->skew_tried = true;
    atomic_store(&loop->skew_s, skew_s);
    atomic_store(&loop->skew_adopted, true);
    return true;
}

static bool is_region(const char *text)
{
    size_t len = strlen(text);
    return len > 0 && len < 63 &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == len;
}

/* Another request may have adopted it already; a third region that is named is not followed. */
static bool adopt_region(struct ts3_loop *loop, struct ts3_request *request)
{
    if (request->region_tried || !is_region(request->region) ||
        strcmp(request->region, request->signed_region) == 0)
        return false;
    if (strcmp(loop->region, request->region) != 0) {
        if (atomic_load(&loop->region_adopted))
            return false;
        memcpy(loop->region, request->region, sizeof loop->region);
        atomic_store(&loop->region_adopted, true);
        ts3_sigv4_forget(loop->signing.signer);
    }
    request->region_tried = true;
    return true;
}

/* An answer to HEAD has no body that could say why it was refused, and some services never send
 * one. */
static enum ts3_retry_class guess_bare(const struct ts3_loop *loop,
                                       const struct ts3_request *request, enum ts3_retry_class what)
{
    const struct ts3_answer *answer = &request->answer;
    if (request->code[0] != '\0' || what != TS3_RETRY_FINAL || request->fault.set)
        return what;
    bool other = answer->region[0] != '\0' && strcmp(answer->region, request->signed_region) != 0;
    if (other && (answer->status == 400 || answer->status == 301 || answer->status == 307))
        return TS3_RETRY_REGION;
    if (answer->status != 403 || answer->date_s == TS3_TIME_NONE)
        return what;
    int64_t off_s =
        answer->date_s - (loop->clock->wall_s(loop->clock->ctx) + request->signed_skew_s);
    return off_s > SKEW_SUSPECT_S || off_s < -SKEW_SUSPECT_S ? TS3_RETRY_SKEW : what;
}

static bool wait_and_retry(struct ts3_loop *loop, struct ts3_request *request,
                           enum ts3_retry_class what)
{
    uint32_t allowed =
        request->attempts_max + (request->skew_tried ? 1 : 0) + (request->region_tried ? 1 : 0);
    if (request->attempts >= allowed)
        return false;
    int64_t delay_ms = ts3_retry_delay_ms(what, request->retries, &loop->rand);
    if (refused(request))
        delay_ms = ts3_retry_after_ms(delay_ms, ts3_answer_wait_s(&request->answer));
    const struct ts3_timer *deadline = &request->deadline_alarm.timer;
    if (deadline->slot != 0 && loop->now_us + delay_ms * 1000 >= deadline->due_us)
        return false; /* it would only wait for its deadline, and hide the reason */
    if (!ts3_retry_quota_take(&loop->quota, what, &request->quota_cost)) {
        atomic_fetch_add(&loop->retries_denied, 1);
        return false;
    }
    request->retries++;
    ts3_loop_again(loop, request, delay_ms);
    return true;
}

/* After these the connection is gone, or soon will be; another idle one may be no better. */
static bool wants_fresh(const struct ts3_request *request)
{
    if (request->fault.set && request->fault.transport != TS3_TRANSPORT_OK)
        return true;
    return request->answer.status == 408 || strcmp(request->code, "RequestTimeout") == 0;
}

static bool try_again(struct ts3_loop *loop, struct ts3_request *request, enum ts3_retry_class what)
{
    if (loop->closing)
        return false;
    bool again = false;
    request->fresh = wants_fresh(request);
    if (what == TS3_RETRY_SKEW || what == TS3_RETRY_REGION) {
        again = what == TS3_RETRY_SKEW ? adopt_skew(loop, request) : adopt_region(loop, request);
        if (again)
            ts3_loop_again(loop, request, 0);
    } else if (what == TS3_RETRY_TRANSIENT || what == TS3_RETRY_THROTTLE) {
        again = wait_and_retry(loop, request, what);
    }
    if (again)
        atomic_fetch_add(&loop->retries, 1);
    return again;
}

static void conclude(struct ts3_loop *loop, struct ts3_request *request)
{
    struct ts3_fault *fault = &request->fault;
    struct ts3_attempt attempt = {
        .transport = fault->set ? fault->transport : TS3_TRANSPORT_OK,
        .status = request->answer.status,
        .code = ts3_str_of(request->code),
        .sent = request->sent,
    };
    struct ts3_verdict verdict = ts3_retry_judge(&attempt);
    if (fault->set && fault->final)
        verdict.what = TS3_RETRY_FINAL;
    if (verdict.what == TS3_RETRY_NONE) {
        ts3_retry_quota_give(&loop->quota, request->quota_cost);
        ts3_loop_end(loop, request, false);
        return;
    }
    verdict.what = guess_bare(loop, request, verdict.what);
    if (verdict.outcome == TS3_OUTCOME_UNKNOWN)
        request->unknown = true;
    if (try_again(loop, request, verdict.what))
        return;
    fault_of_status(request, ""); /* where nothing better is known */
    ts3_loop_end(loop, request, true);
}

void ts3_verdict_attempt(struct ts3_loop *loop, struct ts3_request *request, CURLcode code)
{
    if (request->body.error != TS3_OK)
        ts3_value_body_fault(request);
    if (code != CURLE_OK)
        fault_of_code(request, code, request->slot->error);
    ts3_attempt_stop(loop, request);
    read_answer(loop, request);
    conclude(loop, request);
}

void ts3_verdict_fault(struct ts3_loop *loop, struct ts3_request *request)
{
    conclude(loop, request);
}

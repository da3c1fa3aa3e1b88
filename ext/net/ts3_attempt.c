/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_attempt.h. */
#include "net/ts3_attempt.h"

#include <stdint.h>
#include <string.h>

#include "net/ts3_engine_priv.h"
#include "net/ts3_signing.h"
#include "net/ts3_turn.h"

/* Appends "name: value" and where it begins; an empty value needs libcurl's "name;". */
static enum ts3_err write_header(struct ts3_slot *slot, size_t *at, struct ts3_str name,
                                 struct ts3_str value)
{
    at[0] = slot->text.len;
    enum ts3_err err = ts3_buf_append_str(&slot->text, name);
    if (err == TS3_OK)
        err = ts3_buf_append_text(&slot->text, value.len ? ": " : ";");
    if (err == TS3_OK)
        err = ts3_buf_append_str(&slot->text, value);
    return err == TS3_OK ? ts3_buf_append_char(&slot->text, '\0') : err;
}

/* A list's member is not changed by libcurl, but its type does not say so. */
static void add_constant(struct ts3_slot *slot, size_t *count, const char *line)
{
    slot->headers[(*count)++].data = (char *)(uintptr_t)line;
}

static enum ts3_err write_headers(const struct ts3_loop *loop, const struct ts3_request *request,
                                  const struct ts3_wire *wire,
                                  const struct ts3_signature *signature, struct ts3_slot *slot)
{
    size_t at[TS3_SLOT_HEADERS];
    size_t count = 0;
    ts3_buf_reset(&slot->text);
    enum ts3_err err =
        write_header(slot, &at[count++], TS3_STR("Authorization"), signature->authorization);
    if (err == TS3_OK)
        err = write_header(slot, &at[count++], TS3_STR("x-amz-date"), signature->amz_date);
    if (err == TS3_OK)
        err = write_header(slot, &at[count++], TS3_STR("x-amz-content-sha256"), wire->payload);
    for (size_t i = 0; err == TS3_OK && i < wire->count; i++)
        err = write_header(slot, &at[count++], wire->headers[i].name, wire->headers[i].value);
    if (err != TS3_OK)
        return err;
    for (size_t i = 0; i < count; i++)
        slot->headers[i].data = slot->text.data + at[i];
    /* libcurl writes a head byte by byte: what it would add by itself and says nothing is dropped,
     * and the name of this program is written once, not twice as from CURLOPT_USERAGENT. */
    add_constant(slot, &count, loop->site->user_agent);
    add_constant(slot, &count, "Accept:");
    if (request->method == TS3_PUT || request->method == TS3_POST) {
        add_constant(slot, &count, "Expect:");
        if (!request->has_content_type)
            add_constant(slot, &count, "Content-Type:");
    }
    for (size_t i = 0; i < count; i++)
        slot->headers[i].next = i + 1 < count ? &slot->headers[i + 1] : NULL;
    return TS3_OK;
}

/* What stands between method and version: path and query, or all of the URL for a proxy that reads
 * it. */
static enum ts3_err write_target(const struct ts3_loop *loop, const struct ts3_signature *signature,
                                 struct ts3_slot *slot)
{
    ts3_buf_reset(&slot->target);
    enum ts3_err err = TS3_OK;
    if (loop->site->whole_target)
        err = ts3_buf_append_text(&slot->target, loop->site->origin);
    if (err == TS3_OK)
        err = ts3_buf_append_str(&slot->target, signature->path);
    if (err == TS3_OK && signature->query.len > 0) {
        err = ts3_buf_append_char(&slot->target, '?');
        if (err == TS3_OK)
            err = ts3_buf_append_str(&slot->target, signature->query);
    }
    return err;
}

/* PUT is sent as a POST of another name: libcurl's way of uploading costs far more for small
 * bodies, and this way resends, lengths and methods work alike for all bodies.
 *
 * libcurl gives up a connection whose error came before the body was sent, which is wanted. But 8.7 to
 * 8.17 look for an answer before they note that an empty body is sent, so that errors of a quick
 * service would cost a connection each; "keep sending", with nothing to send, prevents that. */
static CURLcode set_body(CURL *easy, const struct ts3_request *request)
{
    const struct ts3_body *body = &request->body;
    bool whole = body->kind == TS3_BODY_NONE ||
                 (body->kind != TS3_BODY_STREAM && body->size_bytes <= TS3_SLOT_INLINE_BYTES);
    const void *data = body->kind == TS3_BODY_NONE ? (const void *)"" : (const void *)body->data;
    CURLcode code = curl_easy_setopt(easy, CURLOPT_POST, 1L);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_POSTFIELDS, whole ? data : NULL);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->size_bytes);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST,
                                request->method == TS3_PUT ? "PUT" : NULL);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_KEEP_SENDING_ON_ERROR,
                                body->kind == TS3_BODY_NONE ? 1L : 0L);
    return code;
}

static CURLcode set_method(CURL *easy, const struct ts3_request *request)
{
    if (request->method == TS3_PUT || request->method == TS3_POST)
        return set_body(easy, request);
    CURLcode code = curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST,
                                request->method == TS3_DELETE ? "DELETE" : NULL);
    if (code == CURLE_OK && request->method == TS3_HEAD)
        code = curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
    return code;
}

static enum ts3_err set_request(const struct ts3_request *request, struct ts3_slot *slot)
{
    CURL *easy = slot->easy;
    CURLcode code = curl_easy_setopt(easy, CURLOPT_REQUEST_TARGET, ts3_buf_text(&slot->target));
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_HTTPHEADER, slot->headers);
    if (code == CURLE_OK)
        code = set_method(easy, request);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, request->fresh ? 1L : 0L);
    return code == CURLE_OK ? TS3_OK : code == CURLE_OUT_OF_MEMORY ? TS3_ENOMEM : TS3_ENET;
}

static void reset_attempt(struct ts3_request *request)
{
    size_t max = request->max_answer_bytes;
    ts3_answer_reset(&request->answer, max > TS3_ANSWER_ERROR_BYTES ? max : TS3_ANSWER_ERROR_BYTES);
    memset(&request->fault, 0, sizeof request->fault);
    request->code[0] = '\0';
    request->region[0] = '\0';
    request->sent = false;
    request->paused = false;
    request->half_closed = false;
    request->first_byte_us = -1;
    request->target = 0;
    (void)ts3_body_seek(&request->body, 0);
}

enum ts3_err ts3_attempt_start(struct ts3_loop *loop, struct ts3_request *request)
{
    struct ts3_wire wire;
    struct ts3_signature signature;
    struct ts3_slot *slot = NULL;
    reset_attempt(request);
    enum ts3_err err = ts3_engine_refresh_creds(loop->engine, &loop->signing.creds);
    if (err != TS3_OK)
        return err;
    struct ts3_moment moment = {loop->clock->wall_s(loop->clock->ctx), atomic_load(&loop->skew_s),
                                loop->region};
    err = ts3_signing_sign(&loop->signing, request, &moment, &wire, &signature);
    if (err == TS3_OK)
        err = ts3_slots_take(&loop->slots, loop, request, &slot);
    if (err != TS3_OK)
        return err;
    err = write_headers(loop, request, &wire, &signature, slot);
    if (err == TS3_OK)
        err = write_target(loop, &signature, slot);
    if (err == TS3_OK)
        err = set_request(request, slot);
    if (err == TS3_OK && curl_multi_add_handle(loop->multi, slot->easy) != CURLM_OK)
        err = TS3_ENET;
    if (err != TS3_OK) {
        ts3_slots_give(&loop->slots, slot);
        return err;
    }
    request->slot = slot;
    request->stage = TS3_STAGE_ACTIVE;
    request->attempts++;
    if (request->started_us < 0)
        request->started_us = loop->now_us;
    loop->active++;
    loop->connecting++;
    atomic_store(&loop->in_flight, loop->active);
    atomic_fetch_add(&loop->attempts, 1);
    ts3_loop_phase(loop, request, TS3_PHASE_CONNECT);
    return TS3_OK;
}

void ts3_attempt_stop(struct ts3_loop *loop, struct ts3_request *request)
{
    struct ts3_slot *slot = request->slot;
    ts3_loop_no_phase(loop, request);
    ts3_turn_leave(slot);
    slot->left = true;
    (void)curl_multi_remove_handle(loop->multi, slot->easy);
    ts3_sockets_rest(&loop->sockets, slot->fd, slot);
    if (!slot->connected)
        loop->connecting--;
    loop->active--;
    atomic_store(&loop->in_flight, loop->active);
    request->slot = NULL;
    ts3_slots_give(&loop->slots, slot);
}

/* --- from libcurl's callbacks --- */

/* Whether records of the slot's connection wait for those behind them. */
static void gather(struct ts3_loop *loop, struct ts3_slot *slot, bool on)
{
    struct curl_tlssessioninfo *session = NULL;
    if (!loop->site->tls ||
        curl_easy_getinfo(slot->easy, CURLINFO_TLS_SSL_PTR, &session) != CURLE_OK ||
        session == NULL || session->backend != CURLSSLBACKEND_OPENSSL)
        return;
    size_t before = loop->gather.made_count;
    ts3_gather_set(&loop->gather, session->internals, on);
    if (loop->gather.made_count > before)
        ts3_shared_reserve(loop->shared, TS3_GATHER_BUFFER_BYTES);
}

/* Whether anything of the attempt went out on the connection that libcurl has just given up. Since 8.22
 * it takes one that was idle for less than a second as it is, and finds out by writing. Earlier ones
 * look first, and their count does not have all that they send. */
static bool has_sent(const struct ts3_slot *slot)
{
    long sent_bytes = 0;
    return !slot->loop->counts_sent ||
           curl_easy_getinfo(slot->easy, CURLINFO_REQUEST_SIZE, &sent_bytes) != CURLE_OK ||
           sent_bytes > 0;
}

void ts3_attempt_on_connected(struct ts3_loop *loop, struct ts3_slot *slot)
{
    struct ts3_request *request = slot->request;
    bool first = !slot->connected;
    bool again = !first && has_sent(slot);
    if (first) {
        slot->connected = true;
        loop->connecting--;
    } else {
        /* libcurl found its idle connection dead, and sends on a new one by itself. */
        slot->gathers = slot->corked = false; /* the new one does not, and is not */
    }
    if (again) {
        request->unknown = true;
        request->attempts++;
        atomic_fetch_add(&loop->attempts, 1);
        atomic_fetch_add(&loop->retries, 1);
    }
    /* A connection that libcurl keeps has had a whole body, and gathers no more; one that did would
     * keep this request to itself. */
    gather(loop, slot, false);
    request->sent = true;
    request->half_closed = false;
    bool large = request->body.size_bytes > TS3_SLOT_INLINE_BYTES;
    if (!large && (first || again)) {
        request->bytes_up += request->body.size_bytes;
        atomic_fetch_add(&loop->bytes_up, request->body.size_bytes);
    }
    ts3_loop_phase(loop, request, large ? TS3_PHASE_SEND : TS3_PHASE_WAIT);
}

/* libcurl before 8.8 goes on sending, until the kernel takes no more or the service resets the
 * connection.  An answer that is whole already counts all the same. */
void ts3_attempt_on_half_closed(struct ts3_loop *loop, struct ts3_request *request)
{
    if (request->answer.complete_head)
        return;
    request->half_closed = true;
    ts3_timers_set(&loop->timers, &request->phase_alarm.timer, loop->now_us);
}

static bool protocol_fault(struct ts3_request *request, const char *what)
{
    ts3_request_fault(request, TS3_KIND_PROTOCOL, TS3_TRANSPORT_PROTOCOL, false, "%s", what);
    return false;
}

static bool integrity_fault(struct ts3_request *request, const char *what)
{
    ts3_request_fault(request, TS3_KIND_INTEGRITY, TS3_TRANSPORT_PROTOCOL, false, "%s", what);
    return false;
}

/* The ETag of a GET, against the expected one or that of the attempt before. */
static bool check_etag(struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    bool resumes = request->into != NULL && ts3_window_ready(request->into) > 0;
    if (request->etag[0] == '\0') {
        if (resumes)
            return protocol_fault(request,
                                  "a cut-off GET cannot go on, since the service sends no ETag");
        memcpy(request->etag, answer->etag, sizeof request->etag);
        return true;
    }
    if (answer->etag[0] == '\0')
        return protocol_fault(request, "the answer has no ETag, though one is expected");
    if (strcmp(request->etag, answer->etag) == 0)
        return true;
    ts3_request_fault(request, TS3_KIND_CHANGED, TS3_TRANSPORT_PROTOCOL, true,
                      "the object has changed: its ETag is new");
    return false;
}

/* A range came: exactly the one asked for, or up to the object's end. */
static bool check_partial(struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    uint64_t first = request->offset + ts3_window_ready(request->into);
    uint64_t last = request->offset + ts3_window_size(request->into) - 1;
    if (!answer->has_range)
        return integrity_fault(request, "the answer has no Content-Range");
    if (answer->range_total != TS3_ANSWER_UNKNOWN && last >= answer->range_total)
        last = answer->range_total - 1;
    if (answer->range_first != first || answer->range_last != last || last < first)
        return integrity_fault(request, "the answer's Content-Range is not the range asked for");
    if (answer->length != TS3_ANSWER_UNKNOWN && answer->length != last - first + 1)
        return integrity_fault(request, "the answer's Content-Length and Content-Range differ");
    request->target = last + 1 - request->offset;
    if (answer->range_total == TS3_ANSWER_UNKNOWN)
        return true;
    if (request->total != TS3_SIZE_NONE && request->total != answer->range_total)
        return integrity_fault(request, "the object's size has changed, though not its ETag");
    request->total = answer->range_total;
    return true;
}

/* No range came, though one was asked for: the whole object, fine where that is what fits the
 * window. */
static bool check_whole(struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    bool from_zero = request->offset == 0 && ts3_window_ready(request->into) == 0;
    if (!from_zero || answer->length == TS3_ANSWER_UNKNOWN ||
        answer->length > ts3_window_size(request->into))
        return integrity_fault(request, "the service ignored the Range header");
    request->target = answer->length;
    request->total = answer->length;
    return true;
}

/* The body as bytes: nothing but its length says whether they are all there. */
static bool check_bytes(struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    if (answer->status != 200)
        return protocol_fault(request, "the answer to a GET has an odd status");
    if (answer->length == TS3_ANSWER_UNKNOWN && !answer->chunked)
        return integrity_fault(request, "the answer does not tell its length");
    return request->etag[0] == '\0' || check_etag(request);
}

/* Whether the body of this answer may be taken for what was asked for. */
static bool check_head(struct ts3_request *request)
{
    const struct ts3_answer *answer = &request->answer;
    bool good = answer->status >= 200 && answer->status < 300;
    if (answer->range_total != TS3_ANSWER_UNKNOWN && !good)
        request->total = answer->range_total; /* of a 416: how long the object is */
    if (!good)
        return true;
    if (answer->bad_length)
        return protocol_fault(request, "the answer's Content-Length cannot be right");
    if (answer->status == 206 && request->into == NULL)
        return protocol_fault(request, "a range came that was not asked for");
    if (request->method != TS3_GET && request->method != TS3_HEAD)
        return true;
    if (request->into == NULL && answer->has_range &&
        (answer->range_first != 0 || answer->range_last + 1 != answer->range_total))
        return protocol_fault(request, "a range came that was not asked for");
    if (request->method == TS3_HEAD || request->into == NULL) {
        if (answer->length != TS3_ANSWER_UNKNOWN)
            request->total = answer->length;
        return request->method == TS3_HEAD || request->parse != TS3_PARSE_BYTES ||
               check_bytes(request);
    }
    if (answer->status != 206 && answer->status != 200)
        return protocol_fault(request, "the answer to a GET has an odd status");
    /* rclone's S3 server says 200 to ranges before its version 1.76. */
    bool partial = answer->status == 206 || answer->has_range;
    return check_etag(request) && (partial ? check_partial(request) : check_whole(request));
}

bool ts3_attempt_on_header(struct ts3_loop *loop, struct ts3_request *request, struct ts3_str line)
{
    struct ts3_answer *answer = &request->answer;
    if (!answer->begun)
        request->first_byte_us = loop->now_us;
    bool before = answer->complete_head;
    ts3_answer_header(answer, line);
    if (answer->head_bytes > TS3_ANSWER_HEAD_BYTES)
        return protocol_fault(request, "the head of the answer is too long");
    if (answer->complete_head && !before) {
        ts3_loop_phase(loop, request, TS3_PHASE_RECEIVE);
        /* It may have been sent before this request came, and then the answer to this one follows,
         * and would be taken for that to the next. */
        if (answer->status == 408)
            (void)curl_easy_setopt(request->slot->easy, CURLOPT_FORBID_REUSE, 1L);
        return check_head(request);
    }
    return true;
}

static bool no_memory(struct ts3_request *request)
{
    ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true,
                      "no memory for the answer");
    return false;
}

/* A body of an answer that is no error, outside of windows. */
static bool keep_answer(struct ts3_request *request, const char *bytes, size_t size)
{
    struct ts3_answer *answer = &request->answer;
    bool error = answer->status >= 300;
    if (error || request->parse == TS3_PARSE_NONE) {
        /* Of these nothing, or the beginning, is kept; nobody waits for the end of one that has
         * none. */
        answer->idle_bytes += size;
        if (answer->idle_bytes > TS3_ANSWER_IDLE_BYTES)
            return protocol_fault(request, "the answer goes on and on");
        if (!error)
            return true;
    }
    size_t limit = error ? TS3_ANSWER_ERROR_BYTES : request->max_answer_bytes;
    if (!error && size > limit - answer->body.len) {
        ts3_request_fault(request, TS3_KIND_PROTOCOL, TS3_TRANSPORT_PROTOCOL, true,
                          "the answer is longer than %zu bytes", limit);
        return false;
    }
    answer->body.max = limit;
    if (answer->body.len == 0 && answer->length <= limit &&
        ts3_buf_reserve(&answer->body, (size_t)answer->length) != TS3_OK)
        return no_memory(request);
    if (ts3_answer_keep(answer, bytes, size) != TS3_OK)
        return no_memory(request);
    ts3_request_charge_answer(request, answer->body.cap);
    return true;
}

static bool fill_window(struct ts3_loop *loop, struct ts3_request *request, const char *bytes,
                        size_t size)
{
    struct ts3_window *window = request->into;
    if (size > request->target - ts3_window_ready(window))
        return integrity_fault(request, "the answer is longer than its Content-Range says");
    if (ts3_window_append(window, bytes, size) != TS3_OK)
        return integrity_fault(request, "the answer is longer than the window");
    if (ts3_window_fire(window))
        ts3_engine_tell(loop->engine, request);
    return true;
}

bool ts3_attempt_on_body(struct ts3_loop *loop, struct ts3_request *request, const char *bytes,
                         size_t size)
{
    request->progress_us = loop->now_us;
    request->bytes_down += size;
    atomic_fetch_add_explicit(&loop->bytes_down, size, memory_order_relaxed);
    if (request->into != NULL && (request->answer.status == 200 || request->answer.status == 206))
        return fill_window(loop, request, bytes, size);
    return keep_answer(request, bytes, size);
}

/* Within TLS a body is written record by record, 16 KiB each, and each would go on its way by itself,
 * at the cost of a packet at either end: on loopback a third of what sending takes.  While more is to
 * come they are gathered, and what then fills no segment waits in the kernel. */
static void hold_back(struct ts3_loop *loop, struct ts3_slot *slot, bool on)
{
    if (!loop->site->tls)
        return;
    if (slot->gathers != on)
        gather(loop, slot, on);
    slot->gathers = on;
    /* Not before libcurl has said which socket it is. */
    if (slot->corked != on)
        slot->corked = ts3_sockets_cork(&loop->sockets, slot->fd, on) && on;
}

size_t ts3_attempt_on_read(struct ts3_loop *loop, struct ts3_request *request, char *out,
                           size_t size)
{
    bool pause = false;
    size_t got = ts3_body_read(&request->body, out, size, loop->pool, &pause);
    hold_back(loop, request->slot, got > 0 && request->body.position < request->body.size_bytes);
    if (pause) {
        request->paused = true;
        return CURL_READFUNC_PAUSE;
    }
    if (got == 0 && request->body.error != TS3_OK)
        return CURL_READFUNC_ABORT;
    request->progress_us = loop->now_us;
    request->bytes_up += got;
    atomic_fetch_add_explicit(&loop->bytes_up, got, memory_order_relaxed);
    if (request->body.position == request->body.size_bytes && request->phase == TS3_PHASE_SEND)
        ts3_loop_phase(loop, request, TS3_PHASE_WAIT);
    return got;
}

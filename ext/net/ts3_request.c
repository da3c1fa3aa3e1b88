/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_request.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_request.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REQUEST_BYTES ((size_t)256 << 10) /* of copied key, query and headers */

void ts3_request_spec_init(struct ts3_request_spec *spec)
{
    memset(spec, 0, sizeof *spec);
    spec->body_fd = -1;
    spec->priority = 1;
    spec->attempts = 5;
    spec->first_byte_ms = 10000;
    spec->stall_ms = 20000;
}

static bool header_is_ours(struct ts3_str name)
{
    static const char *const ours[] = {
        "authorization",
        "connection",
        "content-length",
        "expect",
        "host",
        "range",
        "transfer-encoding",
        "user-agent",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token",
    };
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (ts3_str_eq_nocase(name, ts3_str_of(ours[i])))
            return true;
    return false;
}

static bool header_is_sound(const struct ts3_pair *header)
{
    for (size_t i = 0; i < header->name.len; i++) {
        unsigned char c = (unsigned char)header->name.data[i];
        if (c <= ' ' || c >= 127 || strchr("()<>@,;:\\\"/[]?={}", c) != NULL)
            return false;
    }
    for (size_t i = 0; i < header->value.len; i++) {
        unsigned char c = (unsigned char)header->value.data[i];
        if ((c < ' ' && c != '\t') || c == 127)
            return false;
    }
    return header->name.len > 0 && !header_is_ours(header->name);
}

static bool body_is_sound(const struct ts3_request_spec *spec)
{
    bool may = spec->method == TS3_PUT || spec->method == TS3_POST;
    if (spec->body_fd >= 0)
        return may && spec->body_data == NULL && spec->body_offset <= (uint64_t)INT64_MAX &&
               spec->body_size <= (uint64_t)INT64_MAX - spec->body_offset;
    return spec->body_size == 0 || (may && spec->body_data != NULL);
}

static bool window_is_sound(const struct ts3_request_spec *spec)
{
    if (spec->into == NULL)
        return spec->offset == 0;
    bool fits = spec->offset <= (uint64_t)INT64_MAX - ts3_window_size(spec->into);
    bool resumes = ts3_window_ready(spec->into) > 0;
    bool room = ts3_window_ready(spec->into) < ts3_window_size(spec->into);
    return spec->method == TS3_GET && spec->parse == TS3_PARSE_NONE && fits && room &&
           (!resumes || spec->expect_etag != NULL);
}

static bool spec_is_sound(const struct ts3_request_spec *spec)
{
    if ((unsigned)spec->method >= TS3_METHOD_COUNT || (unsigned)spec->parse > TS3_PARSE_UPLOADS)
        return false;
    if (spec->priority < 0 || spec->priority > 2 || spec->attempts < 1 ||
        spec->attempts > TS3_ENGINE_ATTEMPTS)
        return false;
    if (spec->key.len > TS3_ENGINE_KEY_BYTES ||
        memchr(spec->key.len ? spec->key.data : "x", '\0', spec->key.len))
        return false;
    if (spec->query_count > TS3_ENGINE_PAIRS || spec->header_count > TS3_ENGINE_PAIRS)
        return false;
    if (spec->max_answer_bytes > TS3_ENGINE_ANSWER_BYTES)
        return false;
    if (spec->expect_etag != NULL && (spec->method != TS3_GET || strlen(spec->expect_etag) > 250))
        return false;
    for (size_t i = 0; i < spec->header_count; i++)
        if (!header_is_sound(&spec->headers[i]))
            return false;
    return body_is_sound(spec) && window_is_sound(spec);
}

static bool copy_pairs(struct ts3_arena *arena, const struct ts3_pair *from, size_t count,
                       struct ts3_pair **to)
{
    *to = NULL;
    if (count == 0)
        return true;
    struct ts3_pair *pairs = ts3_arena_get(arena, count * sizeof *pairs);
    if (pairs == NULL)
        return false;
    for (size_t i = 0; i < count; i++)
        if (!ts3_arena_copy_str(arena, from[i].name, &pairs[i].name) ||
            !ts3_arena_copy_str(arena, from[i].value, &pairs[i].value))
            return false;
    *to = pairs;
    return true;
}

static bool copy_path(struct ts3_request *request, const struct ts3_site *site, struct ts3_str key)
{
    if (key.len == 0)
        return ts3_arena_copy_str(&request->arena, ts3_str_of(site->bucket_path), &request->path);
    size_t prefix = strlen(site->prefix);
    char *path = ts3_arena_get(&request->arena, prefix + key.len + 1);
    if (path == NULL)
        return false;
    memcpy(path, site->prefix, prefix);
    memcpy(path + prefix, key.data, key.len);
    path[prefix + key.len] = '\0';
    request->path = (struct ts3_str){path, prefix + key.len};
    return true;
}

static size_t answer_limit(const struct ts3_request_spec *spec)
{
    if (spec->parse == TS3_PARSE_NONE)
        return 0;
    if (spec->parse == TS3_PARSE_BYTES)
        return spec->max_answer_bytes ? spec->max_answer_bytes : (size_t)1 << 20;
    return TS3_ENGINE_ANSWER_BYTES;
}

static void note_headers(struct ts3_request *request)
{
    bool has_md5 = false;
    for (size_t i = 0; i < request->header_count; i++) {
        request->has_content_type |=
            ts3_str_eq_nocase(request->headers[i].name, TS3_STR("content-type"));
        has_md5 |= ts3_str_eq_nocase(request->headers[i].name, TS3_STR("content-md5"));
    }
    request->body.want_md5 = request->parse == TS3_PARSE_DELETED && !has_md5;
}

/* Everything but what needs undoing: descriptor and window. */
static enum ts3_err fill(struct ts3_request *request, const struct ts3_site *site,
                         const struct ts3_request_spec *spec)
{
    request->user = spec->user;
    request->method = spec->method;
    request->parse = spec->parse;
    request->priority = spec->priority;
    request->offset = spec->offset;
    request->max_answer_bytes = answer_limit(spec);
    request->attempts_max = spec->attempts;
    request->first_byte_ms = spec->first_byte_ms;
    request->stall_ms = spec->stall_ms;
    request->deadline_ms = spec->deadline_ms;
    request->query_count = spec->query_count;
    request->header_count = spec->header_count;
    request->started_us = -1;
    request->first_byte_us = -1;
    request->total = TS3_SIZE_NONE;
    request->phase_alarm.request = request;
    request->deadline_alarm.request = request;
    request->deadline_alarm.deadline = true;
    request->armed_note.request = request;
    request->final_note.request = request;
    request->final_note.final = true;
    if (spec->expect_etag != NULL) {
        struct ts3_str etag = ts3_answer_unquote(ts3_str_of(spec->expect_etag));
        memcpy(request->etag, etag.data, etag.len);
    }
    struct ts3_arena *arena = &request->arena;
    bool copied = copy_path(request, site, spec->key) &&
                  copy_pairs(arena, spec->query, spec->query_count, &request->query) &&
                  copy_pairs(arena, spec->headers, spec->header_count, &request->headers);
    return copied ? TS3_OK : arena->over ? TS3_EINVAL : TS3_ENOMEM;
}

enum ts3_err ts3_request_new(const struct ts3_alloc *alloc, struct ts3_shared *shared,
                             const struct ts3_site *site, const struct ts3_digest *digest,
                             bool sign_payload, const struct ts3_request_spec *spec,
                             struct ts3_request **request)
{
    if (!spec_is_sound(spec))
        return TS3_EINVAL;
    struct ts3_request *made = ts3_alloc_zero(alloc, 1, sizeof *made);
    if (made == NULL)
        return TS3_ENOMEM;
    made->alloc = alloc;
    made->shared = shared;
    ts3_arena_init(&made->arena, alloc, REQUEST_BYTES);
    enum ts3_err err = fill(made, site, spec);
    int fd = -1;
    if (err == TS3_OK && spec->body_fd >= 0) {
        fd = fcntl(spec->body_fd, F_DUPFD_CLOEXEC, 3);
        err = fd < 0 ? TS3_EIO : TS3_OK;
    }
    if (err == TS3_OK && spec->into != NULL && atomic_exchange(&spec->into->busy, true))
        err = TS3_EINVAL;
    if (err != TS3_OK) {
        ts3_arena_free(&made->arena);
        ts3_alloc_free(alloc, made);
        if (fd >= 0)
            close(fd);
        return err;
    }
    ts3_body_init(&made->body, shared, digest, spec->body_data, fd, spec->body_offset,
                  spec->body_size);
    made->body.want_sha256 = sign_payload || !site->tls || made->body.kind == TS3_BODY_NONE;
    note_headers(made);
    ts3_body_prepare_small(&made->body);
    ts3_answer_init(&made->answer, alloc);
    ts3_shared_ref(shared);
    if (spec->into != NULL) {
        ts3_window_ref(spec->into);
        made->into = spec->into;
    }
    *request = made;
    return TS3_OK;
}

void ts3_request_let_go(struct ts3_request *request)
{
    ts3_body_free(&request->body);
    if (request->body_charge > 0)
        ts3_shared_discharge(request->shared, request->body_charge);
    request->body_charge = 0;
    if (request->into != NULL) {
        atomic_store(&request->into->armed_bytes, 0);
        atomic_store(&request->into->busy, false);
        ts3_window_unref(request->into);
    }
    request->into = NULL;
}

static void free_value(struct ts3_event *event)
{
    if (event->failed)
        return;
    if (event->parse == TS3_PARSE_LIST)
        ts3_xml_list_free(&event->value.page);
    else if (event->parse == TS3_PARSE_DELETED)
        ts3_xml_deleted_free(&event->value.deleted);
    else if (event->parse == TS3_PARSE_UPLOADS)
        ts3_xml_uploads_free(&event->value.uploads);
}

void ts3_request_free(struct ts3_request *request)
{
    struct ts3_shared *shared = request->shared;
    ts3_request_let_go(request);
    free_value(&request->event);
    ts3_request_charge_answer(request, 0);
    const struct ts3_buf *body = &request->answer.body; /* all that the answer owns */
    if (body->data != NULL)
        ts3_shared_bury(shared, body->data, body->cap);
    ts3_arena_free(&request->arena);
    ts3_alloc_free(request->alloc, request);
    ts3_shared_unref(shared);
}

void ts3_event_clear(struct ts3_event *event)
{
    struct ts3_request *request = event->store;
    memset(event, 0, sizeof *event);
    /* The request kept its copy of the event, and frees what that refers to. */
    if (request != NULL && !ts3_shared_forked(request->shared))
        ts3_request_free(request);
}

bool ts3_request_is_safe(const struct ts3_request *request)
{
    return request->method == TS3_GET || request->method == TS3_HEAD;
}

void ts3_request_fault(struct ts3_request *request, enum ts3_kind kind,
                       enum ts3_transport transport, bool final, const char *format, ...)
{
    struct ts3_fault *fault = &request->fault;
    if (fault->set)
        return;
    fault->set = true;
    fault->final = final;
    fault->kind = kind;
    fault->transport = transport;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(fault->message, sizeof fault->message, format, args);
    va_end(args);
}

void ts3_request_charge_answer(struct ts3_request *request, size_t bytes)
{
    if (bytes > request->answer_charge)
        ts3_shared_force(request->shared, bytes - request->answer_charge);
    else if (bytes < request->answer_charge)
        ts3_shared_discharge(request->shared, request->answer_charge - bytes);
    request->answer_charge = bytes;
}

void ts3_request_fill_event(struct ts3_request *request, bool failed, int64_t now_us,
                            int64_t skew_s)
{
    struct ts3_event *event = &request->event;
    const struct ts3_answer *answer = &request->answer;
    event->id = request->id;
    event->user = request->user;
    event->final = true;
    event->failed = failed;
    event->status = answer->status;
    event->etag = answer->etag[0] != '\0' ? answer->etag : NULL;
    event->size = request->total;
    event->modified_s = answer->modified_s;
    event->server_time_s = answer->date_s;
    event->skew_s = skew_s;
    event->request_id = answer->request_id;
    event->host_id = answer->host_id;
    event->attempts = request->attempts;
    event->bytes_up = request->bytes_up;
    event->bytes_down = request->bytes_down;
    event->queued_us =
        (request->started_us < 0 ? now_us : request->started_us) - request->submitted_us;
    event->first_byte_us =
        request->first_byte_us < 0 ? -1 : request->first_byte_us - request->submitted_us;
    event->total_us = now_us - request->submitted_us;
    event->parse = request->parse;
    event->store = request;
    if (!failed)
        return;
    struct ts3_failure *failure = &event->failure;
    bool unknown = request->unknown && !ts3_request_is_safe(request);
    failure->kind = request->fault.kind;
    failure->outcome = unknown ? TS3_OUTCOME_UNKNOWN : TS3_OUTCOME_NOT_APPLIED;
    failure->status = answer->status;
    failure->code = request->code;
    failure->message = request->fault.message;
    failure->region = request->region[0] != '\0' ? request->region : NULL;
    failure->server_time_s = answer->date_s;
}

const char *ts3_kind_text(enum ts3_kind kind)
{
    static const char *const texts[] = {"service",   "auth",    "transport", "timeout", "protocol",
                                        "integrity", "changed", "cancelled", "closed",  "local"};
    return (unsigned)kind < sizeof texts / sizeof texts[0] ? texts[kind] : "unknown";
}

const char *ts3_method_text(enum ts3_method method)
{
    static const char *const texts[TS3_METHOD_COUNT] = {"GET", "HEAD", "PUT", "POST", "DELETE"};
    return (unsigned)method < TS3_METHOD_COUNT ? texts[method] : "unknown";
}

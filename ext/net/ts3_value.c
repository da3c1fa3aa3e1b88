/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_value.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_value.h"

#include <string.h>

/* Cut where it does not fit; control characters become spaces, since the text may be logged. */
static void copy(char *out, size_t out_size, struct ts3_str text)
{
    size_t len = text.len < out_size ? text.len : out_size - 1;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        out[i] = c < ' ' || c == 127 ? ' ' : (char)c;
    }
    out[len] = '\0';
}

void ts3_value_take_error(struct ts3_request *request, const struct ts3_xml_error *error)
{
    struct ts3_answer *answer = &request->answer;
    copy(request->code, sizeof request->code, error->code);
    if (error->region.len > 0 && error->region.len < sizeof request->region)
        copy(request->region, sizeof request->region, error->region);
    if (answer->request_id[0] == '\0')
        copy(answer->request_id, sizeof answer->request_id, error->request_id);
    if (answer->host_id[0] == '\0')
        copy(answer->host_id, sizeof answer->host_id, error->host_id);
    if (answer->date_s == TS3_TIME_NONE)
        answer->date_s = error->server_time_s;
    char message[sizeof request->fault.message];
    copy(message, sizeof message, error->message);
    enum ts3_kind kind =
        answer->status == 401 || answer->status == 403 ? TS3_KIND_AUTH : TS3_KIND_SERVICE;
    /* Overrides a connection that broke behind the answer: what the service said is the reason. */
    memset(&request->fault, 0, sizeof request->fault);
    ts3_request_fault(request, kind, TS3_TRANSPORT_OK, false, "%s",
                      message[0] != '\0' ? message : request->code);
}

static void unreadable(struct ts3_request *request, enum ts3_err err,
                       const struct ts3_xml_fault *fault)
{
    if (err == TS3_ENOMEM)
        ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true,
                          "no memory for the answer");
    else
        ts3_request_fault(request, TS3_KIND_PROTOCOL, TS3_TRANSPORT_PROTOCOL, false,
                          "the answer cannot be read: %s", fault->text);
}

static void parse_result(const struct ts3_alloc *alloc, struct ts3_request *request,
                         const char *text, size_t size)
{
    enum ts3_xml_result_kind kind = request->parse == TS3_PARSE_CREATE     ? TS3_XML_RESULT_CREATE
                                    : request->parse == TS3_PARSE_COMPLETE ? TS3_XML_RESULT_COMPLETE
                                                                           : TS3_XML_RESULT_COPY;
    struct ts3_xml_result result;
    struct ts3_xml_fault fault = {""};
    memset(&result, 0, sizeof result);
    enum ts3_err err = ts3_xml_result_parse(alloc, text, size, kind, &result, &fault);
    if (err == TS3_OK && result.is_error) {
        ts3_value_take_error(request, &result.error);
    } else if (err == TS3_OK) {
        request->event.value.text = ts3_arena_copy(
            &request->arena, result.text.len ? result.text.data : "", result.text.len);
        if (request->event.value.text == NULL)
            err = TS3_ENOMEM;
    }
    if (err != TS3_OK)
        unreadable(request, err, &fault);
    ts3_xml_result_free(&result);
}

/* A question without list-type is one of ListObjects v1, whose answers may lack every element that
 * tells. */
static enum ts3_list_version list_version(const struct ts3_request *request)
{
    for (size_t i = 0; i < request->query_count; i++)
        if (ts3_str_eq(request->query[i].name, TS3_STR("list-type")))
            return TS3_LIST_ANY;
    return TS3_LIST_V1;
}

static void parse_list(const struct ts3_alloc *alloc, struct ts3_request *request, const char *text,
                       size_t size)
{
    struct ts3_page *page = &request->event.value.page;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err = ts3_xml_list_parse(alloc, text, size, list_version(request), page, &fault);
    if (err != TS3_OK) {
        ts3_xml_list_free(page);
        unreadable(request, err, &fault);
        return;
    }
    ts3_buf_free(&request->answer.body);
    ts3_request_charge_answer(request, page->arena.used_bytes);
}

static void parse_deleted(const struct ts3_alloc *alloc, struct ts3_request *request,
                          const char *text, size_t size)
{
    struct ts3_xml_deleted *deleted = &request->event.value.deleted;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err = ts3_xml_deleted_parse(alloc, text, size, deleted, &fault);
    if (err == TS3_OK && !deleted->is_error)
        return;
    if (err == TS3_OK)
        ts3_value_take_error(request, &deleted->error);
    else
        unreadable(request, err, &fault);
    ts3_xml_deleted_free(deleted);
}

static void parse_uploads(const struct ts3_alloc *alloc, struct ts3_request *request,
                          const char *text, size_t size)
{
    struct ts3_xml_uploads *uploads = &request->event.value.uploads;
    struct ts3_xml_fault fault = {""};
    enum ts3_err err = ts3_xml_uploads_parse(alloc, text, size, uploads, &fault);
    if (err != TS3_OK) {
        ts3_xml_uploads_free(uploads);
        unreadable(request, err, &fault);
    }
}

void ts3_value_parse(const struct ts3_alloc *alloc, struct ts3_request *request)
{
    const char *text = ts3_buf_text(&request->answer.body);
    size_t size = request->answer.body.len;
    memset(&request->event.value, 0, sizeof request->event.value);
    switch (request->parse) {
    case TS3_PARSE_NONE:
        return;
    case TS3_PARSE_BYTES:
        request->event.value.bytes.data = (const unsigned char *)text;
        request->event.value.bytes.size = size;
        return;
    case TS3_PARSE_LIST:
        parse_list(alloc, request, text, size);
        return;
    case TS3_PARSE_DELETED:
        parse_deleted(alloc, request, text, size);
        return;
    case TS3_PARSE_UPLOADS:
        parse_uploads(alloc, request, text, size);
        return;
    case TS3_PARSE_CREATE:
    case TS3_PARSE_COMPLETE:
    case TS3_PARSE_COPY:
        parse_result(alloc, request, text, size);
        return;
    }
}

void ts3_value_body_fault(struct ts3_request *request)
{
    const struct ts3_body *body = &request->body;
    char text[128] = "";
    if (body->error != TS3_EIO) {
        ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true,
                          "the body cannot be hashed: %s", ts3_err_text(body->error));
    } else if (body->error_number == 0) {
        ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true,
                          "the file ends before the region that was to be sent");
    } else {
        const char *why = strerror_r(body->error_number, text, sizeof text);
        ts3_request_fault(request, TS3_KIND_LOCAL, TS3_TRANSPORT_LOCAL, true,
                          "the file cannot be read: %s", why);
    }
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Error documents. See ts3_xml_error.h. */
#include "xml/ts3_xml_error.h"

#include "xml/ts3_sax.h"

enum tag {
    ERROR,
    CODE,
    MESSAGE,
    REGION,
    REQUEST_ID,
    REQUEST_ID_OLD,
    HOST_ID,
    SERVER_TIME,
    ERROR_RESPONSE,
    RESPONSE,
    ERRORS,
    TAG_COUNT
};

static const char *const names[TAG_COUNT] = {
    [ERROR] = "Error",
    [CODE] = "Code",
    [MESSAGE] = "Message",
    [REGION] = "Region",
    [REQUEST_ID] = "RequestId",
    [REQUEST_ID_OLD] = "RequestID",
    [HOST_ID] = "HostId",
    [SERVER_TIME] = "ServerTime",
    [ERROR_RESPONSE] = "ErrorResponse",
    [RESPONSE] = "Response",
    [ERRORS] = "Errors",
};

static void start(void *ctx, struct ts3_sax *sax, int tag)
{
    (void)ctx;
    if (ts3_sax_depth(sax) == 1 && tag != ERROR && tag != ERROR_RESPONSE && tag != RESPONSE)
        ts3_sax_fail(sax, TS3_EXML, "the document is not an Error");
}

static void end_field(struct ts3_xml_error *error, struct ts3_sax *sax, int tag,
                      struct ts3_str text)
{
    struct ts3_str *field = NULL;
    text = ts3_sax_trim(text);
    switch (tag) {
    case CODE:
        field = &error->code;
        break;
    case MESSAGE:
        field = &error->message;
        break;
    case REGION:
        field = &error->region;
        break;
    case REQUEST_ID:
    case REQUEST_ID_OLD:
        field = &error->request_id;
        break;
    case HOST_ID:
        field = &error->host_id;
        break;
    case SERVER_TIME:
        /* A time that cannot be read is one that is not told: the Date header tells it too. */
        if (ts3_time_parse_iso(text, &error->server_time_s))
            error->server_time_s = TS3_TIME_NONE;
        return;
    default:
        return;
    }
    ts3_sax_keep(sax, &error->arena, text, field);
}

static void end(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    unsigned depth = ts3_sax_depth(sax);
    int parent = ts3_sax_tag(sax, depth - 1);
    bool is_id = tag == REQUEST_ID || tag == REQUEST_ID_OLD;
    if (parent == ERROR || (depth == 2 && is_id))
        end_field(ctx, sax, tag, text);
}

enum ts3_err ts3_xml_error_parse(const struct ts3_alloc *alloc, const char *document,
                                 size_t size_bytes, struct ts3_xml_error *error,
                                 struct ts3_xml_fault *fault)
{
    static const struct ts3_sax_rules rules = {names, TAG_COUNT, start, end};
    *error = (struct ts3_xml_error){.server_time_s = TS3_TIME_NONE};
    ts3_arena_init(&error->arena, alloc, TS3_XML_MAX_DOCUMENT);
    enum ts3_err err = ts3_sax_run(alloc, document, size_bytes, &rules, error, fault);
    if (!err && !error->code.len)
        err = ts3_xml_blame(fault, TS3_EXML, "the Error has no Code");
    if (err)
        ts3_xml_error_free(error);
    return err;
}

void ts3_xml_error_free(struct ts3_xml_error *error)
{
    ts3_arena_free(&error->arena);
    *error = (struct ts3_xml_error){.server_time_s = TS3_TIME_NONE};
}

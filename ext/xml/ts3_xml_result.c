/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The results of Create, Complete and copies: one string, or an Error. See ts3_xml_multi.h. */
#include "xml/ts3_sax.h"
#include "xml/ts3_xml_multi.h"

enum tag { ERROR, CREATE, COMPLETE, COPY_OBJECT, COPY_PART, ETAG, UPLOAD_ID, TAG_COUNT };

static const char *const names[TAG_COUNT] = {
    [ERROR] = "Error",
    [CREATE] = "InitiateMultipartUploadResult",
    [COMPLETE] = "CompleteMultipartUploadResult",
    [COPY_OBJECT] = "CopyObjectResult",
    [COPY_PART] = "CopyPartResult",
    [ETAG] = "ETag",
    [UPLOAD_ID] = "UploadId",
};

struct run {
    enum ts3_xml_result_kind kind;
    struct ts3_xml_result *result;
    bool is_foreign; /* the root has another name than S3's */
};

static bool is_root(enum ts3_xml_result_kind kind, int tag)
{
    switch (kind) {
    case TS3_XML_RESULT_CREATE:
        return tag == CREATE;
    case TS3_XML_RESULT_COMPLETE:
        return tag == COMPLETE;
    case TS3_XML_RESULT_COPY:
        return tag == COPY_OBJECT || tag == COPY_PART;
    }
    return false;
}

static void start(void *ctx, struct ts3_sax *sax, int tag)
{
    struct run *run = ctx;
    if (ts3_sax_depth(sax) != 1)
        return;
    run->is_foreign = !is_root(run->kind, tag);
    /* An Error ends this parse: another parser reads it. */
    run->result->is_error = tag == ERROR;
    if (tag == ERROR)
        ts3_sax_fail(sax, TS3_EXML, "the document is an Error");
}

static void end(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct run *run = ctx;
    int wanted = run->kind == TS3_XML_RESULT_CREATE ? UPLOAD_ID : ETAG;
    if (ts3_sax_depth(sax) != 2 || tag != wanted)
        return;
    text = ts3_sax_trim(text);
    if (tag == ETAG)
        text = ts3_sax_unquote(text);
    ts3_sax_keep(sax, &run->result->arena, text, &run->result->text);
}

enum ts3_err ts3_xml_result_parse(const struct ts3_alloc *alloc, const char *document,
                                  size_t size_bytes, enum ts3_xml_result_kind kind,
                                  struct ts3_xml_result *result, struct ts3_xml_fault *fault)
{
    static const struct ts3_sax_rules rules = {names, TAG_COUNT, start, end};
    struct run run = {.kind = kind, .result = result};
    *result = (struct ts3_xml_result){.error.server_time_s = TS3_TIME_NONE};
    ts3_arena_init(&result->arena, alloc, TS3_XML_MAX_DOCUMENT);
    enum ts3_err err = ts3_sax_run(alloc, document, size_bytes, &rules, &run, fault);
    if (result->is_error)
        err = ts3_xml_error_parse(alloc, document, size_bytes, &result->error, fault);
    else if (!err && run.is_foreign && !result->text.len)
        err = ts3_xml_blame(fault, TS3_EXML, "the document is not the result of the request");
    else if (!err && kind != TS3_XML_RESULT_COMPLETE && !result->text.len)
        err = ts3_xml_blame(fault, TS3_EXML, "the result has no %s",
                            kind == TS3_XML_RESULT_CREATE ? names[UPLOAD_ID] : names[ETAG]);
    if (err)
        ts3_xml_result_free(result);
    return err;
}

void ts3_xml_result_free(struct ts3_xml_result *result)
{
    ts3_arena_free(&result->arena);
    ts3_xml_error_free(&result->error);
    *result = (struct ts3_xml_result){.error.server_time_s = TS3_TIME_NONE};
}

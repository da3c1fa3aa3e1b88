/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages of ListMultipartUploads. See ts3_xml_multi.h. */
#include "core/ts3_time.h"
#include "xml/ts3_sax.h"
#include "xml/ts3_xml_multi.h"

enum tag {
    UPLOAD,
    KEY,
    UPLOAD_ID,
    INITIATED,
    IS_TRUNCATED,
    NEXT_KEY_MARKER,
    NEXT_UPLOAD_ID_MARKER,
    ENCODING_TYPE,
    ROOT,
    TAG_COUNT
};

static const char *const names[TAG_COUNT] = {
    [UPLOAD] = "Upload",
    [KEY] = "Key",
    [UPLOAD_ID] = "UploadId",
    [INITIATED] = "Initiated",
    [IS_TRUNCATED] = "IsTruncated",
    [NEXT_KEY_MARKER] = "NextKeyMarker",
    [NEXT_UPLOAD_ID_MARKER] = "NextUploadIdMarker",
    [ENCODING_TYPE] = "EncodingType",
    [ROOT] = "ListMultipartUploadsResult",
};

struct run {
    const struct ts3_alloc *alloc;
    struct ts3_xml_uploads *uploads;
    size_t upload_cap;
    struct ts3_upload upload; /* of the Upload that is open */
    bool url_encoded;
};

static void start(void *ctx, struct ts3_sax *sax, int tag)
{
    struct run *run = ctx;
    if (ts3_sax_depth(sax) == 1 && tag != ROOT)
        ts3_sax_fail(sax, TS3_EXML, "the document is not a list of uploads");
    if (tag == UPLOAD)
        run->upload = (struct ts3_upload){.initiated_s = TS3_TIME_NONE};
}

static void end_upload(struct run *run, struct ts3_sax *sax)
{
    struct ts3_xml_uploads *uploads = run->uploads;
    if (!run->upload.key.len || !run->upload.upload_id.len)
        ts3_sax_fail(sax, TS3_EXML, "an Upload has no %s",
                     run->upload.key.len ? "UploadId" : "Key");
    else if (ts3_sax_grow(sax, run->alloc, &uploads->uploads, uploads->upload_count,
                          &run->upload_cap, sizeof(*uploads->uploads)))
        uploads->uploads[uploads->upload_count++] = run->upload;
}

/* An element within Upload. */
static void end_field(struct run *run, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    if (tag == KEY)
        ts3_sax_keep(sax, &run->uploads->arena, text, &run->upload.key);
    else if (tag == UPLOAD_ID)
        ts3_sax_keep(sax, &run->uploads->arena, ts3_sax_trim(text), &run->upload.upload_id);
    else if (tag == INITIATED && ts3_time_parse_iso(ts3_sax_trim(text), &run->upload.initiated_s))
        run->upload.initiated_s = TS3_TIME_NONE;
}

/* An element right below the root. */
static void end_top(struct run *run, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct ts3_xml_uploads *uploads = run->uploads;
    switch (tag) {
    case UPLOAD:
        end_upload(run, sax);
        break;
    case IS_TRUNCATED:
        ts3_sax_bool(sax, text, &uploads->truncated);
        break;
    case NEXT_KEY_MARKER:
        ts3_sax_keep(sax, &uploads->arena, text, &uploads->next_key_marker);
        break;
    case NEXT_UPLOAD_ID_MARKER:
        ts3_sax_keep(sax, &uploads->arena, ts3_sax_trim(text), &uploads->next_upload_id_marker);
        break;
    case ENCODING_TYPE:
        run->url_encoded = ts3_str_eq_nocase(ts3_sax_trim(text), TS3_STR("url"));
        break;
    default:
        break;
    }
}

static void end(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    unsigned depth = ts3_sax_depth(sax);
    if (depth == 2)
        end_top(ctx, sax, tag, text);
    else if (depth == 3 && ts3_sax_tag(sax, 2) == UPLOAD)
        end_field(ctx, sax, tag, text);
}

static enum ts3_err finish_name(const struct run *run, struct ts3_str *name,
                                struct ts3_xml_fault *fault)
{
    enum ts3_err err = run->url_encoded ? ts3_xml_decode(name, fault) : TS3_OK;
    if (!err && name->len > TS3_XML_MAX_KEY)
        err = ts3_xml_blame(fault, TS3_ELIMIT, "a key is longer than %d bytes", TS3_XML_MAX_KEY);
    return err;
}

static enum ts3_err finish(const struct run *run, struct ts3_xml_fault *fault)
{
    struct ts3_xml_uploads *uploads = run->uploads;
    enum ts3_err err = finish_name(run, &uploads->next_key_marker, fault);
    for (size_t i = 0; i < uploads->upload_count && !err; i++)
        err = finish_name(run, &uploads->uploads[i].key, fault);
    if (err || !uploads->truncated || uploads->next_key_marker.len)
        return err;
    if (uploads->upload_count == 0)
        return ts3_xml_blame(fault, TS3_EXML,
                             "the list is truncated but does not say where to go on");
    const struct ts3_upload *last = &uploads->uploads[uploads->upload_count - 1];
    uploads->next_key_marker = last->key;
    uploads->next_upload_id_marker = last->upload_id;
    return TS3_OK;
}

enum ts3_err ts3_xml_uploads_parse(const struct ts3_alloc *alloc, const char *document,
                                   size_t size_bytes, struct ts3_xml_uploads *uploads,
                                   struct ts3_xml_fault *fault)
{
    static const struct ts3_sax_rules rules = {names, TAG_COUNT, start, end};
    struct run run = {.alloc = alloc, .uploads = uploads};
    *uploads = (struct ts3_xml_uploads){0};
    ts3_arena_init(&uploads->arena, alloc, TS3_XML_MAX_DOCUMENT);
    enum ts3_err err = ts3_sax_run(alloc, document, size_bytes, &rules, &run, fault);
    if (!err)
        err = finish(&run, fault);
    if (err)
        ts3_xml_uploads_free(uploads);
    return err;
}

void ts3_xml_uploads_free(struct ts3_xml_uploads *uploads)
{
    if (uploads->uploads)
        ts3_alloc_free(uploads->arena.alloc, uploads->uploads);
    ts3_arena_free(&uploads->arena);
    *uploads = (struct ts3_xml_uploads){0};
}

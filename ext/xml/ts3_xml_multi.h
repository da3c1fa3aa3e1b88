/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Results of multi-delete, multipart uploads and copies. Owner, thread, errors, limits: see
 * ts3_xml.h. Services answer some of these with status 200 and an Error document; that is no
 * failure of the parser, but is told in the result, and the result's free ends it too. */
#ifndef TS3_XML_MULTI_H
#define TS3_XML_MULTI_H

#include <stdbool.h>
#include <stdint.h>

#include "xml/ts3_xml.h"
#include "xml/ts3_xml_error.h"

/* ---- the results of Create, Complete, and of copies of objects and parts ----
 * A root of another name than S3's is taken for the result if it has the text asked for right below
 * it: rclone's S3 server calls that of Create InitiateMultipartUpload, and most clients do not look. */

enum ts3_xml_result_kind {
    TS3_XML_RESULT_CREATE,   /* text is the upload id: required */
    TS3_XML_RESULT_COMPLETE, /* text is the ETag: optional */
    TS3_XML_RESULT_COPY      /* CopyObjectResult or CopyPartResult; text is the ETag: required */
};

struct ts3_xml_result {
    struct ts3_arena arena;
    struct ts3_str text;        /* an ETag without the surrounding quotes, or an upload id */
    bool is_error;              /* the document was an Error; text is empty */
    struct ts3_xml_error error; /* filled only where is_error */
};

enum ts3_err ts3_xml_result_parse(const struct ts3_alloc *alloc, const char *document,
                                  size_t size_bytes, enum ts3_xml_result_kind kind,
                                  struct ts3_xml_result *result, struct ts3_xml_fault *fault);
void ts3_xml_result_free(struct ts3_xml_result *result);

/* ---- DeleteResult ---- */

struct ts3_deleted {
    struct ts3_str key; /* as it stands in the document; may be empty in an error */
    /* Empty: deleted; else the error's code, "Unknown" where an Error has none. */
    struct ts3_str code;
};

struct ts3_xml_deleted {
    struct ts3_arena arena;
    struct ts3_deleted *items; /* Deleted and Error elements, in the order of the document */
    size_t item_count;
    bool is_error; /* the whole document was an Error; no items */
    struct ts3_xml_error error;
};

enum ts3_err ts3_xml_deleted_parse(const struct ts3_alloc *alloc, const char *document,
                                   size_t size_bytes, struct ts3_xml_deleted *deleted,
                                   struct ts3_xml_fault *fault);
void ts3_xml_deleted_free(struct ts3_xml_deleted *deleted);

/* ---- ListMultipartUploadsResult ---- */

struct ts3_upload {
    struct ts3_str key;       /* decoded as in a listing */
    struct ts3_str upload_id; /* as given */
    int64_t initiated_s;      /* TS3_TIME_NONE when missing or unreadable */
};

struct ts3_xml_uploads {
    struct ts3_arena arena;
    struct ts3_upload *uploads;
    size_t upload_count;
    bool truncated;
    /* Not empty when truncated: the document's, else the last upload's key. */
    struct ts3_str next_key_marker;
    struct ts3_str next_upload_id_marker; /* may be empty */
};

enum ts3_err ts3_xml_uploads_parse(const struct ts3_alloc *alloc, const char *document,
                                   size_t size_bytes, struct ts3_xml_uploads *uploads,
                                   struct ts3_xml_fault *fault);
void ts3_xml_uploads_free(struct ts3_xml_uploads *uploads);

#endif

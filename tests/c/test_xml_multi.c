/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Error documents, results of multi-delete, multipart uploads and copies; libxml2's own allocations
 * failing. */
#include <libxml/xmlerror.h>
#include <libxml/xmlmemory.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/ts3_buf.h"
#include "core/ts3_time.h"
#include "ts3_test.h"
#include "xml/ts3_xml_list.h"
#include "xml/ts3_xml_multi.h"

#define XML "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define NS "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""

TEST(error_documents)
{
    static const struct {
        const char *document;
        const char *code, *message, *region, *request_id, *host_id;
        int64_t server_time_s;
    } rows[] = {
        {XML "<Error><Code>NoSuchKey</Code><Message>The specified key does not "
             "exist.</Message><Key>a</Key>"
             "<RequestId>4442587FB7D0A2F9</RequestId><HostId>h+/=</HostId></Error>",
         "NoSuchKey", "The specified key does not exist.", "", "4442587FB7D0A2F9",
         "h+/=", TS3_TIME_NONE},
        {"<Error " NS "><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' "
                      "is wrong; expecting "
         "'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
         "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'",
         "eu-west-1", "", "", TS3_TIME_NONE},
        {"<Error><Code>RequestTimeTooSkewed</Code><RequestTime>20130524T000000Z</RequestTime>"
         "<ServerTime>2013-05-24T01:00:00Z</ServerTime></Error>",
         "RequestTimeTooSkewed", "", "", "", "", 1369357200},
        {"<Error><Code>RequestTimeTooSkewed</Code><ServerTime>soon</ServerTime></Error>",
         "RequestTimeTooSkewed", "", "", "", "", TS3_TIME_NONE},
        {"<ErrorResponse><Error><Type>Sender</Type><Code> X "
         "</Code></Error><RequestId>r</RequestId></ErrorResponse>",
         "X", "", "", "r", "", TS3_TIME_NONE},
        {"<Response><Errors><Error><Code>X</Code><Message>m</Message></Error></"
         "Errors><RequestID>r</RequestID>"
         "</Response>",
         "X", "m", "", "r", "", TS3_TIME_NONE},
        {"  \n" XML "<Error><Code>X</Code><Message/><Resource>/b</Resource></Error>\n", "X", "", "",
         "", "", TS3_TIME_NONE},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_xml_error error;
        ts3_test_label("row %zu", i);
        CHECK_OK(ts3_xml_error_parse(ts3_alloc_libc(), rows[i].document, strlen(rows[i].document),
                                     &error, NULL));
        CHECK_TEXT(error.code, rows[i].code);
        CHECK_TEXT(error.message, rows[i].message);
        CHECK_TEXT(error.region, rows[i].region);
        CHECK_TEXT(error.request_id, rows[i].request_id);
        CHECK_TEXT(error.host_id, rows[i].host_id);
        CHECK_INT(error.server_time_s, rows[i].server_time_s);
        ts3_xml_error_free(&error);
    }
}

TEST(error_refusals)
{
    static const char *const documents[] = {
        "",
        "<html><body>503</body></html>",
        "<Error/>",
        "<Error><Code/></Error>",
        "<Error><Code>X</Code>",
        "<Error><Message>m</Message></Error>",
        "<Error><a><Code>X</Code></a></Error>",
        "<Code>X</Code>",
        "<!DOCTYPE Error><Error><Code>X</Code></Error>",
        "{\"code\": \"X\"}",
        "\xff\xfe<\0E",
    };
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]); i++) {
        struct ts3_xml_error error;
        ts3_test_label("row %zu", i);
        CHECK_INT(
            ts3_xml_error_parse(ts3_alloc_libc(), documents[i], strlen(documents[i]), &error, NULL),
            TS3_EXML);
        CHECK(error.code.len == 0);
        ts3_xml_error_free(&error);
    }
}

TEST(results_of_create_complete_and_copy)
{
    static const struct {
        enum ts3_xml_result_kind kind;
        const char *document;
        enum ts3_err err;
        const char *text;
        const char *code;
    } rows[] = {
        {TS3_XML_RESULT_CREATE,
         XML "<InitiateMultipartUploadResult " NS
             "><Bucket>b</Bucket><Key>k</Key>\n<UploadId>VXBsb2Fk IElE</UploadId>"
             "</InitiateMultipartUploadResult>",
         TS3_OK, "VXBsb2Fk IElE", NULL},
        {TS3_XML_RESULT_CREATE, "<InitiateMultipartUploadResult/>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_CREATE,
         "<InitiateMultipartUploadResult><UploadId/></InitiateMultipartUploadResult>", TS3_EXML, "",
         NULL},
        {TS3_XML_RESULT_CREATE, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>", TS3_EXML, "",
         NULL},
        /* roots of another name (rclone's S3 server): what was asked for decides */
        {TS3_XML_RESULT_CREATE,
         XML "<InitiateMultipartUpload><Key>k</Key><UploadId>u</UploadId></InitiateMultipartUpload>",
         TS3_OK, "u", NULL},
        {TS3_XML_RESULT_CREATE, "<html><body><UploadId>u</UploadId></body></html>", TS3_EXML, "",
         NULL},
        {TS3_XML_RESULT_CREATE, "<UploadId>u</UploadId>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "<CompleteMultipartUpload><ETag>e-2</ETag></CompleteMultipartUpload>",
         TS3_OK, "e-2", NULL},
        {TS3_XML_RESULT_COMPLETE, "<CompleteMultipartUpload/>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "<html><body>200 OK</body></html>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "<Response><Error><Code>X</Code></Error></Response>", TS3_EXML,
         "", NULL},
        /* Complete: white space comes while the service works */
        {TS3_XML_RESULT_COMPLETE,
         "\n\n   \n" XML "<CompleteMultipartUploadResult " NS
         "><Location>l</Location><ETag>\"3858f6-2\"</ETag>"
         "</CompleteMultipartUploadResult>",
         TS3_OK, "3858f6-2", NULL},
        {TS3_XML_RESULT_COMPLETE,
         XML "   \n  <CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag>"
             "</CompleteMultipartUploadResult>",
         TS3_OK, "e", NULL},
        {TS3_XML_RESULT_COMPLETE, "<CompleteMultipartUploadResult/>", TS3_OK, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "<CompleteMultipartUploadResult>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "   ", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE, "", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COMPLETE,
         XML "\n\n<Error><Code>InternalError</Code><Message>m</Message><RequestId>r</RequestId></"
             "Error>",
         TS3_OK, "", "InternalError"},
        {TS3_XML_RESULT_COMPLETE, "<Error><Code>InternalErr", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COPY,
         "<CopyObjectResult><LastModified>2009-10-28T22:32:00</LastModified><ETag>\"9b2c\"</ETag></"
         "CopyObjectResult>",
         TS3_OK, "9b2c", NULL},
        {TS3_XML_RESULT_COPY, "<CopyPartResult><ETag>9b2c</ETag></CopyPartResult>", TS3_OK, "9b2c",
         NULL},
        {TS3_XML_RESULT_COPY, "<CopyPartResult/>", TS3_EXML, "", NULL},
        {TS3_XML_RESULT_COPY, "<CopyPartResult><x><ETag>e</ETag></x></CopyPartResult>", TS3_EXML,
         "", NULL},
        {TS3_XML_RESULT_COPY, "<Error><Code>SlowDown</Code></Error>", TS3_OK, "", "SlowDown"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_xml_result result;
        struct ts3_xml_fault fault;
        ts3_test_label("row %zu", i);
        CHECK_INT(ts3_xml_result_parse(ts3_alloc_libc(), rows[i].document, strlen(rows[i].document),
                                       rows[i].kind, &result, &fault),
                  rows[i].err);
        CHECK_TEXT(result.text, rows[i].text);
        CHECK_INT(result.is_error, rows[i].code != NULL);
        if (rows[i].code)
            CHECK_TEXT(result.error.code, rows[i].code);
        ts3_xml_result_free(&result);
    }
}

TEST(deleted_per_key)
{
    static const char document[] =
        XML "<DeleteResult " NS
            "><Deleted><Key>a&amp;b</Key><DeleteMarker>true</DeleteMarker></Deleted>"
            "<Error><Key>c%2F</Key><Code>AccessDenied</Code><Message>no</Message></"
            "Error><Deleted><Key> d</Key>"
            "<Code>Nonsense</Code></Deleted><Error><Code>InternalError</Code></"
            "Error><Error><Key>e</Key></Error>"
            "</DeleteResult>";
    static const char *const want[][2] = {
        {"a&b", ""}, {"c%2F", "AccessDenied"}, {" d", ""}, {"", "InternalError"}, {"e", "Unknown"}};
    struct ts3_xml_deleted deleted;
    CHECK_OK(ts3_xml_deleted_parse(ts3_alloc_libc(), document, strlen(document), &deleted, NULL));
    if (CHECK_INT(deleted.item_count, 5)) {
        for (size_t i = 0; i < 5; i++) {
            ts3_test_label("row %zu", i);
            CHECK_TEXT(deleted.items[i].key, want[i][0]);
            CHECK_TEXT(deleted.items[i].code, want[i][1]);
        }
    }
    ts3_xml_deleted_free(&deleted);
}

TEST(deleted_whole)
{
    static const struct {
        const char *document;
        enum ts3_err err;
        const char *code;
    } rows[] = {
        {"<DeleteResult/>", TS3_OK, NULL},
        {"<DeleteResult></DeleteResult>", TS3_OK, NULL},
        {"<DeleteResult>", TS3_EXML, NULL},
        {"", TS3_EXML, NULL},
        {"<DeleteResult><Deleted/></DeleteResult>", TS3_EXML, NULL},
        {"<html/>", TS3_EXML, NULL},
        {"<Error><Code>MalformedXML</Code></Error>", TS3_OK, "MalformedXML"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_xml_deleted deleted;
        ts3_test_label("row %zu", i);
        CHECK_INT(ts3_xml_deleted_parse(ts3_alloc_libc(), rows[i].document,
                                        strlen(rows[i].document), &deleted, NULL),
                  rows[i].err);
        CHECK_INT(deleted.item_count, 0);
        CHECK_INT(deleted.is_error, rows[i].code != NULL);
        if (rows[i].code)
            CHECK_TEXT(deleted.error.code, rows[i].code);
        ts3_xml_deleted_free(&deleted);
    }
}

#define UPLOADS(inside)                                                                            \
    "<ListMultipartUploadsResult " NS "><Bucket>b</Bucket>" inside "</ListMultipartUploadsResult>"
#define UPLOAD(key, id)                                                                            \
    "<Upload><Key>" key "</Key><UploadId>" id "</UploadId><Initiator><ID>i</ID></Initiator>"       \
    "<Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>"

TEST(uploads)
{
    static const struct {
        const char *document;
        enum ts3_err err;
        size_t count;
        const char *key, *id; /* of the first */
        const char *next_key, *next_id;
    } rows[] = {
        {UPLOADS("<IsTruncated>false</IsTruncated>"), TS3_OK, 0, "", "", "", ""},
        {UPLOADS(""), TS3_OK, 0, "", "", "", ""},
        {UPLOADS("<KeyMarker/><NextKeyMarker>n</NextKeyMarker><NextUploadIdMarker>m</"
                 "NextUploadIdMarker>"
                 "<IsTruncated>true</IsTruncated>" UPLOAD("a", "1") UPLOAD("b", "2")),
         TS3_OK, 2, "a", "1", "n", "m"},
        {UPLOADS("<EncodingType>url</EncodingType>" UPLOAD("a%2Fb", "1%2F")), TS3_OK, 1, "a/b",
         "1%2F", "", ""},
        {UPLOADS("<IsTruncated>true</IsTruncated>" UPLOAD("a", "1") UPLOAD("b", "2")), TS3_OK, 2,
         "a", "1", "b", "2"},
        {UPLOADS("<IsTruncated>true</IsTruncated>"), TS3_EXML, 0, "", "", "", ""},
        {UPLOADS("<Upload><Key>a</Key></Upload>"), TS3_EXML, 0, "", "", "", ""},
        {UPLOADS("<Upload><UploadId>a</UploadId></Upload>"), TS3_EXML, 0, "", "", "", ""},
        {UPLOADS("<Upload><Key>a</Key><UploadId>1</UploadId></Upload>"), TS3_OK, 1, "a", "1", "",
         ""},
        {"<ListMultipartUploadsResult>", TS3_EXML, 0, "", "", "", ""},
        {"<ListBucketResult/>", TS3_EXML, 0, "", "", "", ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_xml_uploads uploads;
        ts3_test_label("row %zu", i);
        CHECK_INT(ts3_xml_uploads_parse(ts3_alloc_libc(), rows[i].document,
                                        strlen(rows[i].document), &uploads, NULL),
                  rows[i].err);
        if (CHECK_INT(uploads.upload_count, rows[i].count) && rows[i].count) {
            CHECK_TEXT(uploads.uploads[0].key, rows[i].key);
            CHECK_TEXT(uploads.uploads[0].upload_id, rows[i].id);
            CHECK_INT(uploads.uploads[0].initiated_s,
                      strstr(rows[i].document, "Initiated>") ? 1289422113 : TS3_TIME_NONE);
        }
        CHECK_TEXT(uploads.next_key_marker, rows[i].next_key);
        CHECK_TEXT(uploads.next_upload_id_marker, rows[i].next_id);
        ts3_xml_uploads_free(&uploads);
    }
}

/* ---- failing allocations ---- */

static enum ts3_err parse_all(const struct ts3_alloc *alloc, void *ctx)
{
    static const char error[] =
        "<Error><Code>X</Code><Message>m</Message><HostId>h</HostId></Error>";
    static const char result_text[] = "<CopyPartResult><ETag>\"9b2c\"</ETag></CopyPartResult>";
    static const char deleted_text[] =
        "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>";
    static const char uploads_text[] = UPLOADS(UPLOAD("a", "1"));
    static const char list_text[] =
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</"
        "NextContinuationToken><Contents>"
        "<Key>a</Key><Size>1</Size><LastModified>2009-10-12T17:50:30Z</LastModified></Contents></"
        "ListBucketResult>";
    struct ts3_xml_result result;
    struct ts3_xml_deleted deleted;
    struct ts3_xml_uploads uploads;
    struct ts3_page page;
    enum ts3_err err;
    (void)ctx;
    err = ts3_xml_result_parse(alloc, error, sizeof(error) - 1, TS3_XML_RESULT_COPY, &result, NULL);
    CHECK(err || (result.is_error && ts3_str_eq(result.error.host_id, TS3_STR("h"))));
    ts3_xml_result_free(&result);
    if (!err) {
        err = ts3_xml_result_parse(alloc, result_text, sizeof(result_text) - 1, TS3_XML_RESULT_COPY,
                                   &result, NULL);
        CHECK(err || ts3_str_eq(result.text, TS3_STR("9b2c")));
        ts3_xml_result_free(&result);
    }
    if (!err) {
        err = ts3_xml_deleted_parse(alloc, deleted_text, sizeof(deleted_text) - 1, &deleted, NULL);
        CHECK(err || (deleted.item_count == 1 && ts3_str_eq(deleted.items[0].key, TS3_STR("a"))));
        ts3_xml_deleted_free(&deleted);
    }
    if (!err) {
        err = ts3_xml_uploads_parse(alloc, uploads_text, sizeof(uploads_text) - 1, &uploads, NULL);
        CHECK(err ||
              (uploads.upload_count == 1 && ts3_str_eq(uploads.uploads[0].key, TS3_STR("a"))));
        ts3_xml_uploads_free(&uploads);
    }
    if (!err) {
        err = ts3_xml_list_parse(alloc, list_text, sizeof(list_text) - 1, TS3_LIST_V2, &page, NULL);
        CHECK(err || (page.entry_count == 1 && ts3_str_eq(page.next_token, TS3_STR("t"))));
        ts3_xml_list_free(&page);
    }
    return err;
}

TEST(multi_survives_every_failing_allocation)
{
    ts3_xml_setup();
    ts3_test_each_failure(parse_all, NULL);
}

/* libxml2 allocates for itself: with its nth allocation failing, a parser says so or (where only
 * the check of a namespace's URI had no memory) gives the right result all the same, and leaks
 * nothing. */
static struct {
    size_t calls, fail_at;
    long live;
    bool failed;
} inner;

static bool inner_fails(void)
{
    if (inner.fail_at && ++inner.calls == inner.fail_at)
        inner.failed = true;
    return inner.fail_at && inner.calls == inner.fail_at;
}

static void *inner_malloc(size_t size_bytes)
{
    if (inner_fails())
        return NULL;
    void *p = malloc(size_bytes);
    inner.live += p != NULL;
    return p;
}

static void *inner_realloc(void *p, size_t size_bytes)
{
    if (inner_fails())
        return NULL;
    inner.live += p == NULL;
    return realloc(p, size_bytes);
}

static char *inner_strdup(const char *text)
{
    size_t size_bytes = strlen(text) + 1;
    char *copy = inner_malloc(size_bytes);
    if (copy)
        memcpy(copy, text, size_bytes);
    return copy;
}

static void inner_free(void *p)
{
    inner.live -= p != NULL;
    free(p);
}

/* Without a parser to report to, libxml2 prints. */
static void say_nothing(void *ctx, const char *format, ...)
{
    (void)ctx, (void)format;
}

TEST(multi_survives_failing_allocations_of_libxml2)
{
    xmlFreeFunc old_free;
    xmlMallocFunc old_malloc;
    xmlReallocFunc old_realloc;
    xmlStrdupFunc old_strdup;
    ts3_xml_setup();
    xmlSetGenericErrorFunc(NULL, say_nothing);
    CHECK_INT(xmlMemGet(&old_free, &old_malloc, &old_realloc, &old_strdup), 0);
    CHECK_INT(xmlMemSetup(inner_free, inner_malloc, inner_realloc, inner_strdup), 0);
    inner.failed = true;
    for (size_t n = 1; n < 1000 && inner.failed; n++) {
        inner.calls = 0;
        inner.live = 0;
        inner.failed = false;
        inner.fail_at = n;
        enum ts3_err err = parse_all(ts3_alloc_libc(), NULL);
        inner.fail_at = 0;
        ts3_test_label("allocation %zu of libxml2 fails", n);
        CHECK(err == TS3_OK || (err == TS3_ENOMEM && inner.failed));
        CHECK_INT(inner.live, 0);
    }
    CHECK(!inner.failed);
    CHECK_INT(xmlMemSetup(old_free, old_malloc, old_realloc, old_strdup), 0);
    xmlSetGenericErrorFunc(NULL, NULL);
}

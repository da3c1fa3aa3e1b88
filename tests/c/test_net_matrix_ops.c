/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The operations of the fault matrix: requests, true answers, values. See test_net_matrix.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test_net_matrix.h"

enum { BODIES_BYTES = 20 << 20 };

#define QUERY(name, value) {{name, sizeof name - 1}, {value, sizeof value - 1}}
#define ENTRY(key, size, etag)                                                                     \
    "<Contents><Key>" key "</Key><LastModified>2013-05-24T00:00:07.000Z</LastModified><ETag>"      \
    "&quot;" etag "&quot;</ETag><Size>" size "</Size></Contents>"

#define LISTING_V2                                                                                 \
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name>"            \
    "<KeyCount>2</KeyCount><IsTruncated>true</IsTruncated>" ENTRY("shares/aa/x/0", "1234", "ea")   \
    ENTRY("shares/aa/y/3", "0", "eb") "<NextContinuationToken>tok+1</NextContinuationToken>"       \
    "</ListBucketResult>"
#define LISTING_V1                                                                                 \
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name>"            \
    "<Marker></Marker><IsTruncated>false</IsTruncated>" ENTRY("shares/aa/x/0", "1234", "ea")       \
    ENTRY("shares/aa/y/3", "0", "eb") "</ListBucketResult>"
#define DELETED                                                                                    \
    "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>InternalError</Code>"   \
    "<Message>We are sorry</Message></Error></DeleteResult>"
#define CREATED                                                                                    \
    "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key>"                           \
    "<UploadId>UP/1</UploadId></InitiateMultipartUploadResult>"
#define COMPLETED                                                                                  \
    "<CompleteMultipartUploadResult><Key>k</Key><ETag>&quot;e-2&quot;</ETag>"                      \
    "</CompleteMultipartUploadResult>"
#define COPIED                                                                                     \
    "<CopyObjectResult><LastModified>2013-05-24T00:00:07.000Z</LastModified>"                      \
    "<ETag>&quot;e-3&quot;</ETag></CopyObjectResult>"
#define UPLOADS                                                                                    \
    "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key>"             \
    "<UploadId>UP/1</UploadId><Initiated>2013-05-24T00:00:07.000Z</Initiated></Upload>"            \
    "</ListMultipartUploadsResult>"

#define XML_GET (OP_SAFE | OP_ANSWERS | OP_XML)
#define XML_WRITE (OP_ANSWERS | OP_XML | OP_LATE)
#define SOON MATRIX_FIRST_BYTE_MS

const struct matrix_op matrix_ops[] = {
    {"GET into a window", OP_SAFE | OP_ANSWERS | OP_WINDOW | OP_ETAG, TS3_GET, TS3_PARSE_NONE, "k",
     .first_byte_ms = SOON},
    {"GET resumed", OP_SAFE | OP_ANSWERS | OP_WINDOW | OP_ETAG | OP_RESUMED, TS3_GET,
     TS3_PARSE_NONE, "k", .first_byte_ms = SOON},
    {"GET as bytes", OP_SAFE | OP_ANSWERS | OP_BYTES | OP_ETAG, TS3_GET, TS3_PARSE_BYTES, "k",
     .first_byte_ms = SOON},
    {"HEAD", OP_SAFE | OP_HEAD, TS3_HEAD, TS3_PARSE_NONE, "k", .first_byte_ms = SOON},
    {"PUT of bytes", OP_BODY, TS3_PUT, TS3_PARSE_NONE, "k", .body_size = 300,
     .first_byte_ms = SOON},
    {"PUT of a file", OP_BODY, TS3_PUT, TS3_PARSE_NONE, "k", .body_size = 3000, .from_file = true,
     .first_byte_ms = SOON},
    {"PUT of an 8 MiB file", OP_BODY | OP_LARGE, TS3_PUT, TS3_PARSE_NONE, "k",
     .body_size = 8 << 20, .from_file = true, .first_byte_ms = SOON},
    {"PUT of a streamed file", OP_BODY | OP_LARGE | OP_STREAMED, TS3_PUT, TS3_PARSE_NONE, "k",
     .body_size = 17 << 20, .from_file = true, .first_byte_ms = SOON},
    {"ListObjectsV2", XML_GET, TS3_GET, TS3_PARSE_LIST, "",
     .query = {QUERY("list-type", "2"), QUERY("prefix", "shares/")}, .first_byte_ms = SOON,
     .document = LISTING_V2},
    {"ListObjects", XML_GET, TS3_GET, TS3_PARSE_LIST, "", .query = {QUERY("prefix", "shares/")},
     .first_byte_ms = SOON, .document = LISTING_V1},
    {"DELETE", OP_NO_CONTENT, TS3_DELETE, TS3_PARSE_NONE, "k", .first_byte_ms = SOON},
    {"DeleteObjects", XML_WRITE | OP_BODY, TS3_POST, TS3_PARSE_DELETED, "",
     .query = {QUERY("delete", "")}, .body_size = 500, .first_byte_ms = 60000,
     .document = DELETED},
    {"CreateMultipartUpload", XML_WRITE, TS3_POST, TS3_PARSE_CREATE, "k",
     .query = {QUERY("uploads", "")}, .first_byte_ms = SOON, .document = CREATED},
    {"UploadPart", OP_BODY, TS3_PUT, TS3_PARSE_NONE, "k",
     .query = {QUERY("partNumber", "2"), QUERY("uploadId", "UP/1")}, .body_size = 100000,
     .from_file = true, .first_byte_ms = SOON},
    {"CompleteMultipartUpload", XML_WRITE | OP_BODY | OP_SLOW, TS3_POST, TS3_PARSE_COMPLETE, "k",
     .query = {QUERY("uploadId", "UP/1")}, .body_size = 400, .first_byte_ms = MATRIX_COMPLETE_MS,
     .document = COMPLETED},
    {"AbortMultipartUpload", OP_NO_CONTENT, TS3_DELETE, TS3_PARSE_NONE, "k",
     .query = {QUERY("uploadId", "UP/1")}, .first_byte_ms = SOON},
    {"ListMultipartUploads", XML_GET, TS3_GET, TS3_PARSE_UPLOADS, "",
     .query = {QUERY("uploads", "")}, .first_byte_ms = SOON, .document = UPLOADS},
    {"CopyObject", XML_WRITE | OP_SLOW, TS3_PUT, TS3_PARSE_COPY, "k",
     .header = QUERY("x-amz-copy-source", "/bucket/other"), .first_byte_ms = MATRIX_COMPLETE_MS,
     .document = COPIED},
};
const size_t matrix_op_count = sizeof matrix_ops / sizeof matrix_ops[0];

unsigned char matrix_object_byte(size_t at)
{
    return (unsigned char)((at * 2654435761u) >> 13);
}

const unsigned char *matrix_bodies(void)
{
    static unsigned char *bytes;
    if (bytes != NULL)
        return bytes;
    bytes = malloc(BODIES_BYTES);
    for (size_t i = 0; i < BODIES_BYTES; i++)
        bytes[i] = (unsigned char)((i * 2246822519u) >> 15);
    return bytes;
}

int matrix_bodies_fd(void)
{
    static int fd = -1;
    if (fd >= 0)
        return fd;
    fd = memfd_create("bodies", MFD_CLOEXEC);
    if (fd < 0 || pwrite(fd, matrix_bodies(), BODIES_BYTES, 0) != BODIES_BYTES)
        abort();
    return fd;
}

/* --- what must have come --- */

static void check_bytes(const unsigned char *bytes, size_t first, size_t size)
{
    size_t same = 0;
    while (same < size && bytes[same] == matrix_object_byte(first + same))
        same++;
    CHECK_INT(same, size);
}

static void check_page(const struct matrix_op *op, const struct ts3_page *page)
{
    bool v2 = op->query[1].name.len > 0;
    if (!CHECK_INT(page->entry_count, 2))
        return;
    CHECK_TEXT(page->entries[0].key, "shares/aa/x/0");
    CHECK_TEXT(page->entries[0].etag, "ea");
    CHECK_INT(page->entries[0].size_bytes, 1234);
    CHECK_INT(page->entries[1].modified_s, MATRIX_DATE_S + 7);
    CHECK_TEXT(page->entries[1].key, "shares/aa/y/3");
    CHECK_INT(page->truncated, v2);
    CHECK_TEXT(page->next_token, v2 ? "tok+1" : "");
}

static void check_deleted(const struct ts3_xml_deleted *deleted)
{
    if (!CHECK_INT(deleted->item_count, 2))
        return;
    CHECK_TEXT(deleted->items[0].key, "a");
    CHECK_TEXT(deleted->items[0].code, "");
    CHECK_TEXT(deleted->items[1].key, "b");
    CHECK_TEXT(deleted->items[1].code, "InternalError");
}

static void check_parsed(const struct matrix_op *op, const struct ts3_event *event)
{
    switch (op->parse) {
    case TS3_PARSE_NONE:
        return;
    case TS3_PARSE_BYTES:
        if (CHECK_INT(event->value.bytes.size, MATRIX_OBJECT))
            check_bytes(event->value.bytes.data, 0, MATRIX_OBJECT);
        return;
    case TS3_PARSE_LIST:
        check_page(op, &event->value.page);
        return;
    case TS3_PARSE_DELETED:
        check_deleted(&event->value.deleted);
        return;
    case TS3_PARSE_CREATE:
        CHECK_TEXT(ts3_str_of(event->value.text), "UP/1");
        return;
    case TS3_PARSE_COMPLETE:
        CHECK_TEXT(ts3_str_of(event->value.text), "e-2");
        return;
    case TS3_PARSE_COPY:
        CHECK_TEXT(ts3_str_of(event->value.text), "e-3");
        return;
    case TS3_PARSE_UPLOADS:
        if (CHECK_INT(event->value.uploads.upload_count, 1))
            CHECK_TEXT(event->value.uploads.uploads[0].upload_id, "UP/1");
        return;
    }
}

void matrix_check_value(const struct matrix_op *op, const struct ts3_event *event,
                        const struct ts3_window *window)
{
    if (window != NULL) {
        size_t ready = ts3_window_ready(window);
        if (!event->failed)
            CHECK_INT(ready, MATRIX_WINDOW);
        check_bytes(ts3_window_data(window), MATRIX_OFFSET, ready);
    }
    if (event->failed)
        return;
    CHECK(event->status >= 200 && event->status < 300);
    check_parsed(op, event);
    if (op->traits & (OP_WINDOW | OP_BYTES | OP_HEAD))
        CHECK_TEXT(ts3_str_of(event->etag ? event->etag : ""), "e1");
    if (op->traits & OP_WINDOW)
        CHECK_INT(event->size, MATRIX_OBJECT);
}

void matrix_check_request(const struct matrix_op *op, const struct net_seen *seen)
{
    const char *signature = net_header(seen, "authorization");
    CHECK(signature != NULL && strstr(signature, "AWS4-HMAC-SHA256 Credential=AKID/") == signature);
    CHECK_INT(seen->body_size, op->body_size);
    if (seen->body != NULL && seen->body_size == op->body_size)
        CHECK(memcmp(seen->body, matrix_bodies(), op->body_size) == 0);
    if (op->header.name.len > 0)
        CHECK(net_header(seen, op->header.name.data) != NULL);
}

/* --- what the service has to say --- */

void matrix_set_length(struct matrix_reply *reply, long long length)
{
    (void)snprintf(reply->length, sizeof reply->length, "Content-Length: %lld\r\n", length);
}

void matrix_set_body(struct matrix_reply *reply, const char *body)
{
    reply->size = strlen(body);
    if (reply->size > sizeof reply->body)
        abort();
    memcpy(reply->body, body, reply->size);
    matrix_set_length(reply, (long long)reply->size);
}

static void set_object(struct matrix_reply *reply, size_t first, size_t size)
{
    for (size_t i = 0; i < size; i++)
        reply->body[i] = matrix_object_byte(first + i);
    reply->size = size;
    matrix_set_length(reply, (long long)size);
}

#define COMMON                                                                                     \
    "Date: Fri, 24 May 2013 00:00:00 GMT\r\nx-amz-request-id: RID\r\nx-amz-id-2: HID\r\n"

void matrix_true_reply(const struct matrix_op *op, const struct net_seen *seen,
                       struct matrix_reply *reply)
{
    memset(reply, 0, sizeof *reply);
    reply->version = "HTTP/1.1";
    reply->bare = (op->traits & OP_HEAD) != 0;
    (void)strcpy(reply->status, op->traits & OP_NO_CONTENT ? "204 No Content" : "200 OK");
    (void)strcpy(reply->headers, COMMON);
    if (op->traits & OP_XML) {
        matrix_set_body(reply, op->document);
        return;
    }
    if (op->traits & OP_NO_CONTENT)
        return;
    (void)strcpy(reply->headers, COMMON "ETag: \"e1\"\r\n");
    if (op->traits & OP_BODY) {
        matrix_set_length(reply, 0);
        return;
    }
    const char *range = net_header(seen, "range");
    if (range == NULL) {
        set_object(reply, 0, MATRIX_OBJECT);
        return;
    }
    size_t first = (size_t)strtoull(range + 6, NULL, 10);
    size_t last = (size_t)strtoull(strchr(range, '-') + 1, NULL, 10);
    if (last >= MATRIX_OBJECT || first > last)
        abort();
    (void)strcpy(reply->status, "206 Partial Content");
    (void)snprintf(reply->headers, sizeof reply->headers,
                   COMMON "ETag: \"e1\"\r\nContent-Range: bytes %zu-%zu/%d\r\n", first, last,
                   MATRIX_OBJECT);
    set_object(reply, first, last - first + 1);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The answers of null_s3: constant, but for keys and ranges.  See null_s3.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "null_s3.h"

/* --- requests --- */

struct query {
    const char *text; /* behind the question mark, percent-encoded; "" without one */
};

/* The value of a name, decoded; false where the query has no such name. */
static bool query_get(const struct query *query, const char *name, char *out, size_t size)
{
    size_t name_len = strlen(name);
    const char *at = query->text;
    while (*at != '\0') {
        size_t len = strcspn(at, "&");
        if (len >= name_len && memcmp(at, name, name_len) == 0 &&
            (len == name_len || at[name_len] == '=')) {
            const char *end = at + len;
            const char *from = at + name_len + (len > name_len);
            size_t made = 0;
            while (from < end && made + 1 < size) {
                unsigned value;
                if (*from == '%' && end - from > 2 && sscanf(from + 1, "%2x", &value) == 1) {
                    out[made++] = (char)value;
                    from += 3;
                } else {
                    out[made++] = *from++;
                }
            }
            out[made] = '\0';
            return true;
        }
        at += len + (at[len] == '&');
    }
    return false;
}

/* The value of a header inside a head that ends with an empty line, or NULL. */
const char *null_header(const char *head, const char *name_colon)
{
    size_t len = strlen(name_colon);
    const char *line = strstr(head, "\r\n");
    while (line != NULL && line[2] != '\r') {
        line += 2;
        if (strncasecmp(line, name_colon, len) == 0)
            return line + len + strspn(line + len, " ");
        line = strstr(line, "\r\n");
    }
    return NULL;
}

/* --- answers --- */

static void reply_head(struct conn *conn, const char *status, const char *extra, uint64_t length)
{
    int len = snprintf(conn->reply, sizeof conn->reply,
                       "HTTP/1.1 %s\r\nDate: %s\r\nx-amz-request-id: NULL\r\nServer: null\r\n"
                       "%sContent-Length: %" PRIu64 "\r\n%s\r\n",
                       status, DATE, extra, length, conn->closes ? "Connection: close\r\n" : "");
    conn->reply_len = (size_t)len;
}

static void reply_text(struct conn *conn, const char *status, const char *extra, const char *body)
{
    size_t len = strlen(body);
    reply_head(conn, status, extra, len);
    if (conn->reply_len + len > sizeof conn->reply)
        abort(); /* all of them are constants that fit */
    memcpy(conn->reply + conn->reply_len, body, len);
    conn->reply_len += len;
}

static void answer_object(const struct server *server, struct conn *conn, const char *path,
                          bool head_only)
{
    const char *dash = strrchr(path, '-');
    uint64_t size = dash != NULL ? strtoull(dash + 1, NULL, 10) : server->object_bytes;
    uint64_t first = 0;
    uint64_t last = size ? size - 1 : 0;
    char extra[256];
    const char *range = null_header(conn->head, "Range:");
    if (range != NULL && strncmp(range, "bytes=", 6) == 0) {
        char *end;
        first = strtoull(range + 6, &end, 10);
        if (*end == '-' && end[1] >= '0' && end[1] <= '9')
            last = strtoull(end + 1, NULL, 10);
        last = last < size ? last : size - 1;
        if (first >= size || first > last) {
            reply_text(conn, "416 Range Not Satisfiable", "",
                       "<Error><Code>InvalidRange</Code><Message>null</Message></Error>");
            return;
        }
        snprintf(extra, sizeof extra,
                 "ETag: " ETAG "\r\nLast-Modified: " DATE "\r\nContent-Range: bytes %" PRIu64
                 "-%" PRIu64 "/%" PRIu64 "\r\n",
                 first, last, size);
        reply_head(conn, "206 Partial Content", extra, last - first + 1);
    } else {
        reply_head(conn, "200 OK",
                   "ETag: " ETAG "\r\nLast-Modified: " DATE "\r\nAccept-Ranges: bytes\r\n", size);
    }
    conn->pattern_left = head_only || size == 0 ? 0 : last - first + 1;
}

/* Share-like keys in ascending order, spread evenly: shares/xx/xxxxxxaaaa.../0 */
static void make_si(const struct server *server, uint64_t index, char *si)
{
    static const char digits[] = "234567abcdefghijklmnopqrstuvwxyz"; /* base32 as ASCII orders it */
    uint64_t value = (index << KEY_SPREAD_BITS) / server->keys;
    memset(si, 'a', SI_CHARS);
    for (int i = 5; i >= 0; i--, value >>= 5)
        si[i] = digits[value & 31];
    /* More keys than the spread has values would collide: the index itself makes them differ.  The
     * last character has three bits only, and stays. */
    for (int i = SI_CHARS - 2; i >= SI_CHARS - 9; i--, index >>= 5)
        si[i] = digits[index & 31];
}

static void make_key(const struct server *server, uint64_t index, char *key)
{
    char si[SI_CHARS];
    make_si(server, index, si);
    sprintf(key, "shares/%.2s/%.*s/0", si, SI_CHARS, si);
}

/* The first index whose key is beyond text (or has it as its prefix, or equals it). */
static uint64_t lower_bound(const struct server *server, const char *text, bool after)
{
    uint64_t low = 0;
    uint64_t high = server->keys;
    char key[64];
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        make_key(server, middle, key);
        int order = strcmp(key, text);
        if (order < 0 || (after && order == 0))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#define ENTRY                                                                                      \
    "<Contents><Key>shares/%.2s/%.26s/0</Key><LastModified>2009-10-12T17:50:30.000Z"               \
    "</LastModified><ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>434234</Size>"  \
    "<StorageClass>STANDARD</StorageClass></Contents>"

static void answer_list(struct server *server, struct conn *conn, const struct query *query)
{
    char text[2048];
    uint64_t first = 0;
    uint64_t end = server->keys;
    uint64_t max_keys = PAGE_KEYS;
    if (query_get(query, "max-keys", text, sizeof text) && strtoull(text, NULL, 10) < max_keys)
        max_keys = strtoull(text, NULL, 10);
    if (query_get(query, "prefix", text, sizeof text) && text[0] != '\0') {
        first = lower_bound(server, text, false);
        size_t len = strlen(text);
        text[len] = '\x7f'; /* behind all that begin so */
        text[len + 1] = '\0';
        end = lower_bound(server, text, false);
    }
    uint64_t from = 0;
    if (query_get(query, "continuation-token", text, sizeof text))
        from = strtoull(text, NULL, 10);
    else if (query_get(query, "start-after", text, sizeof text))
        from = lower_bound(server, text, true);
    first = from > first ? from : first;
    uint64_t stop = first + max_keys < end ? first + max_keys : end;
    uint64_t count = stop > first ? stop - first : 0;
    size_t need = (size_t)count * sizeof ENTRY + 1024; /* 28 characters for 8 of the template */
    need += (size_t)count * 32;
    if (conn->own_cap < need) {
        conn->own = null_grown(conn->own, need);
        conn->own_cap = need;
    }
    bool url = query_get(query, "encoding-type", text, sizeof text);
    char *at = conn->own;
    at += sprintf(at,
                  "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\""
                  "http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix></Prefix>"
                  "<KeyCount>%" PRIu64 "</KeyCount><MaxKeys>%" PRIu64 "</MaxKeys>%s",
                  count, max_keys, url ? "<EncodingType>url</EncodingType>" : "");
    if (stop < end && count > 0)
        at += sprintf(at,
                      "<IsTruncated>true</IsTruncated><NextContinuationToken>%" PRIu64
                      "</NextContinuationToken>",
                      stop);
    else
        at += sprintf(at, "<IsTruncated>false</IsTruncated>");
    char *entry = at; /* the first is formatted, the others are copies with another key */
    size_t entry_len = 0;
    for (uint64_t i = first; i < stop; i++) {
        char si[SI_CHARS];
        make_si(server, i, si);
        if (i == first) {
            entry_len = (size_t)sprintf(at, ENTRY, si, si);
        } else {
            memcpy(at, entry, entry_len);
            memcpy(at + strlen("<Contents><Key>shares/"), si, 2);
            memcpy(at + strlen("<Contents><Key>shares/xx/"), si, SI_CHARS);
        }
        at += entry_len;
    }
    at += sprintf(at, "</ListBucketResult>");
    conn->own_len = (size_t)(at - conn->own);
    server->stats.lists++;
    reply_head(conn, "200 OK", "Content-Type: application/xml\r\n", conn->own_len);
}

static const char xml[] = "Content-Type: application/xml\r\n";

/* What a start asks of the bucket besides its listing; false where it is the listing. */
static bool answer_setting(struct conn *conn, const struct query *query)
{
    char text[8];
    if (query_get(query, "versioning", text, sizeof text))
        reply_text(conn, "200 OK", xml, "<VersioningConfiguration></VersioningConfiguration>");
    else if (query_get(query, "object-lock", text, sizeof text))
        reply_text(conn, "404 Not Found", xml,
                   "<Error><Code>ObjectLockConfigurationNotFoundError</Code><Message>null"
                   "</Message></Error>");
    else if (query_get(query, "uploads", text, sizeof text))
        reply_text(conn, "200 OK", xml,
                   "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>"
                   "</ListMultipartUploadsResult>");
    else
        return false;
    return true;
}

static void answer_post(struct conn *conn, const struct query *query)
{
    char text[256];
    if (query_get(query, "uploads", text, sizeof text))
        reply_text(conn, "200 OK", xml,
                   "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
                   "<UploadId>null-upload</UploadId></InitiateMultipartUploadResult>");
    else if (query_get(query, "uploadId", text, sizeof text))
        reply_text(conn, "200 OK", xml,
                   "<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><ETag>" ETAG
                   "</ETag></CompleteMultipartUploadResult>");
    else
        reply_text(conn, "200 OK", xml, "<DeleteResult></DeleteResult>");
}

void null_answer_stats(const struct server *server, struct conn *conn)
{
    char text[REPLY_BYTES];
    const struct stats *s = &server->stats;
    int len = snprintf(
        text, sizeof text,
        "requests %" PRIu64 "\nconnections %" PRIu64 "\nbytes_in %" PRIu64 "\nbytes_out %" PRIu64
        "\nget %" PRIu64 "\nhead %" PRIu64 "\nput %" PRIu64 "\npost %" PRIu64 "\ndelete %" PRIu64
        "\nlist %" PRIu64 "\nput_hashed %" PRIu64 "\nput_unsigned %" PRIu64
        "\nput_streaming %" PRIu64 "\nput_bare %" PRIu64 "\nput_md5 %" PRIu64
        "\nput_checksum %" PRIu64 "\nput_trailer %" PRIu64 "\nput_expect %" PRIu64
        "\nhandshakes %" PRIu64 "\nresumed %" PRIu64 "\n",
        s->requests, s->connections, s->bytes_in, s->bytes_out, s->gets, s->heads, s->puts,
        s->posts, s->deletes, s->lists, s->put_hashed, s->put_unsigned, s->put_streaming,
        s->put_bare, s->put_md5, s->put_checksum, s->put_trailer, s->put_expect, s->handshakes,
        s->resumed);
    for (int i = 0; i < CIPHERS && s->cipher[i].count > 0; i++)
        len += snprintf(text + len, sizeof text - (size_t)len, "%s %" PRIu64 "\n",
                        s->cipher[i].name, s->cipher[i].count);
    reply_text(conn, "200 OK", "Content-Type: text/plain\r\n", text);
}

void null_answer_refusal(struct conn *conn)
{
    conn->closes = true;
    reply_head(conn, "501 Not Implemented", "", 0);
}

static bool begins(const char *line, const char *name, const char **value)
{
    size_t len = strlen(name);
    if (strncasecmp(line, name, len) != 0)
        return false;
    *value = line + len + strspn(line + len, " ");
    return true;
}

/* What a PUT says of its payload. */
static void count_payload(struct stats *stats, const char *head)
{
    bool said = false;
    const char *value;
    for (const char *line = strstr(head, "\r\n"); line != NULL && line[2] != '\r';
         line = strstr(line + 2, "\r\n")) {
        if (begins(line + 2, "x-amz-content-sha256:", &value)) {
            said = true;
            if (strncmp(value, "UNSIGNED", 8) == 0)
                stats->put_unsigned++;
            else if (strncmp(value, "STREAMING", 9) == 0)
                stats->put_streaming++;
            else
                stats->put_hashed++;
        } else if (begins(line + 2, "content-md5:", &value)) {
            stats->put_md5++;
        } else if (begins(line + 2, "x-amz-checksum-", &value)) {
            stats->put_checksum++;
        } else if (begins(line + 2, "x-amz-trailer:", &value)) {
            stats->put_trailer++;
        } else if (begins(line + 2, "expect:", &value)) {
            stats->put_expect++;
        }
    }
    if (!said)
        stats->put_bare++;
}

void null_answer(struct server *server, struct conn *conn)
{
    char *method = conn->head;
    char *target = strchr(conn->head, ' ') + 1;
    char *target_end = strpbrk(target, " \r");
    char kept = *target_end;
    *target_end = '\0';
    char path[2048];
    size_t path_len = strcspn(target, "?");
    snprintf(path, sizeof path, "%.*s", (int)path_len, target);
    char text[2048];
    snprintf(text, sizeof text, "%s", target[path_len] == '?' ? target + path_len + 1 : "");
    *target_end = kept; /* the headers behind it are still needed */
    struct query query = {text};
    const char *slash = strchr(path + 1, '/');
    bool bucket = slash == NULL || slash[1] == '\0';
    if (strcmp(path, "/__stats") == 0) {
        null_answer_stats(server, conn);
        return;
    }
    server->stats.requests++;
    if (!bucket && strncmp(slash + 1, "close", 5) == 0)
        conn->closes = true;
    if (strncmp(method, "GET ", 4) == 0) {
        server->stats.gets++;
        if (bucket && !answer_setting(conn, &query))
            answer_list(server, conn, &query);
        else if (!bucket)
            answer_object(server, conn, path, false);
    } else if (strncmp(method, "HEAD ", 5) == 0) {
        server->stats.heads++;
        answer_object(server, conn, path, true);
    } else if (strncmp(method, "PUT ", 4) == 0) {
        server->stats.puts++;
        count_payload(&server->stats, conn->head);
        reply_head(conn, "200 OK", "ETag: " ETAG "\r\n", 0);
    } else if (strncmp(method, "POST ", 5) == 0) {
        server->stats.posts++;
        answer_post(conn, &query);
    } else if (strncmp(method, "DELETE ", 7) == 0) {
        server->stats.deletes++;
        conn->reply_len = (size_t)sprintf(conn->reply,
                                          "HTTP/1.1 204 No Content\r\nDate: " DATE
                                          "\r\nx-amz-request-id: NULL\r\n\r\n");
    } else {
        null_answer_refusal(conn);
    }
}

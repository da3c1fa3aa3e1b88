/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_answer.h. */
#include "net/ts3_answer.h"

#include <string.h>

void ts3_answer_init(struct ts3_answer *answer, const struct ts3_alloc *alloc)
{
    memset(answer, 0, sizeof *answer);
    ts3_buf_init(&answer->body, alloc, 0);
    ts3_answer_reset(answer, 0);
}

static void reset_head(struct ts3_answer *answer)
{
    answer->status = 0;
    answer->complete_head = false;
    answer->length = TS3_ANSWER_UNKNOWN;
    answer->bad_length = false;
    answer->chunked = false;
    answer->has_range = false;
    answer->range_total = TS3_ANSWER_UNKNOWN;
    answer->date_s = TS3_TIME_NONE;
    answer->modified_s = TS3_TIME_NONE;
    answer->retry_after_s = -1;
    answer->retry_at_s = TS3_TIME_NONE;
    answer->etag[0] = '\0';
    answer->request_id[0] = '\0';
    answer->host_id[0] = '\0';
    answer->region[0] = '\0';
}

void ts3_answer_reset(struct ts3_answer *answer, size_t max_body_bytes)
{
    reset_head(answer);
    answer->begun = false;
    answer->head_bytes = 0;
    answer->idle_bytes = 0;
    answer->cut = false;
    ts3_buf_reset(&answer->body);
    answer->body.max = max_body_bytes;
}

static bool digits(struct ts3_str text, size_t *at, uint64_t *value)
{
    size_t begin = *at;
    uint64_t sum = 0;
    for (; *at < text.len && text.data[*at] >= '0' && text.data[*at] <= '9'; (*at)++) {
        if (*at - begin >= 18) /* far beyond any object; keeps the sum from overflowing */
            return false;
        sum = sum * 10 + (uint64_t)(text.data[*at] - '0');
    }
    *value = sum;
    return *at > begin;
}

static void read_length(struct ts3_answer *answer, struct ts3_str value)
{
    size_t at = 0;
    uint64_t length;
    if (!digits(value, &at, &length) || at != value.len ||
        (answer->length != TS3_ANSWER_UNKNOWN && answer->length != length))
        answer->bad_length = true;
    else
        answer->length = length;
}

/* RFC 9110 section 10.2.3: a number of seconds, or a date. What is neither asks for nothing. */
static void read_retry_after(struct ts3_answer *answer, struct ts3_str value)
{
    size_t at = 0;
    uint64_t seconds;
    if (digits(value, &at, &seconds) && at == value.len)
        answer->retry_after_s = (int64_t)seconds;
    else
        (void)ts3_time_parse_http(value, &answer->retry_at_s);
}

int64_t ts3_answer_wait_s(const struct ts3_answer *answer)
{
    if (answer->retry_after_s >= 0)
        return answer->retry_after_s;
    if (answer->retry_at_s == TS3_TIME_NONE || answer->date_s == TS3_TIME_NONE)
        return 0;
    return answer->retry_at_s > answer->date_s ? answer->retry_at_s - answer->date_s : 0;
}

/* RFC 9110 section 14.4: bytes first-last/total, bytes first-last/ *, bytes * /total */
static void read_range(struct ts3_answer *answer, struct ts3_str value)
{
    size_t at = 6;
    uint64_t first = 0;
    uint64_t last = 0;
    uint64_t total = TS3_ANSWER_UNKNOWN;
    if (value.len < 6 || !ts3_str_eq_nocase((struct ts3_str){value.data, 6}, TS3_STR("bytes ")))
        return;
    bool star = at < value.len && value.data[at] == '*';
    if (star) {
        at++;
    } else {
        if (!digits(value, &at, &first) || at >= value.len || value.data[at++] != '-' ||
            !digits(value, &at, &last))
            return;
    }
    if (at >= value.len || value.data[at++] != '/')
        return;
    if (at < value.len && value.data[at] == '*')
        at++;
    else if (!digits(value, &at, &total))
        return;
    if (at != value.len)
        return;
    answer->range_total = total;
    answer->range_first = first;
    answer->range_last = last;
    answer->has_range = !star;
}

/* Control characters become "?", since the value may be logged. */
static void copy(char *out, size_t out_size, struct ts3_str value)
{
    if (value.len >= out_size)
        return;
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.data[i];
        out[i] = c < ' ' || c == 127 ? '?' : (char)c;
    }
    out[value.len] = '\0';
}

struct ts3_str ts3_answer_unquote(struct ts3_str etag)
{
    /* A proxy on the way weakens ETags because it might compress; it is not asked to, and the
     * version is the same. */
    if (etag.len >= 4 && memcmp(etag.data, "W/\"", 3) == 0)
        etag = (struct ts3_str){etag.data + 2, etag.len - 2};
    if (etag.len >= 2 && etag.data[0] == '"' && etag.data[etag.len - 1] == '"')
        return (struct ts3_str){etag.data + 1, etag.len - 2};
    return etag;
}

static void read_etag(struct ts3_answer *answer, struct ts3_str value)
{
    struct ts3_str etag = ts3_answer_unquote(value);
    if (etag.len >= sizeof answer->etag)
        etag = TS3_STR("(an ETag too long to be kept)");
    copy(answer->etag, sizeof answer->etag, etag);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static struct ts3_str trim(const char *begin, const char *end)
{
    while (begin < end && (*begin == ' ' || *begin == '\t'))
        begin++;
    while (end > begin && is_space(end[-1]))
        end--;
    return (struct ts3_str){begin, (size_t)(end - begin)};
}

static void read_field(struct ts3_answer *answer, struct ts3_str name, struct ts3_str value)
{
    if (ts3_str_eq_nocase(name, TS3_STR("content-length")))
        read_length(answer, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("transfer-encoding")))
        answer->chunked = ts3_str_eq_nocase(value, TS3_STR("chunked"));
    else if (ts3_str_eq_nocase(name, TS3_STR("etag")))
        read_etag(answer, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("content-range")))
        read_range(answer, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("date")))
        (void)ts3_time_parse_http(value, &answer->date_s);
    else if (ts3_str_eq_nocase(name, TS3_STR("last-modified")))
        (void)ts3_time_parse_http(value, &answer->modified_s);
    else if (ts3_str_eq_nocase(name, TS3_STR("retry-after")))
        read_retry_after(answer, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("x-amz-request-id")))
        copy(answer->request_id, sizeof answer->request_id, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("x-amz-id-2")))
        copy(answer->host_id, sizeof answer->host_id, value);
    else if (ts3_str_eq_nocase(name, TS3_STR("x-amz-bucket-region")))
        copy(answer->region, sizeof answer->region, value);
}

/* "HTTP/1.1 200 OK": the status, or 0. */
static int read_status(struct ts3_str line)
{
    const char *space = memchr(line.data, ' ', line.len);
    size_t at = space ? (size_t)(space - line.data) + 1 : line.len;
    uint64_t status = 0;
    if (line.len < 5 || memcmp(line.data, "HTTP/", 5) != 0 || !digits(line, &at, &status) ||
        status > 999)
        return 0;
    return (int)status;
}

void ts3_answer_header(struct ts3_answer *answer, struct ts3_str line)
{
    answer->begun = true;
    answer->head_bytes += line.len;
    if (answer->complete_head)
        return; /* trailers behind a chunked body: nothing of them is used */
    if (line.len == 0 || line.data[line.len - 1] != '\n')
        return; /* the connection ended within it */
    if (answer->status == 0) {
        answer->status = read_status(line);
        return;
    }
    struct ts3_str whole = trim(line.data, line.data + line.len);
    if (whole.len == 0) {
        if (answer->status >= 100 && answer->status < 200)
            reset_head(answer);
        else
            answer->complete_head = true;
        return;
    }
    const char *colon = memchr(line.data, ':', line.len);
    if (colon != NULL)
        read_field(answer, trim(line.data, colon), trim(colon + 1, line.data + line.len));
}

enum ts3_err ts3_answer_keep(struct ts3_answer *answer, const void *bytes, size_t size_bytes)
{
    size_t room = answer->body.max - answer->body.len;
    if (size_bytes > room) {
        answer->cut = true;
        size_bytes = room;
    }
    return ts3_buf_append(&answer->body, bytes, size_bytes);
}

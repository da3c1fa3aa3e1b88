/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signer against the published vectors, its refusals, its limits, and each of its allocations
 * failing. */
#include <stdio.h>
#include <stdlib.h>

#include "core/ts3_sigv4.h"
#include "core/ts3_uri.h"
#include "ts3_test.h"

enum { MAX_PAIRS = 80 };

/* One block of the table of vectors; strings lie in the table or in text. */
struct vector {
    struct ts3_buf text;
    struct ts3_sigv4_request request;
    struct ts3_pair query[MAX_PAIRS];
    struct ts3_pair headers[MAX_PAIRS];
    struct ts3_str name, signed_names, signature;
};

/* Percent-decoded into text, whose memory was reserved and stays where it is. */
static struct ts3_str decoded(struct vector *vector, struct ts3_str raw)
{
    size_t start = vector->text.len;
    CHECK_OK(ts3_uri_decode(&vector->text, raw, false));
    return (struct ts3_str){vector->text.data + start, vector->text.len - start};
}

static bool split(struct ts3_str line, const char *mark, struct ts3_str *head, struct ts3_str *tail)
{
    size_t mark_len = strlen(mark);
    for (size_t i = 0; i + mark_len <= line.len; i++) {
        if (memcmp(line.data + i, mark, mark_len) == 0) {
            *head = (struct ts3_str){line.data, i};
            *tail = (struct ts3_str){line.data + i + mark_len, line.len - i - mark_len};
            return true;
        }
    }
    return false;
}

static void set_field(struct vector *vector, struct ts3_str name, struct ts3_str value)
{
    struct ts3_sigv4_request *request = &vector->request;
    struct ts3_str left = {0}, right = {0};
    if (ts3_str_eq(name, TS3_STR("name"))) {
        vector->name = value;
    } else if (ts3_str_eq(name, TS3_STR("key"))) {
        bool is_s3 = ts3_str_eq(value, TS3_STR("AKIAIOSFODNN7EXAMPLE"));
        request->access_key_id = value;
        request->secret = is_s3 ? TS3_STR("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
                                : TS3_STR("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
    } else if (ts3_str_eq(name, TS3_STR("time"))) {
        CHECK_OK(ts3_time_parse_iso(value, &request->time_s));
    } else if (ts3_str_eq(name, TS3_STR("service"))) {
        request->service = value;
    } else if (ts3_str_eq(name, TS3_STR("host"))) {
        request->host = value;
    } else if (ts3_str_eq(name, TS3_STR("method"))) {
        request->method = value;
    } else if (ts3_str_eq(name, TS3_STR("path"))) {
        request->path = decoded(vector, value);
    } else if (ts3_str_eq(name, TS3_STR("query")) && split(value, "=", &left, &right)) {
        struct ts3_pair *pair = &vector->query[request->query_count++];
        pair->name = decoded(vector, left);
        pair->value = decoded(vector, right);
    } else if (ts3_str_eq(name, TS3_STR("header")) && split(value, ": ", &left, &right)) {
        vector->headers[request->header_count++] = (struct ts3_pair){left, decoded(vector, right)};
    } else if (ts3_str_eq(name, TS3_STR("payload"))) {
        request->payload = value;
    } else if (ts3_str_eq(name, TS3_STR("signed"))) {
        vector->signed_names = value;
    } else if (CHECK(ts3_str_eq(name, TS3_STR("signature")))) {
        vector->signature = value;
    }
}

static void start_vector(struct vector *vector)
{
    memset(vector, 0, sizeof(*vector));
    ts3_buf_init(&vector->text, ts3_alloc_libc(), 1 << 16);
    CHECK_OK(ts3_buf_reserve(&vector->text, 1 << 14));
    vector->request.query = vector->query;
    vector->request.headers = vector->headers;
    vector->request.region = TS3_STR("us-east-1");
    vector->request.payload = TS3_STR(TS3_SHA256_EMPTY);
}

static void check_vector(struct ts3_sigv4 *signer, const struct vector *vector)
{
    struct ts3_sigv4_out out;
    const struct ts3_sigv4_request *request = &vector->request;
    struct ts3_str service = request->service.len ? request->service : TS3_STR("s3");
    char want[1000];
    struct ts3_utc utc = {0};
    ts3_test_label("%.*s", (int)vector->name.len, vector->name.data);
    CHECK_OK(ts3_time_split(request->time_s, &utc));
    snprintf(want, sizeof(want),
             "AWS4-HMAC-SHA256 Credential=%.*s/%04d%02d%02d/us-east-1/%.*s/aws4_request, "
             "SignedHeaders=%.*s, "
             "Signature=%.*s",
             (int)request->access_key_id.len, request->access_key_id.data, utc.year, utc.month,
             utc.day, (int)service.len, service.data, (int)vector->signed_names.len,
             vector->signed_names.data, (int)vector->signature.len, vector->signature.data);
    ts3_sigv4_out_init(&out, ts3_alloc_libc());
    CHECK_OK(ts3_sigv4_sign(signer, request, &out));
    if (!CHECK_TEXT(ts3_buf_str(&out.authorization), want))
        printf("%s\n", ts3_sigv4_canonical(signer).data);
    ts3_sigv4_out_free(&out);
}

TEST(sigv4_published_vectors)
{
    struct ts3_digest *digest = NULL;
    struct ts3_sigv4 *signer = NULL;
    struct vector vector;
    size_t size_bytes = 0, count = 0;
    char *table = ts3_test_data("sigv4/vectors.txt", &size_bytes);
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    CHECK_OK(ts3_sigv4_new(ts3_alloc_libc(), digest, &signer));
    start_vector(&vector);
    for (char *at = table, *end; at < table + size_bytes; at = end + 1) {
        end = strchr(at, '\n');
        if (!end)
            end = table + size_bytes;
        struct ts3_str line = {at, (size_t)(end - at)}, name = {0}, value = {0};
        if (line.len && *at != '#' && CHECK(split(line, ": ", &name, &value)))
            set_field(&vector, name, value);
        if (vector.signature.len) {
            check_vector(signer, &vector);
            ts3_buf_free(&vector.text);
            start_vector(&vector);
            count++;
        }
    }
    CHECK_INT(count, 34);
    ts3_buf_free(&vector.text);
    ts3_sigv4_free(signer);
    ts3_digest_free(digest);
    free(table);
}

/* ---- one request, changed row by row ---- */

static struct ts3_sigv4_request plain_request(void)
{
    return (struct ts3_sigv4_request){
        .method = TS3_STR("GET"),
        .host = TS3_STR("bucket.example.com"),
        .path = TS3_STR("/shares/aa/x"),
        .payload = TS3_STR(TS3_UNSIGNED_PAYLOAD),
        .time_s = 1369353600,
        .region = TS3_STR("us-east-1"),
        .access_key_id = TS3_STR("AKIDEXAMPLE"),
        .secret = TS3_STR("secret"),
    };
}

struct bench {
    struct ts3_digest *digest;
    struct ts3_sigv4 *signer;
    struct ts3_sigv4_out out;
};

static void set_up(struct bench *bench)
{
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &bench->digest));
    CHECK_OK(ts3_sigv4_new(ts3_alloc_libc(), bench->digest, &bench->signer));
    ts3_sigv4_out_init(&bench->out, ts3_alloc_libc());
}

static void tear_down(struct bench *bench)
{
    ts3_sigv4_out_free(&bench->out);
    ts3_sigv4_free(bench->signer);
    ts3_digest_free(bench->digest);
}

TEST(sigv4_wire_forms)
{
    static const struct {
        struct ts3_str path;
        const char *path_out;
        const char *query_in[4]; /* name, value, name, value */
        const char *query_out;
    } rows[] = {
        {{"", 0}, "/", {NULL}, ""},
        {{"/", 1}, "/", {NULL}, ""},
        {{"/a b", 4}, "/a%20b", {NULL}, ""},
        {{"/a+b%20c", 8}, "/a%2Bb%2520c", {NULL}, ""},
        {{"//a//../b/", 10}, "//a//../b/", {NULL}, ""},
        {{"/\xc3\xbc~-._", 7}, "/%C3%BC~-._", {NULL}, ""},
        {{"/a\0b", 4}, "/a%00b", {NULL}, ""},
        {{"/!*'()", 6}, "/%21%2A%27%28%29", {NULL}, ""},
        {{"/", 1}, "/", {"uploads", ""}, "uploads="},
        {{"/", 1}, "/", {"", ""}, "="},
        {{"/", 1}, "/", {"b", "1", "a", "2"}, "a=2&b=1"},
        {{"/", 1}, "/", {"a", "2", "a", "1"}, "a=1&a=2"},
        {{"/", 1}, "/", {"a-b", "", "a", "z"}, "a=z&a-b="},
        {{"/", 1}, "/", {"prefix", "a/b c+d&e=f", "B", "%"}, "B=%25&prefix=a%2Fb%20c%2Bd%26e%3Df"},
        {{"/", 1}, "/", {"a", "~", "\xc3\xa9", ""}, "%C3%A9=&a=~"},
    };
    struct bench bench;
    set_up(&bench);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_sigv4_request request = plain_request();
        struct ts3_pair query[2];
        ts3_test_label("row %zu", i);
        for (size_t j = 0; j < 2 && rows[i].query_in[2 * j]; j++) {
            query[j].name = ts3_str_of(rows[i].query_in[2 * j]);
            query[j].value = ts3_str_of(rows[i].query_in[2 * j + 1]);
            request.query_count = j + 1;
        }
        request.path = rows[i].path;
        request.query = query;
        CHECK_OK(ts3_sigv4_sign(bench.signer, &request, &bench.out));
        CHECK_TEXT(ts3_buf_str(&bench.out.path), rows[i].path_out);
        CHECK_TEXT(ts3_buf_str(&bench.out.query), rows[i].query_out);
        CHECK_TEXT(ts3_str_of(bench.out.amz_date), "20130524T000000Z");
    }
    tear_down(&bench);
}

TEST(sigv4_headers_are_folded_sorted_and_chosen)
{
    static const struct ts3_pair headers[] = {
        {{"X-Amz-Meta-B", 12}, {"  two \t  words\t", 15}},
        {{"Range", 5}, {"bytes=0-9", 9}},
        {{"x-amz-meta-b", 12}, {"", 0}},
        {{"User-Agent", 10}, {"tahoe", 5}},
        {{"expect", 6}, {"", 0}},
        {{"Proxy-Authorization", 19}, {"Basic x", 7}},
        {{"CONNECTION", 10}, {"close", 5}},
        {{"Content-MD5", 11}, {"1B2M2Y8AsgTpgAmY7PhCfg==", 24}},
        {{"X-AMZ-META-A", 12}, {"\xc3\xa9", 2}},
        {{"x-amz-meta-b", 12}, {"3", 1}},
    };
    struct ts3_sigv4_request request = plain_request();
    struct bench bench;
    set_up(&bench);
    request.headers = headers;
    request.header_count = sizeof(headers) / sizeof(headers[0]);
    CHECK_OK(ts3_sigv4_sign(bench.signer, &request, &bench.out));
    CHECK_TEXT(
        ts3_sigv4_canonical(bench.signer),
        "GET\n/shares/aa/x\n\ncontent-md5:1B2M2Y8AsgTpgAmY7PhCfg==\nhost:bucket.example.com\n"
        "range:bytes=0-9\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:20130524T000000Z\n"
        "x-amz-meta-a:\xc3\xa9\nx-amz-meta-b:two words,,3\n\n"
        "content-md5;host;range;x-amz-content-sha256;x-amz-date;x-amz-meta-a;x-amz-meta-b\n"
        "UNSIGNED-PAYLOAD");
    tear_down(&bench);
}

TEST(sigv4_refuses_what_cannot_be_sent)
{
    static const struct {
        const char *field;
        struct ts3_str value;
        enum ts3_err err;
    } rows[] = {
        {"method", {"", 0}, TS3_EINVAL},
        {"method", {"get", 3}, TS3_EINVAL},
        {"method", {"GET X", 5}, TS3_EINVAL},
        {"host", {"", 0}, TS3_EINVAL},
        {"host", {"a b", 3}, TS3_EINVAL},
        {"host", {"a\r\nb: c", 7}, TS3_EINVAL},
        {"path", {"a", 1}, TS3_EINVAL},
        {"payload", {"", 0}, TS3_EINVAL},
        {"payload",
         {"E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855", 64},
         TS3_EINVAL},
        {"payload", {"e3b0", 4}, TS3_EINVAL},
        {"region", {"", 0}, TS3_EINVAL},
        {"region", {"a/b", 3}, TS3_EINVAL},
        {"service", {"s 3", 3}, TS3_EINVAL},
        {"key", {"", 0}, TS3_EINVAL},
        {"key", {"a,b", 3}, TS3_EINVAL},
        {"key", {"a\nb", 3}, TS3_EINVAL},
        {"key", {"tenant/user$x:y", 15}, TS3_OK},
        {"secret", {"", 0}, TS3_EINVAL},
        {"secret", {"\0\n", 2}, TS3_OK},
        {"header", {"", 0}, TS3_EINVAL},
        {"header", {"a b", 3}, TS3_EINVAL},
        {"header", {"a:", 2}, TS3_EINVAL},
        {"header", {"a\0", 2}, TS3_EINVAL},
        {"header", {"Host", 4}, TS3_EINVAL},
        {"header", {"X-Amz-Date", 10}, TS3_EINVAL},
        {"header", {"X-Amz-Content-SHA256", 20}, TS3_EINVAL},
        {"header", {"Authorization", 13}, TS3_EINVAL},
        {"value", {"a\r\nb", 4}, TS3_EINVAL},
        {"value", {"a\nb", 3}, TS3_EINVAL},
        {"value", {"a\0b", 3}, TS3_EINVAL},
        {"value", {"a\x7f", 2}, TS3_EINVAL},
        {"value", {"a\tb", 3}, TS3_OK},
    };
    struct bench bench;
    set_up(&bench);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_sigv4_request request = plain_request();
        struct ts3_pair header = {TS3_STR("x-amz-meta-a"), TS3_STR("b")};
        const char *field = rows[i].field;
        struct ts3_str *place = strcmp(field, "method") == 0    ? &request.method
                                : strcmp(field, "host") == 0    ? &request.host
                                : strcmp(field, "path") == 0    ? &request.path
                                : strcmp(field, "payload") == 0 ? &request.payload
                                : strcmp(field, "region") == 0  ? &request.region
                                : strcmp(field, "service") == 0 ? &request.service
                                : strcmp(field, "key") == 0     ? &request.access_key_id
                                : strcmp(field, "secret") == 0  ? &request.secret
                                : strcmp(field, "header") == 0  ? &header.name
                                                                : &header.value;
        ts3_test_label("row %zu, %s", i, field);
        request.headers = &header;
        request.header_count = 1;
        *place = rows[i].value;
        CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), rows[i].err);
        CHECK((bench.out.authorization.len > 0) == (rows[i].err == TS3_OK));
        CHECK((bench.out.amz_date[0] != '\0') == (rows[i].err == TS3_OK));
    }
    tear_down(&bench);
}

/* Every byte at every place of a value that is checked eight bytes at a time. */
TEST(sigv4_every_byte_in_a_value)
{
    struct bench bench;
    set_up(&bench);
    for (int c = 0; c < 256; c++) {
        for (size_t at = 0; at < 13; at++) {
            char value[] = "\xff~!a\x80zzz~\xa1!-\xfe";
            char line[40];
            struct ts3_pair header = {TS3_STR("z"), {value, sizeof(value) - 1}};
            struct ts3_sigv4_request request = plain_request();
            bool blank = c == ' ' || c == '\t', bad = (c < ' ' && !blank) || c == 0x7f;
            value[at] = (char)c;
            request.headers = &header;
            request.header_count = 1;
            ts3_test_label("byte %d at %zu", c, at);
            CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out),
                      bad ? TS3_EINVAL : TS3_OK);
            if (blank)
                value[at] = ' ';
            snprintf(line, sizeof(line), "\nz:%s", blank && at == 0 ? value + 1 : value);
            if (blank && at == 12)
                line[strlen(line) - 1] = '\0';
            strcat(line, "\n\n");
            CHECK(bad || strstr(ts3_sigv4_canonical(bench.signer).data, line));
        }
    }
    tear_down(&bench);
}

TEST(sigv4_limits)
{
    static char filler[TS3_SIGV4_MAX_CANONICAL];
    static struct ts3_pair pairs[TS3_SIGV4_MAX_PAIRS + 1];
    struct ts3_sigv4_request request = plain_request();
    struct bench bench;
    set_up(&bench);
    memset(filler, '/', sizeof(filler));
    for (size_t i = 0; i <= TS3_SIGV4_MAX_PAIRS; i++)
        pairs[i] = (struct ts3_pair){{"name", 4}, {filler, 1}};
    request.headers = request.query = pairs;
    request.query_count = request.header_count = TS3_SIGV4_MAX_PAIRS;
    CHECK_OK(ts3_sigv4_sign(bench.signer, &request, &bench.out));
    request.query_count++;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    request.query_count--;
    request.header_count++;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    request.header_count = 1;

    request.path = (struct ts3_str){filler, TS3_SIGV4_MAX_PATH};
    CHECK_OK(ts3_sigv4_sign(bench.signer, &request, &bench.out));
    request.path.len++;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    request.path.len = 1;

    pairs[0].value.len = sizeof(filler);
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    request.query_count = 1;
    request.header_count = 0;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    pairs[0].value.len = SIZE_MAX;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_ELIMIT);
    request.query_count = 0;
    request.time_s = INT64_MAX;
    CHECK_INT(ts3_sigv4_sign(bench.signer, &request, &bench.out), TS3_EINVAL);
    tear_down(&bench);
}

/* A warm signer and a fresh one must agree whatever changed in between. */
TEST(sigv4_key_cache_notices_every_change)
{
    struct bench warm, cold;
    struct ts3_sigv4_request request = plain_request();
    set_up(&warm);
    CHECK_OK(ts3_sigv4_sign(warm.signer, &request, &warm.out));
    for (int i = 0; i < 11; i++) {
        ts3_test_label("change %d", i);
        if (i == 1)
            request.time_s += 86400;
        else if (i == 2)
            request.region = TS3_STR("us-east-2");
        else if (i == 3)
            request.secret = TS3_STR("Secret");
        else if (i == 4)
            request.service = TS3_STR("service");
        else if (i == 5)
            request.secret = TS3_STR("secret\0");
        else if (i == 6)
            ts3_sigv4_forget(warm.signer);
        else if (i == 7)
            request.time_s -= 86400;
        else if (i == 8)
            request.time_s += 1;
        else if (i == 9)
            request.path = TS3_STR("/another/in/the/same/second");
        else if (i == 10)
            request.access_key_id = TS3_STR("AKIDOTHER");
        set_up(&cold);
        CHECK_OK(ts3_sigv4_sign(warm.signer, &request, &warm.out));
        CHECK_OK(ts3_sigv4_sign(cold.signer, &request, &cold.out));
        CHECK_STR(ts3_buf_str(&warm.out.authorization), ts3_buf_str(&cold.out.authorization));
        tear_down(&cold);
    }
    tear_down(&warm);
}

static enum ts3_err sign_once(const struct ts3_alloc *alloc, void *ctx)
{
    static const struct ts3_pair pairs[] = {{{"prefix", 6}, {"a b", 3}},
                                            {{"list-type", 9}, {"2", 1}}};
    struct ts3_sigv4_request request = plain_request();
    struct ts3_digest *digest = NULL;
    struct ts3_sigv4 *signer = NULL;
    struct ts3_sigv4_out out;
    (void)ctx;
    request.query = pairs;
    request.query_count = 2;
    ts3_sigv4_out_init(&out, alloc);
    enum ts3_err err = ts3_digest_new(alloc, &digest);
    if (!err)
        err = ts3_sigv4_new(alloc, digest, &signer);
    if (!err)
        err = ts3_sigv4_sign(signer, &request, &out);
    CHECK((err == TS3_OK) == (out.authorization.len > 0));
    ts3_sigv4_out_free(&out);
    ts3_sigv4_free(signer);
    ts3_digest_free(digest);
    return err;
}

TEST(sigv4_survives_every_failing_allocation)
{
    ts3_test_each_failure(sign_once, NULL);
}

TEST(sigv4_allocates_nothing_once_warm)
{
    struct ts3_failing alloc;
    struct ts3_digest *digest = NULL;
    struct ts3_sigv4 *signer = NULL;
    struct ts3_sigv4_out out;
    struct ts3_sigv4_request request = plain_request();
    ts3_failing_init(&alloc);
    ts3_sigv4_out_init(&out, &alloc.alloc);
    CHECK_OK(ts3_digest_new(&alloc.alloc, &digest));
    CHECK_OK(ts3_sigv4_new(&alloc.alloc, digest, &signer));
    CHECK_OK(ts3_sigv4_sign(signer, &request, &out));
    size_t calls = alloc.calls;
    for (int i = 0; i < 100; i++) {
        request.time_s += 3600;
        CHECK_OK(ts3_sigv4_sign(signer, &request, &out));
    }
    CHECK_INT(alloc.calls, calls);
    ts3_sigv4_out_free(&out);
    ts3_sigv4_free(signer);
    ts3_digest_free(digest);
    CHECK_INT(alloc.live, 0);
}

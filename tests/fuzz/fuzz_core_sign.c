/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signer. The text is lines of a letter, a space and a value with %XX for bytes; each sets a part
 * of the request, whose other parts stay as in start_request:
 *   M method  H host  P path  Q name=value  A name:value (a header)  S payload  T time  R region
 *   V service  K access key id  W secret
 * An empty line signs, and goes on with the same signer; a line "F" makes it forget its key. What is
 * left is signed at the end. An input signs MAX_SIGNED times at most: libFuzzer likes to repeat
 * lines, and a thousand signatures of one kind find no more than the first few. */
#include <stdlib.h>
#include <string.h>

#include "core/ts3_alloc.h"
#include "core/ts3_sigv4.h"
#include "core/ts3_uri.h"
#include "ts3_fuzz.h"

#define ENCODED "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%"
#define HEX "0123456789abcdef"
#define PRINTABLE ENCODED " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"

enum { MAX_PAIRS = TS3_SIGV4_MAX_PAIRS + 2, SUM_LEN = 64, MAX_SIGNED = 6 };

static const char mark[] = ", Signature=";

struct scene {
    struct ts3_fuzz_input *input;
    struct ts3_sigv4 *signer;
    struct ts3_sigv4 *other; /* derives its key anew for each signature */
    int left;                /* signatures */
    struct ts3_sigv4_request request;
    struct ts3_pair query[MAX_PAIRS];
    struct ts3_pair headers[MAX_PAIRS];
};

static void start_request(struct scene *scene)
{
    scene->request = (struct ts3_sigv4_request){
        .method = TS3_STR("GET"),
        .host = TS3_STR("bucket.example"),
        .path = TS3_STR("/"),
        .query = scene->query,
        .headers = scene->headers,
        .payload = TS3_STR(TS3_UNSIGNED_PAYLOAD),
        .time_s = 1369353600,
        .region = TS3_STR("us-east-1"),
        .access_key_id = TS3_STR("AKIDEXAMPLE"),
        .secret = TS3_STR("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
    };
}

/* ---- what must hold of a signature ---- */

/* strspn and not a loop of ours, whose every comparison libFuzzer would record. */
static bool is_made_of(struct ts3_str text, const char *characters)
{
    return strspn(text.data, characters) == text.len;
}

static void check_path(const struct scene *scene, struct ts3_str path)
{
    char *decoded = malloc(path.len);
    size_t len = 0;
    struct ts3_str raw = scene->request.path.len ? scene->request.path : TS3_STR("/");
    REQUIRE(decoded && path.len > 0 && path.data[0] == '/' && is_made_of(path, ENCODED "/"));
    REQUIRE(!ts3_uri_decode_to(decoded, &len, path, false));
    REQUIRE(ts3_str_eq((struct ts3_str){decoded, len}, raw));
    free(decoded);
}

/* One "=" in each pair, and as many pairs as were given. */
static void check_query(const struct scene *scene, struct ts3_str query)
{
    size_t pairs = query.len > 0;
    size_t equals = 0;
    REQUIRE(query.len == 0 || is_made_of(query, ENCODED "=&"));
    for (const char *at = query.data; query.len && *at; at++) {
        at += strcspn(at, "=&");
        pairs += *at == '&';
        equals += *at == '=';
        if (!*at)
            break;
    }
    REQUIRE(pairs == scene->request.query_count && equals == pairs);
}

static void check_authorization(struct ts3_str text)
{
    static const char begin[] = "AWS4-HMAC-SHA256 Credential=";
    size_t tail = sizeof(mark) - 1 + SUM_LEN;
    REQUIRE(text.len > sizeof(begin) - 1 + tail);
    REQUIRE(memcmp(text.data, begin, sizeof(begin) - 1) == 0);
    REQUIRE(memcmp(text.data + text.len - tail, mark, sizeof(mark) - 1) == 0);
    REQUIRE(is_made_of(text, PRINTABLE));
    REQUIRE(strspn(text.data + text.len - SUM_LEN, HEX) == SUM_LEN);
}

static void check_empty(const struct ts3_sigv4_out *out)
{
    REQUIRE(!out->authorization.len && !out->path.len && !out->query.len && !out->amz_date[0]);
}

static void check_out(const struct scene *scene, const struct ts3_sigv4_out *out)
{
    check_authorization(ts3_buf_str(&out->authorization));
    check_path(scene, ts3_buf_str(&out->path));
    check_query(scene, ts3_buf_str(&out->query));
    REQUIRE(strlen(out->amz_date) == TS3_TIME_AMZ_BYTES - 1);
}

/* Where it was signed, a signer without a kept key must come to the same. */
static void check_other(struct scene *scene, const struct ts3_sigv4_out *out)
{
    struct ts3_failing *alloc = &scene->input->alloc;
    struct ts3_sigv4_out again;
    ts3_sigv4_out_init(&again, &alloc->alloc);
    ts3_sigv4_forget(scene->other);
    enum ts3_err err = ts3_sigv4_sign(scene->other, &scene->request, &again);
    REQUIRE(!err || (err == TS3_ENOMEM && alloc->failed));
    if (!err)
        REQUIRE(ts3_str_eq(ts3_buf_str(&out->authorization), ts3_buf_str(&again.authorization)));
    ts3_sigv4_out_free(&again);
}

static void sign(struct scene *scene)
{
    struct ts3_failing *alloc = &scene->input->alloc;
    struct ts3_sigv4_out out;
    bool failed_before = alloc->failed;
    if (scene->left == 0)
        return;
    scene->left--;
    ts3_sigv4_out_init(&out, &alloc->alloc);
    enum ts3_err err = ts3_sigv4_sign(scene->signer, &scene->request, &out);
    REQUIRE((err == TS3_ENOMEM) == (alloc->failed && !failed_before));
    if (err) {
        check_empty(&out);
    } else {
        check_out(scene, &out);
        check_other(scene, &out);
    }
    ts3_sigv4_out_free(&out);
}

/* ---- reading the text ---- */

/* Decoded where it lies; as it stands where it cannot be. */
static struct ts3_str decoded(struct ts3_str raw)
{
    size_t len = 0;
    char *data = (char *)(uintptr_t)raw.data;
    if (ts3_uri_decode_to(data, &len, raw, false) == TS3_OK)
        raw.len = len;
    return raw;
}

static struct ts3_pair split(struct ts3_str value, char at)
{
    const char *found = value.len ? memchr(value.data, at, value.len) : NULL;
    struct ts3_pair pair = {value, {NULL, 0}};
    if (found) {
        pair.name.len = (size_t)(found - value.data);
        pair.value = (struct ts3_str){found + 1, value.len - pair.name.len - 1};
    }
    return (struct ts3_pair){decoded(pair.name), decoded(pair.value)};
}

static int64_t number_of(struct ts3_str value)
{
    uint64_t number = 0;
    bool minus = value.len && value.data[0] == '-';
    for (size_t i = minus; i < value.len; i++)
        number = number * 10 + (unsigned char)value.data[i] - '0';
    return (int64_t)(minus ? 0 - number : number);
}

static struct ts3_str *text_field(struct ts3_sigv4_request *request, char letter)
{
    switch (letter) {
    case 'M':
        return &request->method;
    case 'H':
        return &request->host;
    case 'P':
        return &request->path;
    case 'S':
        return &request->payload;
    case 'R':
        return &request->region;
    case 'V':
        return &request->service;
    case 'K':
        return &request->access_key_id;
    case 'W':
        return &request->secret;
    default:
        return NULL;
    }
}

static void set(struct scene *scene, char letter, struct ts3_str value)
{
    struct ts3_sigv4_request *request = &scene->request;
    struct ts3_str *field = text_field(request, letter);
    if (field)
        *field = decoded(value);
    else if (letter == 'Q' && request->query_count < MAX_PAIRS)
        scene->query[request->query_count++] = split(value, '=');
    else if (letter == 'A' && request->header_count < MAX_PAIRS)
        scene->headers[request->header_count++] = split(value, ':');
    else if (letter == 'T')
        request->time_s = number_of(value);
    else if (letter == 'F')
        ts3_sigv4_forget(scene->signer);
}

static void read_lines(struct scene *scene)
{
    struct ts3_str left = scene->input->text;
    while (left.len && scene->left) {
        const char *end = memchr(left.data, '\n', left.len);
        struct ts3_str line = {left.data, end ? (size_t)(end - left.data) : left.len};
        size_t taken = end ? line.len + 1 : line.len;
        left = (struct ts3_str){left.data + taken, left.len - taken};
        if (line.len == 0) {
            sign(scene);
            start_request(scene);
        } else {
            size_t skip = line.len > 1 ? 2 : 1;
            set(scene, line.data[0], (struct ts3_str){line.data + skip, line.len - skip});
        }
    }
    sign(scene);
}

/* Fetched from OpenSSL once a process, as in production: a fetch costs more than a signature. */
static const struct ts3_digest *digests(void)
{
    static struct ts3_digest *digest;
    if (!digest)
        REQUIRE(ts3_digest_new(ts3_alloc_libc(), &digest) == TS3_OK);
    return digest;
}

FUZZ(sign)
{
    struct ts3_fuzz_input input;
    struct scene scene = {.input = &input, .left = MAX_SIGNED};
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    start_request(&scene);
    enum ts3_err err = ts3_sigv4_new(&input.alloc.alloc, digests(), &scene.signer);
    if (!err)
        err = ts3_sigv4_new(&input.alloc.alloc, digests(), &scene.other);
    REQUIRE(!err || (err == TS3_ENOMEM && input.alloc.failed));
    if (!err)
        read_lines(&scene);
    ts3_sigv4_free(scene.other);
    ts3_sigv4_free(scene.signer);
    ts3_fuzz_close(&input);
}

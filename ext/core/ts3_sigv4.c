/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signer. The canonical request is built in one buffer whose room is reserved before the first
 * byte is written, so nothing below has to ask for room; query and headers are sorted in place by
 * insertion, since there are few of each. See ts3_sigv4.h. */
#include "core/ts3_sigv4.h"

#include "core/ts3_sigv4_key.h"
#include "core/ts3_uri.h"

enum { OWN_HEADERS = 3, METHOD_MAX = 16, SUM_HEX_LEN = 64 };

struct ts3_sigv4 {
    const struct ts3_alloc *alloc;
    struct ts3_buf canonical;
    struct ts3_buf scratch; /* lower-case header names, encoded query */
    struct ts3_sha256 hash;
    struct ts3_sigv4_key key;
    struct ts3_pair pairs[TS3_SIGV4_MAX_PAIRS + OWN_HEADERS];
    int64_t dated_s; /* the time that amz_date says; many requests are signed in one second */
    char amz_date[TS3_TIME_AMZ_BYTES]; /* "": none yet */
};

void ts3_sigv4_out_init(struct ts3_sigv4_out *out, const struct ts3_alloc *alloc)
{
    ts3_buf_init(&out->authorization, alloc, TS3_SIGV4_MAX_CANONICAL);
    ts3_buf_init(&out->path, alloc, TS3_SIGV4_MAX_PATH * TS3_URI_GROWTH);
    ts3_buf_init(&out->query, alloc, TS3_SIGV4_MAX_CANONICAL);
    out->amz_date[0] = '\0';
}

static void empty_out(struct ts3_sigv4_out *out)
{
    ts3_buf_reset(&out->authorization);
    ts3_buf_reset(&out->path);
    ts3_buf_reset(&out->query);
    out->amz_date[0] = '\0';
}

void ts3_sigv4_out_free(struct ts3_sigv4_out *out)
{
    ts3_buf_free(&out->authorization);
    ts3_buf_free(&out->path);
    ts3_buf_free(&out->query);
}

enum ts3_err ts3_sigv4_new(const struct ts3_alloc *alloc, const struct ts3_digest *digest,
                           struct ts3_sigv4 **signer)
{
    *signer = NULL;
    struct ts3_sigv4 *made = ts3_alloc_zero(alloc, 1, sizeof(*made));
    if (!made)
        return TS3_ENOMEM;
    made->alloc = alloc;
    ts3_buf_init(&made->canonical, alloc, TS3_SIGV4_MAX_CANONICAL);
    ts3_buf_init(&made->scratch, alloc, TS3_SIGV4_MAX_CANONICAL);
    enum ts3_err err = ts3_sha256_init(digest, &made->hash);
    if (!err)
        err = ts3_sigv4_key_init(digest, &made->key);
    if (err) {
        ts3_sigv4_free(made);
        return err;
    }
    *signer = made;
    return TS3_OK;
}

void ts3_sigv4_forget(struct ts3_sigv4 *signer)
{
    ts3_sigv4_key_forget(&signer->key);
}

void ts3_sigv4_free(struct ts3_sigv4 *signer)
{
    if (!signer)
        return;
    /* The canonical request holds the values of headers, among them session tokens. */
    ts3_buf_cleanse(&signer->canonical);
    ts3_buf_cleanse(&signer->scratch);
    ts3_sha256_free(&signer->hash);
    ts3_sigv4_key_free(&signer->key);
    ts3_alloc_cleanse(signer->alloc, signer, sizeof(*signer));
}

struct ts3_str ts3_sigv4_canonical(const struct ts3_sigv4 *signer)
{
    return ts3_buf_str(&signer->canonical);
}

/* ---- what a request may hold ---- */

/* Eight bytes of a string at a time: host, scope and header values of every request are looked at. */
#define EACH(byte) (UINT64_MAX / 255 * (uint64_t)(byte))

/* The top bit of each of the eight bytes that is zero, and perhaps of some behind such a one. */
static uint64_t zeros(uint64_t x)
{
    return (x - EACH(1)) & ~x;
}

/* The same for bytes that are a space, a control character or DEL. */
static uint64_t blanks(uint64_t x)
{
    return ((x - EACH(0x21)) & ~x) | zeros(x ^ EACH(0x7f));
}

/* The i-th eight of the string, the last of them overlapping; a shorter string is filled up with
 * '0'. */
static uint64_t eight(struct ts3_str str, size_t i)
{
    uint64_t x = EACH('0');
    if (str.len < 8)
        memcpy(&x, str.data, str.len);
    else
        memcpy(&x, str.data + (8 * i + 8 <= str.len ? 8 * i : str.len - 8), 8);
    return x;
}

static bool has_blank(struct ts3_str str)
{
    uint64_t found = 0;
    for (size_t i = 0; 8 * i < str.len; i++)
        found |= blanks(eight(str, i));
    return (found & EACH(0x80)) != 0;
}

/* Not empty, printable ASCII, no space and neither of the two. */
static bool is_plain(struct ts3_str str, char but, char nor)
{
    uint64_t found = 0;
    for (size_t i = 0; 8 * i < str.len; i++) {
        uint64_t x = eight(str, i);
        found |= x | blanks(x) | zeros(x ^ EACH((unsigned char)but)) |
                 zeros(x ^ EACH((unsigned char)nor));
    }
    return str.len > 0 && (found & EACH(0x80)) == 0;
}

static bool is_method(struct ts3_str method)
{
    bool good = method.len > 0 && method.len <= METHOD_MAX;
    for (size_t i = 0; i < method.len; i++)
        good &= (method.data[i] >= 'A') & (method.data[i] <= 'Z');
    return good;
}

static bool is_payload(struct ts3_str payload)
{
    bool good = payload.len == SUM_HEX_LEN;
    if (ts3_str_eq(payload, TS3_STR(TS3_UNSIGNED_PAYLOAD)) ||
        ts3_str_eq(payload, TS3_STR(TS3_SHA256_EMPTY)))
        return true;
    for (size_t i = 0; good && i < SUM_HEX_LEN; i++) {
        char c = payload.data[i];
        good = ((c >= '0') & (c <= '9')) | ((c >= 'a') & (c <= 'f'));
    }
    return good;
}

static struct ts3_str service_of(const struct ts3_sigv4_request *request)
{
    return request->service.len ? request->service : TS3_STR("s3");
}

static bool has_payload_header(const struct ts3_sigv4_request *request)
{
    return ts3_str_eq(service_of(request), TS3_STR("s3"));
}

static enum ts3_err check(const struct ts3_sigv4_request *request)
{
    struct ts3_str service = service_of(request);
    if (request->query_count > TS3_SIGV4_MAX_PAIRS || request->header_count > TS3_SIGV4_MAX_PAIRS ||
        request->path.len > TS3_SIGV4_MAX_PATH || request->region.len > TS3_SIGV4_MAX_SCOPE ||
        service.len > TS3_SIGV4_MAX_SCOPE || request->access_key_id.len > TS3_SIGV4_MAX_KEY_ID ||
        request->secret.len > TS3_SIGV4_MAX_SECRET)
        return TS3_ELIMIT;
    if (!is_method(request->method) || !is_plain(request->host, '/', ',') ||
        (request->path.len && request->path.data[0] != '/') || !is_payload(request->payload) ||
        !is_plain(request->region, '/', ',') || !is_plain(service, '/', ',') ||
        !is_plain(request->access_key_id, ',', ',') || request->secret.len == 0)
        return TS3_EINVAL;
    return TS3_OK;
}

/* Adds, or stops just above the limit, so that no size that is passed in can wrap around. */
static size_t add_bounded(size_t sum, size_t more)
{
    return more > TS3_SIGV4_MAX_CANONICAL || sum > TS3_SIGV4_MAX_CANONICAL
               ? TS3_SIGV4_MAX_CANONICAL + 1
               : sum + more;
}

/* An upper bound of what is written to canonical and to scratch. */
static enum ts3_err reserve(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request)
{
    enum { FIXED = 512 }; /* method, payload, the names and values of the signer's own headers */
    size_t query = 0, names = FIXED, values = 0;
    for (size_t i = 0; i < request->query_count; i++) {
        query = add_bounded(query, request->query[i].name.len);
        query = add_bounded(query, request->query[i].value.len);
        query = add_bounded(query, 2); /* "=" and "&" */
    }
    for (size_t i = 0; i < request->header_count; i++) {
        names = add_bounded(names, request->headers[i].name.len);
        names = add_bounded(names, 1); /* ":", or ";" in the list */
        values = add_bounded(values, request->headers[i].value.len);
        values = add_bounded(values, 1); /* the line break */
    }
    values = add_bounded(values, request->host.len);
    query = add_bounded(query * TS3_URI_GROWTH, 0);
    size_t path = (request->path.len + 1) * TS3_URI_GROWTH;
    size_t all = add_bounded(add_bounded(add_bounded(path, query), 2 * names), values);
    enum ts3_err err = ts3_buf_reserve(&signer->canonical, all);
    return err ? err : ts3_buf_reserve(&signer->scratch, add_bounded(query, names));
}

/* ---- writing where room was reserved ---- */

static void put(struct ts3_buf *buf, struct ts3_str str)
{
    if (str.len)
        memcpy(buf->data + buf->len, str.data, str.len);
    buf->len += str.len;
}

static void put_char(struct ts3_buf *buf, char c)
{
    buf->data[buf->len++] = c;
}

/* Copies a header's value: outer white space cut, inner runs of it made one space. */
static enum ts3_err put_folded(struct ts3_buf *buf, struct ts3_str value)
{
    char *start = buf->data + buf->len;
    char *to = start;
    bool gap = false;
    if (!has_blank(value)) {
        put(buf, value);
        return TS3_OK;
    }
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.data[i];
        if (c == ' ' || c == '\t') {
            gap = to != start;
            continue;
        }
        if (c < ' ' || c == 0x7f)
            return TS3_EINVAL; /* a line break here would smuggle in a header */
        if (gap)
            *to++ = ' ';
        gap = false;
        *to++ = (char)c;
    }
    buf->len += (size_t)(to - start);
    return TS3_OK;
}

/* Stable, so that the values of a repeated header keep their order. */
static void sort_pairs(struct ts3_pair *pairs, size_t count, bool by_value)
{
    for (size_t i = 1; i < count; i++) {
        struct ts3_pair pair = pairs[i];
        size_t j = i;
        for (; j > 0; j--) {
            int order = ts3_str_cmp(pairs[j - 1].name, pair.name);
            if (order == 0 && by_value)
                order = ts3_str_cmp(pairs[j - 1].value, pair.value);
            if (order <= 0)
                break;
            pairs[j] = pairs[j - 1];
        }
        pairs[j] = pair;
    }
}

/* ---- path and query ---- */

static enum ts3_err put_path(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                             struct ts3_sigv4_out *out)
{
    struct ts3_str path = request->path.len ? request->path : TS3_STR("/");
    enum ts3_err err = ts3_uri_encode(&out->path, path, true);
    if (!err)
        put(&signer->canonical, ts3_buf_str(&out->path));
    return err;
}

static struct ts3_str encode_to_scratch(struct ts3_buf *scratch, struct ts3_str raw)
{
    struct ts3_str encoded = {scratch->data + scratch->len, 0};
    encoded.len = ts3_uri_encode_to(scratch->data + scratch->len, raw, false);
    scratch->len += encoded.len;
    return encoded;
}

static enum ts3_err put_query(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                              struct ts3_sigv4_out *out)
{
    if (request->query_count == 0)
        return TS3_OK;
    for (size_t i = 0; i < request->query_count; i++) {
        signer->pairs[i].name = encode_to_scratch(&signer->scratch, request->query[i].name);
        signer->pairs[i].value = encode_to_scratch(&signer->scratch, request->query[i].value);
    }
    sort_pairs(signer->pairs, request->query_count, true);
    size_t start = signer->canonical.len;
    for (size_t i = 0; i < request->query_count; i++) {
        if (i)
            put_char(&signer->canonical, '&');
        put(&signer->canonical, signer->pairs[i].name);
        put_char(&signer->canonical, '=');
        put(&signer->canonical, signer->pairs[i].value);
    }
    return ts3_buf_append(&out->query, signer->canonical.data + start,
                          signer->canonical.len - start);
}

/* ---- headers ---- */

/* The characters of a token (RFC 9110, section 5.6.2), each as its lower case; 0 for all others. */
static const char token_chars[256] = {
    ['!'] = '!', ['#'] = '#', ['$'] = '$', ['%'] = '%', ['&'] = '&', ['\''] = '\'', ['*'] = '*',
    ['+'] = '+', ['-'] = '-', ['.'] = '.', ['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3',
    ['4'] = '4', ['5'] = '5', ['6'] = '6', ['7'] = '7', ['8'] = '8', ['9'] = '9', ['A'] = 'a',
    ['B'] = 'b', ['C'] = 'c', ['D'] = 'd', ['E'] = 'e', ['F'] = 'f', ['G'] = 'g', ['H'] = 'h',
    ['I'] = 'i', ['J'] = 'j', ['K'] = 'k', ['L'] = 'l', ['M'] = 'm', ['N'] = 'n', ['O'] = 'o',
    ['P'] = 'p', ['Q'] = 'q', ['R'] = 'r', ['S'] = 's', ['T'] = 't', ['U'] = 'u', ['V'] = 'v',
    ['W'] = 'w', ['X'] = 'x', ['Y'] = 'y', ['Z'] = 'z', ['^'] = '^', ['_'] = '_', ['`'] = '`',
    ['a'] = 'a', ['b'] = 'b', ['c'] = 'c', ['d'] = 'd', ['e'] = 'e', ['f'] = 'f', ['g'] = 'g',
    ['h'] = 'h', ['i'] = 'i', ['j'] = 'j', ['k'] = 'k', ['l'] = 'l', ['m'] = 'm', ['n'] = 'n',
    ['o'] = 'o', ['p'] = 'p', ['q'] = 'q', ['r'] = 'r', ['s'] = 's', ['t'] = 't', ['u'] = 'u',
    ['v'] = 'v', ['w'] = 'w', ['x'] = 'x', ['y'] = 'y', ['z'] = 'z', ['|'] = '|', ['~'] = '~',
};

/* Headers that proxies or libcurl add, drop or rewrite on the way. */
static bool is_unsigned(struct ts3_str name)
{
    static const struct ts3_str names[] = {
        {"accept-encoding", 15},   {"connection", 10}, {"expect", 6},
        {"keep-alive", 10},        {"te", 2},          {"trailer", 7},
        {"transfer-encoding", 17}, {"upgrade", 7},     {"user-agent", 10},
        {"x-amzn-trace-id", 15},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (ts3_str_eq(name, names[i]))
            return true;
    }
    return name.len > 6 && memcmp(name.data, "proxy-", 6) == 0;
}

/* Headers that the signer itself says. */
static bool is_own(struct ts3_str name, bool with_payload)
{
    return ts3_str_eq(name, TS3_STR("host")) || ts3_str_eq(name, TS3_STR("x-amz-date")) ||
           ts3_str_eq(name, TS3_STR("authorization")) ||
           (with_payload && ts3_str_eq(name, TS3_STR("x-amz-content-sha256")));
}

/* Fills pairs with what is signed, names in lower case. */
static enum ts3_err gather_headers(struct ts3_sigv4 *signer,
                                   const struct ts3_sigv4_request *request, const char *amz_date,
                                   size_t *count)
{
    bool with_payload = has_payload_header(request);
    size_t n = 0;
    for (size_t i = 0; i < request->header_count; i++) {
        struct ts3_str given = request->headers[i].name;
        struct ts3_str name = {signer->scratch.data + signer->scratch.len, given.len};
        for (size_t j = 0; j < given.len; j++) {
            char c = token_chars[(unsigned char)given.data[j]];
            if (!c)
                return TS3_EINVAL;
            put_char(&signer->scratch, c);
        }
        if (name.len == 0 || is_own(name, with_payload))
            return TS3_EINVAL;
        if (!is_unsigned(name))
            signer->pairs[n++] = (struct ts3_pair){name, request->headers[i].value};
    }
    signer->pairs[n++] = (struct ts3_pair){TS3_STR("host"), request->host};
    if (with_payload)
        signer->pairs[n++] = (struct ts3_pair){TS3_STR("x-amz-content-sha256"), request->payload};
    signer->pairs[n++] = (struct ts3_pair){TS3_STR("x-amz-date"), {amz_date, TS3_SIGV4_STAMP_LEN}};
    *count = n;
    return TS3_OK;
}

/* Writes the header lines, an empty line, and the list of names, which it tells in
 * *names. */
static enum ts3_err put_headers(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                                const char *amz_date, struct ts3_str *names)
{
    size_t count = 0;
    enum ts3_err err = gather_headers(signer, request, amz_date, &count);
    if (err)
        return err;
    sort_pairs(signer->pairs, count, false);
    for (size_t i = 0; i < count; i++) {
        if (i && ts3_str_eq(signer->pairs[i].name, signer->pairs[i - 1].name)) {
            signer->canonical.len--; /* the line break; the value joins the line before */
            put_char(&signer->canonical, ',');
        } else {
            put(&signer->canonical, signer->pairs[i].name);
            put_char(&signer->canonical, ':');
        }
        err = put_folded(&signer->canonical, signer->pairs[i].value);
        if (err)
            return err;
        put_char(&signer->canonical, '\n');
    }
    put_char(&signer->canonical, '\n');
    names->data = signer->canonical.data + signer->canonical.len;
    for (size_t i = 0; i < count; i++) {
        if (i && ts3_str_eq(signer->pairs[i].name, signer->pairs[i - 1].name))
            continue;
        if (i)
            put_char(&signer->canonical, ';');
        put(&signer->canonical, signer->pairs[i].name);
    }
    names->len = (size_t)(signer->canonical.data + signer->canonical.len - names->data);
    return TS3_OK;
}

/* ---- the signature ---- */

static enum ts3_err hash_canonical(struct ts3_sigv4 *signer, char out[TS3_SHA256_HEX_BYTES])
{
    enum ts3_err err = ts3_sha256_restart(&signer->hash);
    if (!err)
        err = ts3_sha256_update(&signer->hash, signer->canonical.data, signer->canonical.len);
    return err ? err : ts3_sha256_final_hex(&signer->hash, out);
}

static enum ts3_err compute(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                            const char *amz_date, char signature[TS3_SHA256_HEX_BYTES])
{
    unsigned char sum[TS3_SHA256_BYTES];
    char hex[TS3_SHA256_HEX_BYTES];
    const struct ts3_sigv4_source source = {
        .secret = request->secret,
        .stamp = {amz_date, TS3_SIGV4_STAMP_LEN},
        .region = request->region,
        .service = service_of(request),
    };
    enum ts3_err err = hash_canonical(signer, hex);
    if (!err)
        err = ts3_sigv4_key_use(&signer->key, &source);
    if (!err)
        err = ts3_hmac_sum(&signer->key.hmac, hex, SUM_HEX_LEN, sum);
    if (!err)
        ts3_hex_encode(sum, sizeof(sum), signature);
    return err;
}

static enum ts3_err put_authorization(const struct ts3_sigv4_request *request, struct ts3_str scope,
                                      struct ts3_str names, const char *signature,
                                      struct ts3_buf *authorization)
{
    enum { FIXED = 2 * TS3_SIGV4_MAX_SCOPE + TS3_SIGV4_MAX_KEY_ID + 256 };
    enum ts3_err err = ts3_buf_reserve(authorization, names.len + FIXED);
    if (err)
        return err;
    put(authorization, TS3_STR(TS3_SIGV4_ALGORITHM " Credential="));
    put(authorization, request->access_key_id);
    put_char(authorization, '/');
    put(authorization, scope);
    put(authorization, TS3_STR(", SignedHeaders="));
    put(authorization, names);
    put(authorization, TS3_STR(", Signature="));
    put(authorization, (struct ts3_str){signature, SUM_HEX_LEN});
    authorization->data[authorization->len] = '\0';
    return TS3_OK;
}

static enum ts3_err date(struct ts3_sigv4 *signer, int64_t time_s)
{
    if (signer->amz_date[0] && signer->dated_s == time_s)
        return TS3_OK;
    signer->dated_s = time_s;
    enum ts3_err err = ts3_time_format_amz(time_s, signer->amz_date);
    if (err)
        signer->amz_date[0] = '\0';
    return err;
}

/* Fills canonical, and out but for the Authorization. */
static enum ts3_err canonicalise(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                                 struct ts3_sigv4_out *out, struct ts3_str *names)
{
    enum ts3_err err = check(request);
    if (!err)
        err = date(signer, request->time_s);
    if (err)
        return err;
    memcpy(out->amz_date, signer->amz_date, sizeof(out->amz_date));
    err = reserve(signer, request);
    if (err)
        return err;
    put(&signer->canonical, request->method);
    put_char(&signer->canonical, '\n');
    err = put_path(signer, request, out);
    if (err)
        return err;
    put_char(&signer->canonical, '\n');
    err = put_query(signer, request, out);
    if (err)
        return err;
    put_char(&signer->canonical, '\n');
    err = put_headers(signer, request, out->amz_date, names);
    if (err)
        return err;
    put_char(&signer->canonical, '\n');
    put(&signer->canonical, request->payload);
    return TS3_OK;
}

enum ts3_err ts3_sigv4_sign(struct ts3_sigv4 *signer, const struct ts3_sigv4_request *request,
                            struct ts3_sigv4_out *out)
{
    char signature[TS3_SHA256_HEX_BYTES];
    struct ts3_str names = {0};
    empty_out(out);
    ts3_buf_reset(&signer->canonical);
    ts3_buf_reset(&signer->scratch);
    enum ts3_err err = canonicalise(signer, request, out, &names);
    if (signer->canonical.data)
        signer->canonical.data[signer->canonical.len] = '\0';
    if (!err)
        err = compute(signer, request, out->amz_date, signature);
    if (!err)
        err = put_authorization(request, signer->key.scope, names, signature, &out->authorization);
    if (err)
        empty_out(out);
    return err;
}

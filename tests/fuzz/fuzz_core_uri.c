/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The URI encoder and decoder. Options: 1 keep slashes, 2 "+" is a space, 4 a buffer of 64 bytes. */
#include <string.h>

#include "core/ts3_uri.h"
#include "ts3_fuzz.h"

enum { KEEP_SLASH = 1, PLUS = 2, SMALL = 4, SMALL_BYTES = 64, LARGE_BYTES = 1 << 20 };

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F');
}

static bool is_unreserved(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c && strchr("-._~", c));
}

static void check_encoded(struct ts3_str encoded, bool keep_slash)
{
    for (size_t i = 0; i < encoded.len; i++) {
        char c = encoded.data[i];
        if (c == '%') {
            REQUIRE(i + 2 < encoded.len && is_hex(encoded.data[i + 1]) &&
                    is_hex(encoded.data[i + 2]));
            i += 2;
        } else {
            REQUIRE(is_unreserved(c) || (keep_slash && c == '/'));
        }
    }
}

/* What a call may leave behind "kept": nothing when it failed, and the limit is never passed. */
static struct ts3_str added(const struct ts3_fuzz_input *input, const struct ts3_buf *buf,
                            enum ts3_err err)
{
    REQUIRE(buf->len >= 4 && memcmp(buf->data, "kept", 4) == 0 && buf->len <= buf->max);
    REQUIRE(buf->data[buf->len] == '\0');
    REQUIRE(!err || buf->len == 4);
    REQUIRE((err == TS3_ENOMEM) == input->alloc.failed);
    REQUIRE(err != TS3_ELIMIT || (input->options & SMALL));
    return (struct ts3_str){buf->data + 4, buf->len - 4};
}

static bool open_buf(struct ts3_fuzz_input *input, struct ts3_buf *buf)
{
    ts3_buf_init(buf, &input->alloc.alloc, input->options & SMALL ? SMALL_BYTES : LARGE_BYTES);
    return ts3_buf_append_text(buf, "kept") == TS3_OK;
}

static void check_encode(struct ts3_fuzz_input *input)
{
    bool keep_slash = input->options & KEEP_SLASH;
    struct ts3_buf buf;
    if (open_buf(input, &buf)) {
        enum ts3_err err = ts3_uri_encode(&buf, input->text, keep_slash);
        struct ts3_str encoded = added(input, &buf, err);
        if (!err) {
            size_t len = 0;
            check_encoded(encoded, keep_slash);
            REQUIRE(encoded.len >= input->text.len);
            REQUIRE(!ts3_uri_decode_to(buf.data + 4, &len, encoded, input->options & PLUS));
            REQUIRE(ts3_str_eq((struct ts3_str){encoded.data, len}, input->text));
        }
    }
    ts3_buf_free(&buf);
}

static void check_decode(struct ts3_fuzz_input *input)
{
    bool plus = input->options & PLUS;
    struct ts3_buf buf;
    if (open_buf(input, &buf)) {
        enum ts3_err err = ts3_uri_decode(&buf, input->text, plus);
        struct ts3_str decoded = added(input, &buf, err);
        if (!err) {
            /* The same where it lies; input->text is the run's own copy, and not needed again. */
            size_t len = 0;
            char *in_place = (char *)(uintptr_t)input->text.data;
            REQUIRE(decoded.len <= input->text.len);
            REQUIRE(!ts3_uri_decode_to(in_place, &len, input->text, plus));
            REQUIRE(ts3_str_eq((struct ts3_str){in_place, len}, decoded));
        }
    }
    ts3_buf_free(&buf);
}

FUZZ(uri)
{
    struct ts3_fuzz_input input;
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    check_encode(&input);
    input.alloc.calls = 0;
    input.alloc.failed = false;
    check_decode(&input);
    ts3_fuzz_close(&input);
}

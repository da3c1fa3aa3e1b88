/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Percent-encoding. See ts3_uri.h. */
#include "core/ts3_uri.h"

#include <stdint.h>

enum { UNRESERVED = 1, SLASH = 2 };

/* Of the bytes that stay: A-Z a-z 0-9 - . _ ~ always, and the slash where it is kept. */
static const unsigned char stays[256] = {
    ['/'] = SLASH,
    ['-'] = 1, ['.'] = 1, ['_'] = 1, ['~'] = 1, ['0'] = 1, ['1'] = 1, ['2'] = 1, ['3'] = 1,
    ['4'] = 1, ['5'] = 1, ['6'] = 1, ['7'] = 1, ['8'] = 1, ['9'] = 1, ['A'] = 1, ['B'] = 1,
    ['C'] = 1, ['D'] = 1, ['E'] = 1, ['F'] = 1, ['G'] = 1, ['H'] = 1, ['I'] = 1, ['J'] = 1,
    ['K'] = 1, ['L'] = 1, ['M'] = 1, ['N'] = 1, ['O'] = 1, ['P'] = 1, ['Q'] = 1, ['R'] = 1,
    ['S'] = 1, ['T'] = 1, ['U'] = 1, ['V'] = 1, ['W'] = 1, ['X'] = 1, ['Y'] = 1, ['Z'] = 1,
    ['a'] = 1, ['b'] = 1, ['c'] = 1, ['d'] = 1, ['e'] = 1, ['f'] = 1, ['g'] = 1, ['h'] = 1,
    ['i'] = 1, ['j'] = 1, ['k'] = 1, ['l'] = 1, ['m'] = 1, ['n'] = 1, ['o'] = 1, ['p'] = 1,
    ['q'] = 1, ['r'] = 1, ['s'] = 1, ['t'] = 1, ['u'] = 1, ['v'] = 1, ['w'] = 1, ['x'] = 1,
    ['y'] = 1, ['z'] = 1,
};

size_t ts3_uri_encode_to(char *out, struct ts3_str raw, bool keep_slash)
{
    static const char hex[] = "0123456789ABCDEF";
    char *to = out;
    unsigned char which = keep_slash ? UNRESERVED | SLASH : UNRESERVED;
    for (size_t i = 0; i < raw.len; i++) {
        unsigned char c = (unsigned char)raw.data[i];
        if (stays[c] & which) {
            *to++ = (char)c;
        } else {
            *to++ = '%';
            *to++ = hex[c >> 4];
            *to++ = hex[c & 15];
        }
    }
    return (size_t)(to - out);
}

enum ts3_err ts3_uri_encode(struct ts3_buf *buf, struct ts3_str raw, bool keep_slash)
{
    if (raw.len > SIZE_MAX / TS3_URI_GROWTH)
        return TS3_ELIMIT;
    size_t need = raw.len * TS3_URI_GROWTH;
    if (need > buf->max - buf->len) {
        /* What may be too long is measured first. */
        need = raw.len;
        for (size_t i = 0; i < raw.len; i++) {
            unsigned char c = (unsigned char)raw.data[i];
            if (!(stays[c] & UNRESERVED) && !(c == '/' && keep_slash))
                need += 2;
        }
    }
    enum ts3_err err = ts3_buf_reserve(buf, need);
    if (err)
        return err;
    buf->len += ts3_uri_encode_to(buf->data + buf->len, raw, keep_slash);
    buf->data[buf->len] = '\0';
    return TS3_OK;
}

/* The value of a hex digit, or -1. */
static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

enum ts3_err ts3_uri_decode_to(char *out, size_t *len, struct ts3_str text, bool plus_is_space)
{
    char *to = out;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        if (c == '%') {
            int high = text.len - i > 2 ? digit_of(text.data[i + 1]) : -1;
            int low = text.len - i > 2 ? digit_of(text.data[i + 2]) : -1;
            if (high < 0 || low < 0)
                return TS3_EINVAL;
            c = (char)(high * 16 + low);
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        *to++ = c;
    }
    *len = (size_t)(to - out);
    return TS3_OK;
}

enum ts3_err ts3_uri_decode(struct ts3_buf *buf, struct ts3_str text, bool plus_is_space)
{
    enum ts3_err err = ts3_buf_reserve(buf, text.len);
    if (err)
        return err;
    size_t len = 0;
    err = ts3_uri_decode_to(buf->data + buf->len, &len, text, plus_is_space);
    if (!err)
        buf->len += len;
    buf->data[buf->len] = '\0';
    return err;
}

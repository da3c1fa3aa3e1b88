/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The bounded growing buffer. See ts3_buf.h. */
#include "core/ts3_buf.h"

#include <openssl/crypto.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MIN_CAP_BYTES = 64 };

void ts3_buf_init(struct ts3_buf *buf, const struct ts3_alloc *alloc, size_t max_bytes)
{
    *buf = (struct ts3_buf){.alloc = alloc, .max = max_bytes};
    if (buf->max > SIZE_MAX / 2 - 1)
        buf->max = SIZE_MAX / 2 - 1;
}

void ts3_buf_free(struct ts3_buf *buf)
{
    if (buf->data)
        ts3_alloc_free(buf->alloc, buf->data);
    buf->data = NULL;
    buf->len = buf->cap = 0;
}

void ts3_buf_cleanse(struct ts3_buf *buf)
{
    if (buf->data)
        OPENSSL_cleanse(buf->data, buf->cap);
    ts3_buf_free(buf);
}

void ts3_buf_reset(struct ts3_buf *buf)
{
    ts3_buf_cut(buf, 0);
}

void ts3_buf_cut(struct ts3_buf *buf, size_t len)
{
    if (buf->data && len <= buf->len) {
        buf->len = len;
        buf->data[len] = '\0';
    }
}

enum ts3_err ts3_buf_reserve(struct ts3_buf *buf, size_t more_bytes)
{
    if (more_bytes > buf->max - buf->len)
        return TS3_ELIMIT;
    size_t need = buf->len + more_bytes + 1;
    if (need <= buf->cap)
        return TS3_OK;
    size_t cap = buf->cap < MIN_CAP_BYTES / 2 ? MIN_CAP_BYTES : buf->cap * 2;
    if (cap < need)
        cap = need;
    if (cap > buf->max + 1)
        cap = buf->max + 1;
    char *data = ts3_alloc_resize(buf->alloc, buf->data, cap, 1);
    if (!data)
        return TS3_ENOMEM;
    buf->data = data;
    buf->cap = cap;
    buf->data[buf->len] = '\0';
    return TS3_OK;
}

enum ts3_err ts3_buf_append(struct ts3_buf *buf, const void *bytes, size_t size_bytes)
{
    enum ts3_err err = ts3_buf_reserve(buf, size_bytes);
    if (err)
        return err;
    if (size_bytes)
        memcpy(buf->data + buf->len, bytes, size_bytes);
    buf->len += size_bytes;
    buf->data[buf->len] = '\0';
    return TS3_OK;
}

enum ts3_err ts3_buf_append_str(struct ts3_buf *buf, struct ts3_str str)
{
    return ts3_buf_append(buf, str.data, str.len);
}

enum ts3_err ts3_buf_append_text(struct ts3_buf *buf, const char *text)
{
    return ts3_buf_append(buf, text, strlen(text));
}

enum ts3_err ts3_buf_append_char(struct ts3_buf *buf, char c)
{
    return ts3_buf_append(buf, &c, 1);
}

enum ts3_err ts3_buf_append_vfmt(struct ts3_buf *buf, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    enum ts3_err err = len < 0 ? TS3_EINVAL : ts3_buf_reserve(buf, (size_t)len);
    if (!err) {
        /* The format was measured, so its NUL falls on the byte that reserve keeps for it. */
        vsnprintf(buf->data + buf->len, (size_t)len + 1, format, again);
        buf->len += (size_t)len;
    }
    va_end(again);
    return err;
}

enum ts3_err ts3_buf_append_fmt(struct ts3_buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    enum ts3_err err = ts3_buf_append_vfmt(buf, format, args);
    va_end(args);
    return err;
}

const char *ts3_buf_text(const struct ts3_buf *buf)
{
    return buf->data ? buf->data : "";
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A growing buffer of bytes with an upper bound.
 * Owner: who calls init calls free. Thread: one at a time.
 * Invariant: len <= max; where data is not NULL, data[len] is 0 (data is NULL until the first
 * append).
 * Errors: TS3_ELIMIT when len would exceed max, TS3_ENOMEM; a failed call leaves the content as it
 * was.
 * Growth doubles, so appending n bytes one by one costs O(n). */
#ifndef TS3_BUF_H
#define TS3_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"
#include "core/ts3_str.h"

struct ts3_buf {
    const struct ts3_alloc *alloc;
    char *data;
    size_t len;
    size_t cap; /* bytes allocated, with the one for the NUL */
    size_t max; /* len never exceeds it; below SIZE_MAX / 2 */
};

/* Allocates nothing. max_bytes is cut to SIZE_MAX / 2 - 1. */
void ts3_buf_init(struct ts3_buf *buf, const struct ts3_alloc *alloc, size_t max_bytes);
/* Frees the memory; the buffer is empty and usable again. A zeroed struct is fine too. */
void ts3_buf_free(struct ts3_buf *buf);
/* The same for secrets: overwrites first. (Growing a buffer may leave copies in freed memory:
 * reserve before.) */
void ts3_buf_cleanse(struct ts3_buf *buf);
/* Empties the buffer, keeps the memory. */
void ts3_buf_reset(struct ts3_buf *buf);
/* Cuts the content to len bytes; a len beyond the content changes nothing. */
void ts3_buf_cut(struct ts3_buf *buf, size_t len);
/* Makes room for more_bytes behind len without another allocation. */
enum ts3_err ts3_buf_reserve(struct ts3_buf *buf, size_t more_bytes);
enum ts3_err ts3_buf_append(struct ts3_buf *buf, const void *bytes, size_t size_bytes);
enum ts3_err ts3_buf_append_str(struct ts3_buf *buf, struct ts3_str str);
enum ts3_err ts3_buf_append_text(struct ts3_buf *buf, const char *text);
enum ts3_err ts3_buf_append_char(struct ts3_buf *buf, char c);
enum ts3_err ts3_buf_append_fmt(struct ts3_buf *buf, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
enum ts3_err ts3_buf_append_vfmt(struct ts3_buf *buf, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
/* The content as a C string, "" when nothing was appended yet; valid until the next call that
 * changes buf. */
const char *ts3_buf_text(const struct ts3_buf *buf);
static inline struct ts3_str ts3_buf_str(const struct ts3_buf *buf)
{
    struct ts3_str str = {ts3_buf_text(buf), buf->len};
    return str;
}

#endif

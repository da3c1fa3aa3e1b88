/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Percent-encoding as S3 signs it: A-Z a-z 0-9 - . _ ~ stay, every other byte becomes %XX with
 * upper-case digits. (S3 API reference, "Signature Calculations", UriEncode.)
 * Thread: any. Errors: of the buffer; decode adds TS3_EINVAL. A failed call leaves the buffer as it
 * was. */
#ifndef TS3_URI_H
#define TS3_URI_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_buf.h"

/* How many times longer encoded text can be. */
#define TS3_URI_GROWTH 3

/* Writes at most TS3_URI_GROWTH * raw.len bytes to out, no NUL; returns how many. keep_slash leaves
 * "/" as it is. */
size_t ts3_uri_encode_to(char *out, struct ts3_str raw, bool keep_slash);
enum ts3_err ts3_uri_encode(struct ts3_buf *buf, struct ts3_str raw, bool keep_slash);

/* Decodes %XX (either case); "+" becomes a space where plus_is_space. A "%" without two hex digits
 * is TS3_EINVAL. decode_to writes at most text.len bytes to out (which may be text.data itself) and
 * sets *len. */
enum ts3_err ts3_uri_decode_to(char *out, size_t *len, struct ts3_str text, bool plus_is_space);
enum ts3_err ts3_uri_decode(struct ts3_buf *buf, struct ts3_str text, bool plus_is_space);

#endif

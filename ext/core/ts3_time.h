/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Clocks that are passed in, and the three ways S3 writes a time. No locale, no time zone database,
 * no globals.
 * Thread: any (a clock as far as its functions are). Times are seconds since 1970 UTC, years 0001
 * to 9999.
 * Errors: TS3_EINVAL for text of another form, a date that does not exist, or a year out of range;
 * then the out-parameter is left as it was. */
#ifndef TS3_TIME_H
#define TS3_TIME_H

#include <stdint.h>

#include "core/ts3_err.h"
#include "core/ts3_str.h"

/* Stands for "not told" where a time is optional. */
#define TS3_TIME_NONE INT64_MIN

struct ts3_clock {
    int64_t (*mono_us)(void *ctx); /* never goes back; its zero means nothing */
    int64_t (*wall_s)(void *ctx);  /* as the machine believes; may jump */
    void *ctx;
};

/* CLOCK_MONOTONIC and CLOCK_REALTIME. */
const struct ts3_clock *ts3_clock_system(void);

struct ts3_utc {
    int year, month, day, hour, minute, second; /* month and day from 1 */
};

enum ts3_err ts3_time_split(int64_t time_s, struct ts3_utc *utc);
enum ts3_err ts3_time_join(const struct ts3_utc *utc, int64_t *time_s);

/* HTTP-date, RFC 9110 section 5.6.7, its three forms; a second of 60 counts as 59. Of the form with
 * two-digit years, 70 to 99 are 1970 to 1999. The weekday is not compared with the date. */
enum ts3_err ts3_time_parse_http(struct ts3_str text, int64_t *time_s);
/* ISO 8601 as S3 and its imitators write it: 2009-10-12T17:50:30 with any fraction or none (cut
 * off), then Z, +hh:mm, -hhmm or nothing (UTC); a space in place of the T. Also
 * 20091012T175030Z. */
enum ts3_err ts3_time_parse_iso(struct ts3_str text, int64_t *time_s);

#define TS3_TIME_AMZ_BYTES 17  /* "20130524T000000Z" and NUL */
#define TS3_TIME_DAY_BYTES 9   /* "20130524" and NUL */
#define TS3_TIME_HTTP_BYTES 30 /* "Fri, 24 May 2013 00:00:00 GMT" and NUL */
enum ts3_err ts3_time_format_amz(int64_t time_s, char out[TS3_TIME_AMZ_BYTES]);
enum ts3_err ts3_time_format_http(int64_t time_s, char out[TS3_TIME_HTTP_BYTES]);

#endif

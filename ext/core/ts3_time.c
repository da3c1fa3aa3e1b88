/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Clocks, and times to and from text. See ts3_time.h. */
#define _GNU_SOURCE
#include "core/ts3_time.h"

#include <stdbool.h>
#include <time.h>

#define DAY_S INT64_C(86400)

static int64_t system_mono_us(void *ctx)
{
    struct timespec now;
    (void)ctx;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int64_t system_wall_s(void *ctx)
{
    struct timespec now;
    (void)ctx;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec;
}

static const struct ts3_clock system_clock = {system_mono_us, system_wall_s, NULL};

const struct ts3_clock *ts3_clock_system(void)
{
    return &system_clock;
}

/* ---- the calendar: years are counted from March, so that a leap day is the last of its year
 * ---- */

/* Days since 1 March of the year 0 of the proleptic Gregorian calendar. */
static int64_t days_from_march(int year, int month, int day)
{
    int64_t y = month > 2 ? year : year - 1;
    int64_t m = month > 2 ? month - 3 : month + 9;
    return 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
}

#define DAYS_TO_1970 INT64_C(719468) /* days_from_march(1970, 1, 1) */

static bool is_leap(int year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return month == 2 && is_leap(year) ? 29 : days[month - 1];
}

enum ts3_err ts3_time_join(const struct ts3_utc *utc, int64_t *time_s)
{
    if (utc->year < 1 || utc->year > 9999 || utc->month < 1 || utc->month > 12 || utc->day < 1 ||
        utc->day > days_in_month(utc->year, utc->month) || utc->hour < 0 || utc->hour > 23 ||
        utc->minute < 0 || utc->minute > 59 || utc->second < 0 || utc->second > 60)
        return TS3_EINVAL;
    int64_t days = days_from_march(utc->year, utc->month, utc->day) - DAYS_TO_1970;
    int second = utc->second == 60 ? 59 : utc->second;
    *time_s = days * DAY_S + utc->hour * 3600 + utc->minute * 60 + second;
    return TS3_OK;
}

enum ts3_err ts3_time_split(int64_t time_s, struct ts3_utc *utc)
{
    if (time_s < INT64_C(-62135596800) || time_s > INT64_C(253402300799))
        return TS3_EINVAL; /* before the year 1, after the year 9999 */
    int64_t days = time_s / DAY_S;
    int64_t rest = time_s % DAY_S;
    if (rest < 0) {
        rest += DAY_S;
        days--;
    }
    days += DAYS_TO_1970;
    /* 146097 days make 400 years; within them the corrections undo the leap days passed. */
    int64_t era = days / 146097;
    int64_t in_era = days % 146097;
    int64_t year_of_era = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    int64_t in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t m = (5 * in_year + 2) / 153;
    utc->day = (int)(in_year - (153 * m + 2) / 5 + 1);
    utc->month = (int)(m < 10 ? m + 3 : m - 9);
    utc->year = (int)(year_of_era + era * 400 + (utc->month <= 2));
    utc->hour = (int)(rest / 3600);
    utc->minute = (int)(rest / 60 % 60);
    utc->second = (int)(rest % 60);
    return TS3_OK;
}

/* ---- reading ---- */

struct cursor {
    const char *at;
    const char *end;
};

static struct cursor cursor_at(struct ts3_str text)
{
    const char *data = text.data ? text.data : "";
    return (struct cursor){data, data + text.len};
}

static bool take_char(struct cursor *cur, char c)
{
    if (cur->at == cur->end || *cur->at != c)
        return false;
    cur->at++;
    return true;
}

static bool take_text(struct cursor *cur, const char *text)
{
    size_t len = strlen(text);
    if ((size_t)(cur->end - cur->at) < len || memcmp(cur->at, text, len) != 0)
        return false;
    cur->at += len;
    return true;
}

/* Exactly count digits. */
static bool take_digits(struct cursor *cur, int count, int *number)
{
    int value = 0;
    if (cur->end - cur->at < count)
        return false;
    for (int i = 0; i < count; i++) {
        char c = cur->at[i];
        if (c < '0' || c > '9')
            return false;
        value = value * 10 + (c - '0');
    }
    cur->at += count;
    *number = value;
    return true;
}

static const char day_names[] = "MonTueWedThuFriSatSun";
static const char month_names[] = "JanFebMarAprMayJunJulAugSepOctNovDec";

/* One of the names, which are three letters each, and which one it is, from 0. */
static bool take_name(struct cursor *cur, const char *names, int *which)
{
    if (cur->end - cur->at < 3)
        return false;
    for (int i = 0; names[3 * i] != '\0'; i++) {
        if (memcmp(cur->at, names + 3 * i, 3) == 0) {
            cur->at += 3;
            *which = i;
            return true;
        }
    }
    return false;
}

static bool take_month(struct cursor *cur, int *month)
{
    bool good = take_name(cur, month_names, month);
    *month += 1;
    return good;
}

/* hh:mm:ss */
static bool take_clock(struct cursor *cur, struct ts3_utc *utc)
{
    return take_digits(cur, 2, &utc->hour) && take_char(cur, ':') &&
           take_digits(cur, 2, &utc->minute) && take_char(cur, ':') &&
           take_digits(cur, 2, &utc->second);
}

/* 06 Nov 1994 08:49:37 GMT, what follows "Sun, " */
static bool take_imf(struct cursor *cur, struct ts3_utc *utc)
{
    return take_digits(cur, 2, &utc->day) && take_char(cur, ' ') && take_month(cur, &utc->month) &&
           take_char(cur, ' ') && take_digits(cur, 4, &utc->year) && take_char(cur, ' ') &&
           take_clock(cur, utc) && take_text(cur, " GMT");
}

/* 06-Nov-94 08:49:37 GMT, what follows "Sunday, " */
static bool take_rfc850(struct cursor *cur, struct ts3_utc *utc)
{
    if (!(take_digits(cur, 2, &utc->day) && take_char(cur, '-') && take_month(cur, &utc->month) &&
          take_char(cur, '-') && take_digits(cur, 2, &utc->year) && take_char(cur, ' ') &&
          take_clock(cur, utc) && take_text(cur, " GMT")))
        return false;
    utc->year += utc->year < 70 ? 2000 : 1900;
    return true;
}

/* Nov  6 08:49:37 1994, what follows "Sun " */
static bool take_asctime(struct cursor *cur, struct ts3_utc *utc)
{
    if (!(take_month(cur, &utc->month) && take_char(cur, ' ')))
        return false;
    bool day =
        take_char(cur, ' ') ? take_digits(cur, 1, &utc->day) : take_digits(cur, 2, &utc->day);
    return day && take_char(cur, ' ') && take_clock(cur, utc) && take_char(cur, ' ') &&
           take_digits(cur, 4, &utc->year);
}

enum ts3_err ts3_time_parse_http(struct ts3_str text, int64_t *time_s)
{
    static const char *const rests[] = {"day", "sday", "nesday", "rsday", "day", "urday", "day"};
    struct cursor cur = cursor_at(text);
    struct ts3_utc utc = {0};
    int day = 0;
    bool good = take_name(&cur, day_names, &day);
    if (good && take_char(&cur, ','))
        good = take_char(&cur, ' ') && take_imf(&cur, &utc);
    else if (good && take_char(&cur, ' '))
        good = take_asctime(&cur, &utc);
    else
        good = good && take_text(&cur, rests[day]) && take_text(&cur, ", ") &&
               take_rfc850(&cur, &utc);
    return good && cur.at == cur.end ? ts3_time_join(&utc, time_s) : TS3_EINVAL;
}

/* The zone at the end: nothing, Z, +hh, +hhmm or +hh:mm; sets the seconds that local time is ahead
 * of UTC. */
static bool take_zone(struct cursor *cur, int64_t *ahead_s)
{
    int hours = 0, minutes = 0;
    *ahead_s = 0;
    if (cur->at == cur->end || take_char(cur, 'Z') || take_char(cur, 'z'))
        return true;
    bool behind = take_char(cur, '-');
    if (!(behind || take_char(cur, '+')) || !take_digits(cur, 2, &hours))
        return false;
    if (cur->at != cur->end) {
        take_char(cur, ':');
        if (!take_digits(cur, 2, &minutes))
            return false;
    }
    *ahead_s = (hours * 3600 + minutes * 60) * (behind ? -1 : 1);
    return hours <= 23 && minutes <= 59;
}

enum ts3_err ts3_time_parse_iso(struct ts3_str text, int64_t *time_s)
{
    struct cursor cur = cursor_at(text);
    struct ts3_utc utc = {0};
    int64_t ahead_s = 0, local_s = 0;
    if (!take_digits(&cur, 4, &utc.year))
        return TS3_EINVAL;
    bool extended = take_char(&cur, '-');
    if (!take_digits(&cur, 2, &utc.month) || (extended && !take_char(&cur, '-')) ||
        !take_digits(&cur, 2, &utc.day) || !(take_char(&cur, 'T') || take_char(&cur, ' ')))
        return TS3_EINVAL;
    if (!(extended ? take_clock(&cur, &utc)
                   : take_digits(&cur, 2, &utc.hour) && take_digits(&cur, 2, &utc.minute) &&
                         take_digits(&cur, 2, &utc.second)))
        return TS3_EINVAL;
    if (take_char(&cur, '.') || take_char(&cur, ',')) {
        int digit;
        if (!take_digits(&cur, 1, &digit))
            return TS3_EINVAL;
        while (take_digits(&cur, 1, &digit))
            continue;
    }
    if (!take_zone(&cur, &ahead_s) || cur.at != cur.end || ts3_time_join(&utc, &local_s))
        return TS3_EINVAL;
    *time_s = local_s - ahead_s;
    return TS3_OK;
}

/* ---- writing ---- */

static void put_digits(char *out, int count, int number)
{
    while (count-- > 0) {
        out[count] = (char)('0' + number % 10);
        number /= 10;
    }
}

enum ts3_err ts3_time_format_amz(int64_t time_s, char out[TS3_TIME_AMZ_BYTES])
{
    struct ts3_utc utc;
    enum ts3_err err = ts3_time_split(time_s, &utc);
    if (err)
        return err;
    put_digits(out, 4, utc.year);
    put_digits(out + 4, 2, utc.month);
    put_digits(out + 6, 2, utc.day);
    out[8] = 'T';
    put_digits(out + 9, 2, utc.hour);
    put_digits(out + 11, 2, utc.minute);
    put_digits(out + 13, 2, utc.second);
    out[15] = 'Z';
    out[16] = '\0';
    return TS3_OK;
}

enum ts3_err ts3_time_format_http(int64_t time_s, char out[TS3_TIME_HTTP_BYTES])
{
    enum { THURSDAY = 3 }; /* so was 1 January 1970 */
    struct ts3_utc utc;
    enum ts3_err err = ts3_time_split(time_s, &utc);
    if (err)
        return err;
    int64_t day = time_s >= 0 ? time_s / DAY_S : -((-time_s + DAY_S - 1) / DAY_S);
    int weekday = (int)(((day + THURSDAY) % 7 + 7) % 7);
    memcpy(out, "Thu, 00 Jan 0000 00:00:00 GMT", TS3_TIME_HTTP_BYTES);
    memcpy(out, day_names + 3 * weekday, 3);
    put_digits(out + 5, 2, utc.day);
    memcpy(out + 8, month_names + 3 * (utc.month - 1), 3);
    put_digits(out + 12, 4, utc.year);
    put_digits(out + 17, 2, utc.hour);
    put_digits(out + 20, 2, utc.minute);
    put_digits(out + 23, 2, utc.second);
    return TS3_OK;
}

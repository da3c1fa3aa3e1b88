/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Times to and from text, against the C library's calendar; random numbers. */
#define _GNU_SOURCE
#include <stdio.h>
#include <time.h>

#include "core/ts3_rand.h"
#include "core/ts3_time.h"
#include "ts3_test.h"

struct row {
    const char *text;
    int64_t time_s; /* TS3_TIME_NONE: TS3_EINVAL */
};

static void check_rows(const struct row *rows, size_t count,
                       enum ts3_err (*parse)(struct ts3_str, int64_t *))
{
    for (size_t i = 0; i < count; i++) {
        int64_t time_s = -7;
        bool good = rows[i].time_s != TS3_TIME_NONE;
        ts3_test_label("%s", rows[i].text);
        CHECK_INT(parse(ts3_str_of(rows[i].text), &time_s), good ? TS3_OK : TS3_EINVAL);
        CHECK_INT(time_s, good ? rows[i].time_s : -7);
    }
}

TEST(time_http)
{
    static const struct row rows[] = {
        {"Sun, 06 Nov 1994 08:49:37 GMT", 784111777},
        {"Sunday, 06-Nov-94 08:49:37 GMT", 784111777},
        {"Sun Nov  6 08:49:37 1994", 784111777},
        {"Thu, 01 Jan 1970 00:00:00 GMT", 0},
        {"Wed, 31 Dec 1969 23:59:59 GMT", -1},
        {"Fri, 24 May 2013 00:00:00 GMT", 1369353600},
        {"Tue, 29 Feb 2000 12:00:00 GMT", 951825600},
        {"Sat, 31 Dec 2016 23:59:60 GMT", 1483228799},
        {"Tuesday, 19-Jan-38 03:14:08 GMT", 2147483648},
        {"Wed Nov 16 08:49:37 1994", 784975777},
        {"Monday, 01-Jan-96 00:00:00 GMT", 820454400},
        {"Wednesday, 03-Jan-96 00:00:00 GMT", 820627200},
        {"Thursday, 04-Jan-96 00:00:00 GMT", 820713600},
        {"Friday, 05-Jan-96 00:00:00 GMT", 820800000},
        {"Saturday, 06-Jan-96 00:00:00 GMT", 820886400},
        {"Fri, 31 Dec 9999 23:59:59 GMT", 253402300799},
        {"", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 08:49:37", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 08:49:37 UTC", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 08:49:37 GMT ", TS3_TIME_NONE},
        {" Sun, 06 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 6 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"sun, 06 nov 1994 08:49:37 gmt", TS3_TIME_NONE},
        {"Xxx, 06 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 06 Xxx 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 31 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Thu, 29 Feb 1900 00:00:00 GMT", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 24:00:00 GMT", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 08:60:00 GMT", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 08:49:61 GMT", TS3_TIME_NONE},
        {"Sun, 00 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 06 Nov 0000 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 06 Nov 1994 -8:49:37 GMT", TS3_TIME_NONE},
        {"Sunday", TS3_TIME_NONE},
        {"Su", TS3_TIME_NONE},
        {"Tueday, 06-Nov-94 08:49:37 GMT", TS3_TIME_NONE},
        {"Sunday, 06 Nov 1994 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun, 06-Nov-94 08:49:37 GMT", TS3_TIME_NONE},
        {"Sun Nov 6 08:49:37 1994", TS3_TIME_NONE},
    };
    check_rows(rows, sizeof(rows) / sizeof(rows[0]), ts3_time_parse_http);
}

TEST(time_iso)
{
    static const struct row rows[] = {
        {"2009-10-12T17:50:30.000Z", 1255369830},
        {"2009-10-12T17:50:30Z", 1255369830},
        {"2009-10-12T17:50:30", 1255369830},
        {"2009-10-12 17:50:30Z", 1255369830},
        {"2009-10-12T17:50:30.999999999Z", 1255369830},
        {"2009-10-12T17:50:30,5Z", 1255369830},
        {"2009-10-12T19:50:30+02:00", 1255369830},
        {"2009-10-12T19:50:30+0200", 1255369830},
        {"2009-10-12T19:50:30+02", 1255369830},
        {"2009-10-12T12:20:30.1-05:30", 1255369830},
        {"2009-10-12T17:50:30+00:00", 1255369830},
        {"20091012T175030Z", 1255369830},
        {"0001-01-01T00:00:00Z", -62135596800},
        {"9999-12-31T23:59:59Z", 253402300799},
        {"2016-12-31T23:59:60Z", 1483228799},
        {"", TS3_TIME_NONE},
        {"2009-10-12", TS3_TIME_NONE},
        {"2009-10-12T17:50Z", TS3_TIME_NONE},
        {"2009-10-12T17:50:30.Z", TS3_TIME_NONE},
        {"2009-10-12T17:50:30ZZ", TS3_TIME_NONE},
        {"2009-10-12T17:50:30 Z", TS3_TIME_NONE},
        {"2009-10-12T17:50:30+24:00", TS3_TIME_NONE},
        {"2009-10-12T17:50:30+02:60", TS3_TIME_NONE},
        {"2009-10-12T17:50:30+02:", TS3_TIME_NONE},
        {"2009-10-12T17:50:30+2", TS3_TIME_NONE},
        {"2009-13-12T17:50:30Z", TS3_TIME_NONE},
        {"2009-00-12T17:50:30Z", TS3_TIME_NONE},
        {"2009-02-29T17:50:30Z", TS3_TIME_NONE},
        {"2009-1012T17:50:30Z", TS3_TIME_NONE},
        {"20091012T17:50:30Z", TS3_TIME_NONE},
        {"0000-01-01T00:00:00Z", TS3_TIME_NONE},
        {"+009-10-12T17:50:30Z", TS3_TIME_NONE},
    };
    check_rows(rows, sizeof(rows) / sizeof(rows[0]), ts3_time_parse_iso);
}

TEST(time_agrees_with_the_c_library)
{
    struct ts3_rand_state state;
    struct ts3_rand rand;
    ts3_rand_seeded(&rand, &state, 1);
    for (int i = 0; i < 20000; i++) {
        int64_t time_s = (int64_t)ts3_rand_below(&rand, 315537897600) - 62135596800, back = 0;
        time_t as_time = (time_t)time_s;
        struct tm tm;
        char got[TS3_TIME_HTTP_BYTES], want[64], amz[TS3_TIME_AMZ_BYTES], iso[64];
        ts3_test_label("%lld", (long long)time_s);
        gmtime_r(&as_time, &tm);
        CHECK_OK(ts3_time_format_http(time_s, got));
        strftime(want, sizeof(want), "%a, %d %b ", &tm);
        snprintf(want + strlen(want), sizeof(want) - strlen(want), "%04d %02d:%02d:%02d GMT",
                 tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
        CHECK_TEXT(ts3_str_of(got), want);
        CHECK_OK(ts3_time_parse_http(ts3_str_of(got), &back));
        CHECK_INT(back, time_s);
        CHECK_OK(ts3_time_format_amz(time_s, amz));
        CHECK_OK(ts3_time_parse_iso(ts3_str_of(amz), &back));
        CHECK_INT(back, time_s);
        snprintf(iso, sizeof(iso), "%04d-%02d-%02dT%02d:%02d:%02d.123Z", tm.tm_year + 1900,
                 tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
        CHECK_OK(ts3_time_parse_iso(ts3_str_of(iso), &back));
        CHECK_INT(back, time_s);
    }
}

TEST(time_out_of_range)
{
    static const int64_t rows[] = {INT64_MIN, -62135596801, 253402300800, INT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        char amz[TS3_TIME_AMZ_BYTES] = "x", http[TS3_TIME_HTTP_BYTES] = "x";
        CHECK_INT(ts3_time_format_amz(rows[i], amz), TS3_EINVAL);
        CHECK_INT(ts3_time_format_http(rows[i], http), TS3_EINVAL);
        CHECK(amz[0] == 'x' && http[0] == 'x');
    }
}

TEST(time_system_clock_runs)
{
    const struct ts3_clock *clock = ts3_clock_system();
    int64_t before_us = clock->mono_us(clock->ctx);
    CHECK(clock->mono_us(clock->ctx) >= before_us);
    CHECK(clock->wall_s(clock->ctx) - (int64_t)time(NULL) <= 1);
    CHECK((int64_t)time(NULL) - clock->wall_s(clock->ctx) <= 1);
}

/* ---- random numbers ---- */

TEST(rand_is_reproducible_and_seeded)
{
    /* splitmix64 of seed 0 fills the state with its first four published outputs. */
    static const uint64_t filled[4] = {UINT64_C(0xe220a8397b1dcdaf), UINT64_C(0x6e789e6aa1b965f4),
                                       UINT64_C(0x06c45d188009454f), UINT64_C(0xf88bb8a8724c81ec)};
    struct ts3_rand_state a_state, b_state;
    struct ts3_rand a, b;
    ts3_rand_seeded(&a, &a_state, 0);
    for (int i = 0; i < 4; i++)
        CHECK(a_state.s[i] == filled[i]);
    ts3_rand_seeded(&b, &b_state, 0);
    for (int i = 0; i < 100; i++)
        CHECK(a.next(a.ctx) == b.next(b.ctx));
    ts3_rand_system(&a, &a_state);
    ts3_rand_system(&b, &b_state);
    CHECK(a.next(a.ctx) != b.next(b.ctx));
}

static uint64_t constant(void *ctx)
{
    uint64_t *numbers = ctx;
    uint64_t number = numbers[0];
    numbers[0] = numbers[1];
    return number;
}

TEST(rand_below_is_fair)
{
    struct ts3_rand_state state;
    struct ts3_rand rand;
    int counts[10] = {0};
    ts3_rand_seeded(&rand, &state, 42);
    for (int i = 0; i < 100000; i++)
        counts[ts3_rand_below(&rand, 10)]++;
    for (int i = 0; i < 10; i++)
        CHECK(counts[i] > 9500 && counts[i] < 10500);
    CHECK_INT(ts3_rand_below(&rand, 0), 0);
    CHECK_INT(ts3_rand_below(&rand, 1), 0);
    /* 2^64 mod (2^63 + 1) is 2^63 - 1: smaller numbers are drawn again */
    uint64_t numbers[2] = {5, UINT64_MAX};
    struct ts3_rand fixed = {constant, numbers};
    uint64_t below = (UINT64_C(1) << 63) + 1;
    CHECK(ts3_rand_below(&fixed, below) == UINT64_MAX % below);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine in bad weather that takes more than one fault: outcomes of several attempts, a GET that
 * goes on, corrections, deadlines, the quota of many requests, cancel and close. What a single
 * fault does to each operation is in test_net_matrix.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "test_net_server.h"

#define DOC(code) "<?xml version=\"1.0\"?><Error><Code>" code "</Code><Message>because</Message></Error>"
#define ERROR(status, code) NET_REPLY(status, "", "@", DOC(code))
#define LISTING "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
#define PART(first, last, etag, body)                                                                                  \
    "HTTP/1.1 206 Partial Content\r\nETag: " etag "\r\nContent-Range: bytes " first "-" last "/100\r\n"                \
    "Content-Length: " body

#define STEPS(array) (array), (int)(sizeof(array) / sizeof(array)[0])

static struct net_server server;
static struct net_engine net;

static void open_with(const struct net_step *steps, int count)
{
    server = (struct net_server){.steps = steps, .step_count = count};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net_engine_open(&net);
}

static void close_both(void)
{
    net_engine_free(&net);
    net_server_stop(&server);
}

static struct ts3_request_spec spec_of(enum ts3_method method)
{
    struct ts3_request_spec spec;
    ts3_request_spec_init(&spec);
    spec.method = method;
    spec.key = TS3_STR("k");
    spec.attempts = 3;
    return spec;
}

static void expect_failure(struct ts3_event *event, enum ts3_kind kind, enum ts3_outcome outcome, const char *code)
{
    if (CHECK(event->failed)) {
        CHECK_TEXT(ts3_str_of(ts3_kind_text(event->failure.kind)), ts3_kind_text(kind));
        CHECK_INT(event->failure.outcome, outcome);
        CHECK_TEXT(ts3_str_of(event->failure.code), code);
        CHECK(event->failure.message[0] != '\0');
    }
    ts3_event_clear(event);
}

TEST(bad_then_good)
{
    static const struct net_step steps[] = {{ERROR("500 Oops", "InternalError"), NET_KEEP},
                                            {NULL, NET_RESET},
                                            {OK_EMPTY, NET_KEEP}};
    open_with(STEPS(steps));
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(event.attempts, 3);
    ts3_event_clear(&event);
    CHECK_INT(server.seen[1].connection, 0);
    CHECK_INT(server.seen[2].connection, 1);
    close_both();
}

TEST(unknown_stays_unknown)
{
    static const struct net_step steps[] = {{NULL, NET_CLOSE}, {ERROR("404 No", "NoSuchUpload"), NET_KEEP}};
    open_with(STEPS(steps));
    struct ts3_request_spec spec = spec_of(TS3_POST);
    spec.parse = TS3_PARSE_COMPLETE;
    struct ts3_event event = net_run(&net, &spec);
    CHECK_INT(event.attempts, 2);
    expect_failure(&event, TS3_KIND_SERVICE, TS3_OUTCOME_UNKNOWN, "NoSuchUpload");
    close_both();
}

/* --- a GET that is cut off ---------------------------------------------------------------------------------------- */

static struct ts3_event get_window(struct ts3_window **window, size_t size, const char *etag)
{
    CHECK_OK(ts3_window_new(net.engine, size, window));
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.into = *window;
    spec.offset = 10;
    spec.expect_etag = etag;
    return net_run(&net, &spec);
}

TEST(a_cut_get_goes_on)
{
    static const struct net_step steps[] = {{PART("10", "19", "\"e1\"", "10\r\n\r\n0123"), NET_CLOSE},
                                            {PART("14", "19", "\"e1\"", "6\r\n\r\n45"), NET_RESET},
                                            {ERROR("503 Slow", "SlowDown"), NET_KEEP},
                                            {PART("16", "19", "\"e1\"", "4\r\n\r\n6789"), NET_KEEP}};
    struct ts3_window *window;
    open_with(STEPS(steps));
    CHECK_OK(ts3_window_new(net.engine, 10, &window));
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.into = window;
    spec.offset = 10;
    spec.attempts = 5;
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(event.attempts, 4);
    CHECK_INT(event.size, 100);
    ts3_event_clear(&event);
    CHECK_INT(ts3_window_ready(window), 10);
    CHECK(memcmp(ts3_window_data(window), "0123456789", 10) == 0);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[1], "range")), "bytes=14-19");
    ts3_window_unref(window);
    close_both();
}

TEST(a_cut_get_does_not_go_on_in_another_version)
{
    static const struct net_step steps[] = {{PART("10", "19", "\"e1\"", "10\r\n\r\n0123"), NET_CLOSE},
                                            {PART("14", "19", "\"e2\"", "6\r\n\r\n456789"), NET_KEEP}};
    struct ts3_window *window;
    open_with(STEPS(steps));
    struct ts3_event event = get_window(&window, 10, NULL);
    CHECK_INT(event.attempts, 2);
    CHECK_TEXT(ts3_str_of(event.etag), "e2");
    expect_failure(&event, TS3_KIND_CHANGED, TS3_OUTCOME_NOT_APPLIED, "");
    CHECK_INT(ts3_window_ready(window), 4);
    CHECK(memcmp(ts3_window_data(window), "0123", 4) == 0);
    ts3_window_unref(window);
    close_both();
}

TEST(a_window_is_filled_on_by_a_second_request)
{
    static const struct net_step steps[] = {{PART("10", "19", "\"e1\"", "10\r\n\r\n0123"), NET_CLOSE},
                                            {ERROR("404 No", "NoSuchKey"), NET_KEEP},
                                            {PART("14", "19", "\"e1\"", "6\r\n\r\n456789"), NET_KEEP}};
    struct ts3_window *window;
    open_with(STEPS(steps));
    struct ts3_event event = get_window(&window, 10, "e1");
    expect_failure(&event, TS3_KIND_SERVICE, TS3_OUTCOME_NOT_APPLIED, "NoSuchKey");
    CHECK_INT(ts3_window_ready(window), 4);
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.into = window;
    spec.offset = 10;
    uint64_t id;
    CHECK_INT(ts3_engine_submit(net.engine, &spec, &id), TS3_EINVAL); /* without the ETag it cannot go on */
    spec.expect_etag = "e1";
    event = net_run(&net, &spec);
    CHECK(!event.failed && memcmp(ts3_window_data(window), "0123456789", 10) == 0);
    ts3_event_clear(&event);
    ts3_window_unref(window);
    close_both();
}

/* --- silence, on a clock that stands still ------------------------------------------------------------------------ */

TEST(silence_within_an_answer)
{
    static const struct net_step steps[] = {{PART("10", "19", "\"e1\"", "10\r\n\r\n0123"), NET_HOLD},
                                            {PART("14", "19", "\"e1\"", "6\r\n\r\n456789"), NET_KEEP}};
    struct ts3_window *window;
    struct ts3_event event;
    bool ready;
    open_with(STEPS(steps));
    CHECK_OK(ts3_window_new(net.engine, 10, &window));
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.into = window;
    spec.offset = 10;
    spec.stall_ms = 3000;
    CHECK_OK(ts3_window_arm(window, 4, &ready));
    uint64_t id = net_submit(&net, &spec);
    CHECK(net_next(&net, &event, 5000) && !event.final);
    net_engine_pass(&net, 3001);
    event = net_final(&net, id);
    CHECK(!event.failed && event.attempts == 2);
    ts3_event_clear(&event);
    ts3_window_unref(window);
    close_both();
}

TEST(the_deadline_ends_everything)
{
    static const struct net_step hold[] = {{NULL, NET_HOLD}};
    open_with(STEPS(hold));
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    spec.first_byte_ms = 0;
    spec.deadline_ms = 2000;
    uint64_t id = net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 1));
    net_engine_pass(&net, 2001);
    struct ts3_event event = net_final(&net, id);
    CHECK_INT(event.attempts, 1);
    expect_failure(&event, TS3_KIND_TIMEOUT, TS3_OUTCOME_UNKNOWN, "");
    close_both();
}

/* --- clocks and regions ------------------------------------------------------------------------------------------- */

TEST(a_wrong_clock_is_corrected)
{
    static const struct net_step steps[] = {{ERROR("403 Skew", "RequestTimeTooSkewed"), NET_KEEP}, {OK_EMPTY, NET_KEEP}};
    open_with(STEPS(steps));
    atomic_store(&net.wall_s, 1369353600 - 7200);
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    spec.attempts = 1;
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(event.skew_s, 7200);
    ts3_event_clear(&event);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[0], "x-amz-date")), "20130523T220000Z");
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[1], "x-amz-date")), "20130524T000000Z");
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(net.engine, &stats));
    CHECK(stats.skew_adopted && stats.skew_s == 7200);
    close_both();

    static const struct net_step head[] = {{NET_REPLY("403 Forbidden", "", "0", ""), NET_KEEP}, {OK_EMPTY, NET_KEEP}};
    open_with(STEPS(head));
    atomic_store(&net.wall_s, 1369353600 + 7200);
    spec = spec_of(TS3_HEAD);
    event = net_run(&net, &spec);
    CHECK(!event.failed && event.attempts == 2);
    ts3_event_clear(&event);
    close_both();

    static const struct net_step never[] = {{ERROR("403 Skew", "RequestTimeTooSkewed"), NET_KEEP}};
    open_with(STEPS(never));
    atomic_store(&net.wall_s, 1369353600 - 7200);
    spec = spec_of(TS3_PUT);
    event = net_run(&net, &spec);
    CHECK_INT(event.attempts, 2);
    expect_failure(&event, TS3_KIND_AUTH, TS3_OUTCOME_NOT_APPLIED, "RequestTimeTooSkewed");
    close_both();
}

TEST(a_region_named_by_the_service_is_adopted_once)
{
#define MALFORMED(region)                                                                                              \
    NET_REPLY("400 Bad", "", "@",                                                                                      \
              "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>" region "</Region></Error>")
    static const struct net_step steps[] = {{MALFORMED("eu-west-3"), NET_KEEP},
                                            {OK_EMPTY, NET_KEEP},
                                            {OK_EMPTY, NET_KEEP},
                                            {MALFORMED("eu-west-4"), NET_KEEP}};
    open_with(STEPS(steps));
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed && event.attempts == 2);
    ts3_event_clear(&event);
    event = net_run(&net, &spec);
    CHECK(!event.failed && event.attempts == 1);
    ts3_event_clear(&event);
    CHECK(strstr(net_header(&server.seen[0], "authorization"), "/us-east-1/s3/") != NULL);
    CHECK(strstr(net_header(&server.seen[1], "authorization"), "/eu-west-3/s3/") != NULL);
    CHECK(strstr(net_header(&server.seen[2], "authorization"), "/eu-west-3/s3/") != NULL);
    event = net_run(&net, &spec);
    CHECK_INT(event.attempts, 1);
    if (CHECK(event.failed && event.failure.region != NULL))
        CHECK_TEXT(ts3_str_of(event.failure.region), "eu-west-4");
    expect_failure(&event, TS3_KIND_SERVICE, TS3_OUTCOME_NOT_APPLIED, "AuthorizationHeaderMalformed");
    close_both();

    static const struct net_step head[] = {
        {NET_REPLY("301 Moved", "x-amz-bucket-region: eu-north-1\r\n", "0", ""), NET_KEEP}, {OK_EMPTY, NET_KEEP}};
    open_with(STEPS(head));
    spec = spec_of(TS3_HEAD);
    event = net_run(&net, &spec);
    CHECK(!event.failed && event.attempts == 2);
    ts3_event_clear(&event);
    close_both();
}

/* --- connections, quota, the end ---------------------------------------------------------------------------------- */

/* It may have crossed the request, whose own answer then still comes. */
TEST(a_408_ends_its_connection)
{
    static const struct net_step steps[] = {
        {"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", NET_KEEP}, {OK_EMPTY, NET_KEEP}};
    open_with(STEPS(steps));
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    spec.attempts = 1;
    struct ts3_event event = net_run(&net, &spec);
    expect_failure(&event, TS3_KIND_SERVICE, TS3_OUTCOME_UNKNOWN, "");
    event = net_run(&net, &spec);
    CHECK(!event.failed);
    ts3_event_clear(&event);
    CHECK_INT(server.seen[1].connection, 1);
    close_both();
}

TEST(idle_connections_are_let_go)
{
    static const struct net_step ok[] = {{OK_EMPTY, NET_KEEP}};
    open_with(STEPS(ok));
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    for (int i = 0; i < 3; i++) {
        struct ts3_event event = net_run(&net, &spec);
        CHECK(!event.failed && event.attempts == 1);
        ts3_event_clear(&event);
        net_engine_pass(&net, i == 0 ? 9000 : 10001);
        usleep(50000);
    }
    CHECK_INT(server.seen[1].connection, 0);
    CHECK_INT(server.seen[2].connection, 1);
    close_both();
}

TEST(the_quota_ends_a_storm)
{
    static const struct net_step bad[] = {{ERROR("500 Oops", "InternalError"), NET_KEEP}};
    server = (struct net_server){.steps = bad, .step_count = 1};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net.config.retry_tokens = 70; /* five retries */
    net_engine_open(&net);
    struct ts3_request_spec spec = spec_of(TS3_PUT);
    for (int i = 0; i < 10; i++) {
        struct ts3_event event = net_run(&net, &spec);
        expect_failure(&event, TS3_KIND_SERVICE, TS3_OUTCOME_UNKNOWN, "InternalError");
    }
    CHECK_INT(atomic_load(&server.count), 15);
    close_both();
}

static int64_t elapsed_ms(const struct timespec *since)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - since->tv_sec) * 1000 + (now.tv_nsec - since->tv_nsec) / 1000000;
}

TEST(cancel_and_close_are_prompt)
{
    /* The PUTs get no answer: three wrong ones, which come without delay here, would end them before the close. */
    static const struct net_step hold[] = {{PART("10", "19", "\"e1\"", "10\r\n\r\n0123"), NET_HOLD}, {"", NET_HOLD}};
    struct ts3_window *window;
    struct timespec begun;
    open_with(STEPS(hold));
    CHECK_OK(ts3_window_new(net.engine, 10, &window));
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.into = window;
    spec.offset = 10;
    uint64_t id = net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 1));
    clock_gettime(CLOCK_MONOTONIC, &begun);
    CHECK_OK(ts3_engine_cancel(net.engine, id));
    CHECK_OK(ts3_engine_cancel(net.engine, id));
    struct ts3_event event = net_final(&net, id);
    CHECK(elapsed_ms(&begun) < 500);
    expect_failure(&event, TS3_KIND_CANCELLED, TS3_OUTCOME_NOT_APPLIED, "");
    spec = spec_of(TS3_PUT);
    for (int i = 0; i < 20; i++)
        net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 8));
    clock_gettime(CLOCK_MONOTONIC, &begun);
    CHECK_OK(ts3_engine_close(net.engine));
    CHECK(elapsed_ms(&begun) < 1000);
    int finals = 0, unknown = 0;
    while (ts3_engine_drain(net.engine, &event, 1) == 1) {
        CHECK(event.final);
        /* One whose connection was still being made has an attempt, and yet nothing of it has left. */
        bool may_be_there = event.attempts > 0 && event.failure.outcome == TS3_OUTCOME_UNKNOWN;
        expect_failure(&event, TS3_KIND_CLOSED, may_be_there ? TS3_OUTCOME_UNKNOWN : TS3_OUTCOME_NOT_APPLIED, "");
        finals++;
        unknown += may_be_there;
    }
    CHECK_INT(finals, 20);
    CHECK(unknown >= 7); /* the server has seen so many, besides the GET */
    ts3_window_unref(window);
    close_both();
}

/* All but the last byte of a head, which might be taken for the whole of it, or for a number that goes on: the attempt
 * ends by the service's doing, or by ours. */
TEST(a_head_that_is_cut_off)
{
    static const char *const cut[] = {"HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r",
                                      "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r",
                                      "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: \"e", "HTTP/1.1 404"};
    static const enum net_then ends[] = {NET_RESET, NET_CLOSE, NET_HOLD};
    for (size_t i = 0; i < sizeof cut / sizeof *cut * 3; i++) {
        struct net_step step = {cut[i / 3], ends[i % 3]};
        ts3_test_label("%s, end %d", cut[i / 3], ends[i % 3]);
        open_with(&step, 1);
        struct ts3_request_spec spec = spec_of(TS3_PUT);
        spec.attempts = 1;
        uint64_t id = net_submit(&net, &spec);
        CHECK(net_wait_seen(&server, 1));
        if (step.then == NET_HOLD) {
            usleep(20000); /* it has been read */
            CHECK_OK(ts3_engine_cancel(net.engine, id));
        }
        struct ts3_event event = net_final(&net, id);
        CHECK(i / 3 == 0 || event.etag == NULL); /* not half of one */
        /* A status that came whole says what became of the request. */
        bool refused = i / 3 == 1 && step.then != NET_HOLD;
        expect_failure(&event, step.then == NET_HOLD ? TS3_KIND_CANCELLED : TS3_KIND_TRANSPORT,
                       refused ? TS3_OUTCOME_NOT_APPLIED : TS3_OUTCOME_UNKNOWN, "");
        close_both();
    }
}

TEST(many_engines_and_many_requests)
{
    static const struct net_step ok[] = {{NET_REPLY("200 OK", "", "@", "x"), NET_KEEP}};
    static struct net_engine other;
    open_with(STEPS(ok));
    net_engine_init(&other, &server);
    net_engine_open(&other);
    struct ts3_request_spec spec = spec_of(TS3_GET);
    spec.parse = TS3_PARSE_BYTES;
    bool whole = true;
    for (int round = 0; whole && round < 10; round++) {
        for (int i = 0; i < 100; i++) {
            net_submit(&net, &spec);
            net_submit(&other, &spec);
        }
        struct net_engine *both[] = {&net, &other};
        for (int which = 0; which < 2; which++) {
            struct ts3_event event;
            int finals = 0;
            while (finals < 100 && net_next(both[which], &event, 10000)) {
                CHECK(event.final && !event.failed);
                ts3_event_clear(&event);
                finals++;
            }
            whole = CHECK_INT(finals, 100) && whole;
        }
    }
    net_engine_free(&other);
    close_both();
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of the engine that need no network: timers, answers' headers, budget, windows, bodies;
 * and lack of memory. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "net/ts3_answer.h"
#include "net/ts3_site.h"
#include "net/ts3_timer.h"
#include "net/ts3_window.h"
#include "net/ts3_worker.h"
#include "test_net_server.h"

TEST(timers_fire_in_order)
{
    enum { COUNT = 500 };
    static struct ts3_timer timers[COUNT];
    struct ts3_timers heap;
    struct ts3_rand rand;
    struct ts3_rand_state state;
    ts3_rand_seeded(&rand, &state, 42);
    ts3_timers_init(&heap, ts3_alloc_libc());
    CHECK_INT(ts3_timers_next_us(&heap), TS3_TIMER_NEVER);
    CHECK(ts3_timers_pop(&heap, INT64_MAX - 1) == NULL);
    CHECK_OK(ts3_timers_reserve(&heap, COUNT));
    for (int round = 0; round < 4000; round++) {
        struct ts3_timer *timer = &timers[ts3_rand_below(&rand, COUNT)];
        if (ts3_rand_below(&rand, 4) == 0)
            ts3_timers_clear(&heap, timer);
        else
            ts3_timers_set(&heap, timer, (int64_t)ts3_rand_below(&rand, 1000));
    }
    size_t armed = 0;
    for (int i = 0; i < COUNT; i++)
        armed += timers[i].slot != 0;
    CHECK_INT(heap.count, armed);
    int64_t last = -1;
    size_t fired = 0;
    CHECK(ts3_timers_pop(&heap, -1) == NULL);
    for (struct ts3_timer *timer; (timer = ts3_timers_pop(&heap, 1000)) != NULL; fired++) {
        CHECK(timer->due_us >= last && timer->slot == 0);
        last = timer->due_us;
    }
    CHECK_INT(fired, armed);
    ts3_timers_free(&heap);
}

static void feed(struct ts3_answer *answer, const char *const *lines)
{
    ts3_answer_reset(answer, 10);
    for (; *lines != NULL; lines++)
        ts3_answer_header(answer, ts3_str_of(*lines));
}

TEST(heads_of_answers)
{
    static const char *const full[] = {"HTTP/1.1 206 Partial Content\r\n",
                                       "ETAG:  \"abc\" \r\n",
                                       "content-length: 10\r\n",
                                       "Content-Range: bytes 5-14/100\r\n",
                                       "Date: Fri, 24 May 2013 00:00:00 GMT\r\n",
                                       "x-amz-request-id: R\x01" "D\r\n",
                                       "x-amz-bucket-region: eu-west-3\r\n",
                                       "\r\n",
                                       "ETag: \"of a trailer\"\r\n",
                                       NULL};
    static const char *const interim[] = {"HTTP/1.1 100 Continue\r\n", "ETag: x\r\n", "\r\n", "HTTP/1.1 200 OK\r\n",
                                          "\r\n", NULL};
    static const char *const cut[] = {"HTTP/1.1 200 OK\r\n", "Content-Length: 1", NULL};
    static const char *const nearly[] = {"HTTP/1.1 200 OK\r\n", "\r", NULL};
    struct ts3_answer answer;
    ts3_answer_init(&answer, ts3_alloc_libc());
    feed(&answer, cut);
    CHECK_INT(answer.status, 200);
    CHECK(answer.length == TS3_ANSWER_UNKNOWN);
    feed(&answer, nearly);
    CHECK(!answer.complete_head);
    feed(&answer, full);
    CHECK_INT(answer.status, 206);
    CHECK(answer.complete_head && answer.has_range);
    CHECK_TEXT(ts3_str_of(answer.etag), "abc");
    CHECK_TEXT(ts3_str_of(answer.request_id), "R?D");
    CHECK_TEXT(ts3_str_of(answer.region), "eu-west-3");
    CHECK_INT(answer.length, 10);
    CHECK_INT(answer.range_first, 5);
    CHECK_INT(answer.range_last, 14);
    CHECK_INT(answer.range_total, 100);
    CHECK_INT(answer.date_s, 1369353600);
    feed(&answer, interim);
    CHECK_INT(answer.status, 200);
    CHECK(answer.complete_head && answer.etag[0] == '\0' && answer.length == TS3_ANSWER_UNKNOWN);
    CHECK_OK(ts3_answer_keep(&answer, "0123456", 7));
    CHECK_OK(ts3_answer_keep(&answer, "789abc", 6));
    CHECK(answer.cut);
    CHECK_TEXT(ts3_buf_str(&answer.body), "0123456789");
    ts3_buf_free(&answer.body);
}

TEST(ranges_of_answers)
{
    static const struct {
        const char *value;
        bool range;
        uint64_t total;
    } rows[] = {
        {"bytes 0-9/10", true, 10},     {"BYTES 0-9/*", true, TS3_ANSWER_UNKNOWN},
        {"bytes */77", false, 77},      {"bytes 0-9", false, TS3_ANSWER_UNKNOWN},
        {"bytes 0-9/", false, TS3_ANSWER_UNKNOWN},  {"bytes -9/10", false, TS3_ANSWER_UNKNOWN},
        {"bytes 0-9/10x", false, TS3_ANSWER_UNKNOWN}, {"octets 0-9/10", false, TS3_ANSWER_UNKNOWN},
        {"bytes 0-99999999999999999999/5", false, TS3_ANSWER_UNKNOWN}, {"", false, TS3_ANSWER_UNKNOWN},
    };
    struct ts3_answer answer;
    ts3_answer_init(&answer, ts3_alloc_libc());
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char line[100];
        ts3_test_label("%s", rows[i].value);
        (void)snprintf(line, sizeof line, "Content-Range: %s\r\n", rows[i].value);
        const char *const lines[] = {"HTTP/1.1 206 P\r\n", line, "\r\n", NULL};
        feed(&answer, lines);
        CHECK_INT(answer.has_range, rows[i].range);
        CHECK_INT(answer.range_total, rows[i].total);
    }
    ts3_buf_free(&answer.body);
}

TEST(sites_whose_proxy_reads_the_request_line)
{
    static const struct {
        const char *endpoint, *proxy;
        bool whole;
    } rows[] = {
        {"http://h", NULL, false},
        {"http://h", "", false},
        {"http://h", "http://p:3128", true},
        {"http://h", "p:3128", true},
        {"http://h", "socks5h://p:1080", false},
        {"http://h", "SOCKS4://p", false},
        {"http://h", "socks.example:3128", true},
        {"https://h", "http://p:3128", false}, /* through a tunnel */
        {"https://h", NULL, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct ts3_engine_config config = {
            .endpoint = rows[i].endpoint,
            .proxy = rows[i].proxy,
            .region = "us-east-1",
            .bucket = "bucket",
            .path_style = true,
            .user_agent = i == 0 ? "" : NULL,
        };
        struct ts3_site site;
        ts3_test_label("%s by %s", rows[i].endpoint, rows[i].proxy ? rows[i].proxy : "no proxy");
        CHECK_OK(ts3_site_init(&site, ts3_alloc_libc(), &config, NULL, 0));
        CHECK_INT(site.whole_target, rows[i].whole);
        CHECK_TEXT(ts3_str_of(site.user_agent), i == 0 ? "User-Agent: " : "User-Agent: tahoe-s3");
        ts3_site_free(&site);
    }
}

TEST(windows_fire_once)
{
    struct ts3_shared *shared;
    struct ts3_window *window;
    bool ready;
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), 100, &shared));
    CHECK_INT(ts3_window_make(shared, NULL, 101, &window), TS3_EBUDGET);
    CHECK_OK(ts3_window_make(shared, NULL, 100, &window));
    CHECK(!ts3_window_fire(window));
    CHECK_OK(ts3_window_arm(window, 50, &ready));
    CHECK(!ready);
    CHECK_OK(ts3_window_arm(window, 20, &ready)); /* replaces */
    CHECK_OK(ts3_window_append(window, "0123456789", 10));
    CHECK(!ts3_window_fire(window));
    CHECK_OK(ts3_window_append(window, "0123456789", 10));
    CHECK(ts3_window_fire(window));
    CHECK(!ts3_window_fire(window));
    CHECK_OK(ts3_window_arm(window, 20, &ready));
    CHECK(ready && !ts3_window_fire(window));
    CHECK_INT(ts3_window_append(window, window, 81), TS3_ELIMIT);
    CHECK_INT(ts3_window_ready(window), 20);
    ts3_window_unref(window);
    CHECK_INT(atomic_load(&shared->used_bytes), 0);
    ts3_shared_unref(shared);
}

TEST(windows_over_memory_of_the_callers)
{
    struct ts3_shared *shared;
    struct ts3_window *window;
    unsigned char memory[100] = {0};
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), 150, &shared));
    CHECK_OK(ts3_window_make(shared, memory, sizeof memory, &window));
    CHECK_INT(atomic_load(&shared->used_bytes), 100); /* charged, whosever it is */
    CHECK_OK(ts3_window_append(window, "0123456789", 10));
    CHECK(ts3_window_data(window) == memory);
    ts3_window_unref(window);
    CHECK_INT(atomic_load(&shared->used_bytes), 0);
    CHECK(memcmp(memory, "0123456789", 11) == 0); /* and still there */
    CHECK_INT(ts3_window_make(shared, memory, 151, &window), TS3_EBUDGET);
    ts3_shared_unref(shared);
}

/* Arming and filling at once, many times: an arming is told exactly once, by the call or by the
 * loop. */
struct race {
    struct ts3_window *window;
    atomic_int fired;
};

static void *fill_window(void *arg)
{
    struct race *race = arg;
    for (size_t i = 0; i < ts3_window_size(race->window); i++) {
        (void)ts3_window_append(race->window, "x", 1);
        if (ts3_window_fire(race->window))
            atomic_fetch_add(&race->fired, 1);
    }
    return NULL;
}

TEST(arming_and_filling_race)
{
    struct ts3_shared *shared;
    CHECK_OK(ts3_shared_new(ts3_alloc_libc(), 1000, &shared));
    for (int round = 0; round < 300; round++) {
        struct race race = {0};
        pthread_t filler;
        CHECK_OK(ts3_window_make(shared, NULL, 200, &race.window));
        if (pthread_create(&filler, NULL, fill_window, &race) != 0)
            abort();
        bool ready = true;
        for (size_t upto = 20; ready && upto <= 200; upto += 20) {
            int before = atomic_load(&race.fired);
            CHECK_OK(ts3_window_arm(race.window, upto, &ready));
            while (!ready && atomic_load(&race.fired) == before)
                continue;
            ready = true;
            CHECK(ts3_window_ready(race.window) >= upto);
        }
        pthread_join(filler, NULL);
        ts3_window_unref(race.window);
    }
    ts3_shared_unref(shared);
}

/* --- lack of memory ----------------------------------------------------------------------------------------------- */

struct failing {
    struct ts3_alloc alloc;
    atomic_int live;
    atomic_int calls;
    int fail_at;
};

static void *failing_realloc(void *ctx, void *p, size_t size)
{
    struct failing *failing = ctx;
    if (size == 0) {
        atomic_fetch_sub(&failing->live, p != NULL);
        free(p);
        return NULL;
    }
    if (atomic_fetch_add(&failing->calls, 1) + 1 == failing->fail_at)
        return NULL;
    void *q = realloc(p, size);
    if (q == NULL)
        abort();
    atomic_fetch_add(&failing->live, p == NULL);
    return q;
}

static enum net_then serve_object(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    (void)server;
    (void)number;
    if (strstr(seen->head, "list-type=2") != NULL)
        net_send_reply(fd, NET_REPLY("200 OK", "", "@",
                                     "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>k</Key>"
                                     "<LastModified>2013-05-24T00:00:00.000Z</LastModified><ETag>\"e1\"</ETag>"
                                     "<Size>10</Size></Contents></ListBucketResult>"));
    else if (strncmp(seen->head, "GET", 3) == 0)
        net_send_reply(fd, "HTTP/1.1 206 P\r\nETag: \"e1\"\r\nContent-Range: bytes 0-9/10\r\nContent-Length: @\r\n\r\n"
                           "0123456789");
    else
        net_send_reply(fd, NET_REPLY("200 OK", "ETag: \"e1\"\r\n", "0", ""));
    return NET_KEEP;
}

static void one_request(struct net_engine *net, struct ts3_request_spec *spec)
{
    uint64_t id;
    enum ts3_err err = ts3_engine_submit(net->engine, spec, &id);
    if (err != TS3_OK) {
        CHECK_INT(err, TS3_ENOMEM);
        return;
    }
    struct ts3_event event = net_final(net, id);
    if (event.failed)
        CHECK(event.failure.kind == TS3_KIND_LOCAL || event.failure.kind == TS3_KIND_TRANSPORT);
    ts3_event_clear(&event);
}

/* A PUT from a file, a GET into a window, a listing: whatever allocation fails, each ends once,
 * and nothing leaks. */
static void everything(struct net_engine *net, int file)
{
    struct ts3_request_spec spec;
    struct ts3_pair query[] = {{TS3_STR("list-type"), TS3_STR("2")}};
    ts3_request_spec_init(&spec);
    spec.method = TS3_PUT;
    spec.key = TS3_STR("k");
    spec.body_fd = file;
    spec.body_size = 10;
    spec.attempts = 1;
    one_request(net, &spec);
    ts3_request_spec_init(&spec);
    spec.key = TS3_STR("k");
    spec.attempts = 1;
    if (ts3_window_new(net->engine, 10, &spec.into) == TS3_OK) {
        one_request(net, &spec);
        ts3_window_unref(spec.into);
    }
    ts3_request_spec_init(&spec);
    spec.parse = TS3_PARSE_LIST;
    spec.query = query;
    spec.query_count = 1;
    spec.attempts = 1;
    one_request(net, &spec);
}

TEST(every_allocation_may_fail)
{
    static struct net_server server;
    static struct net_engine net;
    char name[] = "/tmp/ts3_test_XXXXXX";
    int file = mkstemp(name);
    if (file < 0 || unlink(name) != 0 || write(file, "0123456789", 10) != 10)
        abort();
    server = (struct net_server){.script = serve_object};
    net_server_start(&server);
    for (int fail_at = 1;; fail_at++) {
        struct failing failing = {.fail_at = fail_at};
        failing.alloc = (struct ts3_alloc){failing_realloc, &failing};
        ts3_test_label("allocation %d", fail_at);
        net_engine_init(&net, &server);
        net.config.alloc = &failing.alloc;
        enum ts3_err err = ts3_engine_new(&net.config, &net.engine, NULL, 0);
        if (err == TS3_OK) {
            err = ts3_engine_set_credentials(net.engine, "AKID", "secret", 6, NULL);
            if (err == TS3_OK)
                everything(&net, file);
            net_engine_free(&net);
        }
        CHECK(err == TS3_OK || err == TS3_ENOMEM);
        CHECK_INT(atomic_load(&failing.live), 0);
        if (atomic_load(&failing.calls) < fail_at)
            break;
    }
    net_server_stop(&server);
    close(file);
}

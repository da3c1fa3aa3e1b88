/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Signatures that were made when a request was submitted, and what may have changed until it leaves. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/ts3_signing.h"
#include "test_net_server.h"

#define ERROR(status, code, more)                                                                                      \
    NET_REPLY(status, "", "@", "<Error><Code>" code "</Code><Message>m</Message>" more "</Error>")

static struct net_server server;
static struct net_engine net;
static sem_t go_on;
static const char *first_reply;

/* The first request is answered when the test says so, and what is queued behind it waits that long. */
static enum net_then first_waits(struct net_server *unused, int fd, int number, const struct net_seen *seen)
{
    (void)unused;
    (void)seen;
    if (number == 0)
        (void)sem_wait(&go_on);
    net_send_reply(fd, number == 0 ? first_reply : OK_EMPTY);
    return NET_KEEP;
}

static void open_with(const char *reply)
{
    first_reply = reply;
    (void)sem_init(&go_on, 0, 0);
    server = (struct net_server){.script = first_waits};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net.config.max_connections = 1;
    net_engine_open(&net);
}

static void close_both(void)
{
    net_engine_free(&net);
    net_server_stop(&server);
    (void)sem_destroy(&go_on);
}

static struct ts3_request_spec get_of(const char *key)
{
    struct ts3_request_spec spec;
    ts3_request_spec_init(&spec);
    spec.method = TS3_GET;
    spec.key = ts3_str_of(key);
    spec.attempts = 1;
    return spec;
}

/* The first is with the service, the second is queued, and both are signed. */
static void submit_both(void)
{
    struct ts3_request_spec spec = get_of("first");
    (void)net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 1));
    spec = get_of("second");
    (void)net_submit(&net, &spec);
}

/* Lets both end, in whatever order, and gives the second as the service saw it. */
static const struct net_seen *finish_both(void)
{
    struct ts3_event event;
    (void)sem_post(&go_on);
    for (int ended = 0; ended < 2; ended++) {
        if (!CHECK(net_next(&net, &event, 20000)))
            abort();
        CHECK(!event.failed);
        ts3_event_clear(&event);
    }
    for (int i = 0; i < atomic_load(&server.count); i++)
        if (strncmp(server.seen[i].head + 3, " /bucket/second ", 16) == 0)
            return &server.seen[i];
    abort();
}

static const struct net_seen *second_after(int64_t passed_s)
{
    submit_both();
    atomic_fetch_add(&net.wall_s, passed_s);
    return finish_both();
}

TEST(a_signature_of_a_moment_ago_is_used)
{
    open_with(OK_EMPTY);
    CHECK_TEXT(ts3_str_of(net_header(second_after(TS3_EARLY_S), "x-amz-date")), "20130524T000000Z");
    close_both();
}

TEST(of_a_request_with_a_body_the_loop_makes_it)
{
    open_with(OK_EMPTY);
    struct ts3_request_spec spec = get_of("first");
    (void)net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 1));
    spec = get_of("second");
    spec.method = TS3_PUT;
    spec.body_data = "hello";
    spec.body_size = 5;
    (void)net_submit(&net, &spec);
    atomic_fetch_add(&net.wall_s, 1);
    CHECK_TEXT(ts3_str_of(net_header(finish_both(), "x-amz-date")), "20130524T000001Z");
    close_both();
}

TEST(an_old_signature_is_made_anew)
{
    open_with(OK_EMPTY);
    CHECK_TEXT(ts3_str_of(net_header(second_after(TS3_EARLY_S + 1), "x-amz-date")), "20130524T000031Z");
    close_both();
    open_with(OK_EMPTY); /* the clock was set back: nobody knows how old it is */
    CHECK_TEXT(ts3_str_of(net_header(second_after(-1), "x-amz-date")), "20130523T235959Z");
    close_both();
}

TEST(new_credentials_are_those_that_count)
{
    open_with(OK_EMPTY);
    submit_both();
    CHECK_OK(ts3_engine_set_credentials(net.engine, "OTHER", "secret2", 7, "token"));
    const struct net_seen *seen = finish_both();
    CHECK(strstr(server.seen[0].head, "Credential=AKID/") != NULL);
    CHECK(strstr(net_header(seen, "authorization"), "Credential=OTHER/") != NULL);
    CHECK(strstr(net_header(seen, "authorization"), "x-amz-security-token") != NULL);
    CHECK_TEXT(ts3_str_of(net_header(seen, "x-amz-security-token")), "token");
    close_both();
}

TEST(a_clock_that_was_corrected_meanwhile)
{
    open_with(ERROR("403 Skew", "RequestTimeTooSkewed", ""));
    atomic_store(&net.wall_s, 1369353600 - 7200);
    CHECK_TEXT(ts3_str_of(net_header(second_after(0), "x-amz-date")), "20130524T000000Z");
    close_both();
}

TEST(a_region_that_was_adopted_meanwhile)
{
    open_with(ERROR("400 Bad", "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"));
    submit_both();
    const struct net_seen *seen = finish_both();
    CHECK(strstr(server.seen[0].head, "/us-east-1/s3/") != NULL);
    CHECK(strstr(net_header(seen, "authorization"), "/eu-west-1/s3/") != NULL);
    close_both();
}

/* What is signed early and what the loop signs is the same, byte for byte: the second attempt has the same moment. */
TEST(each_attempt_says_the_same_of_the_same_moment)
{
    open_with(ERROR("503 Slow", "SlowDown", ""));
    (void)sem_post(&go_on);
    struct ts3_pair query[] = {{TS3_STR("uploadId"), TS3_STR("u/1")}, {TS3_STR("partNumber"), TS3_STR("7")}};
    struct ts3_request_spec spec = get_of("a b/\xc3\xa9+%//../x");
    spec.query = query;
    spec.query_count = 2;
    spec.attempts = 2;
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed && event.attempts == 2);
    ts3_event_clear(&event);
    CHECK_TEXT(ts3_str_of(server.seen[0].head), server.seen[1].head);
    close_both();
}

enum { SUBMITTERS = 4, EACH = 100 };

static void *submit_many(void *arg)
{
    struct ts3_request_spec spec = get_of(arg);
    for (int i = 0; i < EACH; i++)
        (void)net_submit(&net, &spec);
    return NULL;
}

TEST(many_who_submit_at_once)
{
    static const struct net_step steps[] = {{OK_EMPTY, NET_KEEP}};
    static char *keys[SUBMITTERS] = {"one", "two", "three", "four"};
    server = (struct net_server){.steps = steps, .step_count = 1};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net.config.max_queue = SUBMITTERS * EACH;
    net_engine_open(&net);
    pthread_t threads[SUBMITTERS];
    for (int i = 0; i < SUBMITTERS; i++)
        CHECK(pthread_create(&threads[i], NULL, submit_many, keys[i]) == 0);
    for (int i = 0; i < SUBMITTERS; i++)
        pthread_join(threads[i], NULL);
    struct ts3_event event;
    for (int ended = 0; ended < SUBMITTERS * EACH; ended++) {
        if (!CHECK(net_next(&net, &event, 20000)))
            break;
        CHECK(!event.failed);
        ts3_event_clear(&event);
    }
    /* Of each key all signatures are one, whoever made them. */
    for (int i = 0; i < SUBMITTERS; i++) {
        char line[32], expected[512] = "";
        int length = snprintf(line, sizeof line, "GET /bucket/%s ", keys[i]);
        for (int j = 0; j < atomic_load(&server.count); j++) {
            if (strncmp(server.seen[j].head, line, (size_t)length) != 0)
                continue;
            const char *signature = net_header(&server.seen[j], "authorization");
            if (expected[0] == '\0')
                (void)snprintf(expected, sizeof expected, "%s", signature);
            CHECK_TEXT(ts3_str_of(signature), expected);
        }
        CHECK(expected[0] != '\0');
    }
    net_engine_free(&net);
    net_server_stop(&server);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Request bodies when the connection, the server or the caller does not behave; the budget they
 * live on; ways there. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test_net_server.h"

#define MIB ((size_t)1 << 20)

static struct net_server server;
static struct net_engine net;
static unsigned char *bytes;
static int file = -1;

static void open_with(net_script script)
{
    if (bytes == NULL) {
        char name[] = "/tmp/ts3_test_XXXXXX";
        bytes = malloc(20 * MIB);
        for (size_t i = 0; i < 20 * MIB; i++)
            bytes[i] = (unsigned char)((i * 2654435761u) >> 13);
        file = mkstemp(name);
        if (file < 0 || unlink(name) != 0 || write(file, bytes, 20 * MIB) != (ssize_t)(20 * MIB))
            abort();
    }
    server = (struct net_server){.script = script};
    net_server_start(&server);
    net_engine_init(&net, &server);
}

static void close_both(void)
{
    net_engine_free(&net);
    net_server_stop(&server);
}

__attribute__((destructor)) static void free_bytes(void)
{
    free(bytes);
    if (file >= 0)
        close(file);
}

static struct ts3_request_spec put_of(size_t size, bool from_file)
{
    struct ts3_request_spec spec;
    ts3_request_spec_init(&spec);
    spec.method = TS3_PUT;
    spec.key = TS3_STR("k");
    spec.body_size = size;
    if (from_file)
        spec.body_fd = file;
    else
        spec.body_data = bytes;
    return spec;
}

static bool is_whole(const struct net_seen *seen, size_t size)
{
    return seen->body_size == size && memcmp(seen->body, bytes, size) == 0;
}

/* The second request on a connection is swallowed: what a server does that gave the connection up.
 */
static enum net_then swallow_second(struct net_server *by, int fd, int number, const struct net_seen *seen)
{
    (void)by;
    (void)seen;
    if (number % 3 == 1)
        return NET_RESET;
    net_send_reply(fd, OK_EMPTY);
    return NET_KEEP;
}

TEST(bodies_are_sent_again_from_their_beginning)
{
    static const size_t sizes[] = {1, 60000, 100000, 3 * MIB, 17 * MIB};
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof sizes[0]; i++) {
        size_t size = sizes[i / 2];
        ts3_test_label("%zu bytes, row %zu", size, i);
        open_with(swallow_second);
        net_engine_open(&net);
        struct ts3_request_spec spec = put_of(size, i % 2 == 1);
        struct ts3_event event = net_run(&net, &spec);
        CHECK(!event.failed && event.attempts == 1);
        ts3_event_clear(&event);
        event = net_run(&net, &spec);
        CHECK(!event.failed && event.attempts == 2);
        ts3_event_clear(&event);
        CHECK(is_whole(&server.seen[1], size) && is_whole(&server.seen[2], size));
        close_both();
    }
}

/* Refuses before the body was read, as services do with a bad signature. */
static void *refuse_early(void *arg)
{
    int listener = *(int *)arg;
    int fd = accept(listener, NULL, NULL);
    char head[2000];
    if (recv(fd, head, sizeof head, 0) > 0)
        net_send_reply(fd, NET_REPLY("403 Forbidden", "Connection: close\r\n", "@",
                                     "<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message></Error>"));
    usleep(200000);
    close(fd);
    return NULL;
}

TEST(a_refusal_in_the_middle_of_a_body_counts)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 8) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        abort();
    pthread_t thread;
    if (pthread_create(&thread, NULL, refuse_early, &listener) != 0)
        abort();
    open_with(swallow_second);
    (void)snprintf(net.endpoint, sizeof net.endpoint, "http://127.0.0.1:%d", ntohs(address.sin_port));
    net_engine_open(&net);
    struct ts3_request_spec spec = put_of(16 * MIB, false);
    struct ts3_event event = net_run(&net, &spec);
    if (CHECK(event.failed)) {
        CHECK_INT(event.failure.kind, TS3_KIND_AUTH);
        CHECK_INT(event.failure.outcome, TS3_OUTCOME_NOT_APPLIED);
        CHECK_TEXT(ts3_str_of(event.failure.code), "SignatureDoesNotMatch");
    }
    CHECK_INT(event.attempts, 1);
    ts3_event_clear(&event);
    pthread_join(thread, NULL);
    close(listener);
    close_both();
}

static enum net_then always_ok(struct net_server *by, int fd, int number, const struct net_seen *seen)
{
    (void)by;
    (void)number;
    (void)seen;
    net_send_reply(fd, OK_EMPTY);
    return NET_KEEP;
}

TEST(bodies_wait_for_the_budget)
{
    struct ts3_window *window;
    struct ts3_event event;
    open_with(always_ok);
    net.config.buffer_budget_bytes = 8 * MIB;
    net_engine_open(&net);
    CHECK_OK(ts3_window_new(net.engine, 8 * MIB, &window)); /* nothing left: one body at a time still goes */
    struct ts3_request_spec spec = put_of(3 * MIB, true);
    for (int i = 0; i < 12; i++)
        net_submit(&net, &spec);
    for (int i = 0; i < 12; i++) {
        struct ts3_engine_stats stats;
        CHECK_OK(ts3_engine_stats(net.engine, &stats));
        CHECK(stats.budget_used_bytes <= 8 * MIB + 4 * MIB);
        if (i == 6)
            ts3_window_unref(window);
        if (!CHECK(net_next(&net, &event, 10000)))
            break;
        CHECK(event.final && !event.failed);
        ts3_event_clear(&event);
    }
    for (int i = 0; i < 12; i++)
        CHECK(is_whole(&server.seen[i], 3 * MIB));
    close_both();
}

/* How many of the process's descriptors are of the file that bodies come from. */
static int descriptors_of_file(void)
{
    struct stat wanted;
    struct stat found;
    int count = 0;
    CHECK(fstat(file, &wanted) == 0);
    for (int fd = 0; fd < 1024; fd++)
        if (fstat(fd, &found) == 0 && found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino)
            count++;
    return count;
}

TEST(cancelled_while_a_worker_reads)
{
    struct ts3_event event;
    open_with(always_ok);
    net.config.workers = 1;
    net_engine_open(&net);
    int before = descriptors_of_file();
    struct ts3_request_spec spec = put_of(16 * MIB, true);
    uint64_t ids[8];
    for (int i = 0; i < 8; i++)
        ids[i] = net_submit(&net, &spec);
    for (int i = 0; i < 8; i++)
        CHECK_OK(ts3_engine_cancel(net.engine, ids[i]));
    for (int i = 0; i < 8; i++) {
        if (!CHECK(net_next(&net, &event, 10000)))
            break;
        CHECK(event.final);
        ts3_event_clear(&event);
    }
    /* No copy is left open.  (A connection may be, where a body was read before its cancel came.) */
    CHECK_INT(descriptors_of_file(), before);
    for (int i = 0; i < 8; i++)
        net_submit(&net, &spec);
    CHECK_OK(ts3_engine_close(net.engine));
    close_both();
}

TEST(no_connection_in_time)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 0) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        abort();
    int full[4]; /* what fills the listener's queue, so that the next connection is not answered at all */
    for (int i = 0; i < 4; i++) {
        full[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(full[i], (struct sockaddr *)&address, size);
    }
    open_with(always_ok);
    (void)snprintf(net.endpoint, sizeof net.endpoint, "http://127.0.0.1:%d", ntohs(address.sin_port));
    net.config.connect_ms = 4000;
    net_engine_open(&net);
    struct ts3_request_spec spec = put_of(10, false);
    spec.attempts = 1;
    uint64_t id = net_submit(&net, &spec);
    struct ts3_engine_stats stats = {0};
    for (int i = 0; i < 5000 && stats.in_flight == 0; i++) {
        usleep(1000);
        CHECK_OK(ts3_engine_stats(net.engine, &stats));
    }
    net_engine_pass(&net, 4001);
    struct ts3_event event = net_final(&net, id);
    if (CHECK(event.failed)) {
        CHECK_INT(event.failure.kind, TS3_KIND_TIMEOUT);
        CHECK_INT(event.failure.outcome, TS3_OUTCOME_NOT_APPLIED);
    }
    ts3_event_clear(&event);
    for (int i = 0; i < 4; i++)
        close(full[i]);
    close(listener);
    close_both();
}

TEST(virtual_hosts_and_proxies)
{
    struct ts3_request_spec spec;
    char want[100];
    open_with(always_ok);
    net.config.path_style = false;
    (void)snprintf(net.endpoint, sizeof net.endpoint, "http://LOCALHOST:%d", server.port);
    net_engine_open(&net);
    spec = put_of(1, false);
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed);
    ts3_event_clear(&event);
    CHECK(strncmp(server.seen[0].head, "PUT /k HTTP/1.1", 15) == 0);
    (void)snprintf(want, sizeof want, "bucket.localhost:%d", server.port);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[0], "host")), want);
    close_both();

    open_with(always_ok);
    char proxy[64];
    (void)snprintf(proxy, sizeof proxy, "http://127.0.0.1:%d", server.port);
    net.config.proxy = proxy;
    net.config.endpoint = "http://s3.example:80";
    net_engine_open(&net);
    event = net_run(&net, &spec);
    CHECK(!event.failed);
    ts3_event_clear(&event);
    CHECK(strncmp(server.seen[0].head, "PUT http://s3.example/bucket/k HTTP/1.1", 39) == 0);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[0], "host")), "s3.example");
    close_both();
}

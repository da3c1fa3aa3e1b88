/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine in good weather: what goes on the wire, what comes back, windows, bodies, limits,
 * priorities. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net/ts3_engine_priv.h"
#include "net/ts3_schedule.h"
#include "test_net_server.h"

static const struct net_step ok_only[] = {{OK_EMPTY, NET_KEEP}};

static struct ts3_request_spec spec_of(enum ts3_method method, const char *key)
{
    struct ts3_request_spec spec;
    ts3_request_spec_init(&spec);
    spec.method = method;
    spec.key = ts3_str_of(key);
    return spec;
}

static void open_with(struct net_server *server, struct net_engine *net, const struct net_step *steps, int count)
{
    *server = (struct net_server){.steps = steps, .step_count = count};
    net_server_start(server);
    net_engine_init(net, server);
    net_engine_open(net);
}

static void close_both(struct net_server *server, struct net_engine *net)
{
    net_engine_free(net);
    net_server_stop(server);
}

static struct net_server server;
static struct net_engine net;

TEST(put_on_the_wire)
{
    open_with(&server, &net, ok_only, 1);
    struct ts3_request_spec spec = spec_of(TS3_PUT, "a b/\xc3\xa9+%//../x");
    struct ts3_pair query[] = {{TS3_STR("uploadId"), TS3_STR("u/1")}, {TS3_STR("partNumber"), TS3_STR("7")}};
    struct ts3_pair headers[] = {{TS3_STR("x-amz-storage-class"), TS3_STR("STANDARD")}};
    spec.query = query;
    spec.query_count = 2;
    spec.headers = headers;
    spec.header_count = 1;
    spec.body_data = "hello";
    spec.body_size = 5;
    spec.user = &spec;
    CHECK_OK(ts3_engine_set_credentials(net.engine, "AKID", "secret", 6, "user,product"));
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed && event.user == &spec);
    CHECK_INT(event.status, 200);
    CHECK_TEXT(ts3_str_of(event.etag), "e1");
    CHECK_TEXT(ts3_str_of(event.request_id), "RID");
    CHECK_TEXT(ts3_str_of(event.host_id), "HID");
    CHECK_INT(event.server_time_s, 1369353600);
    CHECK_INT(event.attempts, 1);
    ts3_event_clear(&event);

    const struct net_seen *seen = &server.seen[0];
    const char *line = "PUT /bucket/a%20b/%C3%A9%2B%25//../x?partNumber=7&uploadId=u%2F1 HTTP/1.1\r\n";
    CHECK(strncmp(seen->head, line, strlen(line)) == 0);
    char host[64];
    (void)snprintf(host, sizeof host, "127.0.0.1:%d", server.port);
    CHECK_TEXT(ts3_str_of(net_header(seen, "host")), host);
    CHECK_TEXT(ts3_str_of(net_header(seen, "content-length")), "5");
    CHECK_TEXT(ts3_str_of(net_header(seen, "x-amz-date")), "20130524T000000Z");
    CHECK_TEXT(ts3_str_of(net_header(seen, "x-amz-content-sha256")),
               "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    CHECK_TEXT(ts3_str_of(net_header(seen, "x-amz-security-token")), "user,product");
    CHECK_INT(net_header_count(seen, "x-amz-security-token"), 1);
    CHECK_INT(net_header_count(seen, "expect"), 0);
    CHECK_INT(net_header_count(seen, "content-type"), 0);
    CHECK(strstr(net_header(seen, "authorization"),
                 "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token;x-amz-storage-class,"));
    CHECK(seen->body_size == 5 && memcmp(seen->body, "hello", 5) == 0);
    close_both(&server, &net);
}

TEST(methods_and_connection_reuse)
{
    static const struct net_step steps[] = {
        {NET_REPLY("200 OK", "ETag: \"e1\"\r\nLast-Modified: Fri, 24 May 2013 00:00:01 GMT\r\n", "123", ""), NET_KEEP},
        {"HTTP/1.1 204 No Content\r\n\r\n", NET_KEEP},
        {NET_REPLY("200 OK", "", "5", "bytes"), NET_KEEP},
        {NET_REPLY("200 OK", "", "@", "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
                                        "<UploadId>UP</UploadId></InitiateMultipartUploadResult>"), NET_KEEP},
    };
    open_with(&server, &net, steps, 4);
    struct ts3_request_spec spec = spec_of(TS3_HEAD, "k");
    struct ts3_event event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(event.size, 123);
    CHECK_INT(event.modified_s, 1369353601);
    ts3_event_clear(&event);
    spec = spec_of(TS3_DELETE, "k");
    event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(event.status, 204);
    ts3_event_clear(&event);
    spec = spec_of(TS3_GET, "k");
    spec.parse = TS3_PARSE_BYTES;
    event = net_run(&net, &spec);
    CHECK(!event.failed && event.value.bytes.size == 5 && memcmp(event.value.bytes.data, "bytes", 5) == 0);
    ts3_event_clear(&event);
    spec = spec_of(TS3_POST, "k");
    spec.parse = TS3_PARSE_CREATE;
    event = net_run(&net, &spec);
    if (CHECK(!event.failed))
        CHECK_TEXT(ts3_str_of(event.value.text), "UP");
    ts3_event_clear(&event);
    CHECK(strncmp(server.seen[0].head, "HEAD /bucket/k HTTP", 19) == 0);
    CHECK(strncmp(server.seen[1].head, "DELETE /bucket/k HTTP", 21) == 0);
    CHECK(strncmp(server.seen[3].head, "POST /bucket/k HTTP", 19) == 0);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[3], "content-length")), "0");
    CHECK_INT(net_connections(&server), 1);
    close_both(&server, &net);
}

TEST(windows_fill_and_fire)
{
    static const struct net_step steps[] = {
        {"HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes 10-19/1000\r\nContent-Length: 10\r\n\r\n"
         "0123456789", NET_KEEP},
        {"HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes 990-999/1000\r\nContent-Length: 10\r\n\r\n"
         "abcdefghij", NET_KEEP},
    };
    struct ts3_window *window;
    bool ready;
    open_with(&server, &net, steps, 2);
    CHECK_OK(ts3_window_new(net.engine, 10, &window));
    CHECK_INT(ts3_window_arm(window, 11, &ready), TS3_EINVAL);
    CHECK_OK(ts3_window_arm(window, 10, &ready));
    CHECK(!ready);
    struct ts3_request_spec spec = spec_of(TS3_GET, "k");
    spec.into = window;
    spec.offset = 10;
    spec.expect_etag = "\"e1\"";
    uint64_t id = net_submit(&net, &spec);
    CHECK_INT(ts3_engine_submit(net.engine, &spec, &id), TS3_EINVAL); /* the window is taken */
    struct ts3_event event;
    CHECK(net_next(&net, &event, 5000));
    CHECK(!event.final && event.id == id);
    CHECK_INT(ts3_window_ready(window), 10);
    CHECK(memcmp(ts3_window_data(window), "0123456789", 10) == 0);
    ts3_event_clear(&event);
    CHECK(net_next(&net, &event, 5000));
    CHECK(event.final && !event.failed);
    CHECK_INT(event.size, 1000);
    ts3_event_clear(&event);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[0], "range")), "bytes=10-19");
    CHECK_OK(ts3_window_arm(window, 5, &ready));
    CHECK(ready);
    ts3_window_unref(window);

    CHECK_OK(ts3_window_new(net.engine, 64, &window)); /* reaches beyond the object's end */
    spec.into = window;
    spec.offset = 990;
    event = net_run(&net, &spec);
    CHECK(!event.failed);
    CHECK_INT(ts3_window_ready(window), 10);
    ts3_event_clear(&event);
    ts3_window_unref(window);
    close_both(&server, &net);
}

/* rclone's S3 server before 1.76: the range and its length are right, and the status is that of a whole object. */
TEST(ranges_with_status_200)
{
#define RANGE_200(range, length, body) \
    {"HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Range: bytes " range "\r\nContent-Length: " length "\r\n\r\n" body, \
     NET_KEEP}
    static const struct {
        struct net_step step;
        bool window; /* ten bytes from the beginning are asked for, or else all */
        uint64_t size;
    } rows[] = {
        {RANGE_200("0-9/1000", "10", "0123456789"), true, 1000},
        {RANGE_200("0-8/9", "9", "012345678"), true, 9},
        {RANGE_200("0-8/1000", "9", "012345678"), true, TS3_SIZE_NONE},
        {RANGE_200("1-10/1000", "10", "0123456789"), true, TS3_SIZE_NONE},
        {RANGE_200("0-9/10", "10", "0123456789"), false, 10},
        {RANGE_200("0-9/11", "10", "0123456789"), false, TS3_SIZE_NONE},
        {RANGE_200("0-9/*", "10", "0123456789"), false, TS3_SIZE_NONE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ts3_test_label("row %zu", i);
        open_with(&server, &net, &rows[i].step, 1);
        struct ts3_request_spec spec = spec_of(TS3_GET, "k");
        if (rows[i].window)
            CHECK_OK(ts3_window_new(net.engine, 10, &spec.into));
        else
            spec.parse = TS3_PARSE_BYTES;
        struct ts3_event event = net_run(&net, &spec);
        CHECK_INT(event.failed, rows[i].size == TS3_SIZE_NONE);
        if (!event.failed)
            CHECK_INT(event.size, rows[i].size);
        ts3_event_clear(&event);
        if (rows[i].window)
            ts3_window_unref(spec.into);
        close_both(&server, &net);
    }
#undef RANGE_200
}

static int temporary_file(const unsigned char *bytes, size_t size)
{
    char name[] = "/tmp/ts3_test_XXXXXX";
    int fd = mkstemp(name);
    if (fd < 0 || unlink(name) != 0 || pwrite(fd, bytes, size, 0) != (ssize_t)size)
        abort();
    return fd;
}

TEST(bodies_of_every_size)
{
    static const size_t sizes[] = {0, 1, 16384, 16385, 65536, 65537, 1 << 20, (16 << 20) + 1, (17 << 20) + 12345};
    size_t max = (size_t)18 << 20;
    unsigned char *bytes = malloc(max);
    for (size_t i = 0; i < max; i++)
        bytes[i] = (unsigned char)((i * 2654435761u) >> 11);
    int fd = temporary_file(bytes, max);
    open_with(&server, &net, ok_only, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] * 2; i++) {
        bool file = i % 2 == 1;
        size_t size = sizes[i / 2];
        ts3_test_label("%s of %zu bytes", file ? "file" : "memory", size);
        struct ts3_request_spec spec = spec_of(TS3_PUT, "k");
        spec.body_size = size;
        if (file) {
            spec.body_fd = fd;
            spec.body_offset = 777;
        } else {
            spec.body_data = bytes + 777;
        }
        struct ts3_event event = net_run(&net, &spec);
        CHECK(!event.failed);
        ts3_event_clear(&event);
        const struct net_seen *seen = &server.seen[i];
        CHECK(seen->body_size == size && memcmp(seen->body, bytes + 777, size) == 0);
    }
    struct ts3_request_spec spec = spec_of(TS3_PUT, "k");
    spec.body_fd = fd;
    spec.body_size = max + 1;
    struct ts3_event event = net_run(&net, &spec);
    CHECK(event.failed && event.failure.kind == TS3_KIND_LOCAL);
    CHECK_INT(event.failure.outcome, TS3_OUTCOME_NOT_APPLIED);
    ts3_event_clear(&event);
    close_both(&server, &net);
    close(fd);
    free(bytes);
}

TEST(multi_delete_carries_its_digest)
{
    static const struct net_step steps[] = {
        {NET_REPLY("200 OK", "", "@", "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key>"
                                        "<Code>AccessDenied</Code></Error></DeleteResult>"), NET_KEEP}};
    open_with(&server, &net, steps, 1);
    struct ts3_request_spec spec = spec_of(TS3_POST, "");
    struct ts3_pair query[] = {{TS3_STR("delete"), TS3_STR("")}};
    spec.query = query;
    spec.query_count = 1;
    spec.parse = TS3_PARSE_DELETED;
    spec.body_data = "<Delete/>";
    spec.body_size = 9;
    struct ts3_event event = net_run(&net, &spec);
    if (CHECK(!event.failed) && CHECK_INT(event.value.deleted.item_count, 2))
        CHECK_TEXT(event.value.deleted.items[1].code, "AccessDenied");
    ts3_event_clear(&event);
    CHECK(strncmp(server.seen[0].head, "POST /bucket?delete= HTTP", 25) == 0);
    CHECK_TEXT(ts3_str_of(net_header(&server.seen[0], "content-md5")), "ePbrFwvNFIRnzBrIv+T8Ag==");
    close_both(&server, &net);
}

TEST(limits_are_errors_at_once)
{
    static const struct net_step hold[] = {{NULL, NET_HOLD}};
    server = (struct net_server){.steps = hold, .step_count = 1};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net.config.max_connections = 2;
    net.config.max_queue = 3;
    net.config.buffer_budget_bytes = 1000;
    net_engine_open(&net);
    struct ts3_window *one, *two;
    CHECK_OK(ts3_window_new(net.engine, 600, &one));
    CHECK_INT(ts3_window_new(net.engine, 401, &two), TS3_EBUDGET);
    CHECK_OK(ts3_window_new(net.engine, 400, &two));
    ts3_window_unref(one);
    CHECK_OK(ts3_window_new(net.engine, 600, &one));
    CHECK_INT(ts3_window_new(net.engine, 0, &one), TS3_EINVAL);
    ts3_window_unref(one);
    ts3_window_unref(two);
    struct ts3_request_spec spec = spec_of(TS3_GET, "k");
    uint64_t id = 0;
    for (int i = 0; i < 5; i++)
        CHECK_OK(ts3_engine_submit(net.engine, &spec, &id));
    CHECK_INT(ts3_engine_submit(net.engine, &spec, &id), TS3_EFULL);
    CHECK_OK(ts3_engine_cancel(net.engine, 5));
    struct ts3_event event = net_final(&net, 5);
    CHECK(event.failed && event.failure.kind == TS3_KIND_CANCELLED);
    ts3_event_clear(&event);
    CHECK_OK(ts3_engine_submit(net.engine, &spec, &id));
    CHECK_INT(id, 6);
    CHECK_OK(ts3_engine_cancel(net.engine, 999));
    CHECK_OK(ts3_engine_close(net.engine));
    CHECK_INT(ts3_engine_submit(net.engine, &spec, &id), TS3_ECLOSED);
    CHECK_INT(ts3_window_new(net.engine, 1, &one), TS3_ECLOSED);
    int finals = 0;
    while (ts3_engine_drain(net.engine, &event, 1) == 1) {
        CHECK(event.final && event.failed && event.failure.kind == TS3_KIND_CLOSED);
        ts3_event_clear(&event);
        finals++;
    }
    CHECK_INT(finals, 5);
    close_both(&server, &net);
}

enum { CANCELLED_TOGETHER = 64, CANCELLING_ROUNDS = 50 };

static void *cancel_all(void *arg)
{
    (void)arg;
    for (int round = 0; round < CANCELLING_ROUNDS; round++)
        for (uint64_t id = 1; id <= CANCELLED_TOGETHER; id++)
            CHECK_OK(ts3_engine_cancel(net.engine, id));
    return NULL;
}

/* Each request is cancelled by both while the loop is ending it for the other. */
TEST(cancelled_by_two_threads_at_once)
{
    static const struct net_step hold[] = {{NULL, NET_HOLD}};
    pthread_t threads[2];
    open_with(&server, &net, hold, 1);
    struct ts3_request_spec spec = spec_of(TS3_GET, "k");
    for (int i = 0; i < CANCELLED_TOGETHER; i++)
        (void)net_submit(&net, &spec);
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, cancel_all, NULL), 0);
    for (int i = 0; i < CANCELLED_TOGETHER; i++) {
        struct ts3_event event;
        if (!CHECK(net_next(&net, &event, 10000)))
            break;
        CHECK(event.final && event.failed && event.failure.kind == TS3_KIND_CANCELLED);
        ts3_event_clear(&event);
    }
    for (int i = 0; i < 2; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    close_both(&server, &net);
}

TEST(specs_that_cannot_be)
{
    open_with(&server, &net, ok_only, 1);
    uint64_t id = 0;
    struct ts3_pair range[] = {{TS3_STR("Range"), TS3_STR("bytes=0-1")}};
    struct ts3_pair split[] = {{TS3_STR("x-amz-meta-a"), TS3_STR("b\r\nHost: evil")}};
    struct ts3_request_spec specs[8];
    for (int i = 0; i < 8; i++)
        specs[i] = spec_of(TS3_GET, "k");
    specs[0].headers = range;
    specs[0].header_count = 1;
    specs[1].headers = split;
    specs[1].header_count = 1;
    specs[2].body_data = "x";
    specs[2].body_size = 1;
    specs[3].priority = 3;
    specs[4].attempts = 0;
    specs[5].offset = 1;
    specs[6].method = TS3_PUT;
    specs[6].expect_etag = "e";
    specs[7].method = TS3_PUT;
    specs[7].body_fd = 9999;
    for (int i = 0; i < 8; i++) {
        ts3_test_label("spec %d", i);
        CHECK_INT(ts3_engine_submit(net.engine, &specs[i], &id), i == 7 ? TS3_EIO : TS3_EINVAL);
    }
    close_both(&server, &net);
}

TEST(configurations_that_cannot_be)
{
    static const struct {
        const char *endpoint, *bucket, *region;
    } rows[] = {
        {"ftp://host", "bucket", "us-east-1"},       {"http://", "bucket", "us-east-1"},
        {"http://host/path", "bucket", "us-east-1"}, {"http://user@host", "bucket", "us-east-1"},
        {"http://host:0", "bucket", "us-east-1"},    {"http://host:65536", "bucket", "us-east-1"},
        {"http://host", "", "us-east-1"},            {"http://host", "a/b", "us-east-1"},
        {"http://host", "bucket", ""},               {"http://host", "bucket", "a/b"},
        {"http://h:80?x", "bucket", "us-east-1"},    {"http://[::1", "bucket", "us-east-1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char why[200];
        ts3_test_label("row %zu", i);
        net_engine_init(&net, NULL);
        net.config.endpoint = rows[i].endpoint;
        net.config.bucket = rows[i].bucket;
        net.config.region = rows[i].region;
        CHECK_INT(ts3_engine_new(&net.config, &net.engine, why, sizeof why), TS3_EINVAL);
        CHECK(why[0] != '\0');
    }
}

TEST(places_are_kept_for_the_urgent)
{
    CHECK_INT(ts3_schedule_places(16, 0), 16);
    CHECK_INT(ts3_schedule_places(16, 1), 14);
    CHECK_INT(ts3_schedule_places(16, 2), 12);
    CHECK_INT(ts3_schedule_places(2, 2), 1);
    CHECK_INT(ts3_schedule_places(1, 1), 1);
    static const struct net_step hold[] = {{NULL, NET_HOLD}};
    open_with(&server, &net, hold, 1);
    struct ts3_request_spec spec = spec_of(TS3_GET, "prefetch");
    spec.priority = 2;
    spec.first_byte_ms = 0;
    for (int i = 0; i < 20; i++)
        net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 6));
    spec.priority = 0;
    spec.key = TS3_STR("urgent");
    net_submit(&net, &spec);
    CHECK(net_wait_seen(&server, 7));
    CHECK(strncmp(server.seen[6].head, "GET /bucket/urgent", 18) == 0);
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(net.engine, &stats));
    CHECK_INT(stats.in_flight, 7);
    CHECK_INT(stats.queued, 14);
    close_both(&server, &net);
}

TEST(a_forked_child_touches_nothing)
{
    static const struct net_step steps[] = {{OK_EMPTY, NET_KEEP}};
    struct ts3_window *window;
    open_with(&server, &net, steps, 1);
    CHECK_OK(ts3_window_new(net.engine, 10, &window));
    struct ts3_request_spec spec = spec_of(TS3_PUT, "k");
    struct ts3_event event = net_run(&net, &spec);
    pid_t child = fork();
    if (child == 0) {
        uint64_t id;
        struct ts3_engine_stats stats;
        bool ready;
        bool refused = ts3_engine_submit(net.engine, &spec, &id) == TS3_EFORKED &&
                       ts3_engine_cancel(net.engine, 1) == TS3_EFORKED &&
                       ts3_engine_stats(net.engine, &stats) == TS3_EFORKED &&
                       ts3_engine_close(net.engine) == TS3_EFORKED && ts3_engine_fd(net.engine) == -1 &&
                       ts3_window_arm(window, 1, &ready) == TS3_EFORKED;
        ts3_event_clear(&event);
        ts3_window_unref(window);
        ts3_engine_free(net.engine);
        /* not by exit: memcheck would count there what only the parent's other threads hold */
        raise(refused ? SIGKILL : SIGABRT);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    CHECK_INT(WTERMSIG(status), SIGKILL);
    ts3_event_clear(&event);
    event = net_run(&net, &spec);
    CHECK(!event.failed);
    ts3_event_clear(&event);
    CHECK_INT(net_connections(&server), 1);
    ts3_window_unref(window);
    close_both(&server, &net);
}

/* What the loop's thread has used of a processor. */
static int64_t loop_cpu_us(void)
{
    clockid_t id;
    struct timespec spent = {0};
    CHECK(pthread_getcpuclockid(net.engine->thread, &id) == 0 && clock_gettime(id, &spent) == 0);
    return (int64_t)spent.tv_sec * 1000000 + spent.tv_nsec / 1000;
}

/* One request after the other, which a loop may stay awake between; then none, and it sleeps. */
TEST(an_idle_loop_uses_no_processor)
{
    open_with(&server, &net, ok_only, 1);
    struct ts3_request_spec spec = spec_of(TS3_PUT, "k");
    for (int i = 0; i < 200; i++) {
        struct ts3_event event = net_run(&net, &spec);
        CHECK(!event.failed);
        ts3_event_clear(&event);
    }
    int64_t before_us = loop_cpu_us();
    (void)usleep(500000);
    CHECK(loop_cpu_us() - before_us < 100000);
    close_both(&server, &net);
}

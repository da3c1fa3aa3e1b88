/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Large answers, which get a share of each turn of the loop: how much that is, and that nothing goes
 * wrong where a transfer that waits for its next turn is cut off, falls silent, ends in a fault, is
 * cancelled or closed. Over plain connections and over TLS. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net/ts3_slot.h"
#include "net/ts3_turn.h"
#include "test_net_server.h"
#include "test_net_tls.h"

#define MIB ((size_t)1 << 20)
#define WINDOW (8 * MIB)
#define PIECE (100 * (size_t)1000) /* what the service says at a time, of no even size */

/* What the service does once, with the first GET that comes this far, and then no more. */
enum act { POUR, CUT, RESET, HOLD };

static struct {
    struct net_server server;
    struct net_tls tls;
    struct net_engine net;
    unsigned char *object;
    bool over_tls;
    atomic_int act; /* set before the request, by the connection's thread taken back */
    uint64_t act_at;
} all;

static void make_object(void)
{
    all.object = malloc(WINDOW);
    CHECK(all.object != NULL);
    for (size_t i = 0; i < WINDOW; i++)
        all.object[i] = (unsigned char)(i * 7 + i / 253 + i / 65521);
}

static enum net_then pour(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    uint64_t first = 0, last = 0;
    char head[256];
    (void)server;
    (void)number;
    if (sscanf(net_header(seen, "range"), "bytes=%" SCNu64 "-%" SCNu64, &first, &last) != 2)
        abort();
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes %" PRIu64 "-%" PRIu64
                        "/%zu\r\nContent-Length: %" PRIu64 "\r\n\r\n",
                        first, last, WINDOW, last + 1 - first);
    net_send(fd, head, (size_t)size);
    for (uint64_t at = first; at <= last;) {
        uint64_t end = at + PIECE > last + 1 ? last + 1 : at + PIECE;
        int act = atomic_load(&all.act);
        if (act != POUR && end > all.act_at) {
            net_send(fd, all.object + at, (size_t)(all.act_at - at));
            atomic_store(&all.act, POUR);
            return act == CUT ? NET_CLOSE : act == RESET ? NET_RESET : NET_HOLD;
        }
        net_send(fd, all.object + at, (size_t)(end - at));
        at = end;
    }
    return NET_KEEP;
}

static void open_all(bool over_tls, net_script script)
{
    all.over_tls = over_tls;
    atomic_store(&all.act, POUR);
    all.server = (struct net_server){.script = script, .forgets = true};
    make_object();
    net_server_start(&all.server);
    net_engine_init(&all.net, &all.server);
    if (over_tls) {
        net_tls_start(&all.tls, all.server.port, NET_TLS_FINE, 0);
        net_tls_lead(&all.tls, &all.net);
    }
    all.net.config.buffer_budget_bytes = 16 * WINDOW;
    net_engine_open(&all.net);
}

static void close_all(void)
{
    net_engine_free(&all.net);
    if (all.over_tls)
        net_tls_stop(&all.tls);
    net_server_stop(&all.server);
    free(all.object);
}

static struct ts3_request_spec spec_into(struct ts3_window **window)
{
    struct ts3_request_spec spec;
    ts3_request_spec_init(&spec);
    spec.method = TS3_GET;
    spec.key = TS3_STR("k");
    spec.attempts = 3;
    if (window != NULL) {
        CHECK_OK(ts3_window_new(all.net.engine, WINDOW, window));
        spec.into = *window;
    }
    return spec;
}

/* All that is ready is as it should be. */
static void check_bytes(const struct ts3_window *window)
{
    size_t ready = ts3_window_ready(window);
    CHECK(memcmp(ts3_window_data(window), all.object, ready) == 0);
}

static void check_whole(struct ts3_event *event, struct ts3_window *window, uint32_t attempts)
{
    if (!CHECK(!event->failed))
        fprintf(stderr, "%s\n", event->failure.message);
    CHECK_INT(event->attempts, attempts);
    CHECK_INT(ts3_window_ready(window), WINDOW);
    check_bytes(window);
    ts3_event_clear(event);
    ts3_window_unref(window);
}

#define OVER_BOTH(name)                                                                                                \
    static void name(bool over_tls);                                                                                   \
    TEST(name##_plain)                                                                                                 \
    {                                                                                                                  \
        name(false);                                                                                                   \
    }                                                                                                                  \
    TEST(name##_tls)                                                                                                   \
    {                                                                                                                  \
        name(true);                                                                                                    \
    }                                                                                                                  \
    static void name(bool over_tls)

/* Beyond the share: what libcurl had kept of the turn before, what it has read when the share is over. */
OVER_BOTH(a_turn_brings_a_share)
{
    struct ts3_window *window[4];
    uint64_t id[4];
    struct ts3_engine_stats stats;
    open_all(over_tls, pour);
    for (int i = 0; i < 4; i++) {
        struct ts3_request_spec spec = spec_into(&window[i]);
        id[i] = net_submit(&all.net, &spec);
    }
    for (int ended = 0; ended < 4; ended++) {
        struct ts3_event event;
        if (!CHECK(net_next(&all.net, &event, 20000)))
            break;
        for (int i = 0; i < 4; i++)
            if (event.id == id[i])
                check_whole(&event, window[i], 1);
    }
    CHECK_OK(ts3_engine_stats(all.net.engine, &stats));
    CHECK_INT(stats.bytes_down, 4 * WINDOW);
    size_t most = TS3_TURN_BYTES + 2 * (size_t)TS3_SLOT_BUFFER_BYTES;
    ts3_test_label("%" PRIu64 " turns", stats.loop_turns);
    CHECK(stats.loop_turns * 4 * most >= stats.bytes_down);
    CHECK_INT(stats.connections_dropped_stale, 0);
    close_all();
}

OVER_BOTH(what_is_cut_off_goes_on)
{
    static const enum act acts[] = {CUT, RESET, HOLD};
    open_all(over_tls, pour);
    for (int i = 0; i < 9; i++) {
        struct ts3_window *window;
        struct ts3_event event;
        bool ready;
        all.act_at = TS3_TURN_FEW_BYTES * (uint64_t)(i % 3 + 1) + (uint64_t)(i % 4) * 20000;
        atomic_store(&all.act, acts[i % 3]);
        ts3_test_label("act %d at %" PRIu64, acts[i % 3], all.act_at);
        bool silent = acts[i % 3] == HOLD;
        struct ts3_request_spec spec = spec_into(&window);
        spec.stall_ms = 3000;
        CHECK_OK(ts3_window_arm(window, (size_t)all.act_at, &ready));
        uint64_t id = net_submit(&all.net, &spec);
        if (silent) {
            CHECK(net_next(&all.net, &event, 10000) && !event.final);
            net_engine_pass(&all.net, 3001);
        }
        event = net_final(&all.net, id);
        check_whole(&event, window, 2);
    }
    close_all();
}

OVER_BOTH(cancelled_in_any_turn)
{
    open_all(over_tls, pour);
    for (int i = 0; i < 40; i++) {
        struct ts3_window *window;
        struct ts3_event event;
        bool ready;
        struct ts3_request_spec spec = spec_into(&window);
        CHECK_OK(ts3_window_arm(window, 1 + (size_t)i * 30011, &ready));
        uint64_t id = net_submit(&all.net, &spec);
        CHECK(net_next(&all.net, &event, 10000) && !event.final);
        CHECK_OK(ts3_engine_cancel(all.net.engine, id));
        event = net_final(&all.net, id);
        CHECK(!event.failed || event.failure.kind == TS3_KIND_CANCELLED);
        ts3_event_clear(&event);
        check_bytes(window);
        ts3_window_unref(window);
    }
    struct ts3_window *window;
    struct ts3_request_spec spec = spec_into(&window);
    struct ts3_event event = net_run(&all.net, &spec);
    check_whole(&event, window, 1);
    close_all();
}

OVER_BOTH(a_deadline_passes_in_any_turn)
{
    open_all(over_tls, pour);
    for (int i = 0; i < 10; i++) {
        struct ts3_window *window;
        struct ts3_event event;
        bool ready;
        struct ts3_request_spec spec = spec_into(&window);
        spec.deadline_ms = 1000;
        CHECK_OK(ts3_window_arm(window, 1 + (size_t)i * 50021, &ready));
        uint64_t id = net_submit(&all.net, &spec);
        CHECK(net_next(&all.net, &event, 10000) && !event.final);
        net_engine_pass(&all.net, 1001);
        event = net_final(&all.net, id);
        CHECK(!event.failed || event.failure.kind == TS3_KIND_TIMEOUT);
        ts3_event_clear(&event);
        check_bytes(window);
        ts3_window_unref(window);
    }
    close_all();
}

OVER_BOTH(closed_in_any_turn)
{
    for (int i = 0; i < 6; i++) {
        struct ts3_window *window[4];
        struct ts3_event event;
        bool ready;
        open_all(over_tls, pour);
        for (int k = 0; k < 4; k++) {
            struct ts3_request_spec spec = spec_into(&window[k]);
            CHECK_OK(ts3_window_arm(window[k], 1 + (size_t)i * 70001, &ready));
            net_submit(&all.net, &spec);
        }
        CHECK(net_next(&all.net, &event, 10000) && !event.final);
        CHECK_OK(ts3_engine_close(all.net.engine));
        int finals = 0;
        while (ts3_engine_drain(all.net.engine, &event, 1) == 1) {
            finals += event.final;
            CHECK(!event.final || !event.failed || event.failure.kind == TS3_KIND_CLOSED);
            ts3_event_clear(&event);
        }
        CHECK_INT(finals, 4);
        for (int k = 0; k < 4; k++) {
            check_bytes(window[k]);
            ts3_window_unref(window[k]);
        }
        close_all();
    }
}

/* --- answers that are no windows --- */

static enum net_then pour_chunks(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    const char *head = "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nTransfer-Encoding: chunked\r\n\r\n";
    char line[16];
    (void)server;
    (void)number;
    (void)seen;
    net_send(fd, head, strlen(head));
    for (size_t at = 0; at < WINDOW; at += PIECE) {
        size_t size = at + PIECE > WINDOW ? WINDOW - at : PIECE;
        int length = snprintf(line, sizeof line, "%zx\r\n", size);
        net_send(fd, line, (size_t)length);
        net_send(fd, all.object + at, size);
        net_send(fd, "\r\n", 2);
    }
    net_send(fd, "0\r\n\r\n", 5);
    return NET_KEEP;
}

OVER_BOTH(chunks_come_whole)
{
    open_all(over_tls, pour_chunks);
    for (int i = 0; i < 3; i++) {
        struct ts3_request_spec spec = spec_into(NULL);
        spec.parse = TS3_PARSE_BYTES;
        spec.max_answer_bytes = WINDOW;
        struct ts3_event event = net_run(&all.net, &spec);
        if (CHECK(!event.failed)) {
            CHECK_INT(event.value.bytes.size, WINDOW);
            CHECK(memcmp(event.value.bytes.data, all.object, WINDOW) == 0);
        }
        ts3_event_clear(&event);
    }
    CHECK_INT(net_connections(&all.server), 1);
    close_all();
}

/* The fault is found in what libcurl has kept, or in what comes next: the limits are on both sides. */
OVER_BOTH(an_answer_that_is_too_long_ends)
{
    open_all(over_tls, pour_chunks);
    for (size_t limit = TS3_TURN_FEW_BYTES - 20000; limit < 3 * TS3_TURN_FEW_BYTES; limit += 36001) {
        struct ts3_request_spec spec = spec_into(NULL);
        spec.parse = TS3_PARSE_BYTES;
        spec.max_answer_bytes = limit;
        struct ts3_event event = net_run(&all.net, &spec);
        ts3_test_label("%zu bytes", limit);
        CHECK(event.failed && event.failure.kind == TS3_KIND_PROTOCOL);
        CHECK_INT(event.attempts, 1);
        ts3_event_clear(&event);
    }
    close_all();
}

static enum net_then refuse(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    char head[128];
    size_t size = MIB - 1000;
    (void)server;
    (void)number;
    (void)seen;
    int length = snprintf(head, sizeof head, "HTTP/1.1 404 Not Found\r\nContent-Length: %zu\r\n\r\n", size);
    net_send(fd, head, (size_t)length);
    net_send(fd, all.object, size);
    return NET_KEEP;
}

/* Nothing of it is used, but its end must be found: the connection is used again. */
OVER_BOTH(a_long_refusal_is_read_to_its_end)
{
    open_all(over_tls, refuse);
    for (int i = 0; i < 3; i++) {
        struct ts3_request_spec spec = spec_into(NULL);
        struct ts3_event event = net_run(&all.net, &spec);
        CHECK(event.failed && event.failure.kind == TS3_KIND_SERVICE && event.status == 404);
        ts3_event_clear(&event);
    }
    CHECK_INT(net_connections(&all.server), 1);
    close_all();
}

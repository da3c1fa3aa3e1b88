/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Thousands of operations on a server that fails at random, held against what the server knows it
 * stored: no byte is wrong, no object that exists is reported missing, a failure said to be not
 * applied was not applied, each request ends once, and nothing is left over.
 *
 * TS3_SOAK_OPERATIONS and TS3_SOAK_SEED (environment) say how many and which; the seed is printed,
 * and a run with it draws the same faults in the order in which requests arrive. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "test_net_server.h"

enum { KEYS = 64, IN_FLIGHT = 24, MAX_SIZE = 200000, MAYBE = 100 };

/* An object's content follows from key and version, so that nobody has to keep it. */
static unsigned char byte_at(int key, int version, size_t at)
{
    return (unsigned char)((at * 31 + (size_t)key * 7 + (size_t)version * 13) >> (at % 3));
}

static size_t size_of(int key, int version)
{
    static const size_t sizes[] = {1, 100, 4096, 16384, 65537, MAX_SIZE};
    return sizes[(unsigned)(key + version) % 6];
}

struct store {
    pthread_mutex_t mutex;
    int version[KEYS]; /* 0: not there */
    struct ts3_rand rand;
    struct ts3_rand_state state;
    int faults;
};

static uint64_t draw(struct store *store, uint64_t below)
{
    pthread_mutex_lock(&store->mutex);
    uint64_t value = ts3_rand_below(&store->rand, below);
    pthread_mutex_unlock(&store->mutex);
    return value;
}

static int key_of(const struct net_seen *seen)
{
    const char *at = strstr(seen->head, "/bucket/k");
    return at ? atoi(at + 9) : 0;
}

static void apply_put(struct store *store, const struct net_seen *seen)
{
    const char *version = net_header(seen, "x-amz-meta-version");
    pthread_mutex_lock(&store->mutex);
    store->version[key_of(seen)] = version ? atoi(version) : 0;
    pthread_mutex_unlock(&store->mutex);
}

static enum net_then send_object(struct store *store, int fd, const struct net_seen *seen, bool cut)
{
    int key = key_of(seen);
    pthread_mutex_lock(&store->mutex);
    int version = store->version[key];
    pthread_mutex_unlock(&store->mutex);
    if (version == 0) {
        net_send_reply(fd, NET_REPLY("404 Not Found", "", "@", "<Error><Code>NoSuchKey</Code></Error>"));
        return NET_KEEP;
    }
    size_t size = size_of(key, version);
    const char *range = net_header(seen, "range");
    size_t first = range ? (size_t)strtoull(range + 6, NULL, 10) : 0;
    char *text = malloc(400 + size);
    int head = snprintf(text, 400,
                        "HTTP/1.1 206 Partial\r\nETag: \"v%d\"\r\nContent-Range: bytes %zu-%zu/%zu\r\n"
                        "Content-Length: %zu\r\n\r\n", version, first, size - 1, size, size - first);
    for (size_t i = first; i < size; i++)
        text[(size_t)head + i - first] = (char)byte_at(key, version, i);
    size_t whole = (size_t)head + size - first;
    net_send(fd, text, cut ? (size_t)draw(store, whole) : whole);
    free(text);
    return cut ? NET_RESET : NET_KEEP;
}

/* One request in five meets a fault, before or after it was applied. */
static enum net_then misbehave(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    struct store *store = server->ctx;
    (void)number;
    uint64_t fault = draw(store, 40);
    bool put = strncmp(seen->head, "PUT", 3) == 0;
    if (fault < 8) {
        pthread_mutex_lock(&store->mutex);
        store->faults++;
        pthread_mutex_unlock(&store->mutex);
    }
    switch (fault) {
    case 0:
        return NET_RESET;
    case 1:
        return NET_CLOSE;
    case 2:
        net_send_reply(fd, NET_REPLY("503 Slow", "", "@", "<Error><Code>SlowDown</Code></Error>"));
        return NET_KEEP;
    case 3:
        net_send_reply(fd, NET_REPLY("500 Oops", "", "@", "<html>oops</html>"));
        return NET_CLOSE;
    case 4: /* applied, and the answer is lost */
        if (put)
            apply_put(store, seen);
        return NET_RESET;
    case 5:
        if (!put)
            return send_object(store, fd, seen, true);
        net_send_reply(fd, NET_REPLY("400 Bad", "", "@", "<Error><Code>InvalidRequest</Code></Error>"));
        return NET_KEEP;
    case 6:
        net_send(fd, "HTTP/1.1 200 OK\r\nConte", 22);
        return NET_CLOSE;
    case 7:
        net_send_reply(fd, "HTTP/1.1 206 P\r\nETag: \"v1\"\r\nContent-Range: bytes 5-6/7\r\nContent-Length: 2\r\n\r\nxx");
        return NET_CLOSE;
    default:
        break;
    }
    if (!put)
        return send_object(store, fd, seen, false);
    apply_put(store, seen);
    net_send_reply(fd, NET_REPLY("200 OK", "ETag: \"e\"\r\n", "0", ""));
    return NET_KEEP;
}

/* What the test believes of a key; only one request a key is under way at a time. */
struct belief {
    bool busy;
    bool put;
    int version; /* last known to be there; 0: none */
    int next;    /* the last one put */
    int maybe[MAYBE]; /* versions put with an unknown outcome since then */
    int maybe_count;
    struct ts3_window *window;
    unsigned char *body;
};

static struct belief beliefs[KEYS];

static void begin(struct net_engine *net, struct belief *belief, int key, bool put)
{
    struct ts3_request_spec spec;
    char name[16];
    char version[16];
    ts3_request_spec_init(&spec);
    (void)snprintf(name, sizeof name, "k%d", key);
    spec.key = ts3_str_of(name);
    spec.user = belief;
    spec.attempts = 3;
    belief->busy = true;
    belief->put = put;
    if (!put) {
        CHECK_OK(ts3_window_new(net->engine, MAX_SIZE, &belief->window));
        spec.into = belief->window;
        net_submit(net, &spec);
        return;
    }
    belief->next++;
    size_t size = size_of(key, belief->next);
    belief->body = malloc(size);
    for (size_t i = 0; i < size; i++)
        belief->body[i] = byte_at(key, belief->next, i);
    (void)snprintf(version, sizeof version, "%d", belief->next);
    struct ts3_pair header = {TS3_STR("x-amz-meta-version"), ts3_str_of(version)};
    spec.method = TS3_PUT;
    spec.headers = &header;
    spec.header_count = 1;
    spec.body_data = belief->body;
    spec.body_size = size;
    net_submit(net, &spec);
}

static void end_put(struct belief *belief, const struct ts3_event *event)
{
    free(belief->body);
    belief->body = NULL;
    if (!event->failed) {
        belief->version = belief->next;
        belief->maybe_count = 0;
    } else if (event->failure.outcome == TS3_OUTCOME_UNKNOWN && CHECK(belief->maybe_count < MAYBE)) {
        belief->maybe[belief->maybe_count++] = belief->next;
    }
}

static bool may_be_there(const struct belief *belief, int version)
{
    for (int i = 0; i < belief->maybe_count; i++)
        if (belief->maybe[i] == version)
            return true;
    return version == belief->version;
}

static void end_get(struct belief *belief, int key, const struct ts3_event *event)
{
    struct ts3_window *window = belief->window;
    if (event->failed && event->status == 404) {
        CHECK(belief->version == 0);
    } else if (!event->failed) {
        int version = event->etag ? atoi(event->etag + 1) : -1;
        CHECK(may_be_there(belief, version));
        CHECK_INT(ts3_window_ready(window), size_of(key, version));
        belief->version = version;
        belief->maybe_count = 0;
    }
    int version = event->etag && !event->failed ? atoi(event->etag + 1) : belief->version;
    bool same = true;
    for (size_t i = 0; !event->failed && same && i < ts3_window_ready(window); i++)
        same = ts3_window_data(window)[i] == byte_at(key, version, i);
    CHECK(same);
    ts3_window_unref(window);
    belief->window = NULL;
}

static int environment(const char *name, int usual)
{
    const char *text = getenv(name);
    return text ? atoi(text) : usual;
}

/* The engine under test lives for some hundred operations, so that a server's table of requests
 * suffices. */
static void soak(struct store *store, int operations)
{
    static struct net_server server;
    static struct net_engine net;
    server = (struct net_server){.script = misbehave, .ctx = store};
    net_server_start(&server);
    net_engine_init(&net, &server);
    net.config.retry_tokens = 100000;
    net_engine_open(&net);
    int begun = 0;
    int ended = 0;
    while (ended < operations) {
        while (begun < operations && begun - ended < IN_FLIGHT) {
            int key = (int)draw(store, KEYS);
            if (beliefs[key].busy)
                continue;
            begin(&net, &beliefs[key], key, draw(store, 2) == 0);
            begun++;
        }
        struct ts3_event event;
        if (!CHECK(net_next(&net, &event, 20000)))
            break;
        struct belief *belief = event.user;
        if (CHECK(event.final && belief->busy)) {
            if (belief->put)
                end_put(belief, &event);
            else
                end_get(belief, (int)(belief - beliefs), &event);
            belief->busy = false;
            ended++;
        }
        ts3_event_clear(&event);
    }
    net_engine_free(&net);
    net_server_stop(&server);
}

TEST(random_faults)
{
    struct store store = {0};
    int operations = environment("TS3_SOAK_OPERATIONS", 1500);
    uint64_t seed = (uint64_t)environment("TS3_SOAK_SEED", 20130524);
    pthread_mutex_init(&store.mutex, NULL);
    ts3_rand_seeded(&store.rand, &store.state, seed);
    memset(beliefs, 0, sizeof beliefs);
    for (int done = 0; done < operations; done += 300) {
        ts3_test_label("seed %" PRIu64 ", operation %d", seed, done);
        soak(&store, operations - done < 300 ? operations - done : 300);
    }
    CHECK(store.faults > operations / 10);
    pthread_mutex_destroy(&store.mutex);
}

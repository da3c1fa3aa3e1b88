/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See test_net_server.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test_net_server.h"

#include <curl/curl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/ts3_engine_priv.h"

__attribute__((constructor)) static void set_up_libraries(void)
{
    curl_global_init(CURL_GLOBAL_ALL);
    ts3_xml_setup();
}

static void *must(void *p)
{
    if (p == NULL)
        abort();
    return p;
}

/* --- the server --------------------------------------------------------------------------------------------------- */

enum { KEPT_BYTES = 1 << 20 };

struct reader {
    int fd;
    char *data;
    size_t len;
    size_t cap;
};

static bool more(struct reader *in)
{
    if (in->cap - in->len < 65536) {
        in->cap = in->cap * 2 + 65536;
        in->data = must(realloc(in->data, in->cap + 1));
    }
    ssize_t got = recv(in->fd, in->data + in->len, in->cap - in->len, 0);
    if (got <= 0)
        return false;
    in->len += (size_t)got;
    in->data[in->len] = '\0';
    return true;
}

/* Request line and headers; false when the client has closed. */
static bool read_head(struct reader *in, struct net_seen *seen)
{
    const char *end;
    while (in->len == 0 || (end = strstr(in->data, "\r\n\r\n")) == NULL)
        if (!more(in))
            return false;
    seen->head = must(strndup(in->data, (size_t)(end - in->data) + 2));
    seen->body = NULL;
    const char *length = net_header(seen, "Content-Length");
    seen->body_size = length ? (size_t)strtoull(length, NULL, 10) : 0;
    return true;
}

/* The body, and takes the whole request off the front. */
static bool read_body(struct reader *in, struct net_seen *seen)
{
    size_t head = strlen(seen->head) + 2;
    size_t whole = head + seen->body_size;
    while (in->len < whole)
        if (!more(in))
            return false;
    seen->body = must(malloc(seen->body_size + 1));
    memcpy(seen->body, in->data + head, seen->body_size);
    memmove(in->data, in->data + whole, in->len - whole + 1);
    in->len -= whole;
    if (in->len == 0 && in->cap > KEPT_BYTES) { /* a connection may live for long */
        free(in->data);
        in->data = NULL;
        in->cap = 0;
    }
    return true;
}

void net_send(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        at += sent;
        size -= (size_t)sent;
    }
}

void net_send_reply(int fd, const char *reply)
{
    const char *at = strstr(reply, "Content-Length: @");
    const char *body = strstr(reply, "\r\n\r\n");
    if (at == NULL || body == NULL) {
        net_send(fd, reply, strlen(reply));
        return;
    }
    char *text = NULL;
    int size = asprintf(&text, "%.*sContent-Length: %zu%s", (int)(at - reply), reply, strlen(body + 4), at + 17);
    if (size < 0)
        abort();
    net_send(fd, text, (size_t)size);
    free(text);
}

static enum net_then answer(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    if (server->script != NULL)
        return server->script(server, fd, number, seen);
    const struct net_step *step = &server->steps[number < server->step_count ? number : server->step_count - 1];
    if (step->reply != NULL)
        net_send_reply(fd, step->reply);
    return step->then;
}

static void finish(int fd, enum net_then then)
{
    char byte;
    if (then == NET_RESET) {
        net_reset(fd);
        return;
    }
    while (then == NET_HOLD && recv(fd, &byte, 1, 0) > 0)
        continue;
    (void)shutdown(fd, SHUT_RDWR);
}

static void free_seen(struct net_seen *seen)
{
    free(seen->head);
    free(seen->body);
}

/* Answers a whole request, and keeps it or frees it. */
static enum net_then respond(struct net_server *server, int fd, struct net_seen *seen)
{
    if (server->forgets) {
        enum net_then then = answer(server, fd, 0, seen);
        free_seen(seen);
        return then;
    }
    pthread_mutex_lock(&server->mutex);
    int number = atomic_load(&server->count);
    if (number == NET_MAX_REQUESTS)
        abort();
    server->seen[number] = *seen;
    atomic_store(&server->count, number + 1);
    pthread_mutex_unlock(&server->mutex);
    return answer(server, fd, number, &server->seen[number]);
}

static void serve(void *ctx, int fd, int connection)
{
    struct net_server *server = ctx;
    struct reader in = {.fd = fd};
    struct net_seen seen = {.connection = connection};
    enum net_then then = NET_KEEP;
    if (atomic_fetch_sub(&server->turned_away, 1) > 0) {
        net_reset(fd);
        return;
    }
    while (then == NET_KEEP && read_head(&in, &seen)) {
        if (server->early != NULL)
            then = server->early(server, fd, 0, &seen);
        if (then != NET_KEEP || !read_body(&in, &seen)) {
            free_seen(&seen);
            break;
        }
        then = respond(server, fd, &seen);
    }
    free(in.data);
    finish(fd, then);
}

void net_server_bind(struct net_server *server)
{
    net_listener_bind(&server->listener);
    server->port = server->listener.port;
    pthread_mutex_init(&server->mutex, NULL);
}

void net_server_listen(struct net_server *server)
{
    net_listener_start(&server->listener, serve, server);
}

void net_server_start(struct net_server *server)
{
    net_server_bind(server);
    net_server_listen(server);
}

void net_server_stop(struct net_server *server)
{
    net_listener_stop(&server->listener);
    for (int i = 0; i < atomic_load(&server->count); i++)
        free_seen(&server->seen[i]);
    pthread_mutex_destroy(&server->mutex);
}

int net_connections(struct net_server *server)
{
    return atomic_load(&server->listener.accepted);
}

static const char *next_header(const char *line, const char *name)
{
    size_t len = strlen(name);
    while ((line = strstr(line, "\r\n")) != NULL) {
        line += 2;
        if (strncasecmp(line, name, len) == 0 && line[len] == ':')
            return line;
    }
    return NULL;
}

const char *net_header(const struct net_seen *seen, const char *name)
{
    static _Thread_local char value[8192];
    const char *line = next_header(seen->head, name);
    if (line == NULL)
        return NULL;
    line += strlen(name) + 1;
    line += strspn(line, " ");
    (void)snprintf(value, sizeof value, "%.*s", (int)strcspn(line, "\r"), line);
    return value;
}

int net_header_count(const struct net_seen *seen, const char *name)
{
    int count = 0;
    for (const char *at = seen->head; (at = next_header(at, name)) != NULL;)
        count++;
    return count;
}

bool net_wait_seen(struct net_server *server, int count)
{
    for (int i = 0; i < 10000; i++) {
        if (atomic_load(&server->count) >= count)
            return true;
        usleep(1000);
    }
    return false;
}

/* --- the engine --------------------------------------------------------------------------------------------------- */

static int64_t still_mono(void *ctx)
{
    struct net_engine *net = ctx;
    return atomic_load(&net->now_us);
}

static int64_t still_wall(void *ctx)
{
    struct net_engine *net = ctx;
    return atomic_load(&net->wall_s);
}

/* A multiple of the numbers of milliseconds that the first delays are drawn from, so that each of
 * them is 0. */
static uint64_t no_delay(void *ctx)
{
    (void)ctx;
    return 51ull * 101 * 201 * 401 * 1001 * 2001 * 4001;
}

void net_engine_init(struct net_engine *net, const struct net_server *server)
{
    memset(net, 0, sizeof *net);
    (void)snprintf(net->endpoint, sizeof net->endpoint, "http://127.0.0.1:%d", server ? server->port : 1);
    net->clock = (struct ts3_clock){still_mono, still_wall, net};
    net->rand = (struct ts3_rand){no_delay, net};
    atomic_init(&net->now_us, 1000000);
    atomic_init(&net->wall_s, 1369353600); /* the date in NET_REPLY */
    net->config = (struct ts3_engine_config){
        .clock = &net->clock,
        .rand = &net->rand,
        .endpoint = net->endpoint,
        .region = "us-east-1",
        .bucket = "bucket",
        .path_style = true,
        .sign_payload = true,
        .max_connections = 8,
        .max_queue = 100,
        .workers = 2,
        .buffer_budget_bytes = (size_t)64 << 20,
    };
}

void net_engine_open(struct net_engine *net)
{
    char why[200];
    if (ts3_engine_new(&net->config, &net->engine, why, sizeof why) != TS3_OK) {
        printf("no engine: %s\n", why);
        abort();
    }
    if (ts3_engine_set_credentials(net->engine, "AKID", "secret", 6, NULL) != TS3_OK)
        abort();
}

void net_engine_free(struct net_engine *net)
{
    struct ts3_engine_stats stats;
    ts3_engine_close(net->engine);
    struct ts3_event event;
    while (ts3_engine_drain(net->engine, &event, 1) == 1)
        ts3_event_clear(&event);
    CHECK_OK(ts3_engine_stats(net->engine, &stats));
    CHECK_INT(stats.budget_used_bytes, 0);
    CHECK_INT(stats.queued, 0);
    CHECK_INT(stats.in_flight, 0);
    CHECK_INT(net->engine->loop.streaming, 0);
    ts3_engine_free(net->engine);
}

void net_engine_pass(struct net_engine *net, int64_t ms)
{
    atomic_fetch_add(&net->now_us, ms * 1000);
    CHECK_OK(ts3_engine_wake(net->engine));
}

uint64_t net_submit(struct net_engine *net, const struct ts3_request_spec *spec)
{
    uint64_t id = 0;
    CHECK_OK(ts3_engine_submit(net->engine, spec, &id));
    return id;
}

bool net_next(struct net_engine *net, struct ts3_event *event, int ms)
{
    struct pollfd waiting = {.fd = ts3_engine_fd(net->engine), .events = POLLIN};
    return poll(&waiting, 1, ms) == 1 && ts3_engine_drain(net->engine, event, 1) == 1;
}

struct ts3_event net_final(struct net_engine *net, uint64_t id)
{
    struct ts3_event event;
    while (net_next(net, &event, 20000)) {
        if (event.final && event.id == id)
            return event;
        ts3_event_clear(&event);
    }
    printf("no final event of request %d\n", (int)id);
    abort();
}

struct ts3_event net_run(struct net_engine *net, const struct ts3_request_spec *spec)
{
    return net_final(net, net_submit(net, spec));
}

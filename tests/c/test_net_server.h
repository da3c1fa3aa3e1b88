/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small HTTP server on the loopback, inside the test, that answers what a script says; and an
 * engine that talks to it.
 *
 * Owner: each test starts and stops its own.  Thread: the server has one for accepting and one a
 * connection; a script's function runs on the connection's.  Errors: end the program.  Limits:
 * NET_MAX_REQUESTS requests in a server's life, where it does not forget them. */
#ifndef TEST_NET_SERVER_H
#define TEST_NET_SERVER_H

#include "net/ts3_engine.h"
#include "test_net_listener.h"
#include "ts3_test.h"

#define NET_MAX_REQUESTS 4096

enum net_then {
    NET_KEEP,  /* wait for the next request on this connection */
    NET_CLOSE, /* close it */
    NET_RESET, /* close it with a reset */
    NET_HOLD   /* say nothing more until the client closes it */
};

struct net_step {
    const char *reply; /* the whole of it, as it goes on the wire; NULL: nothing */
    enum net_then then;
};

struct net_seen {
    char *head; /* request line and headers, NUL-terminated */
    unsigned char *body;
    size_t body_size;
    int connection; /* counted from 0 */
};

struct net_server;
typedef enum net_then (*net_script)(struct net_server *server, int fd, int number, const struct net_seen *seen);

struct net_server {
    int port;
    const struct net_step *steps; /* by number of the request; the last one is used for all that follow */
    int step_count;
    net_script script; /* instead of steps, when set */
    net_script early;  /* when set: called before the body is read; what is not NET_KEEP ends the connection there */
    void *ctx;         /* for the scripts */
    bool forgets;      /* what was seen is freed when it was answered, and not counted */
    atomic_int turned_away; /* so many connections are reset before a byte is read */
    struct net_listener listener;
    pthread_mutex_t mutex;
    struct net_seen seen[NET_MAX_REQUESTS];
    atomic_int count; /* of requests seen */
};

/* The port alone: connections are refused until net_server_listen. net_server_start does both. */
void net_server_bind(struct net_server *server);
void net_server_listen(struct net_server *server);
void net_server_start(struct net_server *server);
void net_server_stop(struct net_server *server);
void net_send(int fd, const void *bytes, size_t size);
/* "Content-Length: @" becomes the body's true length. */
void net_send_reply(int fd, const char *reply);
/* How many connections were made. */
int net_connections(struct net_server *server);
/* A header's value in a request, or NULL; valid until the next call. */
const char *net_header(const struct net_seen *seen, const char *name);
/* How many headers of that name. */
int net_header_count(const struct net_seen *seen, const char *name);

/* --- an engine for tests --- */

struct net_engine {
    struct ts3_engine *engine;
    struct ts3_engine_config config;
    struct ts3_clock clock; /* stands still until told otherwise, when config.clock points here */
    struct ts3_rand rand;   /* such that retries come without delay */
    atomic_int_fast64_t now_us;
    atomic_int_fast64_t wall_s;
    char endpoint[64];
};

/* Fills config for a server; the test may change it before net_engine_open. */
void net_engine_init(struct net_engine *net, const struct net_server *server);
void net_engine_open(struct net_engine *net);
void net_engine_free(struct net_engine *net);
/* Moves the clock on, and has the loop look at it. */
void net_engine_pass(struct net_engine *net, int64_t ms);
uint64_t net_submit(struct net_engine *net, const struct ts3_request_spec *spec);
/* The next event, final or not; false after ms of silence. */
bool net_next(struct net_engine *net, struct ts3_event *event, int ms);
/* The final event of a request, dropping all others; ends the program after 20 s. */
struct ts3_event net_final(struct net_engine *net, uint64_t id);
/* Submit and wait. */
struct ts3_event net_run(struct net_engine *net, const struct ts3_request_spec *spec);
/* Waits until the server has seen so many requests; false after 10 s. */
bool net_wait_seen(struct net_server *server, int count);

#define NET_REPLY(status, headers, body_size, body)                                                                    \
    "HTTP/1.1 " status "\r\nDate: Fri, 24 May 2013 00:00:00 GMT\r\nx-amz-request-id: RID\r\nx-amz-id-2: HID\r\n" headers \
    "Content-Length: " body_size "\r\n\r\n" body

#define OK_EMPTY NET_REPLY("200 OK", "ETag: \"e1\"\r\n", "0", "")

#endif

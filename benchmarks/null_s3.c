/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An S3 service that does nothing, fast: constant answers for benchmarks, so that what is measured
 * is the client.  One thread, epoll, HTTP/1.1 with keep-alive on 127.0.0.1, plain or over TLS.
 *
 *   null_s3 [--port N] [--keys N] [--latency-ms N] [--jitter-ms N] [--object-bytes N]
 *           [--cert FILE --key FILE]
 *
 * Prints "listening on N" at once, and its counters at SIGTERM or SIGINT; GET /__stats gives them
 * too, and does not count.  Signatures are not looked at.
 *
 * Objects: every key exists.  Its size is the decimal number behind its last "-" ("big-1073741824"),
 *   without one that of --object-bytes, 4096; its bytes are all 'x'.  GET and HEAD with or without
 *   a range.  After the answer for a key that begins with "close" the connection ends.
 * PUT, POST: the body is read and dropped. Multi-delete deletes all (as a quiet answer says it),
 *   multipart uploads can be created, filled and completed.
 * Listings: ListObjectsV2 over --keys share-like keys, spread evenly over the key space, at most
 *   1000 a page, with prefix, start-after, continuation-token and max-keys; no delimiter.
 *   The bucket keeps no versions, has no object lock and no multipart upload under way.
 * Latency: an answer leaves --latency-ms after its request came whole, plus up to --jitter-ms.
 * TLS: 1.2 and 1.3 with what OpenSSL has for defaults, session tickets too.  Both files are PEM.
 * Limits: heads of 16 KiB; a request with Transfer-Encoding is refused with 501; no pipelining
 *   beyond what fits the head's buffer.  Lack of memory ends the program.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "null_s3.h"

static void die(const char *what)
{
    perror(what);
    exit(1);
}

void *null_grown(void *old, size_t bytes)
{
    void *made = realloc(old, bytes);
    if (made == NULL)
        die("realloc");
    return made;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* --- the heap of answers that wait --- */

static void heap_push(struct server *server, struct due due)
{
    if (server->heap_len == server->heap_cap) {
        server->heap_cap = server->heap_cap ? 2 * server->heap_cap : 64;
        server->heap = null_grown(server->heap, server->heap_cap * sizeof *server->heap);
    }
    size_t at = server->heap_len++;
    for (; at > 0 && server->heap[(at - 1) / 2].at_us > due.at_us; at = (at - 1) / 2)
        server->heap[at] = server->heap[(at - 1) / 2];
    server->heap[at] = due;
}

static struct conn *heap_pop(struct server *server)
{
    struct conn *first = server->heap[0].conn;
    struct due last = server->heap[--server->heap_len];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= server->heap_len)
            break;
        if (child + 1 < server->heap_len &&
            server->heap[child + 1].at_us < server->heap[child].at_us)
            child++;
        if (server->heap[child].at_us >= last.at_us)
            break;
        server->heap[at] = server->heap[child];
        at = child;
    }
    server->heap[at] = last;
    return first;
}

/* --- connections --- */

static void watch(struct server *server, struct conn *conn, uint32_t events)
{
    if (conn->watched == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    int operation = conn->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(server->epoll_fd, operation, conn->fd, &event) != 0)
        die("epoll_ctl");
    conn->watched = events;
}

static void drop(struct conn *conn)
{
    null_tls_close(conn);
    if (conn->fd >= 0)
        close(conn->fd);
    conn->fd = -1;
    conn->gone = true;
    if (conn->waiting)
        return; /* the heap still has it */
    free(conn->own);
    free(conn);
}

/* True when the whole answer is gone; false when the socket is full or the connection broken. */
static bool send_answer(struct server *server, struct conn *conn, bool *broken)
{
    for (;;) {
        struct iovec parts[6];
        size_t count = 0;
        if (conn->reply_sent < conn->reply_len)
            parts[count++] = (struct iovec){conn->reply + conn->reply_sent,
                                            conn->reply_len - conn->reply_sent};
        if (conn->own_sent < conn->own_len)
            parts[count++] =
                (struct iovec){conn->own + conn->own_sent, conn->own_len - conn->own_sent};
        for (uint64_t left = conn->pattern_left; left > 0 && count < 6;) {
            size_t size = left < PATTERN_BYTES ? (size_t)left : PATTERN_BYTES;
            parts[count++] = (struct iovec){server->pattern, size};
            left -= size;
        }
        if (count == 0 && null_tls_sent(conn))
            return true;
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t sent = -1;
        if (count > 0 && conn->tls != NULL)
            sent = null_tls_send(conn, parts, count);
        else if (count > 0)
            sent = sendmsg(conn->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            *broken = errno != EAGAIN && errno != EINTR;
            return false;
        }
        size_t left = (size_t)sent;
        server->stats.bytes_out += left;
        size_t step = left < conn->reply_len - conn->reply_sent ? left
                                                                : conn->reply_len - conn->reply_sent;
        conn->reply_sent += step;
        left -= step;
        step = left < conn->own_len - conn->own_sent ? left : conn->own_len - conn->own_sent;
        conn->own_sent += step;
        conn->pattern_left -= left - step;
    }
}

static bool head_is_whole(struct conn *conn, size_t *head_len)
{
    conn->head[conn->head_len] = '\0';
    const char *end = strstr(conn->head, "\r\n\r\n");
    if (end == NULL)
        return false;
    *head_len = (size_t)(end - conn->head) + 4;
    return true;
}

static bool send_continue(struct conn *conn)
{
    static char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct iovec part = {text, sizeof text - 1};
    if (conn->tls != NULL)
        return null_tls_send(conn, &part, 1) == (ssize_t)part.iov_len && null_tls_sent(conn);
    return send(conn->fd, text, part.iov_len, MSG_NOSIGNAL) == (ssize_t)part.iov_len;
}

/* Looks at a head that has come; false where the connection is of no use. */
static bool begin_request(struct server *server, struct conn *conn, size_t head_len)
{
    if (strchr(conn->head, ' ') == NULL || strchr(conn->head, ' ') > strstr(conn->head, "\r\n"))
        return false;
    const char *length = null_header(conn->head, "Content-Length:");
    const char *expect = null_header(conn->head, "Expect:");
    conn->body_left = length != NULL ? strtoull(length, NULL, 10) : 0;
    const char *connection = null_header(conn->head, "Connection:");
    conn->closes = connection != NULL && strncasecmp(connection, "close", 5) == 0;
    size_t behind = conn->head_len - head_len;
    size_t mine = behind < conn->body_left ? behind : (size_t)conn->body_left;
    if (expect != NULL && behind == 0 && conn->body_left > 0 && !send_continue(conn))
        return false;
    conn->have_request = true;
    conn->reply_len = conn->reply_sent = conn->own_len = conn->own_sent = 0;
    conn->pattern_left = 0;
    if (null_header(conn->head, "Transfer-Encoding:") != NULL) {
        null_answer_refusal(conn);
    } else {
        null_answer(server, conn);
    }
    /* What came behind this request and its part of the body is the next one. */
    memmove(conn->head, conn->head + head_len + mine, behind - mine);
    conn->head_len = behind - mine;
    conn->body_left -= mine;
    return true;
}

/* Drops what has come of the body; false at its end of file or error. */
static bool drop_body(struct server *server, struct conn *conn)
{
    while (conn->body_left > 0) {
        size_t want = conn->body_left < (16u << 20) ? (size_t)conn->body_left : (16u << 20);
        ssize_t got = null_recv(server, conn, NULL, want);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return true;
        if (got <= 0)
            return false;
        conn->body_left -= (uint64_t)got;
        server->stats.bytes_in += (uint64_t)got;
    }
    return true;
}

static void serve(struct server *server, struct conn *conn);

static void finish(struct server *server, struct conn *conn)
{
    bool broken = false;
    if (!send_answer(server, conn, &broken)) {
        if (broken)
            drop(conn);
        else
            watch(server, conn, EPOLLOUT);
        return;
    }
    conn->have_request = false;
    if (conn->closes) {
        drop(conn);
        return;
    }
    watch(server, conn, EPOLLIN);
    if (conn->head_len > 0 || null_tls_has_more(conn))
        serve(server, conn);
}

/* What can be done now for a connection that is readable. */
static void serve(struct server *server, struct conn *conn)
{
    size_t head_len = 0;
    while (!conn->have_request) {
        if (conn->head_len > 0 && head_is_whole(conn, &head_len)) {
            if (!begin_request(server, conn, head_len)) {
                drop(conn);
                return;
            }
            break;
        }
        size_t room = HEAD_BYTES - 1 - conn->head_len;
        ssize_t got = null_recv(server, conn, conn->head + conn->head_len, room);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            drop(conn);
            return;
        }
        server->stats.bytes_in += (uint64_t)got;
        conn->head_len += (size_t)got;
    }
    if (!drop_body(server, conn)) {
        drop(conn);
        return;
    }
    if (conn->body_left > 0)
        return;
    uint64_t delay_us = server->latency_us;
    if (server->jitter_us > 0) {
        server->seed = server->seed * 6364136223846793005u + 1442695040888963407u;
        delay_us += (server->seed >> 33) % server->jitter_us;
    }
    if (delay_us == 0) {
        finish(server, conn);
        return;
    }
    conn->waiting = true;
    watch(server, conn, EPOLLRDHUP);
    heap_push(server, (struct due){now_us() + delay_us, conn});
}

static void accept_all(struct server *server)
{
    int fd;
    while ((fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int one = 1;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *conn = null_grown(NULL, sizeof *conn);
        memset(conn, 0, sizeof *conn);
        conn->fd = fd;
        server->stats.connections++;
        if (server->tls != NULL)
            null_tls_open(server, conn);
        watch(server, conn, EPOLLIN);
    }
}

static int fire_due(struct server *server)
{
    while (server->heap_len > 0) {
        uint64_t now = now_us();
        if (server->heap[0].at_us > now)
            return (int)((server->heap[0].at_us - now + 999) / 1000);
        struct conn *conn = heap_pop(server);
        conn->waiting = false;
        if (conn->gone)
            drop(conn);
        else
            finish(server, conn);
    }
    return -1;
}

static void run(struct server *server)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(server->epoll_fd, events, EVENTS, fire_due(server));
        for (int i = 0; i < count; i++) {
            struct conn *conn = events[i].data.ptr;
            if (events[i].data.ptr == &server->signal_fd)
                return;
            if (events[i].data.ptr == &server->listen_fd)
                accept_all(server);
            else if (conn->waiting || (events[i].events & (EPOLLERR | EPOLLHUP)))
                drop(conn);
            else if (conn->have_request && conn->body_left == 0)
                finish(server, conn);
            else
                serve(server, conn);
        }
    }
}

static void open_server(struct server *server, uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    int one = 1;
    server->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    (void)setsockopt(server->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server->listen_fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(server->listen_fd, 1024) != 0 ||
        getsockname(server->listen_fd, (struct sockaddr *)&address, &size) != 0)
        die("listen");
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    server->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event listens = {.events = EPOLLIN, .data.ptr = &server->listen_fd};
    struct epoll_event ends = {.events = EPOLLIN, .data.ptr = &server->signal_fd};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->listen_fd, &listens) != 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->signal_fd, &ends) != 0)
        die("epoll_ctl");
    printf("listening on %u\n", ntohs(address.sin_port));
    fflush(stdout);
}

struct options {
    uint16_t port;
    const char *cert, *key;
};

static bool read_option(struct server *server, struct options *options, const char *name,
                        const char *text)
{
    uint64_t value = strtoull(text, NULL, 10);
    if (strcmp(name, "--port") == 0)
        options->port = (uint16_t)value;
    else if (strcmp(name, "--cert") == 0)
        options->cert = text;
    else if (strcmp(name, "--key") == 0)
        options->key = text;
    else if (strcmp(name, "--keys") == 0 && value > 0 && value <= 1u << 30)
        server->keys = value;
    else if (strcmp(name, "--object-bytes") == 0)
        server->object_bytes = value;
    else if (strcmp(name, "--latency-ms") == 0)
        server->latency_us = value * 1000;
    else if (strcmp(name, "--jitter-ms") == 0)
        server->jitter_us = value * 1000;
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    struct server server = {.keys = 1000000, .seed = 1, .object_bytes = 4096};
    struct options options = {0};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!read_option(&server, &options, argv[i], argv[i + 1])) {
            fprintf(stderr, "null_s3: %s %s is not understood\n", argv[i], argv[i + 1]);
            return 2;
        }
    }
    if (options.cert != NULL && options.key != NULL)
        null_tls_init(&server, options.cert, options.key);
    server.pattern = null_grown(NULL, PATTERN_BYTES);
    memset(server.pattern, 'x', PATTERN_BYTES);
    open_server(&server, options.port);
    run(&server);
    struct conn *report = null_grown(NULL, sizeof *report);
    memset(report, 0, sizeof *report);
    null_answer_stats(&server, report);
    report->reply[report->reply_len] = '\0';
    fputs(strstr(report->reply, "\r\n\r\n") + 4, stdout);
    free(report);
    if (server.tls != NULL)
        null_tls_end(&server);
    free(server.heap);
    free(server.pattern);
    return 0;
}

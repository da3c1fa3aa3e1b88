/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of null_s3 share: the state of the server and of its connections, and the answers.
 * One thread owns all of it.  Nothing here fails but for lack of memory, which ends the program.
 */
#ifndef NULL_S3_H
#define NULL_S3_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum {
    HEAD_BYTES = 16384,
    REPLY_BYTES = 2048,
    PATTERN_BYTES = 1 << 20,
    PAGE_KEYS = 1000,
    KEY_SPREAD_BITS = 30,
    SI_CHARS = 26,
    CIPHERS = 4,
    EVENTS = 256
};

#define ETAG "\"0123456789abcdef0123456789abcdef\""
#define DATE "Sun, 06 Nov 1994 08:49:37 GMT"

struct ssl_ctx_st;
struct tls;

struct cipher {
    char name[48];
    uint64_t count;
};

/* What PUTs say of their payload is counted by kind: of x-amz-content-sha256, and further sums. */
struct stats {
    uint64_t requests, connections, bytes_in, bytes_out;
    uint64_t gets, heads, puts, posts, deletes, lists;
    uint64_t put_hashed, put_unsigned, put_streaming, put_bare; /* bare: without that header */
    uint64_t put_md5, put_checksum, put_trailer, put_expect;
    uint64_t handshakes, resumed;
    struct cipher cipher[CIPHERS];
};

struct conn {
    int fd;
    struct tls *tls;    /* NULL over plain HTTP */
    uint32_t watched;   /* epoll's events now */
    bool waiting;       /* in the heap */
    bool gone;          /* closed while in the heap */
    bool closes;        /* after this answer */
    size_t head_len;    /* bytes in head[] */
    uint64_t body_left; /* of the request, to be dropped */
    bool have_request;
    char head[HEAD_BYTES];
    char reply[REPLY_BYTES]; /* status line, headers, small bodies */
    size_t reply_len, reply_sent;
    char *own; /* a page */
    size_t own_len, own_cap, own_sent;
    uint64_t pattern_left;
};

struct due {
    uint64_t at_us;
    struct conn *conn;
};

struct server {
    int epoll_fd, listen_fd, signal_fd;
    struct ssl_ctx_st *tls; /* NULL: plain HTTP */
    uint64_t keys, latency_us, jitter_us, seed, object_bytes;
    char *pattern;
    struct due *heap;
    size_t heap_len, heap_cap;
    struct stats stats;
};

/* realloc that ends the program where there is no memory. */
void *null_grown(void *old, size_t bytes);

/* The value of a header in a head that ends with an empty line, or NULL. */
const char *null_header(const char *head, const char *name_colon);

/* TLS: of the server, of one connection.  What cannot be set up ends the program. */
void null_tls_init(struct server *server, const char *cert, const char *key);
void null_tls_end(struct server *server);
void null_tls_open(struct server *server, struct conn *conn);
void null_tls_close(struct conn *conn);
/* As recv() on a socket that does not block, plain or TLS; into NULL drops what has come. */
ssize_t null_recv(struct server *server, struct conn *conn, char *into, size_t size);
/* Whether bytes have been read from the socket that were not asked for yet. */
bool null_tls_has_more(const struct conn *conn);
/* As sendmsg() on a socket that does not block: how much was taken. */
ssize_t null_tls_send(struct conn *conn, const struct iovec *parts, size_t count);
/* Whether all that was taken has left; else errno is set. */
bool null_tls_sent(struct conn *conn);

/* Puts the answer to conn's request (its head is in conn->head) into conn, and counts it. */
void null_answer(struct server *server, struct conn *conn);
/* One of a status line alone; conn->closes is set. */
void null_answer_refusal(struct conn *conn);
/* The counters as an answer. */
void null_answer_stats(const struct server *server, struct conn *conn);

#endif

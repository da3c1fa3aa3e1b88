/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sockets of libcurl's connections: which exist, which are watched, which are idle.
 *
 * libcurl 7.88 reuses an idle connection that has unread input (a late 408, say) and then takes
 * that input for the answer to the next request.  So idle sockets stay in the epoll set, and one
 * that becomes readable is shut down, before requests are started; libcurl then finds it dead.
 *
 * Owner: the loop.  Thread: the loop's (callbacks of libcurl run there); the two totals may be
 *   read by any.
 * Errors: a socket that cannot be recorded is not opened (libcurl reports a failed connection).
 * Limits: none of its own; libcurl keeps at most CURLMOPT_MAXCONNECTS and the transfers under way.
 */
#ifndef TS3_SOCKETS_H
#define TS3_SOCKETS_H

#include <curl/curl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ts3_alloc.h"
#include "net/ts3_list.h"

#define TS3_SOCKET_BUCKETS 256

struct ts3_slot;

struct ts3_socket {
    struct ts3_socket *next; /* in its bucket */
    struct ts3_link idle;    /* opened, and no transfer waits for it; the longest idle first */
    int64_t idle_since_us;
    curl_socket_t fd;
    const struct ts3_slot *slot; /* whose transfer waited for it last; only compared */
    bool opened;      /* a connection; else one of libcurl's own (the resolver's) */
    uint32_t watched; /* for these events, in the epoll set; 0: not in it */
};

struct ts3_sockets {
    const struct ts3_alloc *alloc;
    int epoll_fd;
    const int64_t *now_us; /* the loop's */
    struct ts3_socket *bucket[TS3_SOCKET_BUCKETS];
    struct ts3_link idle;
    size_t idle_count;
    struct pollfd *polls;
    size_t polls_cap;
    atomic_uint_fast64_t opened_total;
    atomic_uint_fast64_t open_now;
    atomic_uint_fast64_t stale_total;
};

void ts3_sockets_init(struct ts3_sockets *sockets, const struct ts3_alloc *alloc, int epoll_fd,
                      const int64_t *now_us);
/* After curl_multi_cleanup. */
void ts3_sockets_free(struct ts3_sockets *sockets);
/* Sets the callbacks that keep this table on a handle. */
CURLcode ts3_sockets_attach(struct ts3_sockets *sockets, CURL *easy);
CURLMcode ts3_sockets_attach_multi(struct ts3_sockets *sockets, CURLM *multi);
/* The transfer in the slot, whose socket this was, has ended: where libcurl keeps the connection, and
 * no other transfer has it by now, it is idle. libcurl itself tells of that only where the transfer
 * still waited for the socket, which one that was paused to its end did not. */
void ts3_sockets_rest(struct ts3_sockets *sockets, curl_socket_t fd, const struct ts3_slot *slot);
/* Whether the kernel keeps what fills no segment until more comes (TCP_CORK; it waits 200 ms at most):
 * for one who is about to write more.  True when it was told so.  Only of connections. */
bool ts3_sockets_cork(struct ts3_sockets *sockets, curl_socket_t fd, bool on);
/* Of a socket that the epoll set says is readable or broken: true when it was idle; then it was
 * shut down, and libcurl need not be told. */
bool ts3_sockets_readable(struct ts3_sockets *sockets, curl_socket_t fd);
/* Looks at all idle sockets afresh, where what the epoll set said is old or was not all. */
void ts3_sockets_sweep(struct ts3_sockets *sockets);
/* Shuts down those that have been idle since before_us or longer; libcurl closes them when it next
 * looks. */
void ts3_sockets_expire(struct ts3_sockets *sockets, int64_t before_us);

#endif

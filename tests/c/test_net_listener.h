/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A listening socket on the loopback with a thread for each connection: what the tests' servers
 * stand on.
 *
 * Owner: who starts it stops it.  Thread: one that accepts, one a connection; start and stop are
 * the test's.  Errors: end the program.  Limits: NET_LISTENER_SLOTS connections at a time, any
 * number one after the other. */
#ifndef TEST_NET_LISTENER_H
#define TEST_NET_LISTENER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define NET_LISTENER_SLOTS 512

/* Serves one connection; when it returns, the descriptor is closed, at the latest by the stop.
 * number counts connections from 0. */
typedef void (*net_serve)(void *ctx, int fd, int number);

struct net_listener;

struct net_slot {
    struct net_listener *listener;
    pthread_t thread;
    int fd;
    int number;
    bool used;
    atomic_bool done;
};

struct net_listener {
    int listen_fd;
    int port;
    net_serve serve;
    void *ctx;
    atomic_int accepted; /* connections so far */
    bool listening;
    pthread_t accepter;
    struct net_slot slots[NET_LISTENER_SLOTS];
};

/* Has a port, on which connections are refused until net_listener_start. */
void net_listener_bind(struct net_listener *listener);
void net_listener_start(struct net_listener *listener, net_serve serve, void *ctx);
/* Shuts all connections, and waits until they have been served. */
void net_listener_stop(struct net_listener *listener);
/* Ends a connection with a reset, at once; the descriptor stays the caller's. */
void net_reset(int fd);

#endif

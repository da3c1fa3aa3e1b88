/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See test_net_listener.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test_net_listener.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void *serve_slot(void *arg)
{
    struct net_slot *slot = arg;
    sigset_t pipe; /* OpenSSL writes without a word about signals */
    (void)sigemptyset(&pipe);
    (void)sigaddset(&pipe, SIGPIPE);
    (void)pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    slot->listener->serve(slot->listener->ctx, slot->fd, slot->number);
    atomic_store(&slot->done, true);
    return NULL;
}

static void clear_slot(struct net_slot *slot)
{
    pthread_join(slot->thread, NULL);
    close(slot->fd);
    slot->used = false;
    atomic_store(&slot->done, false);
}

static struct net_slot *free_slot(struct net_listener *listener)
{
    for (int i = 0; i < NET_LISTENER_SLOTS; i++) {
        struct net_slot *slot = &listener->slots[i];
        if (slot->used && atomic_load(&slot->done))
            clear_slot(slot);
        if (!slot->used)
            return slot;
    }
    abort();
}

static void *accept_all(void *arg)
{
    struct net_listener *listener = arg;
    for (;;) {
        int fd = accept(listener->listen_fd, NULL, NULL);
        if (fd < 0)
            return NULL;
        int one = 1; /* so that what is sent in pieces arrives in pieces, and without delay */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct net_slot *slot = free_slot(listener);
        slot->listener = listener;
        slot->fd = fd;
        slot->number = atomic_fetch_add(&listener->accepted, 1);
        slot->used = true;
        if (pthread_create(&slot->thread, NULL, serve_slot, slot) != 0)
            abort();
    }
}

void net_listener_bind(struct net_listener *listener)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    memset(listener, 0, sizeof *listener);
    listener->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener->listen_fd < 0 ||
        bind(listener->listen_fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        getsockname(listener->listen_fd, (struct sockaddr *)&address, &size) != 0)
        abort();
    listener->port = ntohs(address.sin_port);
}

void net_listener_start(struct net_listener *listener, net_serve serve, void *ctx)
{
    listener->serve = serve;
    listener->ctx = ctx;
    if (listen(listener->listen_fd, 128) != 0 ||
        pthread_create(&listener->accepter, NULL, accept_all, listener) != 0)
        abort();
    listener->listening = true;
}

void net_listener_stop(struct net_listener *listener)
{
    (void)shutdown(listener->listen_fd, SHUT_RDWR);
    if (listener->listening)
        pthread_join(listener->accepter, NULL);
    close(listener->listen_fd);
    for (int i = 0; i < NET_LISTENER_SLOTS; i++) {
        struct net_slot *slot = &listener->slots[i];
        if (!slot->used)
            continue;
        (void)shutdown(slot->fd, SHUT_RDWR);
        clear_slot(slot);
    }
}

void net_reset(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    (void)connect(fd, &none, sizeof none); /* unlike a close, keeps the number ours until the end */
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_sockets.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/ts3_attempt.h"
#include "net/ts3_turn.h"

void ts3_sockets_init(struct ts3_sockets *sockets, const struct ts3_alloc *alloc, int epoll_fd,
                      const int64_t *now_us)
{
    memset(sockets, 0, sizeof *sockets);
    sockets->alloc = alloc;
    sockets->epoll_fd = epoll_fd;
    sockets->now_us = now_us;
    ts3_list_init(&sockets->idle);
}

static struct ts3_socket **find(struct ts3_sockets *sockets, curl_socket_t fd)
{
    struct ts3_socket **place = &sockets->bucket[(unsigned)fd % TS3_SOCKET_BUCKETS];
    while (*place != NULL && (*place)->fd != fd)
        place = &(*place)->next;
    return place;
}

static struct ts3_socket *record(struct ts3_sockets *sockets, curl_socket_t fd)
{
    struct ts3_socket **place = find(sockets, fd);
    if (*place == NULL) {
        struct ts3_socket *made = ts3_alloc_zero(sockets->alloc, 1, sizeof *made);
        if (made == NULL)
            return NULL;
        made->fd = fd;
        *place = made;
    }
    return *place;
}

static void set_idle(struct ts3_sockets *sockets, struct ts3_socket *entry, bool idle)
{
    if (idle == ts3_link_used(&entry->idle))
        return;
    if (idle) {
        entry->idle_since_us = *sockets->now_us;
        ts3_list_push(&sockets->idle, &entry->idle);
        sockets->idle_count++;
    } else {
        ts3_list_remove(&entry->idle);
        sockets->idle_count--;
    }
}

/* Never fails: libcurl would take an error for the end of all transfers. A socket that cannot be
 * watched is one transfer's loss, which ends by its timer. */
static void watch(struct ts3_sockets *sockets, struct ts3_socket *entry, uint32_t events)
{
    if (entry->opened && entry->watched == events)
        return; /* libcurl's own sockets come and go unseen, so of those it is not known */
    struct epoll_event event = {.events = events, .data.fd = entry->fd};
    int operation = entry->watched != 0 ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(sockets->epoll_fd, operation, entry->fd, &event) != 0) {
        /* A descriptor number that was closed and opened again unseen is in the set no more, or is
         * there already. */
        operation = errno == ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
        if (epoll_ctl(sockets->epoll_fd, operation, entry->fd, &event) != 0)
            return;
    }
    entry->watched = events;
}

static void unwatch(struct ts3_sockets *sockets, struct ts3_socket *entry)
{
    if (entry->watched != 0)
        (void)epoll_ctl(sockets->epoll_fd, EPOLL_CTL_DEL, entry->fd, NULL);
    entry->watched = 0;
}

static void forget(struct ts3_sockets *sockets, struct ts3_socket **place)
{
    struct ts3_socket *entry = *place;
    set_idle(sockets, entry, false);
    /* Said explicitly: where a forked child holds a copy of the descriptor, closing alone would not
     * remove it. */
    unwatch(sockets, entry);
    if (entry->opened)
        atomic_fetch_sub(&sockets->open_now, 1);
    *place = entry->next;
    ts3_alloc_free(sockets->alloc, entry);
}

void ts3_sockets_free(struct ts3_sockets *sockets)
{
    for (size_t i = 0; i < TS3_SOCKET_BUCKETS; i++) {
        while (sockets->bucket[i] != NULL) {
            /* Libcurl has closed all, its own unseen: the number may be somebody else's by now, and
             * the epoll set is about to go. */
            sockets->bucket[i]->watched = 0;
            forget(sockets, &sockets->bucket[i]);
        }
    }
    ts3_alloc_free(sockets->alloc, sockets->polls);
    sockets->polls = NULL;
}

static curl_socket_t on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct ts3_sockets *sockets = arg;
    (void)purpose;
    int fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    if (fd < 0)
        return CURL_SOCKET_BAD;
    struct ts3_socket *entry = record(sockets, fd);
    if (entry == NULL) {
        close(fd);
        return CURL_SOCKET_BAD;
    }
    entry->opened = true;
    entry->watched = 0; /* new, whatever had its number before */
    atomic_fetch_add(&sockets->opened_total, 1);
    atomic_fetch_add(&sockets->open_now, 1);
    return fd;
}

static int on_close(void *arg, curl_socket_t fd)
{
    struct ts3_sockets *sockets = arg;
    struct ts3_socket **place = find(sockets, fd);
    if (*place != NULL)
        forget(sockets, place);
    return close(fd);
}

/* Whether the other side has closed its own: libcurl may also wait to send because it connects again,
 * or because TLS wants it. */
static bool has_end(curl_socket_t fd)
{
    struct pollfd look = {.fd = fd, .events = POLLRDHUP};
    return poll(&look, 1, 0) == 1 && (look.revents & POLLRDHUP) != 0;
}

/* A connection that becomes idle stays in the epoll set: it is told of when something comes that
 * was not asked for, and the next request finds it watched.  One whose transfer waits for its next
 * turn stays as well, and is not idle. */
static int on_watch(CURL *easy, curl_socket_t fd, int what, void *arg, void *unused)
{
    struct ts3_sockets *sockets = arg;
    (void)unused;
    struct ts3_socket *entry = record(sockets, fd);
    struct ts3_slot *slot = ts3_slot_of(easy);
    if (entry == NULL)
        return 0;
    if (what == CURL_POLL_REMOVE) {
        if (!entry->opened) {
            forget(sockets, find(sockets, fd));
            return 0;
        }
        watch(sockets, entry, EPOLLIN);
        set_idle(sockets, entry, slot == NULL || !ts3_turn_waits(slot));
        return 0;
    }
    if (entry->opened && slot != NULL)
        slot->fd = fd;
    entry->slot = slot;
    if (what == CURL_POLL_OUT && entry->opened && slot != NULL && slot->connected &&
        has_end(fd))
        ts3_attempt_on_half_closed(slot->loop, slot->request);
    set_idle(sockets, entry, false);
    watch(sockets, entry,
          (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0) |
              (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0));
    return 0;
}

void ts3_sockets_rest(struct ts3_sockets *sockets, curl_socket_t fd, const struct ts3_slot *slot)
{
    struct ts3_socket *entry = fd == CURL_SOCKET_BAD ? NULL : *find(sockets, fd);
    if (entry != NULL && entry->slot == slot && entry->watched != 0)
        set_idle(sockets, entry, true);
}

bool ts3_sockets_cork(struct ts3_sockets *sockets, curl_socket_t fd, bool on)
{
    const struct ts3_socket *entry = fd == CURL_SOCKET_BAD ? NULL : *find(sockets, fd);
    int value = on;
    return entry != NULL && entry->opened &&
           setsockopt(fd, IPPROTO_TCP, TCP_CORK, &value, sizeof value) == 0;
}

CURLcode ts3_sockets_attach(struct ts3_sockets *sockets, CURL *easy)
{
    CURLcode code = curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, sockets);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, sockets);
    return code;
}

CURLMcode ts3_sockets_attach_multi(struct ts3_sockets *sockets, CURLM *multi)
{
    CURLMcode code = curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_watch);
    return code == CURLM_OK ? curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, sockets) : code;
}

/* libcurl holds a connection for dead only when nothing is left to be read behind its end. */
static void kill_socket(curl_socket_t fd)
{
    char unread[4096];
    (void)shutdown(fd, SHUT_RDWR);
    for (int i = 0; i < 256; i++)
        if (recv(fd, unread, sizeof unread, MSG_DONTWAIT) <= 0)
            return;
}

static void kill_idle(struct ts3_sockets *sockets, struct ts3_socket *entry)
{
    kill_socket(entry->fd);
    unwatch(sockets, entry);
    set_idle(sockets, entry, false); /* nothing to be looked at again */
}

bool ts3_sockets_readable(struct ts3_sockets *sockets, curl_socket_t fd)
{
    struct ts3_socket *entry = *find(sockets, fd);
    if (entry == NULL || !ts3_link_used(&entry->idle))
        return false;
    kill_idle(sockets, entry);
    atomic_fetch_add(&sockets->stale_total, 1);
    return true;
}

void ts3_sockets_sweep(struct ts3_sockets *sockets)
{
    if (sockets->idle_count == 0)
        return;
    if (sockets->polls_cap < sockets->idle_count) {
        size_t cap = sockets->idle_count * 2;
        void *polls = ts3_alloc_resize(sockets->alloc, sockets->polls, cap, sizeof *sockets->polls);
        if (polls != NULL) {
            sockets->polls = polls;
            sockets->polls_cap = cap;
        }
    }
    nfds_t count = 0;
    for (struct ts3_link *link = sockets->idle.next; link != &sockets->idle; link = link->next) {
        const struct ts3_socket *entry = TS3_MEMBER(link, struct ts3_socket, idle);
        if (count < sockets->polls_cap)
            sockets->polls[count++] = (struct pollfd){.fd = entry->fd, .events = POLLIN};
    }
    if (poll(sockets->polls, count, 0) <= 0)
        return;
    for (nfds_t i = 0; i < count; i++) {
        if (sockets->polls[i].revents == 0)
            continue;
        (void)ts3_sockets_readable(sockets, sockets->polls[i].fd);
    }
}

void ts3_sockets_expire(struct ts3_sockets *sockets, int64_t before_us)
{
    while (!ts3_list_empty(&sockets->idle)) {
        struct ts3_socket *entry = TS3_MEMBER(sockets->idle.next, struct ts3_socket, idle);
        if (entry->idle_since_us > before_us)
            return;
        kill_idle(sockets, entry);
    }
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Loaded before other libraries (LD_PRELOAD) into every process of a run that asks for it, so that
 * all TCP connections have the congestion control that BENCH_CONGESTION names, and not the machine's.
 *
 * BBR, which some machines have, spreads what it sends over time by a timer, on loopback as well.
 * Who sends and computes on two cores loses a tenth by that, who sends from one core a thirtieth, and
 * who sends quicker than anybody else a quarter.  A socket is told when it is connected, or made to
 * listen: those that it accepts have it from there.
 *
 * Thread: any.  Errors: none; where the kernel refuses the name, the socket keeps what it has
 * (contest/congestion.py has asked before).  Limits: names of up to 15 characters, as the kernel's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*connect_fn)(int, const struct sockaddr *, socklen_t);
typedef int (*listen_fn)(int, int);

static void tell(int fd)
{
    const char *name = getenv("BENCH_CONGESTION");
    if (name != NULL)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    connect_fn next;
    void *found = dlsym(RTLD_NEXT, "connect");
    memcpy(&next, &found, sizeof next); /* ISO C has no cast from one to the other */
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6)
        tell(fd);
    return next(fd, address, size);
}

int listen(int fd, int backlog)
{
    listen_fn next;
    void *found = dlsym(RTLD_NEXT, "listen");
    memcpy(&next, &found, sizeof next);
    tell(fd);
    return next(fd, backlog);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lets the TLS records of a long upload leave together.
 *
 * OpenSSL makes records of 16 KiB and writes each by itself: a system call, and a lock that the kernel
 * wants at the same time for what the other side acknowledges.  A filter before the BIO of the
 * connection, pushed with SSL_set0_wbio, keeps them until TS3_GATHER_BYTES are there, at the price of
 * a copy within the cache.  (7 uploads of 8 MiB each on loopback, two cores: 6 to 13% quicker.)
 *
 * What is kept leaves within a later write of the connection and never else, since libcurl's own BIO
 * works only while libcurl itself writes.  So a transfer may gather as long as it has more to write
 * behind what it writes next, and must stop before its last write, which then takes all along.
 *
 * Owner: the struct has the buffers; OpenSSL has the filters, and frees each with its connection.
 * Thread: that of the connections.
 * Errors: none. Where records cannot be gathered (another TLS library, or another copy of OpenSSL than
 *   the one that this is linked with; no memory, no buffer left) they leave one by one.
 * Limits: TS3_GATHER_BUFFERS connections gather at once. */
#ifndef TS3_GATHER_H
#define TS3_GATHER_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_alloc.h"

#define TS3_GATHER_BUFFERS 8
#define TS3_GATHER_BYTES ((size_t)128 << 10)
/* and the record that comes behind them, with what TLS adds to each */
#define TS3_GATHER_BUFFER_BYTES (TS3_GATHER_BYTES + ((size_t)32 << 10))

struct bio_method_st;
struct ssl_st;

struct ts3_gather {
    const struct ts3_alloc *alloc;
    struct bio_method_st *method; /* NULL: no connection gathers */
    unsigned char *free[TS3_GATHER_BUFFERS];
    size_t free_count;
    size_t made_count; /* never more than TS3_GATHER_BUFFERS */
};

/* library: what those who make the connections say of their TLS library, as libcurl does
 * ("OpenSSL/3.0.22"; others that it knows but does not use stand in parentheses); NULL: no TLS. */
void ts3_gather_init(struct ts3_gather *gather, const struct ts3_alloc *alloc, const char *library);
/* Behind the last connection, whose filters refer to this. */
void ts3_gather_free(struct ts3_gather *gather);
/* Of a connection of OpenSSL's, between two calls of it: from now on its records wait, or leave. */
void ts3_gather_set(struct ts3_gather *gather, struct ssl_st *ssl, bool on);

#endif

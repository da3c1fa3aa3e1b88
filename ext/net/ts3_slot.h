/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A place on a connection: one of libcurl's easy handles with what never changes set once, and
 * libcurl's callbacks.
 *
 * Owner: the loop.  Thread: the loop's.  Errors: TS3_ENOMEM, TS3_ENET (libcurl refused an option).
 * Limits: max_connections slots, made as they are first needed, kept until the loop ends. */
#ifndef TS3_SLOT_H
#define TS3_SLOT_H

#include <curl/curl.h>

#include "core/ts3_buf.h"
#include "net/ts3_engine.h"
#include "net/ts3_list.h"

struct ts3_loop;
struct ts3_request;

#define TS3_SLOT_HEADERS (TS3_ENGINE_PAIRS + 10)
/* libcurl's own buffers: of what comes in, of what goes out within TLS, and of what goes out in the
 * clear, where fewer and longer writes cost a fifth less (libcurl in C on loopback, 8 MiB bodies; TLS
 * makes records of 16 KiB of them anyway, and would leave the cache for it).  The first few slots,
 * which are all that a few uploads need, have longer ones: beside workers that hash, each write less is
 * also a change of threads less (seven signed uploads of 8 MiB each: 3% quicker with 128 KiB than
 * with 64, within TLS, and again slower with 256; in the clear, 8% quicker with a MiB than with 256 KiB). */
#define TS3_SLOT_BUFFER_BYTES (64L << 10)
#define TS3_SLOT_CLEAR_BYTES (256L << 10)
#define TS3_SLOT_LONG 8
#define TS3_SLOT_LONG_TLS_BYTES (128L << 10)
#define TS3_SLOT_LONG_CLEAR_BYTES (1024L << 10)
#define TS3_SLOT_IDLE_S 10L /* how long a connection may lie idle before it is not used again */
/* bodies in memory up to this are handed to libcurl as a whole */
#define TS3_SLOT_INLINE_BYTES ((size_t)64 << 10)

struct ts3_slot {
    struct ts3_loop *loop;
    struct ts3_request *request; /* NULL: free */
    struct ts3_slot *next_free;
    bool is_long; /* of the first TS3_SLOT_LONG */
    CURL *easy;
    struct ts3_buf target; /* of the request line */
    struct ts3_buf text;                         /* of the headers, NUL-separated */
    struct curl_slist headers[TS3_SLOT_HEADERS]; /* point into text: no allocation for each */
    bool connected;                              /* the request began to go out on a connection */
    bool left;               /* the attempt has ended: what libcurl still calls is of no account */
    curl_socket_t fd;                            /* of that connection, or CURL_SOCKET_BAD */
    bool gathers;            /* that connection keeps records for those that are to come ... */
    bool corked;             /* ... and what fills no segment */
    struct ts3_link waiting; /* for the next turn, having received its share (ts3_turn.h) */
    uint64_t turn;           /* the one that turn_bytes were received in */
    size_t turn_bytes;
    char error[CURL_ERROR_SIZE];
};

struct ts3_slots {
    struct ts3_slot *free_long; /* taken before the others */
    struct ts3_slot *free_short;
    struct ts3_slot **made;
    CURLU *origin; /* where all requests go; parsed once, since libcurl would do it for each */
    uint32_t count;
    uint32_t cap;
};

/* origin: scheme, host and port of all requests. */
enum ts3_err ts3_slots_init(struct ts3_slots *slots, const struct ts3_alloc *alloc, uint32_t cap,
                            const char *origin);
void ts3_slots_free(struct ts3_slots *slots, const struct ts3_alloc *alloc);
/* A free slot, request set; there is one as long as fewer than cap are taken. */
enum ts3_err ts3_slots_take(struct ts3_slots *slots, struct ts3_loop *loop,
                            struct ts3_request *request, struct ts3_slot **slot);
void ts3_slots_give(struct ts3_slots *slots, struct ts3_slot *slot);

/* The slot of a handle; NULL for the one that libcurl itself uses to close connections. */
struct ts3_slot *ts3_slot_of(CURL *easy);

#endif

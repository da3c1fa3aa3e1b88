/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One request: what was asked, how far it is, and the event it ends in.
 *
 * Owner: the engine's inbox, then the loop, then the engine's event list, then the drained event
 *   (ts3_event_clear frees).
 * Thread: the first group of fields is written by submit and only read afterwards; the second is
 *   under the engine's mutex; all others belong to the loop until the final event is queued, and
 *   to the drainer afterwards.
 * Errors: TS3_ENOMEM, TS3_EINVAL, TS3_EIO (dup) from new; nothing is kept then. */
#ifndef TS3_REQUEST_H
#define TS3_REQUEST_H

#include "core/ts3_arena.h"
#include "net/ts3_answer.h"
#include "net/ts3_body.h"
#include "net/ts3_engine.h"
#include "net/ts3_list.h"
#include "net/ts3_shared.h"
#include "net/ts3_signing.h"
#include "net/ts3_site.h"
#include "net/ts3_timer.h"
#include "net/ts3_window.h"

struct ts3_slot;

enum ts3_stage {
    TS3_STAGE_INBOX,   /* in the engine's inbox */
    TS3_STAGE_BODY,    /* waits for the budget, to have its body loaded */
    TS3_STAGE_WORK,    /* a worker reads and hashes the body */
    TS3_STAGE_READY,   /* waits for a connection place */
    TS3_STAGE_ACTIVE,  /* with libcurl */
    TS3_STAGE_BACKOFF, /* waits for its next attempt */
    TS3_STAGE_ENDING,  /* the result is known, but a worker still holds the body */
    TS3_STAGE_ENDED    /* the final event is queued */
};

enum ts3_phase {
    TS3_PHASE_CONNECT, /* name, connection, TLS */
    TS3_PHASE_SEND,    /* the body is going out */
    TS3_PHASE_WAIT,    /* all was handed to the kernel; no byte of an answer yet */
    TS3_PHASE_RECEIVE
};

struct ts3_alarm {
    struct ts3_timer timer;
    struct ts3_request *request;
    bool deadline; /* else the phase's, or the end of the backoff */
};

/* A place in the engine's event list. */
struct ts3_note {
    struct ts3_link link;
    struct ts3_request *request;
    bool final;
};

/* Why an attempt ended, when it was not for an answer. */
struct ts3_fault {
    bool set;
    bool final; /* trying again is of no use */
    enum ts3_kind kind;
    enum ts3_transport transport;
    char message[240];
};

struct ts3_request {
    /* written by submit */
    const struct ts3_alloc *alloc;
    struct ts3_shared *shared; /* a reference */
    struct ts3_arena arena;    /* of the copies below */
    uint64_t id;
    void *user;
    enum ts3_method method;
    enum ts3_parse parse;
    int priority;
    struct ts3_str path; /* raw, of bucket and key */
    struct ts3_pair *query;
    size_t query_count;
    struct ts3_pair *headers;
    size_t header_count;
    bool has_content_type;
    struct ts3_window *into; /* a reference */
    uint64_t offset;
    size_t max_answer_bytes;
    uint32_t attempts_max;
    uint32_t first_byte_ms;
    uint32_t stall_ms;
    uint32_t deadline_ms;
    int64_t submitted_us;

    /* under the engine's mutex */
    struct ts3_request *next_in_table;
    struct ts3_link cancel;
    struct ts3_note armed_note;
    struct ts3_note final_note;

    /* the loop's */
    struct ts3_link all;
    struct ts3_link queue; /* inbox (under the mutex), body or ready queue */
    enum ts3_stage stage;
    enum ts3_phase phase;
    struct ts3_alarm phase_alarm;
    struct ts3_alarm deadline_alarm;
    int64_t progress_us;   /* when a byte last moved, or the phase began */
    int unsent_bytes;      /* in the kernel's buffer, when last looked at */
    struct ts3_slot *slot; /* while ACTIVE */
    bool sent;             /* this attempt: bytes may have left */
    bool paused;           /* this attempt: libcurl waits for the body's next chunk */
    bool half_closed;      /* this attempt: no answer can come any more */
    bool fresh;            /* the next attempt opens a new connection */
    bool unknown;          /* some attempt may have been applied */
    bool skew_tried;
    bool region_tried;
    int64_t signed_skew_s; /* of the early signature, or of the last attempt's */
    char signed_region[64];
    struct ts3_early early;
    uint32_t attempts;
    uint64_t bytes_up;   /* as in ts3_event */
    uint64_t bytes_down;
    unsigned retries;      /* those that waited: the exponent of the delay */
    int quota_cost;        /* of the last retry */
    int64_t started_us;    /* first attempt; -1 */
    int64_t first_byte_us; /* last attempt; -1 */
    size_t body_charge;    /* in the budget, for the body */
    size_t answer_charge;  /* in the budget, for the answer, until the event is cleared */
    char etag[256];        /* the one that must come; "" as long as any may */
    uint64_t target;       /* this attempt: ready of the window when the answer is whole */
    uint64_t total;        /* the object's size once told, or TS3_SIZE_NONE */
    struct ts3_body body;
    struct ts3_answer answer;
    struct ts3_fault fault;
    char code[128];
    char region[64];
    struct ts3_event event;
};

enum ts3_err ts3_request_new(const struct ts3_alloc *alloc, struct ts3_shared *shared,
                             const struct ts3_site *site, const struct ts3_digest *digest,
                             bool sign_payload, const struct ts3_request_spec *spec,
                             struct ts3_request **request);
/* Drops everything the request refers to (body, window); what the event shows stays. */
void ts3_request_let_go(struct ts3_request *request);
/* The whole request; the event's value too. */
void ts3_request_free(struct ts3_request *request);

/* GET and HEAD change nothing, whatever becomes of them. */
bool ts3_request_is_safe(const struct ts3_request *request);
/* Records why the attempt is being ended; the first reason counts. */
__attribute__((format(printf, 5, 6))) void ts3_request_fault(struct ts3_request *request,
                                                             enum ts3_kind kind,
                                                             enum ts3_transport transport,
                                                             bool final, const char *format, ...);
/* More (or fewer) bytes of the answer are held. */
void ts3_request_charge_answer(struct ts3_request *request, size_t bytes);
/* Fills the final event; fault and code say what went wrong when failed. */
void ts3_request_fill_event(struct ts3_request *request, bool failed, int64_t now_us,
                            int64_t skew_s);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The transfer engine: the whole interface of ext/net.
 *
 * An engine talks to one bucket of one service.  It has one loop thread (libcurl's multi interface
 * on epoll) and a few workers that read files and hash; they start with the first submit.  Nothing
 * here calls back into the caller: results are taken with ts3_engine_drain() when ts3_engine_fd()
 * is readable.
 *
 * Threads: every function may be called from any thread, with two exceptions: ts3_engine_free() is
 *   the last call, and ts3_engine_close() may block until the loop has ended (well under a second,
 *   whatever the network does).  No other function blocks for longer than a short lock.
 *   curl_global_init() and ts3_xml_setup() must have been called once, by the program, before the
 *   first engine is made; the engine never calls them.
 * Ownership: pointers in a spec are copied inside ts3_engine_submit(), except spec.body_data,
 *   which is read in place: it must stay valid and unchanged until the request's final event was
 *   returned by ts3_engine_drain() (or the engine was freed).  spec.body_fd is dup()ed; the file's
 *   bytes in the region must not change until then either. A window given in spec.into is
 *   referenced by the engine until just before the final event is queued.
 * Events: each submitted request ends in exactly one event with final == true.  It is stored
 *   inside the request itself, so that no lack of memory can lose it.  After it the engine holds
 *   nothing of the caller's.
 * Errors: enum ts3_err at once for what is known at once (bad spec, full queue, spent budget,
 *   closed, forked); everything later is a struct ts3_failure in the final event.
 * Limits: at most max_queue + max_connections requests whose final event was not drained
 *   (TS3_EFULL); windows and file bodies in memory within buffer_budget_bytes (TS3_EBUDGET for
 *   windows; file bodies wait inside the engine, may use half of the budget, and one of at most
 *   TS3_ENGINE_BODY_BYTES may always be loaded, so that windows cannot starve uploads). Small
 *   answers that are parsed are counted in the budget, never refused, and bounded one by one.
 * Fork: in a forked child every call returns TS3_EFORKED (or 0, or nothing), and the frees do
 *   nothing.
 */
#ifndef TS3_ENGINE_H
#define TS3_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"
#include "core/ts3_rand.h"
#include "core/ts3_retry.h"
#include "core/ts3_str.h"
#include "core/ts3_time.h"
#include "xml/ts3_xml_list.h"
#include "xml/ts3_xml_multi.h"

#define TS3_ENGINE_LIBCURL_NUM 0x075700 /* 7.87.0, for CURLOPT_QUICK_EXIT */
#define TS3_ENGINE_LIBCURL_TEXT "7.87.0"
#define TS3_ENGINE_BODY_BYTES ((size_t)16 << 20) /* longer file regions are streamed, not loaded */
#define TS3_ENGINE_KEY_BYTES ((size_t)1024)      /* S3's limit on a key, before percent-encoding */
#define TS3_ENGINE_ANSWER_BYTES ((size_t)32 << 20) /* largest answer that is parsed or returned */
#define TS3_ENGINE_PAIRS 64                        /* query pairs, and headers, of one request */
#define TS3_ENGINE_ATTEMPTS 100

struct ts3_engine;
struct ts3_window;

enum ts3_method { TS3_GET, TS3_HEAD, TS3_PUT, TS3_POST, TS3_DELETE };
#define TS3_METHOD_COUNT 5

/* What is made of the body of a 2xx answer. */
enum ts3_parse {
    TS3_PARSE_NONE,     /* read and dropped */
    TS3_PARSE_BYTES,    /* the bytes; of a GET only where a 200 tells where they end */
    TS3_PARSE_LIST,     /* ListObjects V1 and V2 */
    TS3_PARSE_DELETED,  /* POST ?delete: keys with error codes; Content-MD5 is added when the caller
                           gave none */
    TS3_PARSE_CREATE,   /* CreateMultipartUpload: the upload id */
    TS3_PARSE_COMPLETE, /* CompleteMultipartUpload: the ETag; an error document inside a 200 is a
                           failure */
    TS3_PARSE_COPY,     /* CopyObject and UploadPartCopy: as before */
    TS3_PARSE_UPLOADS   /* ListMultipartUploads */
};

enum ts3_kind {
    TS3_KIND_SERVICE,   /* the service answered with an error (status, code) */
    TS3_KIND_AUTH,      /* ... with 401 or 403; never retried, but for a wrong clock */
    TS3_KIND_TRANSPORT, /* no connection, TLS failure, connection lost, body cut short */
    TS3_KIND_TIMEOUT,   /* connect, first byte, stall or deadline */
    TS3_KIND_PROTOCOL,  /* an answer that breaks HTTP's or S3's rules */
    TS3_KIND_INTEGRITY, /* bytes that are not those asked for (length, Content-Range) */
    TS3_KIND_CHANGED, /* the object's ETag is not the expected one; event.etag has the one found */
    TS3_KIND_CANCELLED, /* ts3_engine_cancel() */
    TS3_KIND_CLOSED,    /* ts3_engine_close() */
    TS3_KIND_LOCAL      /* memory, a local file, or the cryptographic library failed here */
};

/* All strings are copied.  NULL in alloc, clock and rand means libc, the system's clock, a
 * generator seeded by the system; what is given must outlive the engine, and clock and rand are
 * used by the loop thread too (rand: by it alone). */
struct ts3_engine_config {
    const struct ts3_alloc *alloc;
    const struct ts3_clock *clock;
    const struct ts3_rand *rand;
    const char *endpoint; /* http[s]://host[:port], nothing behind */
    const char *region;
    const char *bucket;
    const char *ca_file;    /* NULL: the system's bundle; else a PEM file. Unused over http */
    const char *proxy;      /* NULL or "": none (the environment is never looked at); else
                               http://[user:pass@]host:port */
    const char *user_agent; /* NULL: tahoe-s3 */
    bool path_style;        /* false: bucket as the first label of the host */
    bool sign_payload; /* https only: false sends UNSIGNED-PAYLOAD; over http payloads are always
                          signed */
    uint32_t max_connections; /* 1 to 1024 */
    uint32_t max_queue;       /* 1 to 1,000,000 */
    uint32_t workers;         /* 1 to 16 */
    uint32_t connect_ms;      /* for name, connection and TLS handshake of one attempt; 0: 10,000 */
    uint32_t retry_tokens;    /* the retry quota (ts3_retry.h); 0: TS3_RETRY_QUOTA_TOKENS */
    size_t buffer_budget_bytes;
};

struct ts3_request_spec {
    enum ts3_method method;
    enum ts3_parse parse;
    int priority;                 /* 0 interactive, 1 normal, 2 prefetch and background */
    struct ts3_str key;           /* raw bytes, NOT percent-encoded; empty is the bucket itself */
    const struct ts3_pair *query; /* raw, in any order; an empty value for a name alone */
    size_t query_count;
    /* Authorization, Host, Range, Content-Length, Expect, x-amz-date, x-amz-content-sha256 and
     * x-amz-security-token are the engine's: TS3_EINVAL. */
    const struct ts3_pair *headers;
    size_t header_count;
    const void *body_data; /* PUT and POST: from memory, in place (see Ownership) ... */
    size_t body_size;
    int body_fd; /* ... or, when not -1, body_size bytes of a file from body_offset */
    uint64_t body_offset;
    /* GET only: bytes [offset, offset + window size) of the object land here. */
    struct ts3_window *into;
    uint64_t offset;
    /* GET: anything else is TS3_KIND_CHANGED; NULL: any; quotes do not count. */
    const char *expect_etag;
    size_t max_answer_bytes; /* TS3_PARSE_BYTES: a longer body is a failure (PROTOCOL); 0: 1 MiB */
    /* 1 to TS3_ENGINE_ATTEMPTS, the first included; event.attempts may be more, since libcurl itself
     * sends again where a used connection died before a byte of an answer. */
    uint32_t attempts;
    uint32_t first_byte_ms;  /* from the request sent whole to the first byte of an answer; or 0 */
    uint32_t stall_ms;    /* without a byte either way while a body is under way; 0: no limit */
    uint32_t deadline_ms; /* from submit to the final event, all attempts; 0: no limit */
    void *user;           /* comes back in every event of the request */
};

/* A spec with body_fd = -1, priority 1, 5 attempts, first byte 10 s, stall 20 s, no deadline, all
 * else zero. */
void ts3_request_spec_init(struct ts3_request_spec *spec);

/* The code of a TS3_KIND_TRANSPORT failure where the service's certificate, its name or its dates
 * were refused, or the file of trusted certificates is of no use. */
#define TS3_CODE_UNTRUSTED "CertificateNotTrusted"

struct ts3_failure {
    enum ts3_kind kind;
    enum ts3_outcome outcome; /* of all attempts together; always NOT_APPLIED for GET and HEAD */
    int status;               /* of the last answer, 0 if there was none */
    const char *code;    /* S3's, or TS3_CODE_UNTRUSTED, "" if none; for TS3_PARSE_* failures too */
    const char *message; /* one line for people; never holds a secret; never NULL */
    const char *region;  /* named by the service, or NULL */
    int64_t server_time_s; /* the last answer's Date, or TS3_TIME_NONE */
};

#define TS3_SIZE_NONE UINT64_MAX

/* All pointers belong to the event: valid until ts3_event_clear(). */
struct ts3_event {
    uint64_t id;
    void *user;
    bool final;  /* false: the armed size of the window is ready; only id, user, final are set */
    bool failed; /* then failure is set, and value is not */
    struct ts3_failure failure;
    int status;         /* of the last answer, 0 if none */
    const char *etag;   /* without quotes, or NULL */
    uint64_t size;      /* of the whole object: Content-Range's total, else Content-Length of GET or
                           HEAD; or SIZE_NONE */
    int64_t modified_s; /* Last-Modified, or TS3_TIME_NONE */
    int64_t server_time_s; /* Date, or TS3_TIME_NONE */
    int64_t skew_s; /* what was added to the local clock for signing when the request ended */
    const char *request_id; /* x-amz-request-id, never NULL */
    const char *host_id;    /* x-amz-id-2, never NULL */
    uint32_t attempts;
    uint64_t bytes_up;     /* of the body, all attempts */
    uint64_t bytes_down;   /* of answers' bodies, all attempts */
    int64_t queued_us;     /* submit to the start of the first attempt */
    int64_t first_byte_us; /* submit to the first byte of the last answer; -1: none came */
    int64_t total_us;      /* submit to the end */
    enum ts3_parse parse;  /* says which member of value is set, when not failed */
    union {
        struct {
            const unsigned char *data;
            size_t size;
        } bytes;                        /* BYTES */
        struct ts3_page page;           /* LIST */
        struct ts3_xml_deleted deleted; /* DELETED; is_error is never set (that is a failure) */
        const char *text;               /* CREATE: upload id; COMPLETE, COPY: ETag without quotes */
        struct ts3_xml_uploads uploads; /* UPLOADS */
    } value;
    void *store; /* private */
};

/* Frees what an event from ts3_engine_drain() owns, and zeroes it.  Any thread, also after the
 * engine is gone. */
void ts3_event_clear(struct ts3_event *event);

struct ts3_engine_stats {
    uint64_t requests[TS3_METHOD_COUNT]; /* submitted, by enum ts3_method */
    uint64_t attempts;                   /* sent */
    uint64_t retries;                    /* attempts beyond the first of a request */
    uint64_t succeeded;
    uint64_t failed;
    uint64_t retries_denied; /* because the retry quota was spent */
    uint64_t bytes_up;       /* of bodies, all attempts */
    uint64_t bytes_down;     /* of windows and parsed answers, all attempts */
    uint64_t connections_opened;
    uint64_t connections_dropped_stale; /* idle ones found readable before reuse */
    uint64_t connections_open;
    uint64_t queued;    /* submitted, not on a connection now */
    uint64_t in_flight; /* on a connection now */
    uint64_t undrained; /* events waiting */
    uint64_t budget_used_bytes;
    uint64_t budget_bytes;
    /* since the last call: how often the loop polled, and how long it was away from that: 999 of
     * 1,000 times at most so long (a fifth too much at most), and the longest */
    uint64_t loop_turns;
    uint64_t loop_p999_us;
    uint64_t loop_max_us;
    /* the same of the processor time that the loop took: without what others ran meanwhile on the
     * cores that it wanted.  A turn of less than 200 us counts with its time by the clock, and a
     * longer one with what it took at most, since the time of short ones before it may be in it */
    uint64_t loop_cpu_p999_us;
    uint64_t loop_cpu_max_us;
    int64_t skew_s;
    bool skew_adopted; /* the service refused the local clock at least once */
    char region[64]; /* requests are signed for it: the configured one, or the one that the service
                        named */
};

/* why (may be NULL) gets one sentence, NUL-terminated, naming what is wrong with the
 * configuration. */
enum ts3_err ts3_engine_new(const struct ts3_engine_config *config, struct ts3_engine **engine,
                            char *why, size_t why_size);

/* Replaces the credentials; attempts from now on are signed with them.  token NULL or "": none.
 * Copies; the old secret is cleansed when its last attempt was signed. */
enum ts3_err ts3_engine_set_credentials(struct ts3_engine *engine, const char *access_key_id,
                                        const void *secret, size_t secret_size, const char *token);

/* The descriptor that is readable while events wait, and perhaps once more for an event that was
 * drained already.  It belongs to the engine.  -1 in a forked child. */
int ts3_engine_fd(const struct ts3_engine *engine);

/* TS3_EINVAL (also: no credentials yet, or the window is the target of an unfinished request),
 * TS3_EFULL, TS3_ENOMEM, TS3_EIO (errno says why: dup or the threads), TS3_ECLOSED, TS3_EFORKED.
 * On any of these nothing is kept.  A window that already has ready bytes (from a failed GET) is
 * filled from there on, and expect_etag must then be given. */
enum ts3_err ts3_engine_submit(struct ts3_engine *engine, const struct ts3_request_spec *spec,
                               uint64_t *id);

/* Asks for an early end; the final event still comes (perhaps of a success that was quicker).
 * Unknown ids: no-op. */
enum ts3_err ts3_engine_cancel(struct ts3_engine *engine, uint64_t id);

/* Moves up to max events out, in order, and returns how many.  Works after close too; 0 in a
 * forked child. */
size_t ts3_engine_drain(struct ts3_engine *engine, struct ts3_event *events, size_t max);

enum ts3_err ts3_engine_stats(struct ts3_engine *engine, struct ts3_engine_stats *stats);

/* Ends all requests (TS3_KIND_CLOSED), joins the threads.  Idempotent; where several threads close
 * at once, each returns when all is joined.  Events can still be drained.  Takes well under a second
 * whatever the network does, but for one case: a read of a body's file (128 KiB at most) that the
 * kernel does not answer is waited for, since nothing can end it.  Bodies belong on local disks. */
enum ts3_err ts3_engine_close(struct ts3_engine *engine);

/* Closes if need be, drops undrained events, frees.  Windows may outlive the engine.  No-op for
 * NULL and after a fork. */
void ts3_engine_free(struct ts3_engine *engine);

/* Makes the loop look at its clock again: for tests with a clock of their own. */
enum ts3_err ts3_engine_wake(struct ts3_engine *engine);

/* Windows.
 * Memory for a range of an object.  Created with one reference, the caller's.  Bytes [0, ready) are
 * valid, never change and never go away while a reference is held; ready only grows.  Its size
 * stays charged to the engine's budget until the last reference is gone. */

/* size_bytes at least 1.  TS3_EBUDGET, TS3_ENOMEM, TS3_EINVAL, TS3_ECLOSED, TS3_EFORKED. */
enum ts3_err ts3_window_new(struct ts3_engine *engine, size_t size_bytes,
                            struct ts3_window **window);
/* The same over the caller's own memory, charged all the same.  The memory must stay until the
 * caller has given up its reference and every request that was submitted into the window has had
 * its final event drained (or the engine is freed). */
enum ts3_err ts3_window_new_over(struct ts3_engine *engine, void *memory, size_t size_bytes,
                                 struct ts3_window **window);
void ts3_window_unref(struct ts3_window *window); /* NULL: no-op; no-op in a forked child */
size_t ts3_window_size(const struct ts3_window *window);
size_t ts3_window_ready(
    const struct ts3_window *window); /* acquires: bytes below it may be read at once */
const unsigned char *ts3_window_data(const struct ts3_window *window); /* NULL in a forked child */

/* *ready = true: upto bytes are there already.  Otherwise one event with final == false comes when
 * they are, if the request filling the window gets that far (its final event comes in any case).
 * A window has one arming; a later call replaces an earlier one that has not fired.  TS3_EINVAL:
 * upto beyond the size. TS3_EFORKED. */
enum ts3_err ts3_window_arm(struct ts3_window *window, size_t upto, bool *ready);

/* For messages and tables; never NULL. */
const char *ts3_kind_text(enum ts3_kind kind);
const char *ts3_method_text(enum ts3_method method);

#endif

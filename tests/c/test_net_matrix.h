/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The fault matrix: every operation meets every fault that can happen to it, once, for ever, and
 * with one token too few in the retry quota.
 *
 *   test_net_matrix_ops.c     what is asked, and what the service truly has to say
 *   test_net_matrix_faults.c  what goes wrong on the wire instead, and its harm by the rules
 *   test_net_matrix_rules.c   from an operation and a harm to what must happen
 *   test_net_matrix.c         plays the cells, and compares
 *
 * The rules are those of the engine's design (docs/design/engine.rst, "Retries") and of S3's
 * documentation, written down here once more: nothing of the product decides what a cell expects.
 *
 * Owner: the test.  Thread: a fault's function runs on a connection's thread and shares only the
 * atomics of struct matrix_cell with the test's.  Errors: end the program. */
#ifndef TEST_NET_MATRIX_H
#define TEST_NET_MATRIX_H

#include "test_net_server.h"
#include "test_net_tls.h"

/* --- operations --- */

enum matrix_trait {
    OP_SAFE = 1 << 0,    /* GET and HEAD: nothing can have been applied */
    OP_HEAD = 1 << 1,    /* its answers have no body, whatever their length says */
    OP_ANSWERS = 1 << 2, /* its answer has a body that counts */
    OP_WINDOW = 1 << 3,  /* a range, into a window */
    OP_BYTES = 1 << 4,   /* a body that nothing but its length describes */
    OP_XML = 1 << 5,     /* a document that tells where it ends */
    OP_ETAG = 1 << 6,    /* asks for one version of the object */
    OP_LATE = 1 << 7,    /* a 200 may still be followed by an error */
    OP_SLOW = 1 << 8,    /* a 200 may be followed by minutes of work */
    OP_BODY = 1 << 9,    /* sends a body */
    OP_LARGE = 1 << 10,  /* ... that does not fit what the kernel takes at once */
    OP_STREAMED = 1 << 11, /* ... that is never in memory as a whole: only faults about bodies */
    OP_RESUMED = 1 << 12,  /* the window holds the beginning already */
    OP_NO_CONTENT = 1 << 13, /* its answer is a 204, which needs no length */
};

struct matrix_op {
    const char *name;
    unsigned traits;
    enum ts3_method method;
    enum ts3_parse parse;
    const char *key;
    struct ts3_pair query[3];
    struct ts3_pair header;
    size_t body_size;
    bool from_file;
    uint32_t first_byte_ms;
    const char *document; /* the body of the answer, where it is XML */
};

extern const struct matrix_op matrix_ops[];
extern const size_t matrix_op_count;

enum {
    MATRIX_OBJECT = 1000, /* bytes of the object that is read */
    MATRIX_OFFSET = 100,  /* where the window begins */
    MATRIX_WINDOW = 600,
    MATRIX_RESUMED = 200, /* bytes of it that are there, for OP_RESUMED */
    MATRIX_ATTEMPTS = 3,
    MATRIX_FIRST_BYTE_MS = 10000,
    MATRIX_STALL_MS = 20000,
    MATRIX_CONNECT_MS = 7000,
    MATRIX_COMPLETE_MS = 300000,
};

#define MATRIX_DATE_S 1369353600 /* Fri, 24 May 2013 00:00:00 GMT */

unsigned char matrix_object_byte(size_t at);
/* The bodies that are sent lie one behind the other in memory and in a file. */
const unsigned char *matrix_bodies(void);
int matrix_bodies_fd(void);
/* Whether the value of a success is the true one; says what is not. */
void matrix_check_value(const struct matrix_op *op, const struct ts3_event *event,
                        const struct ts3_window *window);
/* Whether a request that came is the one that was to be sent. */
void matrix_check_request(const struct matrix_op *op, const struct net_seen *seen);

/* --- answers --- */

/* An answer before it goes on the wire; faults change it. */
struct matrix_reply {
    const char *version; /* HTTP/1.1 */
    char status[64];
    char headers[1024]; /* each with its line end; without Content-Length */
    char length[128];   /* the Content-Length line, or "" */
    unsigned char body[MATRIX_OBJECT + 1024];
    size_t size;
    bool bare; /* an answer to HEAD: the body is not sent */
};

/* What the service truly has to say to this request. */
void matrix_true_reply(const struct matrix_op *op, const struct net_seen *seen,
                       struct matrix_reply *reply);
/* Length and body of another document. */
void matrix_set_body(struct matrix_reply *reply, const char *body);
/* The length line for the body that is there. */
void matrix_set_length(struct matrix_reply *reply, long long length);

/* --- faults --- */

/* What a fault is to a client that keeps the rules. */
enum matrix_harm {
    HARM_NONE,    /* the answer is good, though it came in an odd way */
    HARM_LENIENT, /* either that, or BROKEN: HTTP leaves it to the client */
    HARM_UNSENT,  /* nothing can have left: worth another try, not applied */
    HARM_BROKEN,  /* no answer that counts: worth another try, perhaps applied */
    HARM_ANSWER,  /* the service has answered with a status, perhaps with a code */
    HARM_CHANGED, /* another version of the object: final */
    HARM_TRUST,   /* the service is not who it should be: final, not applied */
    HARM_CORRECTED /* a refusal that says how to ask: asked again at once, no token spent; final the
                      second time */
};

/* Until when the client waits before it calls a silence one. */
enum matrix_silence { NOT_SILENT, SILENT_CONNECT, SILENT_SEND, SILENT_WAIT, SILENT_BODY };

/* What becomes of the connection. */
enum matrix_connection { CONN_KEPT, CONN_LOST, CONN_ANY };

enum matrix_special {
    PLAIN = 0,
    REFUSED,     /* nobody listens at first */
    UNANSWERED,  /* the handshake of TCP is never finished */
    WARM,        /* there has been a good request on the connection before */
    AT_ACCEPT,   /* reset before a byte was read: whether one had left is a matter of luck */
    OVER_TLS     /* the fault is one of test_net_tls.h; arg says which */
};

struct matrix_cell;
struct matrix_fault;
typedef enum net_then (*matrix_act)(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                    struct matrix_reply *reply);

struct matrix_fault {
    const char *name;
    matrix_act act;
    int arg;
    const char *text;
    unsigned needs;  /* traits that an operation must all have */
    unsigned spares; /* ... and must not have any of */
    enum matrix_harm harm;
    unsigned kinds; /* 1 << enum ts3_kind, those that it may be called */
    enum matrix_connection connection;
    enum matrix_silence silence;
    enum matrix_special special;
    int status;       /* HARM_ANSWER: what arrived */
    const char *code; /* ... and its code where a document arrives whole; NULL: none */
    int wait_ms;      /* at least that, the service asks for, before the next attempt */
    bool early;       /* the answer comes before the request's body was read */
};

extern const struct matrix_fault matrix_faults[];
extern const size_t matrix_fault_count;
/* Every status with every kind of document: fault number index, false behind the last. */
bool matrix_status_fault(size_t index, struct matrix_fault *fault, char *name, size_t name_size);
bool matrix_applies(const struct matrix_op *op, const struct matrix_fault *fault);

/* --- cells --- */

enum matrix_mode { MODE_ONCE, MODE_ALWAYS, MODE_SPENT };

struct matrix_cell {
    const struct matrix_op *op;
    const struct matrix_fault *fault;
    enum matrix_mode mode;
    bool preparing;     /* a request before the one that counts: answered well */
    atomic_int hits;    /* requests that count and came */
    atomic_int silences; /* of them, those that the server is silent about by now */
    atomic_int late; /* 1: what is to come on the idle connection may; 2: it has been sent */
    atomic_bool answered; /* early, so that nothing is to be said later */
};

struct matrix_expect {
    bool success;
    bool either;       /* success at the first attempt will do too */
    int attempts;
    unsigned kinds;
    int status;        /* -1: any */
    const char *code;  /* NULL: any */
    unsigned outcomes; /* 1 << enum ts3_outcome */
    int denied;        /* retries that the quota must refuse */
    int tokens;        /* of the quota, for the whole of it */
    int64_t delays_ms[MATRIX_ATTEMPTS]; /* before attempt i + 2 */
    int64_t silence_ms;                 /* of each attempt that meets the fault */
    int faulty;                         /* attempts that meet it */
    enum matrix_connection connection;
};

/* False where this mode says nothing more than the others. */
bool matrix_expect(const struct matrix_op *op, const struct matrix_fault *fault,
                   enum matrix_mode mode, struct matrix_expect *expect);

#endif

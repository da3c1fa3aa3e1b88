/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A million operations on a service that fails at random, held against what it truly did.
 *
 *   test_net_soak_plan.c    what each operation is, and which of its attempts meets which fault
 *   test_net_soak_server.c  the service: it applies or does not, answers or does not, and knows
 *   test_net_soak.c         submits, cancels, and compares
 *
 * Everything that is decided follows from the seed, the operation's number and, on the server, the
 * number of the attempt: never from the time, nor from which thread comes first. The number is in
 * each request, as the header x-amz-meta-op.
 *
 * Owner: the test.  Thread: the plan is pure; the service's state is under its mutex.  Errors: end
 * the program. */
#ifndef TEST_NET_SOAK_H
#define TEST_NET_SOAK_H

#include "test_net_server.h"

enum {
    SOAK_KEYS = 128,
    SOAK_MAX_BYTES = 8 << 20,
    SOAK_SPREAD = 65536, /* objects begin somewhere in the first bytes of the pattern */
    SOAK_STORM_EVERY = 10000,
    SOAK_STORM_LENGTH = 100, /* so many operations in a row get nothing but refusals */
};

enum soak_kind {
    SOAK_GET_RANGE,
    SOAK_GET_BYTES,
    SOAK_HEAD,
    SOAK_PUT_BYTES,
    SOAK_PUT_FILE,
    SOAK_DELETE,
    SOAK_DELETE_TWO,
    SOAK_LIST,
    SOAK_CREATE,
    SOAK_PART,
    SOAK_COMPLETE,
    SOAK_COPY,
    SOAK_UPLOADS,
    SOAK_KINDS
};

struct soak_op {
    enum soak_kind kind;
    int key; /* SOAK_DELETE_TWO: and the next one */
    size_t size;   /* of what is put, or of the window */
    size_t offset; /* of the window */
    int priority;
    uint32_t deadline_ms; /* 0: none */
    int cancel_after;     /* submissions later it is cancelled; -1: never */
    bool second_refused;  /* SOAK_DELETE_TWO: a code for the second key */
};

enum soak_fault {
    SOAK_FINE,
    SOAK_RESET,       /* before anything was done, as up to SOAK_ERROR */
    SOAK_CLOSE,
    SOAK_SLOW_DOWN,
    SOAK_RETRY_AFTER,
    SOAK_INVALID,     /* the only final one */
    SOAK_SILENT,
    SOAK_ERROR,
    SOAK_ERROR_AFTER, /* done from here on */
    SOAK_LOST,
    SOAK_CUT_HEAD,
    SOAK_CUT_BODY,
    SOAK_GARBAGE,
    SOAK_WRONG_RANGE,
    SOAK_MALFORMED,
    SOAK_LATE_ERROR, /* an error within a 200, where there is such a thing */
    SOAK_SILENT_AFTER,
    SOAK_DRIP, /* good from here on */
    SOAK_SURPLUS,
    SOAK_CLOSE_AFTER,
    SOAK_LATE_408,
    SOAK_FAULTS
};

struct soak_op soak_plan(uint64_t seed, uint32_t number);
/* One attempt in twenty; in a storm SOAK_ERROR, always. */
enum soak_fault soak_fault(uint64_t seed, uint32_t number, unsigned attempt);
bool soak_is_storm(uint32_t number);
/* The bytes of an object that operation number wrote, or of a body it sends. */
const unsigned char *soak_bytes(uint32_t number);
/* All of which these are parts; also as a file. */
const unsigned char *soak_bytes_start(void);
int soak_bytes_fd(void);
bool soak_writes(enum soak_kind kind);

/* What the service knows of an operation. Version v of an object is what operation v - 1 wrote. */
struct soak_record {
    uint32_t served; /* the version that was sent, or told, last */
    uint32_t listed; /* a sum over the listing that was sent last */
    uint8_t attempts;
    bool applied;
    bool absent;  /* it was truthfully said that there is no such key */
    bool outside; /* ... no such range */
    bool changed; /* two attempts were served different versions */
    bool claimed; /* the engine said that it was not applied: the checker's */
};

struct soak_service {
    uint64_t seed;
    uint32_t operations;
    pthread_mutex_t mutex;
    uint32_t version[SOAK_KEYS]; /* 0: no such key */
    struct soak_record *records;
    int faults[SOAK_FAULTS];
    int requests;
    int bad_bodies; /* that were not what the plan says */
    struct net_server server;
};

void soak_service_start(struct soak_service *service, uint64_t seed, uint32_t operations);
void soak_service_stop(struct soak_service *service);
void soak_service_free(struct soak_service *service);
/* One more entry in the sum of a listing. */
uint32_t soak_sum(uint32_t sum, int key, uint32_t version, size_t size);

#endif

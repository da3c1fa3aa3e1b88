/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The soak itself. See test_net_soak.h.
 *
 * Not one wrong byte, no false absence, no wrong outcome, no hang, nothing left over, no storm of
 * retries. TS3_SOAK_OPERATIONS and TS3_SOAK_SEED (environment) say how many and which; the seed is
 * printed, and a run with it is of the same operations and the same faults.
 *
 * The clock runs SPEED times as fast as the real one, so that silences and backoffs are short. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "net/ts3_loop.h"
#include "test_net_soak.h"
#include "test_net_tls.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* The Makefile gives less to those that are slow. */
#ifndef TS3_SOAK_OPERATIONS
#define TS3_SOAK_OPERATIONS 2000
#endif

enum {
    IN_FLIGHT = 24,
    SPEED = 100,
    ATTEMPTS = 3,
    RESENDS = 5, /* most that libcurl sends again by itself, on connections that had died idle */
    TOKENS = 500,
    COST = 14,
    COST_THROTTLE = 5,
    CANCELS = 16,
    HANG_US = 30000000,
};

/* --- what the engine is given: a fast clock, memory that is counted --- */

static int64_t real_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int64_t fast_mono(void *ctx)
{
    (void)ctx;
    return real_us() * SPEED;
}

static int64_t still_wall(void *ctx)
{
    (void)ctx;
    return 1369353600;
}

static void *counted_realloc(void *ctx, void *p, size_t size_bytes)
{
    atomic_long *live = ctx;
    if (size_bytes == 0) {
        if (p != NULL)
            atomic_fetch_sub(live, 1);
        free(p);
        return NULL;
    }
    void *made = realloc(p, size_bytes);
    if (made != NULL && p == NULL)
        atomic_fetch_add(live, 1);
    return made;
}

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (dir != NULL && readdir(dir) != NULL)
        count++;
    if (dir != NULL)
        closedir(dir);
    return count;
}

/* Without what the C library keeps for later. */
static long resident_bytes(void)
{
    long pages = 0;
    (void)malloc_trim(0);
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static long used_bytes(void)
{
    return (long)mallinfo2().uordblks;
}

/* --- a run --- */

struct flight {
    bool used;
    uint32_t number;
    struct soak_op op;
    struct ts3_window *window;
};

struct soak {
    struct soak_service service;
    struct net_engine net;
    struct net_tls tls;
    bool over_tls;
    atomic_long live; /* blocks of memory */
    struct ts3_alloc alloc;
    struct ts3_rand_state rand_state;
    bool busy[SOAK_KEYS];
    struct flight flights[IN_FLIGHT];
    uint64_t cancels[CANCELS]; /* ids, by the number of the operation before which it is done */
    int in_flight;
    uint32_t succeeded;
    uint32_t not_applied;
    uint32_t unknown;
    uint32_t cancelled;
    uint64_t tokens; /* that successes have given back, at most */
    uint64_t storm_attempts; /* beyond the first of each, in all storms */
    int most_descriptors;
    long resident_early; /* bytes, after a quarter of the operations */
    long resident_late;
    long used_early; /* bytes that the C library has given out, to libcurl and OpenSSL too */
    long used_late;
    bool stuck;
};

static struct soak *soak;

static struct flight *free_flight(void)
{
    struct flight *flight = soak->flights;
    while (flight->used)
        flight++;
    return flight;
}

static void set_keys(const struct soak_op *op, bool busy)
{
    soak->busy[op->key] = busy;
    if (op->kind == SOAK_DELETE_TWO)
        soak->busy[(op->key + 1) % SOAK_KEYS] = busy;
}

static bool keys_are_free(const struct soak_op *op)
{
    return !soak->busy[op->key] &&
           !(op->kind == SOAK_DELETE_TWO && soak->busy[(op->key + 1) % SOAK_KEYS]);
}

/* --- requests --- */

#define TEXT(text) {text, sizeof text - 1}

static const struct {
    enum ts3_method method;
    enum ts3_parse parse;
    bool of_bucket;
    struct ts3_pair query[2];
    const char *body;
} requests[SOAK_KINDS] = {
    [SOAK_GET_RANGE] = {.method = TS3_GET, .parse = TS3_PARSE_NONE},
    [SOAK_GET_BYTES] = {.method = TS3_GET, .parse = TS3_PARSE_BYTES},
    [SOAK_HEAD] = {.method = TS3_HEAD, .parse = TS3_PARSE_NONE},
    [SOAK_PUT_BYTES] = {.method = TS3_PUT, .parse = TS3_PARSE_NONE},
    [SOAK_PUT_FILE] = {.method = TS3_PUT, .parse = TS3_PARSE_NONE},
    [SOAK_DELETE] = {.method = TS3_DELETE, .parse = TS3_PARSE_NONE},
    [SOAK_DELETE_TWO] = {.method = TS3_POST, .parse = TS3_PARSE_DELETED, .of_bucket = true,
     .query = {{TEXT("delete"), TEXT("")}},
     .body = "<Delete>two</Delete>"},
    [SOAK_LIST] = {.method = TS3_GET, .parse = TS3_PARSE_LIST, .of_bucket = true,
     .query = {{TEXT("list-type"), TEXT("2")}}},
    [SOAK_CREATE] = {.method = TS3_POST, .parse = TS3_PARSE_CREATE,
     .query = {{TEXT("uploads"), TEXT("")}}},
    [SOAK_PART] = {.method = TS3_PUT, .parse = TS3_PARSE_NONE,
     .query = {{TEXT("partNumber"), TEXT("1")}, {TEXT("uploadId"), TEXT("u")}}},
    [SOAK_COMPLETE] = {.method = TS3_POST, .parse = TS3_PARSE_COMPLETE,
     .query = {{TEXT("uploadId"), TEXT("u")}},
     .body = "<CompleteMultipartUpload>parts</CompleteMultipartUpload>"},
    [SOAK_COPY] = {.method = TS3_PUT, .parse = TS3_PARSE_COPY},
    [SOAK_UPLOADS] = {.method = TS3_GET, .parse = TS3_PARSE_UPLOADS, .of_bucket = true,
     .query = {{TEXT("uploads"), TEXT("")}}},
};

static void set_body(struct ts3_request_spec *spec, const struct flight *flight)
{
    const char *document = requests[flight->op.kind].body;
    const unsigned char *bytes = soak_bytes(flight->number);
    bool puts = flight->op.kind == SOAK_PUT_BYTES || flight->op.kind == SOAK_PUT_FILE ||
                flight->op.kind == SOAK_PART;
    if (document != NULL) {
        spec->body_data = document;
        spec->body_size = strlen(document);
    } else if (puts) {
        spec->body_size = flight->op.size;
        if (flight->op.kind == SOAK_PUT_BYTES) {
            spec->body_data = bytes;
        } else {
            spec->body_fd = soak_bytes_fd();
            spec->body_offset = (uint64_t)(bytes - soak_bytes_start());
        }
    }
}

static uint64_t submit(struct flight *flight)
{
    const struct soak_op *op = &flight->op;
    struct ts3_request_spec spec;
    char key[16];
    char number[16];
    uint64_t id = 0;
    ts3_request_spec_init(&spec);
    (void)snprintf(key, sizeof key, "k%d", op->key);
    (void)snprintf(number, sizeof number, "%" PRIu32, flight->number);
    struct ts3_pair headers[] = {{TS3_STR("x-amz-meta-op"), ts3_str_of(number)},
                                 {TS3_STR("x-amz-copy-source"), TS3_STR("/bucket/other")}};
    spec.headers = headers;
    spec.header_count = op->kind == SOAK_COPY ? 2 : 1;
    spec.method = requests[op->kind].method;
    spec.parse = requests[op->kind].parse;
    spec.key = requests[op->kind].of_bucket ? TS3_STR("") : ts3_str_of(key);
    spec.query = requests[op->kind].query;
    while (spec.query_count < 2 && spec.query[spec.query_count].name.len > 0)
        spec.query_count++;
    spec.priority = op->priority;
    spec.deadline_ms = op->deadline_ms;
    spec.attempts = ATTEMPTS;
    spec.first_byte_ms = spec.stall_ms = 10000;
    spec.max_answer_bytes = op->kind == SOAK_GET_BYTES ? SOAK_MAX_BYTES : 0;
    spec.user = flight;
    set_body(&spec, flight);
    if (op->kind == SOAK_GET_RANGE) {
        CHECK_OK(ts3_window_new(soak->net.engine, op->size, &flight->window));
        spec.into = flight->window;
        spec.offset = op->offset;
    }
    CHECK_OK(ts3_engine_submit(soak->net.engine, &spec, &id));
    return id;
}

/* --- what must be true of an end --- */

/* The version that an ETag names; 0: none. */
static uint32_t version_of(const char *etag)
{
    return etag != NULL && etag[0] == 'v' ? (uint32_t)strtoul(etag + 1, NULL, 10) : 0;
}

static void check_object(const struct flight *flight, const struct ts3_event *event,
                         const struct soak_record *record)
{
    const struct soak_op *op = &flight->op;
    uint32_t version = version_of(event->etag);
    if (!CHECK(version > 0 && version == record->served))
        return;
    size_t size = soak_plan(soak->service.seed, version - 1).size;
    const unsigned char *bytes = soak_bytes(version - 1);
    CHECK_INT(event->size, size);
    if (op->kind == SOAK_GET_BYTES) {
        if (CHECK_INT(event->value.bytes.size, size))
            CHECK(memcmp(event->value.bytes.data, bytes, size) == 0);
    } else if (op->kind == SOAK_GET_RANGE) {
        size_t want = size - op->offset < op->size ? size - op->offset : op->size;
        if (CHECK_INT(ts3_window_ready(flight->window), want))
            CHECK(memcmp(ts3_window_data(flight->window), bytes + op->offset, want) == 0);
    }
}

static void check_listing(const struct ts3_page *page, const struct soak_record *record)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < page->entry_count; i++) {
        const struct ts3_entry *entry = &page->entries[i];
        sum = soak_sum(sum, atoi(entry->key.data + 1), version_of(entry->etag.data),
                       (size_t)entry->size_bytes);
    }
    CHECK_INT(sum, record->listed);
}

static void check_deleted(const struct flight *flight, const struct ts3_xml_deleted *deleted)
{
    char second[16];
    (void)snprintf(second, sizeof second, "k%d", (flight->op.key + 1) % SOAK_KEYS);
    if (!CHECK_INT(deleted->item_count, 2))
        return;
    CHECK_TEXT(deleted->items[0].code, "");
    CHECK_TEXT(deleted->items[1].key, second);
    CHECK_TEXT(deleted->items[1].code, flight->op.second_refused ? "AccessDenied" : "");
}

static void check_success(const struct flight *flight, const struct ts3_event *event,
                          const struct soak_record *record)
{
    char text[32];
    const char *letter = flight->op.kind == SOAK_COMPLETE || flight->op.kind == SOAK_COPY ? "v" : "u";
    (void)snprintf(text, sizeof text, "%s%" PRIu32, letter, flight->number + 1);
    if (soak_writes(flight->op.kind))
        CHECK(record->applied);
    switch (flight->op.kind) {
    case SOAK_GET_RANGE:
    case SOAK_GET_BYTES:
    case SOAK_HEAD:
        check_object(flight, event, record);
        return;
    case SOAK_LIST:
        check_listing(&event->value.page, record);
        return;
    case SOAK_DELETE_TWO:
        check_deleted(flight, &event->value.deleted);
        return;
    case SOAK_CREATE:
    case SOAK_COMPLETE:
    case SOAK_COPY:
        CHECK_TEXT(ts3_str_of(event->value.text), text);
        return;
    case SOAK_UPLOADS:
        if (CHECK_INT(event->value.uploads.upload_count, 1))
            CHECK_TEXT(event->value.uploads.uploads[0].upload_id, text);
        return;
    default:
        CHECK_INT(version_of(event->etag), flight->op.kind == SOAK_DELETE ? 0 : flight->number + 1);
        return;
    }
}

static void check_failure(const struct flight *flight, const struct ts3_event *event,
                          struct soak_record *record)
{
    const struct ts3_failure *failure = &event->failure;
    enum ts3_kind kind = failure->kind;
    if (failure->status == 404)
        CHECK(record->absent); /* else it is a false absence */
    if (failure->status == 416)
        CHECK(record->outside);
    if (kind == TS3_KIND_CHANGED)
        CHECK(record->changed);
    if (kind == TS3_KIND_CANCELLED)
        CHECK(flight->op.cancel_after >= 0);
    CHECK(kind != TS3_KIND_LOCAL && kind != TS3_KIND_AUTH && kind != TS3_KIND_CLOSED);
    if (!soak_writes(flight->op.kind))
        CHECK_INT(failure->outcome, TS3_OUTCOME_NOT_APPLIED);
    if (failure->outcome == TS3_OUTCOME_NOT_APPLIED)
        record->claimed = true; /* that it never will be is looked at in the end */
    if (flight->window != NULL && record->served > 0 && !record->changed) {
        size_t ready = ts3_window_ready(flight->window);
        CHECK(memcmp(ts3_window_data(flight->window),
                     soak_bytes(record->served - 1) + flight->op.offset, ready) == 0);
    }
}

static void tally(const struct flight *flight, const struct ts3_event *event)
{
    CHECK(event->attempts <= ATTEMPTS + RESENDS);
    if (soak_is_storm(flight->number) && event->attempts > 1)
        soak->storm_attempts += event->attempts - 1;
    if (!event->failed) {
        soak->succeeded++;
        soak->tokens += event->attempts == 1 ? 1 : COST;
    } else if (event->failure.kind == TS3_KIND_CANCELLED) {
        soak->cancelled++;
    } else if (event->failure.outcome == TS3_OUTCOME_NOT_APPLIED) {
        soak->not_applied++;
    } else {
        soak->unknown++;
    }
}

static void land(struct ts3_event *event)
{
    struct flight *flight = event->user;
    if (!CHECK(event->final && flight->used))
        return;
    ts3_test_label("seed %" PRIu64 ", operation %" PRIu32 " of kind %d", soak->service.seed,
                   flight->number, (int)flight->op.kind);
    struct soak_record *record = &soak->service.records[flight->number];
    pthread_mutex_lock(&soak->service.mutex);
    if (event->failed)
        check_failure(flight, event, record);
    else
        check_success(flight, event, record);
    pthread_mutex_unlock(&soak->service.mutex);
    tally(flight, event);
    ts3_window_unref(flight->window);
    flight->window = NULL;
    flight->used = false;
    set_keys(&flight->op, false);
    soak->in_flight--;
}

/* The loop sleeps by the real clock, so where nothing happens it is made to look at the fast one. */
static void land_one(void)
{
    struct ts3_event event;
    for (int64_t begun_us = real_us(); real_us() - begun_us < HANG_US;) {
        if (net_next(&soak->net, &event, 2)) {
            land(&event);
            ts3_event_clear(&event);
            return;
        }
        CHECK_OK(ts3_engine_wake(soak->net.engine));
    }
    soak->stuck = true;
    CHECK(!soak->stuck);
}

static void launch(uint32_t number)
{
    struct soak_op op = soak_plan(soak->service.seed, number);
    bool storm = soak_is_storm(number) != soak_is_storm(number + SOAK_STORM_EVERY - 1);
    while (!soak->stuck && soak->in_flight > 0 &&
           (storm || soak->in_flight == IN_FLIGHT || !keys_are_free(&op)))
        land_one();
    if (soak->stuck)
        return;
    struct flight *flight = free_flight();
    *flight = (struct flight){.used = true, .number = number, .op = op};
    set_keys(&op, true);
    soak->in_flight++;
    uint64_t id = submit(flight);
    if (op.cancel_after >= 0)
        soak->cancels[(number + (uint32_t)op.cancel_after) % CANCELS] = id;
    uint64_t *due = &soak->cancels[number % CANCELS];
    if (*due != 0)
        CHECK_OK(ts3_engine_cancel(soak->net.engine, *due));
    *due = 0;
}

/* --- before and after --- */

static void open_engine(uint64_t seed)
{
    struct net_engine *net = &soak->net;
    net_engine_init(net, &soak->service.server);
    net->clock = (struct ts3_clock){fast_mono, still_wall, NULL};
    ts3_rand_seeded(&net->rand, &soak->rand_state, seed);
    soak->alloc = (struct ts3_alloc){counted_realloc, &soak->live};
    net->config.alloc = &soak->alloc;
    net->config.max_connections = IN_FLIGHT;
    net->config.connect_ms = 200000;
    net->config.retry_tokens = TOKENS;
    net->config.buffer_budget_bytes = (size_t)512 << 20;
    if (soak->over_tls) {
        net_tls_start(&soak->tls, soak->service.server.port, NET_TLS_FINE, 0);
        net_tls_lead(&soak->tls, net);
        net->config.max_connections = 6;
    }
    net_engine_open(net);
}

static void check_memory(uint32_t number, uint32_t operations)
{
    if (number % 1000 == 0) {
        int descriptors = open_descriptors();
        if (descriptors > soak->most_descriptors)
            soak->most_descriptors = descriptors;
    }
    if (number == operations / 4) {
        soak->resident_early = resident_bytes();
        soak->used_early = used_bytes();
    }
    if (number != operations - 1)
        return;
    soak->resident_late = resident_bytes();
    soak->used_late = used_bytes();
    if (operations >= 50000 && !SANITIZED) {
        CHECK(soak->resident_late - soak->resident_early < 32 << 20);
        CHECK(soak->used_late - soak->used_early < 4 << 20);
    }
}

/* Every retry takes at least COST_THROTTLE tokens, but for those of libcurl, which need a
 * connection that was closed on them. */
static void check_quota(void)
{
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(soak->net.engine, &stats));
    uint64_t closed = 0;
    for (int fault = SOAK_RESET; fault < SOAK_FAULTS; fault++)
        closed += (uint64_t)soak->service.faults[fault];
    CHECK(stats.retries <= (TOKENS + soak->tokens) / COST_THROTTLE + closed * RESENDS);
    uint32_t storms = soak->service.operations / SOAK_STORM_EVERY;
    CHECK(soak->storm_attempts <= storms * (TOKENS / COST));
    if (storms > 0)
        CHECK(soak->storm_attempts > 0 && stats.retries_denied > 0);
}

/* What was said not to have been applied has not been since, either. */
static void check_claims(void)
{
    for (uint32_t number = 0; number < soak->service.operations; number++) {
        const struct soak_record *record = &soak->service.records[number];
        bool wrong = record->claimed && record->applied;
        if (wrong)
            ts3_test_label("seed %" PRIu64 ", operation %" PRIu32, soak->service.seed, number);
        CHECK(!wrong);
    }
    CHECK_INT(soak->service.bad_bodies, 0);
}

static void print_run(int64_t took_us)
{
    const struct soak_service *service = &soak->service;
    int faulty = service->requests - service->faults[SOAK_FINE];
    printf("  %" PRIu32 " operations%s, seed %" PRIu64 ": %" PRIu32 " succeeded, %" PRIu32
           " not applied, %" PRIu32 " unknown, %" PRIu32 " cancelled; %d requests, %d with a fault, "
           "at most %d descriptors, %ld KiB resident and then %ld, %ld KiB "
           "used and then %ld, %.1f s\n",
           service->operations, soak->over_tls ? " over TLS" : "", service->seed, soak->succeeded,
           soak->not_applied, soak->unknown, soak->cancelled, service->requests, faulty,
           soak->most_descriptors, soak->resident_early / 1024, soak->resident_late / 1024,
           soak->used_early / 1024, soak->used_late / 1024, (double)took_us / 1e6);
}

static void run(uint64_t seed, uint32_t operations, bool over_tls)
{
    int64_t begun_us = real_us();
    /* Large buffers go back to the system when they are freed, so that what is resident tells. */
    (void)mallopt(M_MMAP_THRESHOLD, 128 << 10);
    (void)soak_bytes_fd();
    if (over_tls)
        (void)net_tls_ca_file();
    int descriptors = open_descriptors();
    soak = calloc(1, sizeof *soak);
    soak->over_tls = over_tls;
    printf("  seed %" PRIu64 "\n", seed);
    soak_service_start(&soak->service, seed, operations);
    open_engine(seed);
    for (uint32_t number = 0; number < operations && !soak->stuck; number++) {
        launch(number);
        check_memory(number, operations);
    }
    while (soak->in_flight > 0 && !soak->stuck)
        land_one();
    ts3_test_label("seed %" PRIu64, seed);
    check_quota();
    /* Each connection has both its ends in this process, and two more behind the TLS; each upload has its file. */
    int ends = over_tls ? 4 : 2;
    int connections = TS3_LOOP_CONNECTIONS * (int)soak->net.config.max_connections;
    CHECK(soak->most_descriptors <= descriptors + IN_FLIGHT + connections * ends);
    net_engine_free(&soak->net);
    if (over_tls)
        net_tls_stop(&soak->tls);
    soak_service_stop(&soak->service);
    CHECK_INT(atomic_load(&soak->live), 0);
    CHECK_INT(open_descriptors(), descriptors);
    CHECK(soak->succeeded > operations / 2);
    CHECK_INT(soak->succeeded + soak->not_applied + soak->unknown + soak->cancelled, operations);
    check_claims();
    print_run(real_us() - begun_us);
    soak_service_free(&soak->service);
    free(soak);
}

static uint64_t environment(const char *name, uint64_t usual)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : usual;
}

TEST(random_faults)
{
    run(environment("TS3_SOAK_SEED", 20130524),
        (uint32_t)environment("TS3_SOAK_OPERATIONS", TS3_SOAK_OPERATIONS), false);
}

TEST(random_faults_over_tls)
{
    uint64_t operations = environment("TS3_SOAK_OPERATIONS", TS3_SOAK_OPERATIONS) / 50;
    run(environment("TS3_SOAK_SEED", 20130524), (uint32_t)(operations < 200 ? 200 : operations),
        true);
}

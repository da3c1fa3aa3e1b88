/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The service of the soak. See test_net_soak.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "test_net_soak.h"

#define COMMON "Date: Fri, 24 May 2013 00:00:00 GMT\r\nx-amz-request-id: RID\r\n"

enum { HEAD_BYTES = 512, DOCUMENT_BYTES = 32768, JOINED_BYTES = 70000,
       SEGMENT_BYTES = 16000 };

/* A request being answered. */
struct visit {
    struct soak_service *service;
    uint32_t number;
    struct soak_op op;
    const struct net_seen *seen;
    struct soak_record *record;
    /* the answer */
    char head[HEAD_BYTES];
    char document[DOCUMENT_BYTES];
    const unsigned char *body;
    size_t body_size;
    bool bare; /* to HEAD: the body is only told of */
};

/* --- what is done; under the mutex --- */

static void apply(struct visit *visit)
{
    struct soak_service *service = visit->service;
    uint32_t version = visit->number + 1;
    switch (visit->op.kind) {
    case SOAK_PUT_BYTES:
    case SOAK_PUT_FILE:
    case SOAK_COMPLETE:
    case SOAK_COPY:
        service->version[visit->op.key] = version;
        break;
    case SOAK_DELETE_TWO:
        if (!visit->op.second_refused)
            service->version[(visit->op.key + 1) % SOAK_KEYS] = 0;
        service->version[visit->op.key] = 0;
        break;
    case SOAK_DELETE:
        service->version[visit->op.key] = 0;
        break;
    default:
        break;
    }
    if (soak_writes(visit->op.kind))
        visit->record->applied = true;
}

static size_t size_of_version(const struct soak_service *service, uint32_t version)
{
    return soak_plan(service->seed, version - 1).size;
}

/* --- what is said --- */

static void say(struct visit *visit, const char *status, const char *headers, const void *body,
                size_t size)
{
    visit->body = body;
    visit->body_size = size;
    int length = snprintf(visit->head, HEAD_BYTES,
                          "HTTP/1.1 %s\r\n" COMMON "%sContent-Length: %zu\r\n\r\n", status, headers,
                          size);
    if (length < 0 || length >= HEAD_BYTES)
        abort();
}

static void say_document(struct visit *visit, const char *status, const char *headers)
{
    say(visit, status, headers, visit->document, strlen(visit->document));
}

static void say_error(struct visit *visit, const char *status, const char *headers,
                      const char *code)
{
    (void)snprintf(visit->document, DOCUMENT_BYTES,
                   "<Error><Code>%s</Code><Message>because</Message></Error>", code);
    say_document(visit, status, headers);
}

static void serve_version(struct visit *visit, uint32_t version)
{
    struct soak_record *record = visit->record;
    if (record->served != 0 && record->served != version)
        record->changed = true;
    record->served = version;
}

static void say_object(struct visit *visit)
{
    char headers[200];
    uint32_t version = visit->service->version[visit->op.key];
    if (version == 0) {
        visit->record->absent = true;
        say_error(visit, "404 Not Found", "", "NoSuchKey");
        return;
    }
    size_t size = size_of_version(visit->service, version);
    const char *range = net_header(visit->seen, "range");
    size_t first = range ? (size_t)strtoull(range + 6, NULL, 10) : 0;
    size_t last = range ? (size_t)strtoull(strchr(range, '-') + 1, NULL, 10) : size - 1;
    if (first >= size) {
        visit->record->outside = true;
        (void)snprintf(headers, sizeof headers, "Content-Range: bytes */%zu\r\n", size);
        say_error(visit, "416 Range Not Satisfiable", headers, "InvalidRange");
        return;
    }
    if (last >= size)
        last = size - 1;
    serve_version(visit, version);
    int used = snprintf(headers, sizeof headers, "ETag: \"v%u\"\r\n", version);
    if (range != NULL)
        (void)snprintf(headers + used, sizeof headers - (size_t)used,
                       "Content-Range: bytes %zu-%zu/%zu\r\n", first, last, size);
    say(visit, range ? "206 Partial Content" : "200 OK", headers, soak_bytes(version - 1) + first,
        last - first + 1);
}

uint32_t soak_sum(uint32_t sum, int key, uint32_t version, size_t size)
{
    return (sum * 31 + (uint32_t)key) * 31 + version * 7 + (uint32_t)size;
}

static void say_listing(struct visit *visit)
{
    const struct soak_service *service = visit->service;
    char *text = visit->document;
    int used = snprintf(text, DOCUMENT_BYTES,
                        "<ListBucketResult><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>");
    uint32_t sum = 0;
    for (int key = 0; key < SOAK_KEYS; key++) {
        uint32_t version = service->version[key];
        if (version == 0)
            continue;
        size_t size = size_of_version(service, version);
        used += snprintf(text + used, (size_t)(DOCUMENT_BYTES - used),
                         "<Contents><Key>k%d</Key><LastModified>2013-05-24T00:00:00.000Z"
                         "</LastModified><ETag>\"v%u\"</ETag><Size>%zu</Size></Contents>",
                         key, version, size);
        sum = soak_sum(sum, key, version, size);
    }
    (void)snprintf(text + used, (size_t)(DOCUMENT_BYTES - used), "</ListBucketResult>");
    visit->record->listed = sum;
    say_document(visit, "200 OK", "");
}

static void say_deleted(struct visit *visit)
{
    int second = (visit->op.key + 1) % SOAK_KEYS;
    (void)snprintf(visit->document, DOCUMENT_BYTES,
                   visit->op.second_refused
                       ? "<DeleteResult><Deleted><Key>k%d</Key></Deleted><Error><Key>k%d</Key>"
                         "<Code>AccessDenied</Code></Error></DeleteResult>"
                       : "<DeleteResult><Deleted><Key>k%d</Key></Deleted><Deleted><Key>k%d</Key>"
                         "</Deleted></DeleteResult>",
                   visit->op.key, second);
    say_document(visit, "200 OK", "");
}

static void say_result(struct visit *visit)
{
    static const char *const formats[SOAK_KINDS] = {
        [SOAK_CREATE] = "<InitiateMultipartUploadResult><UploadId>u%u</UploadId>"
                        "</InitiateMultipartUploadResult>",
        [SOAK_COMPLETE] = "\n  <CompleteMultipartUploadResult><ETag>\"v%u\"</ETag>"
                          "</CompleteMultipartUploadResult>",
        [SOAK_COPY] = "<CopyObjectResult><ETag>\"v%u\"</ETag></CopyObjectResult>",
        [SOAK_UPLOADS] = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload>"
                         "<Key>k</Key><UploadId>u%u</UploadId></Upload>"
                         "</ListMultipartUploadsResult>",
    };
    (void)snprintf(visit->document, DOCUMENT_BYTES, formats[visit->op.kind], visit->number + 1);
    say_document(visit, "200 OK", "");
}

/* What the service truly has to say, now that it has done what it was asked. */
static void say_truth(struct visit *visit)
{
    char etag[40];
    (void)snprintf(etag, sizeof etag, "ETag: \"v%u\"\r\n", visit->number + 1);
    switch (visit->op.kind) {
    case SOAK_GET_RANGE:
    case SOAK_GET_BYTES:
    case SOAK_HEAD:
        say_object(visit);
        return;
    case SOAK_PUT_BYTES:
    case SOAK_PUT_FILE:
    case SOAK_PART:
        say(visit, "200 OK", etag, "", 0);
        return;
    case SOAK_DELETE:
        say(visit, "204 No Content", "", "", 0);
        return;
    case SOAK_DELETE_TWO:
        say_deleted(visit);
        return;
    case SOAK_LIST:
        say_listing(visit);
        return;
    default:
        say_result(visit);
        return;
    }
}

static void check_body(struct visit *visit)
{
    enum soak_kind kind = visit->op.kind;
    if (kind != SOAK_PUT_BYTES && kind != SOAK_PUT_FILE && kind != SOAK_PART)
        return;
    const struct net_seen *seen = visit->seen;
    if (seen->body_size != visit->op.size ||
        memcmp(seen->body, soak_bytes(visit->number), seen->body_size) != 0)
        visit->service->bad_bodies++;
}

/* --- what goes wrong --- */

static bool has_late_errors(enum soak_kind kind)
{
    return kind == SOAK_DELETE_TWO || kind == SOAK_CREATE || kind == SOAK_COMPLETE ||
           kind == SOAK_COPY;
}

static bool is_xml(enum soak_kind kind)
{
    return has_late_errors(kind) || kind == SOAK_LIST || kind == SOAK_UPLOADS;
}

static void say_wrong_range(struct visit *visit)
{
    char headers[100];
    (void)snprintf(headers, sizeof headers,
                   "ETag: \"v%u\"\r\nContent-Range: bytes 70000000-70000001/80000000\r\n",
                   visit->record->served);
    say(visit, "206 Partial Content", headers, "xx", 2);
}

/* Does, or does not, and prepares what is said. */
static void act(struct visit *visit, enum soak_fault fault)
{
    if (fault == SOAK_FINE || fault >= SOAK_ERROR_AFTER) {
        apply(visit);
        say_truth(visit);
    }
    if (fault == SOAK_SLOW_DOWN)
        say_error(visit, "503 Slow", "", "SlowDown");
    else if (fault == SOAK_RETRY_AFTER)
        say_error(visit, "429 Slow", "Retry-After: 1\r\n", "TooManyRequests");
    else if (fault == SOAK_INVALID)
        say_error(visit, "400 Bad", "", "InvalidRequest");
    else if (fault == SOAK_ERROR || fault == SOAK_ERROR_AFTER)
        say_error(visit, "500 Oops", "", "InternalError");
    else if (fault == SOAK_LATE_ERROR && has_late_errors(visit->op.kind))
        say_error(visit, "200 OK", "", "InternalError");
    else if (fault == SOAK_MALFORMED && is_xml(visit->op.kind))
        say(visit, "200 OK", "", "<ListBucketResult><Key>", 23);
    else if (fault == SOAK_WRONG_RANGE && visit->op.kind == SOAK_GET_RANGE)
        say_wrong_range(visit);
}

/* more comes at once with the answer, where that fits; a little later nobody could tell it from the
 * answer to the next request. */
static void send_answer(int fd, const struct visit *visit, size_t limit, const char *more)
{
    char joined[JOINED_BYTES];
    size_t head = strlen(visit->head);
    size_t body = visit->bare ? 0 : visit->body_size;
    size_t behind = strlen(more);
    body = head + body > limit ? limit - head : body;
    if (head + body + behind <= sizeof joined) {
        memcpy(joined, visit->head, head);
        memcpy(joined + head, body ? visit->body : (const unsigned char *)"", body);
        memcpy(joined + head + body, more, behind);
        net_send(fd, joined, head + body + behind);
        return;
    }
    net_send(fd, visit->head, head);
    net_send(fd, visit->body, body);
}

static void drip(int fd, const struct visit *visit)
{
    for (const char *at = visit->head; *at != '\0'; at++)
        net_send(fd, at, 1);
    if (!visit->bare)
        net_send(fd, visit->body, visit->body_size);
}

static enum net_then reply(int fd, const struct visit *visit, enum soak_fault fault)
{
    size_t head = strlen(visit->head);
    switch (fault) {
    case SOAK_RESET:
    case SOAK_LOST:
        return NET_RESET;
    case SOAK_CLOSE:
        return NET_CLOSE;
    case SOAK_SILENT:
    case SOAK_SILENT_AFTER:
        return NET_HOLD;
    case SOAK_CUT_HEAD:
        net_send(fd, visit->head, head / 2);
        return NET_CLOSE;
    case SOAK_CUT_BODY:
        if (visit->body_size == 0 || visit->bare)
            return NET_RESET;
        send_answer(fd, visit, head + visit->body_size / 2, "");
        return visit->number % 2 ? NET_CLOSE : NET_RESET;
    case SOAK_GARBAGE:
        net_send(fd, "HTTP/1.1 what is this\r\n\r\n", 25);
        return NET_CLOSE;
    case SOAK_DRIP:
        drip(fd, visit);
        return NET_KEEP;
    default:
        break;
    }
    const char *surplus = "HTTP/1.1 200 OK\r\nETag: \"v9\"\r\nContent-Length: 0\r\n\r\n";
    /* What fits one segment arrives as one. */
    bool joined = head + (visit->bare ? 0 : visit->body_size) < SEGMENT_BYTES;
    send_answer(fd, visit, SIZE_MAX, fault == SOAK_SURPLUS && joined ? surplus : "");
    if (fault == SOAK_LATE_408) {
        usleep(500);
        net_send_reply(fd, NET_REPLY("408 Late", "", "@", "<Error><Code>RequestTimeout</Code></Error>"));
    }
    return fault == SOAK_CLOSE_AFTER ? NET_CLOSE : NET_KEEP;
}

static enum net_then on_request(struct net_server *server, int fd, int unused,
                                const struct net_seen *seen)
{
    struct soak_service *service = server->ctx;
    const char *number = net_header(seen, "x-amz-meta-op");
    struct visit visit;
    (void)unused;
    if (number == NULL)
        abort();
    visit.service = service;
    visit.number = (uint32_t)strtoul(number, NULL, 10);
    visit.seen = seen;
    visit.op = soak_plan(service->seed, visit.number);
    visit.record = &service->records[visit.number];
    visit.head[0] = '\0';
    visit.body_size = 0;
    visit.bare = visit.op.kind == SOAK_HEAD;
    pthread_mutex_lock(&service->mutex);
    enum soak_fault fault = soak_fault(service->seed, visit.number, visit.record->attempts++);
    service->faults[fault]++;
    service->requests++;
    check_body(&visit);
    act(&visit, fault);
    pthread_mutex_unlock(&service->mutex);
    return reply(fd, &visit, fault);
}

void soak_service_start(struct soak_service *service, uint64_t seed, uint32_t operations)
{
    memset(service, 0, sizeof *service);
    service->seed = seed;
    service->operations = operations;
    service->records = malloc(operations * sizeof *service->records);
    if (service->records == NULL)
        abort();
    memset(service->records, 0, operations * sizeof *service->records); /* all of it is there now */
    pthread_mutex_init(&service->mutex, NULL);
    service->server.script = on_request;
    service->server.ctx = service;
    service->server.forgets = true;
    net_server_start(&service->server);
}

void soak_service_stop(struct soak_service *service)
{
    net_server_stop(&service->server);
}

void soak_service_free(struct soak_service *service)
{
    pthread_mutex_destroy(&service->mutex);
    free(service->records);
}

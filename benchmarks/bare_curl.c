/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bare libcurl, the yardstick of the benchmarks: requests over kept connections, unsigned, answers
 * copied into memory, nothing checked but the status.
 *
 *   bare_curl METHOD URL COUNT PARALLEL [--bytes N] [--hop] [--hash] [--hash-alone] [--fresh]
 *             [--perform] [--headers] [--cacert FILE] [--buffer KIB] [--upload KIB]
 *
 * METHOD GET or PUT.  --bytes: of the body of a PUT; of a GET, one range after the other, each
 * request the next (without it, the object whole).  With PARALLEL 1 requests go by
 * curl_easy_perform(), else by curl_multi_socket_action() over epoll, or, with --perform, by
 * curl_multi_perform() and curl_multi_poll().  --hop (PARALLEL 1): each request is handed to another
 * thread and its end told back, both through an eventfd, as a library with a thread of its own must.
 * --hash: SHA-256 of each PUT's body before it is sent, on the same thread; --hash-alone: and nothing
 * is sent.  --fresh: the bytes of
 * each GET land in memory of their own, taken before and freed after it, as a program needs that
 * keeps them; without it each connection has one buffer, which stays in the processor's cache.
 * --headers: with headers as long as those of a signed request, always the same.
 * --cacert: trust this for https.  --buffer: libcurl's buffer of what comes in, 64 KiB; --upload: of
 * what goes out, 256 KiB, over https 64, which are the quickest here.
 *
 * Prints "wall_s cpu_s" of all but the first PARALLEL requests, which open the connections; with
 * PARALLEL 1, then each request's microseconds, one a line.  A request that fails ends it with 1.
 * Sockets stay in the epoll set between two requests, which saves two system calls each.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <curl/curl.h>
#include <openssl/evp.h>

enum { MAX_PARALLEL = 256, EVENTS = 64, MAX_FDS = 4096 };

struct place {
    CURL *easy;
    char *into;
    size_t len;
    size_t cap;
};

struct bench {
    bool put, hop, hash, hash_alone, fresh, perform, headers;
    const char *url, *cacert;
    long buffer_bytes, upload_bytes;
    size_t count, parallel, bytes;
    size_t started, ended;
    char *body;
    struct place place[MAX_PARALLEL];
    CURLM *multi;
    int epoll_fd;
    uint32_t watched[MAX_FDS]; /* what the epoll set has, by descriptor */
    bool idle[MAX_FDS];        /* libcurl has no use for it now */
    long timeout_ms;
    int to_fd, from_fd; /* of the hop */
    bool quit;
    double begun_s, begun_cpu_s;
};

static void must(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "bare_curl: %s\n", what);
    exit(1);
}

static double clock_s(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static size_t on_body(char *bytes, size_t one, size_t size, void *arg)
{
    struct place *place = arg;
    (void)one;
    if (place->len + size > place->cap) {
        place->cap = 2 * (place->len + size);
        place->into = realloc(place->into, place->cap);
        must(place->into != NULL, "no memory");
    }
    memcpy(place->into + place->len, bytes, size);
    place->len += size;
    return size;
}

static void set(CURL *easy, CURLoption option, long value)
{
    must(curl_easy_setopt(easy, option, value) == CURLE_OK, "curl_easy_setopt");
}

static int on_close(void *arg, curl_socket_t fd)
{
    struct bench *bench = arg;
    if (fd < MAX_FDS)
        bench->watched[fd] = 0;
    return close(fd);
}

static void open_place(struct bench *bench, struct place *place, struct curl_slist *headers)
{
    place->easy = curl_easy_init();
    must(place->easy != NULL, "curl_easy_init");
    CURL *easy = place->easy;
    set(easy, CURLOPT_NOSIGNAL, 1);
    set(easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    set(easy, CURLOPT_FAILONERROR, 1);
    set(easy, CURLOPT_BUFFERSIZE, bench->buffer_bytes);
    set(easy, CURLOPT_UPLOAD_BUFFERSIZE, bench->upload_bytes);
    bool good = curl_easy_setopt(easy, CURLOPT_URL, bench->url) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_PROXY, "") == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_WRITEDATA, place) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, bench) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_PRIVATE, place) == CURLE_OK;
    if (good && bench->cacert != NULL) /* a CAPATH would keep libcurl from loading it only once */
        good = curl_easy_setopt(easy, CURLOPT_CAPATH, NULL) == CURLE_OK &&
               curl_easy_setopt(easy, CURLOPT_CAINFO, bench->cacert) == CURLE_OK;
    if (good && bench->put) { /* as a POST: quicker in libcurl than an upload */
        set(easy, CURLOPT_POST, 1);
        good =
            curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, "PUT") == CURLE_OK &&
            curl_easy_setopt(easy, CURLOPT_POSTFIELDS, bench->body) == CURLE_OK &&
            curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)bench->bytes) ==
                CURLE_OK;
    }
    good = good && curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers) == CURLE_OK;
    must(good, "curl_easy_setopt");
    /* Memory of the right size from the start, as one who knows the range's length would have. */
    place->cap = bench->put || bench->bytes == 0 ? 16384 : bench->bytes;
    place->into = bench->fresh ? NULL : malloc(place->cap);
    must(bench->fresh || place->into != NULL, "no memory");
}

static void hash_body(const struct bench *bench)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    must(EVP_Digest(bench->body, bench->bytes, digest, NULL, EVP_sha256(), NULL), "EVP_Digest");
}

static void next_request(struct bench *bench, struct place *place)
{
    size_t index = bench->started++;
    place->len = 0;
    if (bench->fresh) {
        place->into = malloc(place->cap);
        must(place->into != NULL, "no memory");
    }
    if (bench->put) {
        if (bench->hash)
            hash_body(bench);
    } else if (bench->bytes > 0) {
        char range[64];
        snprintf(range, sizeof range, "%zu-%zu", index * bench->bytes,
                 (index + 1) * bench->bytes - 1);
        must(curl_easy_setopt(place->easy, CURLOPT_RANGE, range) == CURLE_OK, "CURLOPT_RANGE");
    }
}

static void note_begin(struct bench *bench)
{
    bench->begun_s = clock_s(CLOCK_MONOTONIC);
    bench->begun_cpu_s = clock_s(CLOCK_PROCESS_CPUTIME_ID);
}

static void note_end(struct bench *bench, struct place *place, CURLcode code)
{
    must(code == CURLE_OK, curl_easy_strerror(code));
    if (bench->fresh) {
        free(place->into);
        place->into = NULL;
    }
    if (++bench->ended == bench->parallel)
        note_begin(bench);
}

/* --- one after the other --- */

static void perform(struct bench *bench)
{
    next_request(bench, &bench->place[0]);
    note_end(bench, &bench->place[0], curl_easy_perform(bench->place[0].easy));
}

static void signal_fd(int fd)
{
    uint64_t one = 1;
    must(write(fd, &one, sizeof one) == sizeof one, "write");
}

static void wait_fd(int fd)
{
    uint64_t value;
    must(read(fd, &value, sizeof value) == sizeof value, "read");
}

static void *hop_main(void *arg)
{
    struct bench *bench = arg;
    for (;;) {
        wait_fd(bench->to_fd);
        if (bench->quit)
            return NULL;
        perform(bench);
        signal_fd(bench->from_fd);
    }
}

static void run_single(struct bench *bench, double *times_s)
{
    pthread_t thread;
    if (bench->hop) {
        bench->to_fd = eventfd(0, EFD_CLOEXEC);
        bench->from_fd = eventfd(0, EFD_CLOEXEC);
        must(pthread_create(&thread, NULL, hop_main, bench) == 0, "pthread_create");
    }
    for (size_t i = 0; i < bench->count + 1; i++) {
        double begun_s = clock_s(CLOCK_MONOTONIC);
        if (bench->hop) {
            signal_fd(bench->to_fd);
            wait_fd(bench->from_fd);
        } else {
            perform(bench);
        }
        times_s[i] = clock_s(CLOCK_MONOTONIC) - begun_s;
    }
    if (bench->hop) {
        bench->quit = true;
        signal_fd(bench->to_fd);
        pthread_join(thread, NULL);
    }
}

static void run_hash(struct bench *bench)
{
    hash_body(bench);
    note_begin(bench);
    for (size_t i = 0; i < bench->count; i++)
        hash_body(bench);
}

/* --- many at once --- */

static int on_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct bench *bench = arg;
    (void)multi;
    bench->timeout_ms = timeout_ms;
    return 0;
}

static int on_watch(CURL *easy, curl_socket_t fd, int what, void *arg, void *unused)
{
    struct bench *bench = arg;
    (void)easy;
    (void)unused;
    must(fd < MAX_FDS, "too many descriptors");
    bench->idle[fd] = what == CURL_POLL_REMOVE;
    struct epoll_event event = {.data.fd = fd};
    event.events = (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0) |
                   (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0);
    if (bench->idle[fd] || bench->watched[fd] == event.events)
        return 0; /* an idle one stays as it is: the next request wants the same */
    int operation = bench->watched[fd] ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    must(epoll_ctl(bench->epoll_fd, operation, fd, &event) == 0, "epoll_ctl");
    bench->watched[fd] = event.events;
    return 0;
}

static void take_ended(struct bench *bench)
{
    CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(bench->multi, &left)) != NULL) {
        struct place *place;
        CURL *easy = message->easy_handle;
        (void)curl_easy_getinfo(easy, CURLINFO_PRIVATE, &place);
        note_end(bench, place, message->data.result);
        (void)curl_multi_remove_handle(bench->multi, easy);
        if (bench->started == bench->count + bench->parallel)
            continue;
        next_request(bench, place);
        must(curl_multi_add_handle(bench->multi, easy) == CURLM_OK, "curl_multi_add_handle");
    }
}

/* What libcurl's timer is due for.  libcurl tells of it only when its time changes. */
static void run_timer(struct bench *bench)
{
    int running;
    long left_ms = -1;
    bench->timeout_ms = -1;
    (void)curl_multi_socket_action(bench->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    if (bench->timeout_ms < 0 && curl_multi_timeout(bench->multi, &left_ms) == CURLM_OK &&
        left_ms >= 0)
        bench->timeout_ms = left_ms > 0 ? left_ms : 1;
    take_ended(bench);
}

static void turn(struct bench *bench)
{
    int running;
    struct epoll_event events[EVENTS];
    int count = epoll_wait(bench->epoll_fd, events, EVENTS, (int)bench->timeout_ms);
    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        uint32_t what = events[i].events;
        if (bench->idle[fd]) { /* the service has closed it; libcurl sees that before it is used */
            (void)epoll_ctl(bench->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
            bench->watched[fd] = 0;
            continue;
        }
        (void)curl_multi_socket_action(bench->multi, fd,
                                       (what & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                                           (what & ~(uint32_t)EPOLLOUT ? CURL_CSELECT_IN : 0),
                                       &running);
    }
    if (count == 0)
        run_timer(bench);
    else
        take_ended(bench);
    while (bench->timeout_ms == 0) /* what was added goes out now, not a poll later */
        run_timer(bench);
}

static void turn_performing(struct bench *bench)
{
    int running;
    size_t ended = bench->ended;
    (void)curl_multi_perform(bench->multi, &running);
    take_ended(bench);
    if (bench->ended == ended)
        (void)curl_multi_poll(bench->multi, NULL, 0, 1000, NULL);
}

static void run_many(struct bench *bench)
{
    bench->multi = curl_multi_init();
    bench->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    (void)curl_multi_setopt(bench->multi, CURLMOPT_MAXCONNECTS, (long)bench->parallel);
    if (!bench->perform) {
        (void)curl_multi_setopt(bench->multi, CURLMOPT_SOCKETFUNCTION, on_watch);
        (void)curl_multi_setopt(bench->multi, CURLMOPT_SOCKETDATA, bench);
        (void)curl_multi_setopt(bench->multi, CURLMOPT_TIMERFUNCTION, on_timer);
        (void)curl_multi_setopt(bench->multi, CURLMOPT_TIMERDATA, bench);
    }
    for (size_t i = 0; i < bench->parallel; i++) {
        next_request(bench, &bench->place[i]);
        must(curl_multi_add_handle(bench->multi, bench->place[i].easy) == CURLM_OK, "add_handle");
    }
    if (!bench->perform)
        run_timer(bench);
    while (bench->ended < bench->count + bench->parallel) {
        if (bench->perform)
            turn_performing(bench);
        else
            turn(bench);
    }
}

static void parse(struct bench *bench, int argc, char **argv)
{
    must(argc >= 5, "METHOD URL COUNT PARALLEL [options]");
    bench->buffer_bytes = 64 << 10;
    bench->put = strcmp(argv[1], "PUT") == 0;
    bench->url = argv[2];
    bench->upload_bytes = strncmp(bench->url, "https:", 6) == 0 ? 64 << 10 : 256 << 10;
    bench->count = strtoul(argv[3], NULL, 10);
    bench->parallel = strtoul(argv[4], NULL, 10);
    must(bench->parallel >= 1 && bench->parallel <= MAX_PARALLEL, "PARALLEL is 1 to 256");
    for (int i = 5; i < argc; i++) {
        if (strcmp(argv[i], "--bytes") == 0 && i + 1 < argc)
            bench->bytes = strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--hop") == 0)
            bench->hop = true;
        else if (strcmp(argv[i], "--hash") == 0)
            bench->hash = true;
        else if (strcmp(argv[i], "--hash-alone") == 0)
            bench->hash_alone = true;
        else if (strcmp(argv[i], "--fresh") == 0)
            bench->fresh = true;
        else if (strcmp(argv[i], "--perform") == 0)
            bench->perform = true;
        else if (strcmp(argv[i], "--headers") == 0)
            bench->headers = true;
        else if (strcmp(argv[i], "--cacert") == 0 && i + 1 < argc)
            bench->cacert = argv[++i];
        else if (strcmp(argv[i], "--buffer") == 0 && i + 1 < argc)
            bench->buffer_bytes = strtol(argv[++i], NULL, 10) << 10;
        else if (strcmp(argv[i], "--upload") == 0 && i + 1 < argc)
            bench->upload_bytes = strtol(argv[++i], NULL, 10) << 10;
        else
            must(false, "an option that is not known");
    }
    must(!bench->hop || bench->parallel == 1, "--hop is for one request at a time");
}

static struct curl_slist *make_headers(const struct bench *bench)
{
    static const char *const as_signed[] = {
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date, "
        "Signature=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "x-amz-date: 20150830T123600Z",
        "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    };
    struct curl_slist *headers = NULL;
    if (bench->put) {
        headers = curl_slist_append(headers, "Expect:");
        headers = curl_slist_append(headers, "Content-Type: application/octet-stream");
    }
    for (size_t i = 0; bench->headers && i < sizeof as_signed / sizeof *as_signed; i++)
        headers = curl_slist_append(headers, as_signed[i]);
    return headers;
}

int main(int argc, char **argv)
{
    static struct bench bench;
    parse(&bench, argc, argv);
    must(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK, "curl_global_init");
    bench.body = malloc(bench.bytes + 1);
    double *times_s = calloc(bench.count + 1, sizeof *times_s);
    must(bench.body != NULL && times_s != NULL, "no memory");
    memset(bench.body, 'b', bench.bytes + 1); /* else all of it is one page of zeros in the cache */
    struct curl_slist *headers = make_headers(&bench);
    for (size_t i = 0; i < bench.parallel; i++)
        open_place(&bench, &bench.place[i], headers);
    if (bench.hash_alone)
        run_hash(&bench);
    else if (bench.parallel == 1)
        run_single(&bench, times_s);
    else
        run_many(&bench);
    printf("%.6f %.6f\n", clock_s(CLOCK_MONOTONIC) - bench.begun_s,
           clock_s(CLOCK_PROCESS_CPUTIME_ID) - bench.begun_cpu_s);
    for (size_t i = 1; bench.parallel == 1 && !bench.hash_alone && i < bench.count + 1; i++)
        printf("%.1f\n", times_s[i] * 1e6);
    for (size_t i = 0; i < bench.parallel; i++) {
        curl_easy_cleanup(bench.place[i].easy);
        free(bench.place[i].into);
    }
    if (bench.multi != NULL) {
        (void)curl_multi_cleanup(bench.multi);
        close(bench.epoll_fd);
    }
    curl_slist_free_all(headers);
    free(times_s);
    free(bench.body);
    curl_global_cleanup();
    return 0;
}

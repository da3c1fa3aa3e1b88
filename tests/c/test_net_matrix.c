/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Plays the cells of the fault matrix. See test_net_matrix.h.
 *
 * TS3_MATRIX (environment) plays those cells whose names have it in them, "PUT of bytes: 503" for
 * instance.
 *
 * The clock stands still. It is moved when the server has fallen silent, and when the engine waits
 * before its next attempt, by exactly what the rules say: so an attempt that is too early or too
 * late is seen as a wrong total time. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "test_net_matrix_acts.h"

#ifndef TS3_MATRIX_SHARE
#define TS3_MATRIX_SHARE 1 /* the Makefile gives less to what is slow */
#endif

enum { HANG_MS = 20000, QUIET_MS = 2, SENT_MS = 20, IMPATIENT_MS = 60, FILLERS = 2 };

struct play {
    struct matrix_cell cell;
    struct matrix_expect expect;
    struct net_server server;
    struct net_engine net;
    struct net_tls tls;
    struct ts3_window *window;
    int fillers[FILLERS]; /* connections that fill a queue nobody accepts from */
    int base_connections; /* of what prepared the request */
    int base_attempts;
    int waited; /* delays that have passed */
    int silences; /* that have passed */
};

static struct play play; /* large, and one at a time */
static int cells;
static bool hung;

static int64_t real_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The longest delay that may be drawn, whatever it is drawn from. */
static uint64_t longest(void *ctx)
{
    (void)ctx;
    return 51ull * 101 * 201 * 401 * 1001 * 2001 * 4001 - 1;
}

/* --- the server's side --- */

static bool meets_fault(const struct matrix_cell *cell, int hit)
{
    return cell->mode != MODE_ONCE || hit == 0;
}

static enum net_then act_on(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            bool fault)
{
    struct matrix_reply reply;
    matrix_true_reply(cell->op, seen, &reply);
    if (fault && cell->fault->act != NULL)
        return cell->fault->act(cell, fd, seen, &reply);
    return matrix_true(cell, fd, seen, &reply);
}

static enum net_then on_head(struct net_server *server, int fd, int number,
                             const struct net_seen *seen)
{
    struct matrix_cell *cell = server->ctx;
    (void)number;
    if (cell->preparing)
        return NET_KEEP;
    int hit = atomic_fetch_add(&cell->hits, 1);
    if (!cell->fault->early || !meets_fault(cell, hit))
        return NET_KEEP;
    return act_on(cell, fd, seen, true);
}

/* An answer to the request that makes the connection a used one, and what comes late on it. */
static enum net_then prepare_connection(struct matrix_cell *cell, int fd)
{
    const struct matrix_fault *fault = cell->fault;
    net_send_reply(fd, "HTTP/1.1 200 OK\r\nETag: \"w\"\r\nContent-Length: 0\r\n\r\n");
    if (fault->act != NULL || fault->special != WARM || atomic_load(&cell->late) == 2)
        return NET_KEEP;
    while (atomic_load(&cell->late) == 0)
        usleep(200);
    net_send(fd, fault->text, strlen(fault->text));
    if (fault->arg == ACT_RESET)
        net_reset(fd);
    if (fault->arg == ACT_CLOSE)
        (void)shutdown(fd, SHUT_WR);
    atomic_store(&cell->late, 2);
    return fault->arg == ACT_KEEP ? NET_KEEP : NET_HOLD;
}

static enum net_then prepare_window(const struct net_seen *seen, int fd)
{
    struct matrix_reply reply;
    char text[2048];
    matrix_true_reply(&matrix_ops[0], seen, &reply);
    int head = snprintf(text, sizeof text, "HTTP/1.1 %s\r\n%s%s\r\n", reply.status, reply.headers,
                        reply.length);
    memcpy(text + head, reply.body, MATRIX_RESUMED);
    net_send(fd, text, (size_t)head + MATRIX_RESUMED);
    return NET_CLOSE;
}

static enum net_then on_request(struct net_server *server, int fd, int number,
                                const struct net_seen *seen)
{
    struct matrix_cell *cell = server->ctx;
    (void)number;
    if (cell->preparing)
        return net_header(seen, "range") != NULL ? prepare_window(seen, fd)
                                                 : prepare_connection(cell, fd);
    if (atomic_exchange(&cell->answered, false))
        return NET_KEEP;
    matrix_check_request(cell->op, seen);
    bool fault = !cell->fault->early && meets_fault(cell, atomic_load(&cell->hits) - 1);
    return act_on(cell, fd, seen, fault);
}

/* --- the client's side --- */

static void fill_spec(const struct matrix_op *op, struct ts3_request_spec *spec)
{
    ts3_request_spec_init(spec);
    spec->method = op->method;
    spec->parse = op->parse;
    spec->key = ts3_str_of(op->key);
    spec->query = op->query;
    while (spec->query_count < 3 && op->query[spec->query_count].name.len > 0)
        spec->query_count++;
    spec->headers = &op->header;
    spec->header_count = op->header.name.len > 0;
    spec->attempts = MATRIX_ATTEMPTS;
    spec->first_byte_ms = op->first_byte_ms;
    spec->stall_ms = MATRIX_STALL_MS;
    spec->body_size = op->body_size;
    if (op->from_file)
        spec->body_fd = matrix_bodies_fd();
    else if (op->body_size > 0)
        spec->body_data = matrix_bodies();
    if (op->traits & OP_ETAG)
        spec->expect_etag = "\"e1\"";
    if (op->traits & OP_WINDOW) {
        spec->into = play.window;
        spec->offset = MATRIX_OFFSET;
    }
}

static void close_fillers(void)
{
    for (int i = 0; i < FILLERS; i++) {
        if (play.fillers[i] > 0)
            close(play.fillers[i]);
        play.fillers[i] = 0;
    }
}

/* Listens, since the first attempt was refused. */
static void start_late(void)
{
    if (play.cell.mode != MODE_ONCE || play.server.listener.listening)
        return;
    close_fillers();
    net_server_listen(&play.server);
}

/* Moves the clock when the engine waits for its next attempt; whether it did. */
static bool pass_delay(void)
{
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(play.net.engine, &stats));
    if (stats.in_flight > 0 || (int)stats.retries <= play.waited ||
        play.waited + 1 >= MATRIX_ATTEMPTS)
        return false;
    start_late(); /* before the clock moves: the next attempt begins with that */
    int64_t delay_ms = play.expect.delays_ms[play.waited++];
    if (delay_ms > 0)
        net_engine_pass(&play.net, delay_ms);
    return true;
}

/* Moves the clock when the server says nothing to an attempt; whether it did. */
static bool pass_silence(void)
{
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(play.net.engine, &stats));
    bool connects = play.cell.fault->silence == SILENT_CONNECT;
    int silent = connects ? (int)stats.attempts : atomic_load(&play.cell.silences);
    if (stats.in_flight == 0 || silent <= play.silences || play.silences == play.expect.faulty)
        return false;
    play.silences++;
    net_engine_pass(&play.net, play.expect.silence_ms);
    return true;
}

/* Whether the attempt that is under way is one whose silence has passed already. */
static bool still_silent(void)
{
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(play.net.engine, &stats));
    return play.silences > 0 && stats.in_flight > 0 &&
           (int)stats.attempts - play.base_attempts == play.silences;
}

static void let_time_pass(int64_t *quiet_since_ms)
{
    bool silent = play.expect.silence_ms > 0;
    int64_t quiet_ms = real_ms() - *quiet_since_ms;
    /* What the kernels still move from one to the other is no silence. */
    bool sends = play.cell.fault->silence == SILENT_SEND;
    if (pass_delay() || (silent && quiet_ms >= (sends ? SENT_MS : QUIET_MS) && pass_silence())) {
        *quiet_since_ms = real_ms();
    } else if (silent && quiet_ms >= IMPATIENT_MS && still_silent()) {
        /* What was last heard was heard late. */
        net_engine_pass(&play.net, play.expect.silence_ms);
        *quiet_since_ms = real_ms();
    }
}

static bool await(uint64_t id, struct ts3_event *event)
{
    int64_t begun_ms = real_ms();
    int64_t quiet_since_ms = begun_ms;
    while (real_ms() - begun_ms < HANG_MS) {
        if (net_next(&play.net, event, 0)) {
            if (event->final && event->id == id)
                return true;
            ts3_event_clear(event);
            continue;
        }
        let_time_pass(&quiet_since_ms);
        usleep(real_ms() - begun_ms < 2 ? 50 : 300);
    }
    hung = true;
    return CHECK(!hung);
}

/* --- before the request that counts --- */

/* A listening socket whose queue is full: the next handshake gets no answer. */
static void fill_queue(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)play.server.port)};
    if (listen(play.server.listener.listen_fd, 0) != 0)
        abort();
    for (int i = 0; i < FILLERS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(fd, (struct sockaddr *)&address, sizeof address);
        play.fillers[i] = fd;
    }
    usleep(1000);
}

static void start_server(void)
{
    enum matrix_special special = play.cell.fault->special;
    int faulty = play.cell.mode == MODE_ONCE ? 1 : 1000;
    play.server = (struct net_server){
        .script = on_request, .early = on_head, .ctx = &play.cell, .forgets = true};
    if (special == AT_ACCEPT)
        atomic_init(&play.server.turned_away, faulty);
    net_server_bind(&play.server);
    if (special == UNANSWERED)
        fill_queue();
    else if (special != REFUSED)
        net_server_listen(&play.server);
    if (special == OVER_TLS)
        net_tls_start(&play.tls, play.server.port, (enum net_tls_fault)play.cell.fault->arg,
                      faulty);
}

static void open_engine(void)
{
    net_engine_init(&play.net, &play.server);
    play.net.rand = (struct ts3_rand){longest, NULL};
    play.net.config.retry_tokens = (uint32_t)play.expect.tokens;
    play.net.config.connect_ms = MATRIX_CONNECT_MS;
    if (play.cell.fault->special == OVER_TLS)
        net_tls_lead(&play.tls, &play.net);
    net_engine_open(&play.net);
}

/* Whether the beginning of the window can be had through this fault's server. */
static bool prepares(const struct matrix_op *op, const struct matrix_fault *fault)
{
    return !(op->traits & OP_RESUMED) ||
           (fault->special == PLAIN || fault->special == WARM);
}

static void prepare(void)
{
    struct matrix_cell *cell = &play.cell;
    struct ts3_request_spec spec;
    cell->preparing = true;
    if (cell->op->traits & OP_RESUMED) {
        fill_spec(cell->op, &spec);
        spec.attempts = 1;
        struct ts3_event event = net_run(&play.net, &spec);
        CHECK(event.failed);
        ts3_event_clear(&event);
        CHECK_INT(ts3_window_ready(play.window), MATRIX_RESUMED);
        play.base_connections++;
        play.base_attempts++;
    }
    if (cell->fault->special == WARM) {
        ts3_request_spec_init(&spec);
        spec.key = TS3_STR("warm");
        spec.attempts = 1;
        struct ts3_event event = net_run(&play.net, &spec);
        CHECK(!event.failed);
        ts3_event_clear(&event);
        play.base_connections++;
        play.base_attempts++;
        atomic_store(&cell->late, 1);
        while (cell->fault->act == NULL && atomic_load(&cell->late) == 1)
            usleep(200);
    }
    cell->preparing = false;
}

/* --- the comparison --- */

/* Connections that were made for the request: one for each attempt, but for those that could use
 * the last one's. */
static void check_connections(const struct ts3_event *event)
{
    const struct matrix_expect *expect = &play.expect;
    bool tls = play.cell.fault->special == OVER_TLS;
    int made = (tls ? atomic_load(&play.tls.listener.accepted) : net_connections(&play.server)) -
               play.base_connections;
    int attempts = (int)event->attempts;
    if (play.cell.fault->special == UNANSWERED)
        return; /* the fillers are among them */
    if (play.cell.fault->special == REFUSED)
        attempts -= expect->faulty;
    bool warm = play.cell.fault->special == WARM;
    if (expect->connection == CONN_KEPT)
        CHECK_INT(made, 1);
    else if (expect->connection == CONN_LOST)
        CHECK_INT(made, warm && play.cell.fault->act != NULL ? attempts - 1 : attempts);
    else
        CHECK(made >= 1 && made <= attempts);
}

static void check_failure(const struct ts3_event *event)
{
    const struct matrix_expect *expect = &play.expect;
    const struct ts3_failure *failure = &event->failure;
    if (!CHECK(1u << failure->kind & expect->kinds))
        printf("    kind %s: %s\n", ts3_kind_text(failure->kind), failure->message);
    if (!CHECK(1u << failure->outcome & expect->outcomes))
        printf("    outcome %d\n", (int)failure->outcome);
    if (expect->status >= 0)
        CHECK_INT(failure->status, expect->status);
    if (expect->code != NULL)
        CHECK_TEXT(ts3_str_of(failure->code), expect->code);
    CHECK(failure->message[0] != '\0');
}

static void check_time(const struct ts3_event *event)
{
    const struct matrix_expect *expect = &play.expect;
    int64_t least_ms = expect->silence_ms * (expect->success ? 1 : expect->faulty);
    int64_t delays_ms = 0;
    for (int i = 0; i + 1 < expect->attempts; i++)
        delays_ms += expect->delays_ms[i];
    int64_t total_ms = event->total_us / 1000;
    /* Bytes that the kernels take, though nobody reads them, are no silence yet. */
    int64_t most_ms = delays_ms + (play.cell.fault->silence == SILENT_SEND ? 3 : 2) * least_ms;
    if (play.cell.fault->special == WARM) /* libcurl sends again by itself, at once */
        CHECK(total_ms <= delays_ms);
    else if (expect->either && !event->failed && event->attempts == 1)
        CHECK_INT(total_ms, 0);
    else if (least_ms == 0)
        CHECK_INT(total_ms, delays_ms);
    else if (expect->success && expect->attempts == 1)
        CHECK(total_ms <= most_ms); /* all was there before the silence */
    else if (!CHECK(total_ms >= least_ms + delays_ms && total_ms <= most_ms))
        printf("    %d ms\n", (int)total_ms);
}

static void check_end(const struct ts3_event *event)
{
    const struct matrix_expect *expect = &play.expect;
    struct ts3_engine_stats stats;
    CHECK_OK(ts3_engine_stats(play.net.engine, &stats));
    bool lucky = expect->either && !event->failed && event->attempts == 1;
    if (!lucky) {
        CHECK_INT(event->attempts, expect->attempts);
        CHECK_INT(event->failed, !expect->success);
        CHECK_INT(stats.retries_denied, expect->denied);
    }
    if (event->failed && !expect->success)
        check_failure(event);
    else if (event->failed)
        printf("    %s, %s: %s\n", ts3_kind_text(event->failure.kind), event->failure.code,
               event->failure.message);
    if (play.cell.fault->special == WARM) /* found to be of no more use before it was used */
        CHECK_INT(stats.connections_dropped_stale, play.cell.fault->act == NULL);
    matrix_check_value(play.cell.op, event, play.window);
    check_connections(event);
    check_time(event);
}

/* Nothing of what went wrong is left to be taken for the answer to the next request. */
static void follow_up(void)
{
    struct ts3_request_spec spec;
    play.cell.preparing = true;
    atomic_store(&play.cell.late, 2);
    ts3_request_spec_init(&spec);
    spec.method = TS3_DELETE;
    spec.key = TS3_STR("next");
    spec.attempts = 1;
    struct ts3_event event = net_run(&play.net, &spec);
    CHECK(!event.failed && event.status == 200);
    CHECK_TEXT(ts3_str_of(event.etag ? event.etag : ""), "w");
    ts3_event_clear(&event);
}

/* The environment may ask for each n-th cell only, or for those whose names have a text in them. */
static bool is_chosen(const char *name)
{
    static int asked;
    const char *part = getenv("TS3_MATRIX");
    const char *share = getenv("TS3_MATRIX_SHARE");
    int each = share != NULL ? atoi(share) : TS3_MATRIX_SHARE;
    return part != NULL ? strstr(name, part) != NULL : asked++ % (each > 0 ? each : 1) == 0;
}

static void run_cell(const struct matrix_op *op, const struct matrix_fault *fault,
                     enum matrix_mode mode)
{
    static const char *const modes[] = {"once", "always", "quota spent"};
    struct ts3_event event;
    struct ts3_request_spec spec;
    memset(&play, 0, sizeof play);
    if (!prepares(op, fault) || !matrix_expect(op, fault, mode, &play.expect))
        return;
    char name[200];
    (void)snprintf(name, sizeof name, "%s: %s, %s", op->name, fault->name, modes[mode]);
    if (!is_chosen(name))
        return;
    ts3_test_label("%s", name);
    cells++;
    play.cell.op = op;
    play.cell.fault = fault;
    play.cell.mode = mode;
    start_server();
    open_engine();
    if (op->traits & OP_WINDOW)
        CHECK_OK(ts3_window_new(play.net.engine, MATRIX_WINDOW, &play.window));
    prepare();
    fill_spec(op, &spec);
    uint64_t id = net_submit(&play.net, &spec);
    if (await(id, &event)) {
        check_end(&event);
        if (!event.failed && mode == MODE_ONCE && play.server.listener.listening)
            follow_up();
        ts3_event_clear(&event);
    }
    ts3_window_unref(play.window);
    net_engine_free(&play.net);
    if (fault->special == OVER_TLS)
        net_tls_stop(&play.tls);
    close_fillers();
    net_server_stop(&play.server);
}

/* Nothing is learned from a second hang that is worth the time. */
static void run_row(const struct matrix_fault *fault)
{
    for (size_t i = 0; i < matrix_op_count; i++)
        for (int mode = MODE_ONCE; mode <= MODE_SPENT; mode++)
            if (!hung && matrix_applies(&matrix_ops[i], fault))
                run_cell(&matrix_ops[i], fault, (enum matrix_mode)mode);
}

TEST(every_fault_of_every_operation)
{
    cells = 0;
    for (size_t i = 0; i < matrix_fault_count; i++)
        run_row(&matrix_faults[i]);
    printf("  %d cells\n", cells);
    CHECK(cells > 0 || getenv("TS3_MATRIX") != NULL);
}

TEST(every_status_of_every_operation)
{
    struct matrix_fault fault;
    char name[80];
    cells = 0;
    for (size_t i = 0; matrix_status_fault(i, &fault, name, sizeof name); i++)
        run_row(&fault);
    printf("  %d cells\n", cells);
    CHECK(cells > 0 || getenv("TS3_MATRIX") != NULL);
}

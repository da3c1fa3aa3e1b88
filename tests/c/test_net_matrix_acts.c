/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How an answer goes wrong on its way: the functions that the table of faults refers to. See
 * test_net_matrix.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test_net_matrix_acts.h"

#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TEXT_BYTES = 4096 };

/* The answer as it goes on the wire; *head is the size of what comes before the body. */
static size_t compose(const struct matrix_reply *reply, char *text, size_t *head)
{
    int size = snprintf(text, TEXT_BYTES, "%s %s\r\n%s%s\r\n", reply->version, reply->status,
                        reply->headers, reply->length);
    if (size < 0 || (size_t)size + reply->size > TEXT_BYTES)
        abort();
    *head = (size_t)size;
    if (reply->bare)
        return *head;
    memcpy(text + size, reply->body, reply->size);
    return *head + reply->size;
}

static void send_reply(int fd, const struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    net_send(fd, text, compose(reply, text, &head));
}

static void add_headers(struct matrix_reply *reply, const char *lines)
{
    size_t used = strlen(reply->headers);
    if (used + strlen(lines) >= sizeof reply->headers)
        abort();
    (void)strcpy(reply->headers + used, lines);
}

/* Takes out a header line, its value and all. */
static void drop_header(struct matrix_reply *reply, const char *name_colon)
{
    char *at = strstr(reply->headers, name_colon);
    if (at == NULL)
        return;
    const char *next = strstr(at, "\r\n") + 2;
    memmove(at, next, strlen(next) + 1);
}

static void set_status(struct matrix_reply *reply, const char *status)
{
    (void)snprintf(reply->status, sizeof reply->status, "%s", status);
}

static enum net_then fall_silent(struct matrix_cell *cell)
{
    atomic_fetch_add(&cell->silences, 1);
    return NET_HOLD;
}

static enum net_then end(struct matrix_cell *cell, int fd, int how)
{
    int unsent = 1;
    if (how == ACT_SILENT)
        return fall_silent(cell);
    if (how == ACT_CLOSE)
        return NET_CLOSE;
    for (int i = 0; i < 1000 && ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent > 0; i++)
        usleep(100); /* a reset drops what has not arrived */
    return how == ACT_RESET ? NET_RESET : NET_KEEP;
}

enum net_then matrix_true(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                          struct matrix_reply *reply)
{
    (void)cell;
    (void)seen;
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_stop_before(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                 struct matrix_reply *reply)
{
    (void)seen;
    (void)reply;
    return end(cell, fd, cell->fault->arg);
}

enum net_then matrix_stop_in_head(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                  struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    (void)seen;
    (void)compose(reply, text, &head);
    net_send(fd, text, head / 2);
    return end(cell, fd, cell->fault->arg);
}

enum net_then matrix_stop_in_body(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                  struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    (void)seen;
    (void)compose(reply, text, &head);
    net_send(fd, text, head + reply->size / 2);
    return end(cell, fd, cell->fault->arg);
}

enum net_then matrix_stop_behind_head(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                      struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    (void)seen;
    (void)compose(reply, text, &head);
    net_send(fd, text, head);
    return end(cell, fd, cell->fault->arg);
}

/* Reads no byte more of the request, until the client has had enough. */
enum net_then matrix_read_no_more(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                  struct matrix_reply *reply)
{
    struct pollfd gone = {.fd = fd, .events = POLLRDHUP};
    (void)seen;
    (void)reply;
    (void)fall_silent(cell);
    while (poll(&gone, 1, -1) < 0)
        continue;
    return NET_CLOSE;
}

enum net_then matrix_drip(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                          struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    (void)cell;
    (void)seen;
    size_t size = compose(reply, text, &head);
    for (size_t i = 0; i < size; i++)
        net_send(fd, text + i, 1);
    return NET_KEEP;
}

enum net_then matrix_extra(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                           struct matrix_reply *reply)
{
    (void)seen;
    add_headers(reply, cell->fault->text);
    send_reply(fd, reply);
    return (enum net_then)cell->fault->arg;
}

enum net_then matrix_first(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                           struct matrix_reply *reply)
{
    (void)seen;
    for (int i = 0; i < cell->fault->arg; i++)
        net_send(fd, cell->fault->text, strlen(cell->fault->text));
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_instead(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                             struct matrix_reply *reply)
{
    (void)seen;
    (void)reply;
    net_send(fd, cell->fault->text, strlen(cell->fault->text));
    return end(cell, fd, cell->fault->arg);
}

/* The same for ever, or until the client has had enough: behind nothing, the status line, or an
 * empty line, too. */
enum net_then matrix_endless(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                             struct matrix_reply *reply)
{
    size_t size = strlen(cell->fault->text);
    (void)seen;
    if (cell->fault->arg != ENDLESS_ANSWERS) {
        net_send(fd, "HTTP/1.1 ", 9);
        net_send(fd, reply->status, strlen(reply->status));
        net_send(fd, "\r\n", 2);
    }
    if (cell->fault->arg == ENDLESS_BODY)
        net_send(fd, "\r\n", 2);
    while (send(fd, cell->fault->text, size, MSG_NOSIGNAL) > 0)
        continue;
    return NET_CLOSE;
}

enum net_then matrix_long_header(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                 struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    size_t size = compose(reply, text, &head);
    size_t line = strlen(reply->version) + strlen(reply->status) + 3;
    size_t filler = (size_t)cell->fault->arg;
    char *header = malloc(filler);
    (void)seen;
    memset(header, 'x', filler);
    memcpy(header, "x-long: ", 8);
    memcpy(header + filler - 2, "\r\n", 2);
    net_send(fd, text, line);
    net_send(fd, header, filler);
    net_send(fd, text + line, size - line);
    free(header);
    return NET_KEEP;
}

enum net_then matrix_version(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                             struct matrix_reply *reply)
{
    (void)seen;
    reply->version = cell->fault->text;
    send_reply(fd, reply);
    return (enum net_then)cell->fault->arg;
}

enum net_then matrix_status(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            struct matrix_reply *reply)
{
    (void)seen;
    set_status(reply, cell->fault->text);
    send_reply(fd, reply);
    return (enum net_then)cell->fault->arg;
}

enum net_then matrix_line_feeds(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    size_t kept = 0;
    (void)cell;
    (void)seen;
    size_t size = compose(reply, text, &head);
    for (size_t i = 0; i < size; i++)
        if (i >= head || text[i] != '\r')
            text[kept++] = text[i];
    net_send(fd, text, kept);
    return NET_KEEP;
}

enum net_then matrix_nul(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                         struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    size_t head;
    (void)cell;
    (void)seen;
    add_headers(reply, "x-nul: a?b\r\n");
    size_t size = compose(reply, text, &head);
    *strchr(text, '?') = '\0';
    net_send(fd, text, size);
    return NET_CLOSE;
}

enum net_then matrix_length(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            struct matrix_reply *reply)
{
    (void)seen;
    (void)snprintf(reply->length, sizeof reply->length, "%s", cell->fault->text);
    send_reply(fd, reply);
    return end(cell, fd, cell->fault->arg);
}

enum net_then matrix_length_twice(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                  struct matrix_reply *reply)
{
    char other[128];
    (void)seen;
    (void)snprintf(other, sizeof other, "Content-Length: %lld\r\n",
                   (long long)reply->size + cell->fault->arg);
    add_headers(reply, other);
    send_reply(fd, reply);
    return cell->fault->arg == 0 ? NET_KEEP : NET_CLOSE;
}

enum net_then matrix_too_long(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                              struct matrix_reply *reply)
{
    (void)seen;
    matrix_set_length(reply, (long long)reply->size + 10);
    send_reply(fd, reply);
    return end(cell, fd, cell->fault->arg);
}

enum net_then matrix_truncated(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                               struct matrix_reply *reply)
{
    (void)cell;
    (void)seen;
    reply->size /= 2;
    matrix_set_length(reply, (long long)reply->size);
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_surplus(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                             struct matrix_reply *reply)
{
    char text[TEXT_BYTES + 256];
    size_t head;
    size_t more = strlen(cell->fault->text);
    (void)seen;
    size_t size = compose(reply, text, &head);
    memcpy(text + size, cell->fault->text, more);
    net_send(fd, text, size + more);
    return NET_KEEP;
}

/* The body in two chunks, arg more or fewer bytes than there are. */
enum net_then matrix_chunks(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            struct matrix_reply *reply)
{
    char text[TEXT_BYTES];
    char line[64];
    size_t head;
    int surplus = cell->fault->arg;
    size_t first = reply->size / 2;
    size_t second = reply->size - first;
    (void)seen;
    memset(reply->body + reply->size, 'x', surplus > 0 ? (size_t)surplus : 0);
    if (surplus > 0)
        second += (size_t)surplus;
    else
        second -= second < (size_t)-surplus ? second : (size_t)-surplus;
    (void)strcpy(reply->length, "Transfer-Encoding: chunked\r\n");
    reply->size = 0;
    net_send(fd, text, compose(reply, text, &head));
    (void)snprintf(line, sizeof line, "%zx\r\n", first);
    net_send_reply(fd, line);
    net_send(fd, reply->body, first);
    (void)snprintf(line, sizeof line, "\r\n%zx\r\n", second);
    bool wrong = cell->fault->text[0] == '!';
    net_send_reply(fd, wrong ? cell->fault->text + 1 : line);
    net_send(fd, reply->body + first, second);
    if (wrong)
        return NET_CLOSE;
    net_send_reply(fd, cell->fault->text);
    return cell->fault->text[0] == '\0' ? NET_CLOSE : NET_KEEP;
}

enum net_then matrix_range(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                           struct matrix_reply *reply)
{
    char line[200];
    int first, last, total;
    (void)seen;
    if (sscanf(strstr(reply->headers, "bytes ") + 6, "%d-%d/%d", &first, &last, &total) != 3)
        abort();
    drop_header(reply, "Content-Range:");
    switch (cell->fault->arg) {
    case RANGE_SHIFTED:
        first++;
        last++;
        break;
    case RANGE_SHORT:
        last--;
        break;
    case RANGE_LONG:
        last++;
        break;
    case RANGE_OTHER_TOTAL:
        total = last - 5;
        break;
    default:
        break;
    }
    if (cell->fault->text != NULL)
        (void)snprintf(line, sizeof line, "%s", cell->fault->text);
    else
        (void)snprintf(line, sizeof line, "Content-Range: bytes %d-%d/%d\r\n", first, last, total);
    add_headers(reply, line);
    send_reply(fd, reply);
    return NET_KEEP;
}

/* As rclone's S3 server, which says 200 to ranges, at that. */
enum net_then matrix_range_200(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                               struct matrix_reply *reply)
{
    set_status(reply, "200 OK");
    return matrix_range(cell, fd, seen, reply);
}

/* The whole object, as if no range had been asked for. */
enum net_then matrix_whole(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                           struct matrix_reply *reply)
{
    (void)cell;
    (void)seen;
    drop_header(reply, "Content-Range:");
    set_status(reply, "200 OK");
    for (size_t i = 0; i < MATRIX_OBJECT; i++)
        reply->body[i] = matrix_object_byte(i);
    reply->size = MATRIX_OBJECT;
    matrix_set_length(reply, MATRIX_OBJECT);
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_etag(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                          struct matrix_reply *reply)
{
    char line[512];
    (void)seen;
    drop_header(reply, "ETag:");
    if (cell->fault->arg > 0)
        (void)snprintf(line, sizeof line, "ETag: \"%0*d\"\r\n", cell->fault->arg, 1);
    else
        (void)snprintf(line, sizeof line, "%s", cell->fault->text);
    add_headers(reply, line);
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_body(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                          struct matrix_reply *reply)
{
    (void)seen;
    matrix_set_body(reply, cell->fault->text);
    send_reply(fd, reply);
    return NET_KEEP;
}

/* The true document behind the spaces that say that the work goes on. */
enum net_then matrix_spaces(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            struct matrix_reply *reply)
{
    char spaced[MATRIX_OBJECT];
    (void)seen;
    (void)snprintf(spaced, sizeof spaced, "\n  \n %s", cell->op->document);
    matrix_set_body(reply, spaced);
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_page(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                          struct matrix_reply *reply)
{
    (void)seen;
    set_status(reply, "200 OK");
    (void)strcpy(reply->headers, "Server: a proxy\r\nContent-Type: text/html\r\n");
    matrix_set_body(reply, cell->fault->text);
    send_reply(fd, reply);
    return NET_KEEP;
}

/* --- answers with a status --- */

static void make_answer(const struct matrix_fault *fault, struct matrix_reply *reply)
{
    char document[512];
    (void)snprintf(reply->status, sizeof reply->status, "%d Because", fault->status);
    (void)strcpy(reply->headers, "Date: Fri, 24 May 2013 00:00:00 GMT\r\n");
    reply->length[0] = '\0';
    reply->size = 0;
    if (fault->text != NULL) {
        (void)snprintf(document, sizeof document, fault->text, fault->code ? fault->code : "");
        matrix_set_body(reply, document);
    } else if (fault->status != 204 && fault->status != 304) {
        matrix_set_length(reply, 0);
    }
}

enum net_then matrix_answer(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                            struct matrix_reply *reply)
{
    (void)seen;
    make_answer(cell->fault, reply);
    send_reply(fd, reply);
    return NET_KEEP;
}

enum net_then matrix_answer_cut(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                struct matrix_reply *reply)
{
    make_answer(cell->fault, reply);
    return matrix_stop_in_body(cell, fd, seen, reply);
}

/* With more headers: the text is those, and then, behind an empty line, the document. */
enum net_then matrix_answer_with(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                 struct matrix_reply *reply)
{
    const char *text = cell->fault->text;
    const char *document = strstr(text, "\r\n\r\n");
    char lines[400];
    (void)seen;
    (void)snprintf(reply->status, sizeof reply->status, "%d Because", cell->fault->status);
    (void)snprintf(lines, sizeof lines, "%.*s", (int)(document - text) + 2, text);
    if (strstr(lines, "Date:") == lines)
        reply->headers[0] = '\0';
    else
        (void)strcpy(reply->headers, "Date: Fri, 24 May 2013 00:00:00 GMT\r\n");
    add_headers(reply, lines);
    matrix_set_body(reply, document + 4);
    send_reply(fd, reply);
    return NET_KEEP;
}

/* --- before the request's body was read --- */

enum net_then matrix_early(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                           struct matrix_reply *reply)
{
    (void)seen;
    send_reply(fd, reply);
    atomic_store(&cell->answered, true);
    return NET_KEEP;
}

enum net_then matrix_early_reset(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                 struct matrix_reply *reply)
{
    (void)seen;
    send_reply(fd, reply);
    return end(cell, fd, ACT_RESET);
}

/* A refusal at once, as a service does that keeps the rules: it ends its side, and reads on until
 * the client has seen it. */
enum net_then matrix_early_refusal(struct matrix_cell *cell, int fd, const struct net_seen *seen,
                                   struct matrix_reply *reply)
{
    char bytes[65536];
    (void)seen;
    make_answer(cell->fault, reply);
    add_headers(reply, "Connection: close\r\n");
    send_reply(fd, reply);
    (void)shutdown(fd, SHUT_WR);
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        continue;
    return NET_CLOSE;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records that wait for each other: two ends of TLS in memory, with a pipe between them; and an engine's upload. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/ssl.h>

#include "core/ts3_gather.h"
#include "net/ts3_engine_priv.h"
#include "test_net_server.h"
#include "test_net_tls.h"
#include "ts3_failing.h"

#define RECORD 16384
#define PIPE_BYTES ((size_t)1 << 20)
#define KEY "a key that both sides know"

struct pair {
    struct ts3_failing failing;
    struct ts3_gather gather;
    SSL_CTX *context[2];
    SSL *here, *there;
    BIO *wire;            /* there's end of the pipe */
    size_t written, read; /* so many bytes, each of its place */
    unsigned char bytes[2 * RECORD]; /* of a write; OpenSSL wants a second try from the same place */
};

static unsigned int client_key(SSL *ssl, const char *hint, char *identity, unsigned int identity_size,
                               unsigned char *key, unsigned int key_size)
{
    (void)ssl;
    (void)hint;
    (void)snprintf(identity, identity_size, "we");
    return (unsigned int)snprintf((char *)key, key_size, KEY);
}

static unsigned int server_key(SSL *ssl, const char *identity, unsigned char *key,
                               unsigned int key_size)
{
    (void)ssl;
    (void)identity;
    return (unsigned int)snprintf((char *)key, key_size, KEY);
}

static SSL *end_of(SSL_CTX *context, BIO *bio)
{
    SSL *ssl = SSL_new(context);
    SSL_set_bio(ssl, bio, bio);
    return ssl;
}

static void open_version(struct pair *pair, size_t pipe_bytes, int version)
{
    memset(pair, 0, sizeof *pair);
    ts3_failing_init(&pair->failing);
    ts3_gather_init(&pair->gather, &pair->failing.alloc, curl_version_info(CURLVERSION_NOW)->ssl_version);
    CHECK(pair->gather.method != NULL);
    pair->context[0] = SSL_CTX_new(TLS_client_method());
    pair->context[1] = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_psk_client_callback(pair->context[0], client_key);
    SSL_CTX_set_psk_server_callback(pair->context[1], server_key);
    for (int i = 0; i < 2; i++) {
        (void)SSL_CTX_set_min_proto_version(pair->context[i], version);
        (void)SSL_CTX_set_max_proto_version(pair->context[i], version);
        (void)SSL_CTX_set_cipher_list(pair->context[i], "PSK-AES128-GCM-SHA256");
        (void)SSL_CTX_set_ciphersuites(pair->context[i], "TLS_AES_128_GCM_SHA256");
    }
    BIO *ours = NULL;
    CHECK(BIO_new_bio_pair(&ours, pipe_bytes, &pair->wire, pipe_bytes) == 1);
    pair->here = end_of(pair->context[0], ours);
    pair->there = end_of(pair->context[1], pair->wire);
    SSL_set_connect_state(pair->here);
    SSL_set_accept_state(pair->there);
    for (int i = 0; i < 10; i++) {
        (void)SSL_do_handshake(pair->here);
        (void)SSL_do_handshake(pair->there);
    }
    CHECK(SSL_is_init_finished(pair->here) && SSL_is_init_finished(pair->there));
}

static void open_pair(struct pair *pair, size_t pipe_bytes)
{
    open_version(pair, pipe_bytes, TLS1_2_VERSION);
}

static void close_pair(struct pair *pair)
{
    SSL_free(pair->here);
    SSL_free(pair->there);
    CHECK_INT(pair->gather.free_count, pair->gather.made_count);
    SSL_CTX_free(pair->context[0]);
    SSL_CTX_free(pair->context[1]);
    ts3_gather_free(&pair->gather);
    CHECK_INT(pair->failing.live, 0);
}

static void set(struct pair *pair, bool on)
{
    ts3_gather_set(&pair->gather, pair->here, on);
}

static size_t on_wire(const struct pair *pair)
{
    return BIO_ctrl_pending(pair->wire);
}

static unsigned char byte_at(size_t position)
{
    return (unsigned char)(position * 2654435761U >> 13);
}

static bool is_pattern(const unsigned char *bytes, size_t position, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != byte_at(position + i))
            return false;
    return true;
}

/* Whether the write was taken. */
static bool write_bytes(struct pair *pair, int size)
{
    for (int i = 0; i < size; i++)
        pair->bytes[i] = byte_at(pair->written + (size_t)i);
    int written = SSL_write(pair->here, pair->bytes, size);
    if (written > 0) {
        CHECK_INT(written, size);
        pair->written += (size_t)size;
        return true;
    }
    CHECK_INT(SSL_get_error(pair->here, written), SSL_ERROR_WANT_WRITE);
    return false;
}

/* Reads so many bytes, or all that are there, which must be the next. */
static void read_bytes(struct pair *pair, size_t most)
{
    unsigned char bytes[4096];
    while (most > 0) {
        int got = SSL_read(pair->there, bytes, (int)(most < sizeof bytes ? most : sizeof bytes));
        if (got <= 0) {
            CHECK_INT(SSL_get_error(pair->there, got), SSL_ERROR_WANT_READ);
            return;
        }
        if (!CHECK(is_pattern(bytes, pair->read, (size_t)got)))
            return;
        pair->read += (size_t)got;
        most -= (size_t)got;
    }
}

/* All that was written has arrived. */
static void read_all(struct pair *pair)
{
    read_bytes(pair, SIZE_MAX);
    CHECK_INT(pair->read, pair->written);
}

TEST(records_wait_for_each_other)
{
    struct pair pair;
    open_pair(&pair, PIPE_BYTES);
    set(&pair, true);
    for (int i = 0; i < 7; i++) {
        CHECK(write_bytes(&pair, RECORD));
        CHECK_INT(on_wire(&pair), 0);
    }
    CHECK(write_bytes(&pair, RECORD));
    CHECK(on_wire(&pair) > TS3_GATHER_BYTES);
    CHECK(write_bytes(&pair, RECORD));
    size_t before = on_wire(&pair);
    set(&pair, false);
    CHECK_INT(on_wire(&pair), before); /* only a write lets go */
    CHECK(write_bytes(&pair, 100));
    read_bytes(&pair, SIZE_MAX);
    CHECK_INT(pair.read, 9 * RECORD + 100);
    CHECK_INT(pair.gather.free_count, 1);
    CHECK(write_bytes(&pair, 100));
    read_all(&pair);
    close_pair(&pair);
}

TEST(an_answer_is_read_while_records_wait)
{
    struct pair pair;
    char answer[10];
    open_pair(&pair, PIPE_BYTES);
    set(&pair, true);
    CHECK(write_bytes(&pair, RECORD));
    CHECK_INT(SSL_write(pair.there, "an answer", 9), 9);
    CHECK_INT(SSL_read(pair.here, answer, sizeof answer), 9);
    CHECK(memcmp(answer, "an answer", 9) == 0);
    CHECK_INT(SSL_read(pair.here, answer, sizeof answer), -1);
    CHECK_INT(SSL_get_error(pair.here, -1), SSL_ERROR_WANT_READ);
    close_pair(&pair); /* with what waits */
}

TEST(a_flush_lets_go)
{
    struct pair pair;
    open_pair(&pair, PIPE_BYTES);
    set(&pair, true);
    CHECK(write_bytes(&pair, RECORD));
    CHECK_INT(BIO_flush(SSL_get_wbio(pair.here)), 1);
    read_all(&pair);
    close_pair(&pair);
}

/* What the other side wants to be told at once lets go as well, and where the pipe is full, that is said. */
TEST(new_keys_while_records_wait)
{
    struct pair pair;
    char byte = 0;
    open_version(&pair, TS3_GATHER_BYTES + 10000, TLS1_3_VERSION);
    CHECK_INT(SSL_read(pair.here, &byte, 1), -1); /* tickets */
    set(&pair, true);
    for (int i = 0; i < 9; i++)
        CHECK(write_bytes(&pair, RECORD));
    CHECK_INT(SSL_key_update(pair.there, SSL_KEY_UPDATE_REQUESTED), 1);
    CHECK_INT(SSL_write(pair.there, "x", 1), 1);
    CHECK_INT(SSL_read(pair.here, &byte, 1), 1);
    CHECK(!write_bytes(&pair, RECORD)); /* the answer goes before it */
    read_bytes(&pair, SIZE_MAX);
    CHECK_INT(pair.read, 8 * RECORD);
    CHECK(write_bytes(&pair, RECORD));
    set(&pair, false);
    CHECK(write_bytes(&pair, 100));
    read_all(&pair);
    close_pair(&pair);
}

/* Nor does the end of the connection wait behind them. */
TEST(an_end_while_records_wait)
{
    struct pair pair;
    open_pair(&pair, PIPE_BYTES);
    set(&pair, true);
    CHECK(write_bytes(&pair, RECORD));
    CHECK_INT(SSL_shutdown(pair.here), 0);
    read_bytes(&pair, pair.written);
    CHECK_INT(pair.read, pair.written);
    char byte = 0;
    CHECK_INT(SSL_get_error(pair.there, SSL_read(pair.there, &byte, 1)), SSL_ERROR_ZERO_RETURN);
    close_pair(&pair);
}

/* Whatever is on and off meanwhile, and however little the other side takes, each byte arrives once. */
TEST(every_byte_arrives_in_its_place)
{
    static const size_t pipes[] = {20000, 70000, 300000};
    uint32_t chance = 20261130;
    for (size_t i = 0; i < sizeof pipes / sizeof *pipes; i++) {
        struct pair pair;
        ts3_test_label("a pipe of %zu bytes", pipes[i]);
        open_pair(&pair, pipes[i]);
        int refused = 0, size = 0;
        while (pair.written < (size_t)3 << 20 && !ts3_test_has_failed()) {
            chance = chance * 1664525 + 1013904223;
            if (size == 0) { /* else the same write again, as OpenSSL demands */
                if (chance >> 29 == 0)
                    set(&pair, chance >> 28 & 1);
                size = 1 + (int)(chance >> 8) % (2 * RECORD);
            }
            bool taken = write_bytes(&pair, size);
            refused += !taken;
            size = taken ? 0 : size;
            if (!taken || chance >> 30 == 0)
                read_bytes(&pair, chance >> 16);
        }
        set(&pair, false);
        while (!write_bytes(&pair, 1) && !ts3_test_has_failed())
            read_bytes(&pair, SIZE_MAX);
        read_all(&pair);
        CHECK(refused > 5);
        close_pair(&pair);
    }
}

TEST(only_so_many_gather)
{
    struct pair pairs[TS3_GATHER_BUFFERS + 1];
    for (int i = 0; i <= TS3_GATHER_BUFFERS; i++)
        open_pair(&pairs[i], PIPE_BYTES);
    struct ts3_gather *gather = &pairs[0].gather;
    for (int i = 0; i <= TS3_GATHER_BUFFERS; i++) {
        ts3_test_label("connection %d", i);
        ts3_gather_set(gather, pairs[i].here, true);
        CHECK(write_bytes(&pairs[i], RECORD));
        CHECK((on_wire(&pairs[i]) == 0) == (i < TS3_GATHER_BUFFERS));
    }
    CHECK_INT(gather->made_count, TS3_GATHER_BUFFERS);
    /* One that has ended makes room for another. */
    ts3_gather_set(gather, pairs[0].here, false);
    CHECK(write_bytes(&pairs[0], 1));
    size_t before = on_wire(&pairs[TS3_GATHER_BUFFERS]);
    ts3_gather_set(gather, pairs[TS3_GATHER_BUFFERS].here, true);
    CHECK(write_bytes(&pairs[TS3_GATHER_BUFFERS], RECORD));
    CHECK_INT(on_wire(&pairs[TS3_GATHER_BUFFERS]), before);
    for (int i = TS3_GATHER_BUFFERS; i >= 0; i--)
        close_pair(&pairs[i]);
}

TEST(another_library_does_not_gather)
{
    static const char *const libraries[] = {"GnuTLS/3.7.9", "OpenSSL/3.0.0", "(OpenSSL/3.0.22) GnuTLS/3.7.9", NULL};
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        struct ts3_gather gather;
        ts3_gather_init(&gather, ts3_alloc_libc(), libraries[i]);
        CHECK(gather.method == NULL);
        ts3_gather_set(&gather, NULL, true);
        ts3_gather_free(&gather);
    }
}

/* 1: the filter, 2: its buffer. */
TEST(without_memory_each_record_leaves_by_itself)
{
    for (size_t fail_at = 1; fail_at <= 2; fail_at++) {
        struct pair pair;
        ts3_test_label("allocation %zu fails", fail_at);
        open_pair(&pair, PIPE_BYTES);
        pair.failing.fail_at = pair.failing.calls + fail_at;
        set(&pair, true);
        CHECK(pair.failing.failed);
        CHECK(write_bytes(&pair, RECORD));
        read_all(&pair);
        set(&pair, true); /* now there is */
        CHECK(write_bytes(&pair, RECORD));
        CHECK_INT(on_wire(&pair), 0);
        close_pair(&pair);
    }
}

TEST(a_broken_connection_is_said_at_once)
{
    struct pair pair;
    open_pair(&pair, PIPE_BYTES);
    set(&pair, true);
    for (int i = 0; i < 7; i++)
        CHECK(write_bytes(&pair, RECORD));
    (void)BIO_shutdown_wr(BIO_next(SSL_get_wbio(pair.here)));
    char bytes[RECORD] = {0};
    int last = SSL_write(pair.here, bytes, RECORD);
    CHECK(last <= 0);
    CHECK(SSL_get_error(pair.here, last) != SSL_ERROR_WANT_WRITE);
    close_pair(&pair);
}

static enum net_then take(struct net_server *server, int fd, int number, const struct net_seen *seen)
{
    (void)server;
    (void)number;
    CHECK(is_pattern(seen->body, 0, seen->body_size));
    net_send(fd, OK_EMPTY, strlen(OK_EMPTY));
    return NET_KEEP;
}

/* With libcurl as it is here: else the rest of this file would test what nobody uses. */
TEST(an_upload_gathers)
{
    static unsigned char body[1 << 20];
    static const size_t sizes[] = {sizeof body, 100, 65537, sizeof body - 1};
    struct net_server server = {.script = take};
    struct net_engine net;
    struct net_tls tls = {0};
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = byte_at(i);
    net_server_start(&server);
    net_engine_init(&net, &server);
    net_tls_start(&tls, server.port, NET_TLS_FINE, 0);
    net_tls_lead(&tls, &net);
    net_engine_open(&net);
    const struct ts3_gather *gather = &net.engine->loop.gather;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct ts3_request_spec spec;
        ts3_request_spec_init(&spec);
        spec.method = TS3_PUT;
        spec.key = TS3_STR("k");
        spec.body_data = body;
        spec.body_size = sizes[i];
        struct ts3_event event = net_run(&net, &spec);
        CHECK(!event.failed);
        ts3_event_clear(&event);
        CHECK_INT(gather->made_count, 1);
        CHECK_INT(gather->free_count, 1);
    }
    net_engine_free(&net);
    net_tls_stop(&tls);
    net_server_stop(&server);
}

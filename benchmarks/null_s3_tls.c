/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * TLS for null_s3.  See null_s3.h.
 *
 * So that encryption costs the server as few system calls as plain sockets do, records are written
 * into a buffer of the connection and leave it together, and what has come is read in large pieces.
 * A connection whose handshake cannot send its few kilobytes at once is given up.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "null_s3.h"

enum {
    RECORD_BYTES = 16384,
    BATCH_BYTES = 256 * 1024,
    SLACK_BYTES = 2 * RECORD_BYTES, /* a record more, and what a handshake says */
    READ_BYTES = 256 * 1024
};

struct tls {
    SSL *ssl;
    bool counted; /* its handshake */
    size_t out_len, out_sent;
    char out[BATCH_BYTES + SLACK_BYTES];
};

#define CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

static BIO_METHOD *out_method;

static int out_write(BIO *bio, const char *bytes, size_t size, size_t *written)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    size = size < sizeof tls->out - tls->out_len ? size : sizeof tls->out - tls->out_len;
    if (size == 0) {
        BIO_set_retry_write(bio);
        return 0;
    }
    memcpy(tls->out + tls->out_len, bytes, size);
    tls->out_len += size;
    *written = size;
    return 1;
}

static long out_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH; /* null_tls_send does it */
}

static void must(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "null_s3: %s\n", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

void null_tls_init(struct server *server, const char *cert, const char *key)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    must(context != NULL, "SSL_CTX_new");
    must(SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1, "TLS 1.2");
    must(SSL_CTX_use_certificate_chain_file(context, cert) == 1, cert);
    must(SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) == 1, key);
    /* S3 itself prefers AES-128; and with one preference all clients get the same. */
    must(SSL_CTX_set_ciphersuites(context, CIPHERSUITES) == 1, "ciphers");
    (void)SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE);
    static const unsigned char id[] = "null_s3";
    must(SSL_CTX_set_session_id_context(context, id, sizeof id - 1) == 1, "session id");
    (void)SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, READ_BYTES);
    int type = BIO_get_new_index() | BIO_TYPE_SOURCE_SINK;
    out_method = BIO_meth_new(type, "batch");
    must(out_method != NULL && BIO_meth_set_write_ex(out_method, out_write) == 1 &&
             BIO_meth_set_ctrl(out_method, out_control) == 1,
         "BIO_meth_new");
    server->tls = context;
}

void null_tls_end(struct server *server)
{
    SSL_CTX_free(server->tls);
    BIO_meth_free(out_method);
}

void null_tls_open(struct server *server, struct conn *conn)
{
    struct tls *tls = null_grown(NULL, sizeof *tls);
    tls->counted = false;
    tls->out_len = tls->out_sent = 0;
    tls->ssl = SSL_new(server->tls);
    BIO *in = BIO_new_socket(conn->fd, BIO_NOCLOSE);
    BIO *out = BIO_new(out_method);
    must(tls->ssl != NULL && in != NULL && out != NULL, "SSL_new");
    BIO_set_data(out, tls);
    BIO_set_init(out, 1);
    SSL_set_bio(tls->ssl, in, out);
    SSL_set_accept_state(tls->ssl);
    conn->tls = tls;
}

void null_tls_close(struct conn *conn)
{
    if (conn->tls == NULL)
        return;
    SSL_free(conn->tls->ssl);
    free(conn->tls);
    conn->tls = NULL;
}

/* Sends what waits in the buffer: true when all of it is gone; else errno says why not. */
static bool flush(struct conn *conn)
{
    struct tls *tls = conn->tls;
    while (tls->out_sent < tls->out_len) {
        ssize_t sent = send(conn->fd, tls->out + tls->out_sent, tls->out_len - tls->out_sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return false;
        tls->out_sent += (size_t)sent;
    }
    tls->out_len = tls->out_sent = 0;
    return true;
}

static void count_handshake(struct server *server, struct tls *tls)
{
    if (tls->counted || !SSL_is_init_finished(tls->ssl))
        return;
    tls->counted = true;
    server->stats.handshakes++;
    server->stats.resumed += SSL_session_reused(tls->ssl) ? 1 : 0;
    const char *cipher = SSL_get_cipher_name(tls->ssl);
    for (int i = 0; i < CIPHERS; i++) {
        struct cipher *known = &server->stats.cipher[i];
        if (known->count == 0)
            snprintf(known->name, sizeof known->name, "%s", cipher);
        if (strcmp(known->name, cipher) == 0) {
            known->count++;
            return;
        }
    }
}

ssize_t null_recv(struct server *server, struct conn *conn, char *into, size_t size)
{
    static char dropped[4 * RECORD_BYTES];
    if (conn->tls == NULL) /* what is not wanted is not even copied */
        return recv(conn->fd, into, size, MSG_DONTWAIT | (into == NULL ? MSG_TRUNC : 0));
    if (into == NULL) {
        into = dropped;
        size = size < sizeof dropped ? size : sizeof dropped;
    }
    size_t got = 0;
    ERR_clear_error();
    int good = SSL_read_ex(conn->tls->ssl, into, size, &got);
    int why = SSL_get_error(conn->tls->ssl, good);
    count_handshake(server, conn->tls);
    if (conn->tls->out_len > 0 && !flush(conn)) {
        errno = EPIPE;
        return -1;
    }
    if (good == 1)
        return (ssize_t)got;
    if (why == SSL_ERROR_ZERO_RETURN)
        return 0;
    errno = why == SSL_ERROR_WANT_READ ? EAGAIN : EPIPE;
    return -1;
}

bool null_tls_has_more(const struct conn *conn)
{
    return conn->tls != NULL && SSL_has_pending(conn->tls->ssl);
}

ssize_t null_tls_send(struct conn *conn, const struct iovec *parts, size_t count)
{
    struct tls *tls = conn->tls;
    size_t taken = 0;
    if (!flush(conn))
        return -1;
    for (size_t i = 0; i < count; i++) {
        const char *bytes = parts[i].iov_base;
        for (size_t left = parts[i].iov_len; left > 0 && tls->out_len < BATCH_BYTES;) {
            size_t written = 0;
            size_t size = left < RECORD_BYTES ? left : RECORD_BYTES;
            ERR_clear_error();
            if (SSL_write_ex(tls->ssl, bytes, size, &written) != 1) {
                errno = EPIPE;
                return -1;
            }
            bytes += written;
            left -= written;
            taken += written;
        }
    }
    (void)flush(conn); /* what stays is the next call's first */
    return (ssize_t)taken;
}

bool null_tls_sent(struct conn *conn)
{
    return conn->tls == NULL || flush(conn);
}

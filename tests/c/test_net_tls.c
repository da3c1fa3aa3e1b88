/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See test_net_tls.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test_net_tls.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- certificates: an authority, and what it has signed --- */

enum { GOOD, STRANGE, OTHER, OLD, CERTIFICATES };

struct authority {
    EVP_PKEY *key;
    X509 *own;
    SSL_CTX *contexts[CERTIFICATES];
    char file[40];
};

static struct authority authority;
static pthread_once_t authority_once = PTHREAD_ONCE_INIT;

static void must(bool good)
{
    if (good)
        return;
    ERR_print_errors_fp(stderr);
    abort();
}

static void add_extension(X509 *certificate, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, certificate, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    must(extension != NULL && X509_add_ext(certificate, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

static X509 *make_certificate(EVP_PKEY *key, const char *name, const char *extension, int nid,
                              long valid_s)
{
    X509 *made = X509_new();
    static long serial = 1;
    must(made != NULL && X509_set_version(made, 2) == 1);
    must(ASN1_INTEGER_set(X509_get_serialNumber(made), serial++) == 1);
    must(X509_gmtime_adj(X509_getm_notBefore(made), -7200) != NULL);
    must(X509_gmtime_adj(X509_getm_notAfter(made), valid_s) != NULL);
    must(X509_set_pubkey(made, key) == 1);
    must(X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_ASC,
                                    (const unsigned char *)name, -1, -1, 0) == 1);
    add_extension(made, nid, extension);
    return made;
}

static void sign_certificate(X509 *certificate, EVP_PKEY *by, X509 *issuer)
{
    must(X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) == 1);
    must(X509_sign(certificate, by, EVP_sha256()) > 0);
}

static SSL_CTX *make_context(EVP_PKEY *by, X509 *issuer, const char *names, long valid_s)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    must(key != NULL && context != NULL);
    X509 *certificate = make_certificate(key, "server", names, NID_subject_alt_name, valid_s);
    if (by == NULL)
        sign_certificate(certificate, key, certificate);
    else
        sign_certificate(certificate, by, issuer);
    must(SSL_CTX_use_certificate(context, certificate) == 1);
    must(SSL_CTX_use_PrivateKey(context, key) == 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return context;
}

static void forget_authority(void)
{
    (void)unlink(authority.file);
    for (int i = 0; i < CERTIFICATES; i++)
        SSL_CTX_free(authority.contexts[i]);
    X509_free(authority.own);
    EVP_PKEY_free(authority.key);
}

static void make_authority(void)
{
    struct authority *made = &authority;
    made->key = EVP_EC_gen("P-256");
    must(made->key != NULL);
    made->own = make_certificate(made->key, "authority", "critical,CA:TRUE", NID_basic_constraints,
                                 7200);
    sign_certificate(made->own, made->key, made->own);
    (void)strcpy(made->file, "/tmp/ts3_test_ca_XXXXXX");
    int fd = mkstemp(made->file);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    must(file != NULL && PEM_write_X509(file, made->own) == 1 && fclose(file) == 0);
    made->contexts[GOOD] = make_context(made->key, made->own, "IP:127.0.0.1", 7200);
    made->contexts[STRANGE] = make_context(NULL, NULL, "IP:127.0.0.1", 7200);
    made->contexts[OTHER] = make_context(made->key, made->own, "DNS:other.example", 7200);
    made->contexts[OLD] = make_context(made->key, made->own, "IP:127.0.0.1", -3600);
    (void)atexit(forget_authority);
}

const char *net_tls_ca_file(void)
{
    (void)pthread_once(&authority_once, make_authority);
    return authority.file;
}

/* --- between the two connections --- */

static int connect_to(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        abort();
    return fd;
}

static void send_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        bytes += sent;
        size -= (size_t)sent;
    }
}

/* The last of what is said, as a record that is broken. */
static void send_broken(SSL *ssl, int fd, enum net_tls_fault fault, const char *bytes, size_t size)
{
    BIO *out = BIO_new(BIO_s_mem());
    char *record = NULL;
    must(out != NULL);
    SSL_set0_wbio(ssl, out);
    must(SSL_write(ssl, bytes, (int)size) == (int)size);
    size_t record_size = (size_t)BIO_get_mem_data(out, &record);
    if (fault == NET_TLS_BAD_RECORD)
        record[record_size / 2] ^= 1;
    send_all(fd, record, fault == NET_TLS_BAD_RECORD ? record_size : record_size / 2);
}

static bool breaks_answer(enum net_tls_fault fault)
{
    return fault == NET_TLS_CUT_RECORD || fault == NET_TLS_BAD_RECORD || fault == NET_TLS_NO_NOTIFY;
}

/* Bytes of the backend to the client; false at the end. */
static bool say(SSL *ssl, int fd, int backend, enum net_tls_fault fault)
{
    char bytes[16384]; /* no more than a record */
    ssize_t got = recv(backend, bytes, sizeof bytes, 0);
    if (got <= 0) {
        (void)SSL_shutdown(ssl);
        return false;
    }
    if (fault == NET_TLS_NO_NOTIFY) {
        (void)SSL_write(ssl, bytes, (int)(got + 1) / 2);
        return false;
    }
    if (breaks_answer(fault)) {
        send_broken(ssl, fd, fault, bytes, (size_t)got);
        return false;
    }
    return SSL_write(ssl, bytes, (int)got) > 0;
}

static void pump(SSL *ssl, int fd, int backend, enum net_tls_fault fault)
{
    char bytes[16384];
    struct pollfd both[] = {{.fd = fd, .events = POLLIN}, {.fd = backend, .events = POLLIN}};
    for (;;) {
        if (SSL_pending(ssl) == 0 && poll(both, 2, -1) < 0)
            return;
        if (both[1].revents != 0 && !say(ssl, fd, backend, fault))
            return;
        if (both[0].revents != 0 || SSL_pending(ssl) > 0) {
            int got = SSL_read(ssl, bytes, sizeof bytes);
            if (got <= 0)
                return;
            send_all(backend, bytes, (size_t)got);
        }
    }
}

static bool ends_before_tls(struct net_tls *tls, int fd, enum net_tls_fault fault)
{
    static const char plain[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nTLS?";
    static const char garbage[] = "\x16\x03\x03\xff\xffgarbage, and more of it";
    char bytes[4096];
    if (fault < NET_TLS_RESET || fault > NET_TLS_GARBAGE)
        return false;
    if (recv(fd, bytes, 1, 0) != 1) /* so that a reset comes after the connection was made */
        return true;
    if (fault == NET_TLS_RESET) {
        net_reset(fd);
        return true;
    }
    if (fault == NET_TLS_PLAIN)
        send_all(fd, plain, sizeof plain - 1);
    if (fault == NET_TLS_GARBAGE)
        send_all(fd, garbage, sizeof garbage - 1);
    if (fault == NET_TLS_SILENT)
        atomic_fetch_add(&tls->silences, 1);
    else
        (void)shutdown(fd, SHUT_WR);
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        continue;
    return true;
}

static void serve(void *ctx, int fd, int number)
{
    struct net_tls *tls = ctx;
    enum net_tls_fault fault = number < tls->faulty ? tls->fault : NET_TLS_FINE;
    if (ends_before_tls(tls, fd, fault)) {
        (void)shutdown(fd, SHUT_RDWR);
        return;
    }
    int which = fault == NET_TLS_STRANGER     ? STRANGE
                : fault == NET_TLS_OTHER_NAME ? OTHER
                : fault == NET_TLS_EXPIRED    ? OLD
                                              : GOOD;
    SSL *ssl = SSL_new(authority.contexts[which]);
    must(ssl != NULL && SSL_set_fd(ssl, fd) == 1);
    if (SSL_accept(ssl) == 1) {
        int backend = connect_to(tls->backend_port);
        pump(ssl, fd, backend, fault);
        close(backend);
    }
    SSL_free(ssl);
    ERR_clear_error();
    (void)shutdown(fd, SHUT_RDWR);
}

void net_tls_start(struct net_tls *tls, int backend_port, enum net_tls_fault fault, int faulty)
{
    (void)net_tls_ca_file();
    net_listener_bind(&tls->listener);
    tls->backend_port = backend_port;
    tls->fault = fault;
    tls->faulty = faulty;
    atomic_store(&tls->silences, 0);
    net_listener_start(&tls->listener, serve, tls);
}

void net_tls_lead(const struct net_tls *tls, struct net_engine *net)
{
    (void)snprintf(net->endpoint, sizeof net->endpoint, "https://127.0.0.1:%d", tls->listener.port);
    net->config.ca_file = net_tls_ca_file();
}

void net_tls_stop(struct net_tls *tls)
{
    net_listener_stop(&tls->listener);
}

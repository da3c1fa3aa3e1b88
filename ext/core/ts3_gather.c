/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_gather.h. */
#include "core/ts3_gather.h"

#include <pthread.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/ssl.h>

#define NAME "OpenSSL/"
/* Smaller ones than this are not of a body's middle, but alerts and handshakes (KeyUpdate): OpenSSL
 * flushes those through BIOs of its own, which in 3.0 do not say that a flush is to be tried again, as
 * they do of a write. */
#define LEAST_BYTES ((size_t)1024)

/* OpenSSL has types for some hundred kinds of BIO in a process: this is one for all engines. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int type = -1;

/* Of one connection. */
struct filter {
    struct ts3_gather *gather;
    unsigned char *data; /* NULL: nothing is kept */
    size_t size_bytes;
    size_t sent_bytes; /* of them */
    bool on;
};

/* --- buffers --- */

static unsigned char *take(struct ts3_gather *gather)
{
    if (gather->free_count > 0)
        return gather->free[--gather->free_count];
    if (gather->made_count == TS3_GATHER_BUFFERS)
        return NULL;
    unsigned char *data = ts3_alloc_resize(gather->alloc, NULL, TS3_GATHER_BUFFER_BYTES, 1);
    if (data == NULL)
        return NULL;
    gather->made_count++;
    return data;
}

static void give(struct filter *filter)
{
    struct ts3_gather *gather = filter->gather;
    if (filter->data != NULL)
        gather->free[gather->free_count++] = filter->data;
    filter->data = NULL;
    filter->size_bytes = filter->sent_bytes = 0;
}

/* --- the filter, called by OpenSSL --- */

/* Whether all that was kept has left.  Else the BIO says, as those of sockets do, whether to try again. */
static bool let_go(BIO *bio, struct filter *filter)
{
    BIO *next = BIO_next(bio);
    while (filter->sent_bytes < filter->size_bytes) {
        int written = BIO_write(next, filter->data + filter->sent_bytes,
                                (int)(filter->size_bytes - filter->sent_bytes));
        if (written <= 0) {
            BIO_copy_next_retry(bio);
            return false;
        }
        filter->sent_bytes += (size_t)written;
    }
    filter->size_bytes = filter->sent_bytes = 0;
    if (!filter->on)
        give(filter);
    return true;
}

static int pass_on(BIO *bio, const char *bytes, int size)
{
    int written = BIO_write(BIO_next(bio), bytes, size);
    if (written <= 0)
        BIO_copy_next_retry(bio);
    return written;
}

static int on_write(BIO *bio, const char *bytes, int size)
{
    struct filter *filter = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    size_t room = TS3_GATHER_BUFFER_BYTES - filter->size_bytes;
    bool keep = filter->on && filter->data != NULL && (size_t)size >= LEAST_BYTES;
    if ((!keep || (size_t)size > room) && !let_go(bio, filter))
        return -1;
    if (!keep || (size_t)size > TS3_GATHER_BUFFER_BYTES)
        return pass_on(bio, bytes, size);
    memcpy(filter->data + filter->size_bytes, bytes, (size_t)size);
    filter->size_bytes += (size_t)size;
    if (filter->size_bytes >= TS3_GATHER_BYTES && !let_go(bio, filter)) {
        if (!BIO_should_retry(bio))
            return -1;
        BIO_clear_retry_flags(bio); /* the record is kept: the next one is told to wait */
    }
    return size;
}

static int on_read(BIO *bio, char *bytes, int size)
{
    BIO_clear_retry_flags(bio);
    int got = BIO_read(BIO_next(bio), bytes, size);
    if (got <= 0)
        BIO_copy_next_retry(bio);
    return got;
}

static long on_control(BIO *bio, int command, long number, void *pointer)
{
    if (command == BIO_CTRL_FLUSH) {
        BIO_clear_retry_flags(bio);
        if (!let_go(bio, BIO_get_data(bio)))
            return -1;
    }
    return BIO_ctrl(BIO_next(bio), command, number, pointer);
}

static int on_destroy(BIO *bio)
{
    struct filter *filter = BIO_get_data(bio);
    if (filter != NULL) {
        give(filter);
        ts3_alloc_free(filter->gather->alloc, filter);
    }
    BIO_set_data(bio, NULL);
    return 1;
}

/* --- */

static bool is_same_version(const char *library)
{
    return library != NULL && strncmp(library, NAME, strlen(NAME)) == 0 &&
           strcmp(library + strlen(NAME), OpenSSL_version(OPENSSL_VERSION_STRING)) == 0;
}

static void find_type(void)
{
    int index = BIO_get_new_index();
    type = index == -1 ? -1 : index | BIO_TYPE_FILTER;
}

void ts3_gather_init(struct ts3_gather *gather, const struct ts3_alloc *alloc, const char *library)
{
    memset(gather, 0, sizeof *gather);
    gather->alloc = alloc;
    if (!is_same_version(library))
        return;
    (void)pthread_once(&once, find_type);
    if (type == -1)
        return;
    BIO_METHOD *method = BIO_meth_new(type, "tahoe-s3 gather");
    if (method == NULL)
        return;
    if (BIO_meth_set_write(method, on_write) == 1 && BIO_meth_set_read(method, on_read) == 1 &&
        BIO_meth_set_ctrl(method, on_control) == 1 &&
        BIO_meth_set_destroy(method, on_destroy) == 1)
        gather->method = method;
    else
        BIO_meth_free(method);
}

void ts3_gather_free(struct ts3_gather *gather)
{
    while (gather->free_count > 0)
        ts3_alloc_free(gather->alloc, gather->free[--gather->free_count]);
    BIO_meth_free(gather->method);
    gather->method = NULL;
}

/* Puts a filter before the BIO. */
static BIO *push(struct ts3_gather *gather, SSL *ssl, BIO *bio)
{
    struct filter *filter = ts3_alloc_zero(gather->alloc, 1, sizeof *filter);
    BIO *made = filter == NULL ? NULL : BIO_new(gather->method);
    if (made == NULL) {
        ts3_alloc_free(gather->alloc, filter);
        return NULL;
    }
    filter->gather = gather;
    BIO_set_data(made, filter);
    BIO_set_init(made, 1);
    (void)BIO_up_ref(bio); /* SSL_set0_wbio lets go of what was there */
    SSL_set0_wbio(ssl, BIO_push(made, bio));
    return made;
}

void ts3_gather_set(struct ts3_gather *gather, struct ssl_st *ssl, bool on)
{
    /* Another copy of the same version has another address for what libcurl makes its contexts with. */
    if (gather->method == NULL || ssl == NULL ||
        SSL_CTX_get_ssl_method(SSL_get_SSL_CTX(ssl)) != TLS_client_method())
        return;
    BIO *bio = SSL_get_wbio(ssl);
    if (bio != NULL && BIO_method_type(bio) != type)
        bio = on ? push(gather, ssl, bio) : NULL;
    if (bio == NULL)
        return;
    struct filter *filter = BIO_get_data(bio);
    filter->on = on;
    if (on && filter->data == NULL)
        filter->data = take(gather);
    else if (!on && filter->size_bytes == 0)
        give(filter);
}

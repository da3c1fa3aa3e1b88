/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Deriving and keeping the signing key. See ts3_sigv4_key.h. */
#include "core/ts3_sigv4_key.h"

#include <openssl/crypto.h>

#define TERMINATOR "aws4_request"

enum ts3_err ts3_sigv4_key_init(const struct ts3_digest *digest, struct ts3_sigv4_key *key)
{
    memset(key, 0, sizeof(*key));
    return ts3_hmac_init(digest, &key->hmac);
}

void ts3_sigv4_key_forget(struct ts3_sigv4_key *key)
{
    key->is_set = false;
    key->scope = (struct ts3_str){0};
    key->source = (struct ts3_sigv4_source){0};
    OPENSSL_cleanse(key->secret, sizeof(key->secret));
}

void ts3_sigv4_key_free(struct ts3_sigv4_key *key)
{
    ts3_sigv4_key_forget(key);
    ts3_hmac_free(&key->hmac);
}

static struct ts3_str day_of(const struct ts3_sigv4_source *source)
{
    return (struct ts3_str){source->stamp.data, TS3_SIGV4_DAY_LEN};
}

static bool is_same_key(const struct ts3_sigv4_source *a, const struct ts3_sigv4_source *b)
{
    return ts3_str_eq(day_of(a), day_of(b)) && ts3_str_eq(a->region, b->region) &&
           ts3_str_eq(a->service, b->service) && ts3_str_eq(a->secret, b->secret);
}

/* The next key of the chain: the sum of bytes under the key before. */
static enum ts3_err next_key(struct ts3_hmac *hmac, struct ts3_str bytes)
{
    unsigned char sum[TS3_SHA256_BYTES];
    enum ts3_err err = ts3_hmac_sum(hmac, bytes.data, bytes.len, sum);
    if (!err)
        err = ts3_hmac_key(hmac, sum, sizeof(sum));
    OPENSSL_cleanse(sum, sizeof(sum));
    return err;
}

static enum ts3_err derive(struct ts3_hmac *hmac, const struct ts3_sigv4_source *source)
{
    char first[4 + TS3_SIGV4_MAX_SECRET] = {'A', 'W', 'S', '4'};
    memcpy(first + 4, source->secret.data, source->secret.len);
    enum ts3_err err = ts3_hmac_key(hmac, first, 4 + source->secret.len);
    OPENSSL_cleanse(first, sizeof(first));
    if (!err)
        err = next_key(hmac, day_of(source));
    if (!err)
        err = next_key(hmac, source->region);
    if (!err)
        err = next_key(hmac, source->service);
    return err ? err : next_key(hmac, TS3_STR(TERMINATOR));
}

static struct ts3_str kept(char *place, struct ts3_str str)
{
    memcpy(place, str.data, str.len);
    return (struct ts3_str){place, str.len};
}

static enum ts3_err renew(struct ts3_sigv4_key *key, const struct ts3_sigv4_source *source)
{
    ts3_sigv4_key_forget(key);
    enum ts3_err err = derive(&key->hmac, source);
    if (err)
        return err;
    key->source.region = kept(key->region, source->region);
    key->source.service = kept(key->service, source->service);
    key->source.secret = kept(key->secret, source->secret);
    return TS3_OK;
}

static size_t put(char *place, size_t at, struct ts3_str str)
{
    memcpy(place + at, str.data, str.len);
    return at + str.len;
}

/* Algorithm, time and scope, a line each. */
static enum ts3_err begin(struct ts3_sigv4_key *key, struct ts3_str stamp)
{
    key->source.stamp = kept(key->stamp, stamp);
    size_t at = put(key->begin, 0, TS3_STR(TS3_SIGV4_ALGORITHM "\n"));
    at = put(key->begin, at, stamp);
    at = put(key->begin, at, TS3_STR("\n"));
    key->scope.data = key->begin + at;
    at = put(key->begin, at, day_of(&key->source));
    at = put(key->begin, at, TS3_STR("/"));
    at = put(key->begin, at, key->source.region);
    at = put(key->begin, at, TS3_STR("/"));
    at = put(key->begin, at, key->source.service);
    at = put(key->begin, at, TS3_STR("/" TERMINATOR));
    key->scope.len = (size_t)(key->begin + at - key->scope.data);
    at = put(key->begin, at, TS3_STR("\n"));
    return ts3_hmac_begin(&key->hmac, key->begin, at);
}

enum ts3_err ts3_sigv4_key_use(struct ts3_sigv4_key *key, const struct ts3_sigv4_source *source)
{
    bool same = key->is_set && is_same_key(&key->source, source);
    if (same && ts3_str_eq(key->source.stamp, source->stamp))
        return TS3_OK;
    enum ts3_err err = same ? TS3_OK : renew(key, source);
    if (!err)
        err = begin(key, source->stamp);
    key->is_set = !err;
    return err;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Deriving and keeping the signing key. See ts3_sigv4_key.h. */
#include "core/ts3_sigv4_key.h"

#include <openssl/crypto.h>

enum ts3_err ts3_sigv4_key_init(const struct ts3_digest *digest, struct ts3_sigv4_key *key)
{
    memset(key, 0, sizeof(*key));
    return ts3_hmac_init(digest, &key->hmac);
}

void ts3_sigv4_key_forget(struct ts3_sigv4_key *key)
{
    key->is_set = false;
    key->source = (struct ts3_sigv4_source){0};
    OPENSSL_cleanse(key->secret, sizeof(key->secret));
}

void ts3_sigv4_key_free(struct ts3_sigv4_key *key)
{
    ts3_sigv4_key_forget(key);
    ts3_hmac_free(&key->hmac);
}

static bool is_same(const struct ts3_sigv4_source *a, const struct ts3_sigv4_source *b)
{
    return ts3_str_eq(a->day, b->day) && ts3_str_eq(a->region, b->region) &&
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
        err = next_key(hmac, source->day);
    if (!err)
        err = next_key(hmac, source->region);
    if (!err)
        err = next_key(hmac, source->service);
    return err ? err : next_key(hmac, TS3_STR("aws4_request"));
}

static struct ts3_str kept(char *place, struct ts3_str str)
{
    memcpy(place, str.data, str.len);
    return (struct ts3_str){place, str.len};
}

enum ts3_err ts3_sigv4_key_use(struct ts3_sigv4_key *key, const struct ts3_sigv4_source *source)
{
    if (key->is_set && is_same(&key->source, source))
        return TS3_OK;
    ts3_sigv4_key_forget(key);
    enum ts3_err err = derive(&key->hmac, source);
    if (err)
        return err;
    key->source.day = kept(key->day, source->day);
    key->source.region = kept(key->region, source->region);
    key->source.service = kept(key->service, source->service);
    key->source.secret = kept(key->secret, source->secret);
    key->is_set = true;
    return TS3_OK;
}

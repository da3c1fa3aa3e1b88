/* SPDX-License-Identifier: GPL-2.0-or-later */
/* HMAC-SHA-256 on saved digest states. See ts3_hmac.h. */
#include "core/ts3_hmac.h"

#include <openssl/crypto.h>
#include <string.h>

enum { BLOCK_BYTES = 64 };

enum ts3_err ts3_hmac_init(const struct ts3_digest *digest, struct ts3_hmac *hmac)
{
    memset(hmac, 0, sizeof(*hmac));
    enum ts3_err err = ts3_sha256_init(digest, &hmac->inner);
    if (!err)
        err = ts3_sha256_init(digest, &hmac->outer);
    if (!err)
        err = ts3_sha256_init(digest, &hmac->begun);
    if (!err)
        err = ts3_sha256_init(digest, &hmac->work);
    if (err)
        ts3_hmac_free(hmac);
    return err;
}

static enum ts3_err absorb(struct ts3_sha256 *hash, const unsigned char key[BLOCK_BYTES],
                           unsigned char pad)
{
    unsigned char block[BLOCK_BYTES];
    for (int i = 0; i < BLOCK_BYTES; i++)
        block[i] = key[i] ^ pad;
    enum ts3_err err = ts3_sha256_restart(hash);
    if (!err)
        err = ts3_sha256_update(hash, block, sizeof(block));
    OPENSSL_cleanse(block, sizeof(block));
    return err;
}

enum ts3_err ts3_hmac_key(struct ts3_hmac *hmac, const void *key, size_t size_bytes)
{
    unsigned char block[BLOCK_BYTES] = {0};
    enum ts3_err err = TS3_OK;
    if (size_bytes <= sizeof(block)) {
        if (size_bytes)
            memcpy(block, key, size_bytes);
    } else {
        err = ts3_sha256_restart(&hmac->work);
        if (!err)
            err = ts3_sha256_update(&hmac->work, key, size_bytes);
        if (!err)
            err = ts3_sha256_final(&hmac->work, block);
    }
    if (!err)
        err = absorb(&hmac->inner, block, 0x36);
    if (!err)
        err = absorb(&hmac->outer, block, 0x5c);
    OPENSSL_cleanse(block, sizeof(block));
    return err ? err : ts3_hmac_begin(hmac, NULL, 0);
}

enum ts3_err ts3_hmac_begin(struct ts3_hmac *hmac, const void *bytes, size_t size_bytes)
{
    enum ts3_err err = ts3_sha256_copy(&hmac->begun, &hmac->inner);
    if (!err && size_bytes)
        err = ts3_sha256_update(&hmac->begun, bytes, size_bytes);
    return err;
}

enum ts3_err ts3_hmac_sum(struct ts3_hmac *hmac, const void *bytes, size_t size_bytes,
                          unsigned char out[TS3_SHA256_BYTES])
{
    enum ts3_err err = ts3_sha256_copy(&hmac->work, &hmac->begun);
    if (!err)
        err = ts3_sha256_update(&hmac->work, bytes, size_bytes);
    if (!err)
        err = ts3_sha256_final(&hmac->work, out);
    if (!err)
        err = ts3_sha256_copy(&hmac->work, &hmac->outer);
    if (!err)
        err = ts3_sha256_update(&hmac->work, out, TS3_SHA256_BYTES);
    if (!err)
        err = ts3_sha256_final(&hmac->work, out);
    return err;
}

void ts3_hmac_free(struct ts3_hmac *hmac)
{
    ts3_sha256_free(&hmac->inner);
    ts3_sha256_free(&hmac->outer);
    ts3_sha256_free(&hmac->begun);
    ts3_sha256_free(&hmac->work);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* HMAC-SHA-256 (RFC 2104) whose key is absorbed once, and with it what many messages begin with:
 * the states are copied for every sum, which saves two of the hash's blocks, those of the common
 * beginning, and a lookup each time.
 * Owner: the caller; ts3_hmac_free overwrites what was derived from the key. Thread: one at a time.
 * Errors: TS3_ENOMEM, TS3_ECRYPTO. */
#ifndef TS3_HMAC_H
#define TS3_HMAC_H

#include "core/ts3_digest.h"

struct ts3_hmac {
    struct ts3_sha256 inner; /* has absorbed key ^ ipad */
    struct ts3_sha256 outer; /* has absorbed key ^ opad */
    struct ts3_sha256 begun; /* inner, and behind it the beginning */
    struct ts3_sha256 work;
};

/* No key yet; after an error there is nothing to free. */
enum ts3_err ts3_hmac_init(const struct ts3_digest *digest, struct ts3_hmac *hmac);
/* Any length; replaces the key before, and there is no beginning any more. After an error no sum may
 * be taken until a key was set. */
enum ts3_err ts3_hmac_key(struct ts3_hmac *hmac, const void *key, size_t size_bytes);
/* What each message begins with from now on, in place of the beginning before; may be empty. After
 * an error no sum may be taken until a key was set. */
enum ts3_err ts3_hmac_begin(struct ts3_hmac *hmac, const void *bytes, size_t size_bytes);
/* Of the beginning and these bytes. */
enum ts3_err ts3_hmac_sum(struct ts3_hmac *hmac, const void *bytes, size_t size_bytes,
                          unsigned char out[TS3_SHA256_BYTES]);
/* A zeroed struct is fine, twice too. */
void ts3_hmac_free(struct ts3_hmac *hmac);

#endif

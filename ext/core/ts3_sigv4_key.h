/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signing key of SigV4, derived once for each (secret, day, region, service) and kept as the
 * states of an HMAC, which has absorbed what every string to sign of one second begins with as well;
 * private to the signer.
 * Owner: the signer; ts3_sigv4_key_free overwrites the secret and all that was derived from it.
 * Thread: one at a time. Errors: TS3_ENOMEM, TS3_ECRYPTO; a key that failed to be derived is none.
 * Limits: the caller keeps to those of ts3_sigv4.h. */
#ifndef TS3_SIGV4_KEY_H
#define TS3_SIGV4_KEY_H

#include <stdbool.h>

#include "core/ts3_hmac.h"
#include "core/ts3_sigv4.h"
#include "core/ts3_str.h"

enum {
    TS3_SIGV4_DAY_LEN = 8,
    TS3_SIGV4_STAMP_LEN = 16, /* of the time, 20150830T123600Z */
    TS3_SIGV4_BEGIN_MAX = 64 + TS3_SIGV4_STAMP_LEN + TS3_SIGV4_DAY_LEN + 2 * TS3_SIGV4_MAX_SCOPE
};

#define TS3_SIGV4_ALGORITHM "AWS4-HMAC-SHA256"

/* What a key is derived from, its day being that of the stamp. */
struct ts3_sigv4_source {
    struct ts3_str secret;
    struct ts3_str stamp; /* TS3_SIGV4_STAMP_LEN bytes */
    struct ts3_str region;
    struct ts3_str service;
};

struct ts3_sigv4_key {
    struct ts3_hmac hmac; /* keyed with the signing key and begun while is_set */
    bool is_set;
    struct ts3_sigv4_source source; /* of the signing key; its strings lie below */
    struct ts3_str scope;           /* day/region/service/aws4_request, within begin */
    char begin[TS3_SIGV4_BEGIN_MAX]; /* the string to sign up to its last line */
    char stamp[TS3_SIGV4_STAMP_LEN];
    char region[TS3_SIGV4_MAX_SCOPE];
    char service[TS3_SIGV4_MAX_SCOPE];
    char secret[TS3_SIGV4_MAX_SECRET];
};

/* After an error there is nothing to free. */
enum ts3_err ts3_sigv4_key_init(const struct ts3_digest *digest, struct ts3_sigv4_key *key);
/* Derives the key and begins the string to sign, as far as they are not those of source already:
 * then ts3_hmac_sum of the canonical request's hash in hex is the signature. */
enum ts3_err ts3_sigv4_key_use(struct ts3_sigv4_key *key, const struct ts3_sigv4_source *source);
/* Overwrites the secret; the next use derives again. */
void ts3_sigv4_key_forget(struct ts3_sigv4_key *key);
/* A zeroed struct is fine, twice too. */
void ts3_sigv4_key_free(struct ts3_sigv4_key *key);

#endif

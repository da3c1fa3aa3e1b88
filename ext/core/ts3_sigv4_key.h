/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signing key of SigV4, derived once for each (secret, day, region, service) and kept as the
 * two states of an HMAC; private to the signer.
 * Owner: the signer; ts3_sigv4_key_free overwrites the secret and all that was derived from it.
 * Thread: one at a time. Errors: TS3_ENOMEM, TS3_ECRYPTO; a key that failed to be derived is none.
 * Limits: the caller keeps to those of ts3_sigv4.h. */
#ifndef TS3_SIGV4_KEY_H
#define TS3_SIGV4_KEY_H

#include <stdbool.h>

#include "core/ts3_hmac.h"
#include "core/ts3_sigv4.h"
#include "core/ts3_str.h"

enum { TS3_SIGV4_DAY_LEN = 8 };

/* What a key is derived from. */
struct ts3_sigv4_source {
    struct ts3_str secret;
    struct ts3_str day; /* TS3_SIGV4_DAY_LEN digits */
    struct ts3_str region;
    struct ts3_str service;
};

struct ts3_sigv4_key {
    struct ts3_hmac hmac; /* keyed with the signing key while is_set */
    bool is_set;
    struct ts3_sigv4_source source; /* of the signing key; its strings lie below */
    char day[TS3_SIGV4_DAY_LEN];
    char region[TS3_SIGV4_MAX_SCOPE];
    char service[TS3_SIGV4_MAX_SCOPE];
    char secret[TS3_SIGV4_MAX_SECRET];
};

/* After an error there is nothing to free. */
enum ts3_err ts3_sigv4_key_init(const struct ts3_digest *digest, struct ts3_sigv4_key *key);
/* Derives the key, unless it is that of source already. */
enum ts3_err ts3_sigv4_key_use(struct ts3_sigv4_key *key, const struct ts3_sigv4_source *source);
/* Overwrites the secret; the next use derives again. */
void ts3_sigv4_key_forget(struct ts3_sigv4_key *key);
/* A zeroed struct is fine, twice too. */
void ts3_sigv4_key_free(struct ts3_sigv4_key *key);

#endif

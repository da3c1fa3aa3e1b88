/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Credentials: key id, secret, session token, and which version of them they are.
 * Owner: who has the struct; free overwrites them.  Thread: one at a time.  Errors: TS3_ENOMEM,
 *   TS3_ELIMIT; then the version is 0, and they are not to be used.
 * Limits: TS3_CREDS_BYTES each. */
#ifndef TS3_CREDS_H
#define TS3_CREDS_H

#include <stdint.h>

#include "core/ts3_buf.h"

#define TS3_CREDS_BYTES ((size_t)8 << 10)

struct ts3_creds {
    uint64_t version; /* 0: none yet */
    struct ts3_buf access_key_id;
    struct ts3_buf secret;
    struct ts3_buf token; /* empty: none */
};

/* Allocates nothing. */
void ts3_creds_init(struct ts3_creds *creds, const struct ts3_alloc *alloc);
void ts3_creds_free(struct ts3_creds *creds);
enum ts3_err ts3_creds_set(struct ts3_creds *creds, struct ts3_str access_key_id,
                           struct ts3_str secret, struct ts3_str token);
/* The version too. */
enum ts3_err ts3_creds_copy(struct ts3_creds *to, const struct ts3_creds *from);

#endif

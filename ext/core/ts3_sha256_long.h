/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 of long messages, up to three of them advanced side by side where the processor gains by
 * it (ts3_sha256_ni.h); elsewhere, and where OpenSSL's default properties ask for FIPS, by OpenSSL,
 * one after the other.
 *
 * Owner: the caller.  Thread: one at a time for each hash.  Errors: TS3_ENOMEM, TS3_ECRYPTO (both
 * from OpenSSL alone).  Limits: the size of every piece but a message's last is a multiple of
 * TS3_SHA256_BLOCK_BYTES. */
#ifndef TS3_SHA256_LONG_H
#define TS3_SHA256_LONG_H

#include <stdint.h>

#include "core/ts3_digest.h"
#include "core/ts3_sha256_ni.h"

#define TS3_SHA256_LONG_MOST TS3_SHA256_NI_LANES

struct ts3_sha256_long {
    struct ts3_sha256 openssl; /* where that does it: state is not NULL */
    uint32_t state[8];
    uint64_t size_bytes;
    unsigned char rest[TS3_SHA256_BLOCK_BYTES]; /* size_bytes % TS3_SHA256_BLOCK_BYTES of it */
};

/* One piece of one message. */
struct ts3_sha256_piece {
    struct ts3_sha256_long *hash;
    const unsigned char *bytes;
    size_t size_bytes;
};

/* End it with ts3_sha256_long_free, whatever happens. After an error there is nothing to free. */
enum ts3_err ts3_sha256_long_init(const struct ts3_digest *digest, struct ts3_sha256_long *hash);
/* The next pieces of count messages, at most TS3_SHA256_LONG_MOST, no two of one. After an error
 * only free may follow for any of them. */
enum ts3_err ts3_sha256_long_update(const struct ts3_sha256_piece *pieces, size_t count);
/* After this only free may follow. */
enum ts3_err ts3_sha256_long_final_hex(struct ts3_sha256_long *hash,
                                       char out[TS3_SHA256_HEX_BYTES]);
/* A zeroed struct is fine, twice too. */
void ts3_sha256_long_free(struct ts3_sha256_long *hash);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 and MD5, on OpenSSL 3.
 *
 * struct ts3_digest holds the fetched algorithms: made once, then read-only, so any number of
 * threads may use one. struct ts3_sha256 is one running hash: one thread at a time.
 * Errors: TS3_ENOMEM, TS3_ECRYPTO (MD5 is not there under a FIPS provider: ts3_digest_new succeeds
 * without it, and only ts3_md5_* fail). */
#ifndef TS3_DIGEST_H
#define TS3_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_alloc.h"
#include "core/ts3_err.h"

#define TS3_SHA256_BYTES 32
#define TS3_SHA256_HEX_BYTES 65 /* with NUL */
#define TS3_MD5_BYTES 16
#define TS3_MD5_BASE64_BYTES 25 /* with NUL */

/* SHA-256 of nothing, in lower-case hex. */
#define TS3_SHA256_EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

struct ts3_digest;

enum ts3_err ts3_digest_new(const struct ts3_alloc *alloc, struct ts3_digest **digest);
/* NULL is fine. Every hash and signer made with it is freed before. */
void ts3_digest_free(struct ts3_digest *digest);

/* How many long messages are hashed at once (ts3_sha256_long.h): 1 is OpenSSL's way. */
unsigned ts3_digest_lanes(const struct ts3_digest *digest);
/* OpenSSL's way from now on, whatever the processor has; before another thread knows the digest. */
void ts3_digest_leave_to_openssl(struct ts3_digest *digest);

struct ts3_sha256 {
    void *state; /* an EVP_MD_CTX */
};

/* Starts a hash; end it with ts3_sha256_free, whatever happens. After an error there is nothing to
 * free. */
enum ts3_err ts3_sha256_init(const struct ts3_digest *digest, struct ts3_sha256 *hash);
enum ts3_err ts3_sha256_update(struct ts3_sha256 *hash, const void *bytes, size_t size_bytes);
/* After one of these only restart, copy to it, or free may follow. */
enum ts3_err ts3_sha256_final(struct ts3_sha256 *hash, unsigned char out[TS3_SHA256_BYTES]);
enum ts3_err ts3_sha256_final_hex(struct ts3_sha256 *hash, char out[TS3_SHA256_HEX_BYTES]);
/* Starts the hash again, also after a final. */
enum ts3_err ts3_sha256_restart(struct ts3_sha256 *hash);
/* to (initialised) goes on from where from stands; from is not changed. */
enum ts3_err ts3_sha256_copy(struct ts3_sha256 *to, const struct ts3_sha256 *from);
/* Overwrites the state. A zeroed struct is fine, twice too. */
void ts3_sha256_free(struct ts3_sha256 *hash);

enum ts3_err ts3_sha256_hex(const struct ts3_digest *digest, const void *bytes, size_t size_bytes,
                            char out[TS3_SHA256_HEX_BYTES]);
/* The value of a Content-MD5 header. */
enum ts3_err ts3_md5_base64(const struct ts3_digest *digest, const void *bytes, size_t size_bytes,
                            char out[TS3_MD5_BASE64_BYTES]);

/* size_bytes bytes as lower-case hex and a NUL; out has room for 2 * size_bytes + 1. */
void ts3_hex_encode(const unsigned char *bytes, size_t size_bytes, char *out);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 and MD5 through OpenSSL's EVP, with algorithms fetched once: an implicit fetch for every
 * hash takes a lock and costs more than hashing a short message. See ts3_digest.h. */
#include "core/ts3_digest.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "core/ts3_sha256_ni.h"

struct ts3_digest {
    const struct ts3_alloc *alloc;
    EVP_MD *sha256;
    EVP_MD *md5; /* NULL where the provider has none */
    unsigned lanes;
};

/* OpenSSL queues its errors per thread; what is left there would be taken by libcurl for one of a
 * connection. */
static enum ts3_err crypto_error(void)
{
    ERR_clear_error();
    return TS3_ECRYPTO;
}

enum ts3_err ts3_digest_new(const struct ts3_alloc *alloc, struct ts3_digest **digest)
{
    *digest = NULL;
    struct ts3_digest *made = ts3_alloc_zero(alloc, 1, sizeof(*made));
    if (!made)
        return TS3_ENOMEM;
    made->alloc = alloc;
    made->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (!made->sha256) {
        ts3_digest_free(made);
        return crypto_error();
    }
    made->md5 = EVP_MD_fetch(NULL, "MD5", NULL);
    if (!made->md5)
        ERR_clear_error();
    /* Who asks for FIPS means that of the provider, and no code but its own. */
    made->lanes = ts3_sha256_ni_here() && !EVP_default_properties_is_fips_enabled(NULL)
                      ? TS3_SHA256_NI_LANES
                      : 1;
    *digest = made;
    return TS3_OK;
}

unsigned ts3_digest_lanes(const struct ts3_digest *digest)
{
    return digest->lanes;
}

void ts3_digest_leave_to_openssl(struct ts3_digest *digest)
{
    digest->lanes = 1;
}

void ts3_digest_free(struct ts3_digest *digest)
{
    if (!digest)
        return;
    EVP_MD_free(digest->sha256);
    EVP_MD_free(digest->md5);
    ts3_alloc_free(digest->alloc, digest);
}

enum ts3_err ts3_sha256_init(const struct ts3_digest *digest, struct ts3_sha256 *hash)
{
    EVP_MD_CTX *state = EVP_MD_CTX_new();
    hash->state = NULL;
    if (!state) {
        ERR_clear_error();
        return TS3_ENOMEM;
    }
    if (!EVP_DigestInit_ex2(state, digest->sha256, NULL)) {
        EVP_MD_CTX_free(state);
        return crypto_error();
    }
    hash->state = state;
    return TS3_OK;
}

enum ts3_err ts3_sha256_update(struct ts3_sha256 *hash, const void *bytes, size_t size_bytes)
{
    return EVP_DigestUpdate(hash->state, bytes, size_bytes) ? TS3_OK : crypto_error();
}

enum ts3_err ts3_sha256_final(struct ts3_sha256 *hash, unsigned char out[TS3_SHA256_BYTES])
{
    return EVP_DigestFinal_ex(hash->state, out, NULL) ? TS3_OK : crypto_error();
}

enum ts3_err ts3_sha256_final_hex(struct ts3_sha256 *hash, char out[TS3_SHA256_HEX_BYTES])
{
    unsigned char sum[TS3_SHA256_BYTES];
    enum ts3_err err = ts3_sha256_final(hash, sum);
    if (!err)
        ts3_hex_encode(sum, sizeof(sum), out);
    return err;
}

enum ts3_err ts3_sha256_restart(struct ts3_sha256 *hash)
{
    /* Without a type OpenSSL starts the one again that the state has. */
    return EVP_DigestInit_ex2(hash->state, NULL, NULL) ? TS3_OK : crypto_error();
}

enum ts3_err ts3_sha256_copy(struct ts3_sha256 *to, const struct ts3_sha256 *from)
{
    return EVP_MD_CTX_copy_ex(to->state, from->state) ? TS3_OK : crypto_error();
}

void ts3_sha256_free(struct ts3_sha256 *hash)
{
    EVP_MD_CTX_free(hash->state); /* overwrites the state */
    hash->state = NULL;
}

enum ts3_err ts3_sha256_hex(const struct ts3_digest *digest, const void *bytes, size_t size_bytes,
                            char out[TS3_SHA256_HEX_BYTES])
{
    unsigned char sum[TS3_SHA256_BYTES];
    if (!EVP_Digest(bytes, size_bytes, sum, NULL, digest->sha256, NULL))
        return crypto_error();
    ts3_hex_encode(sum, sizeof(sum), out);
    return TS3_OK;
}

enum ts3_err ts3_md5_base64(const struct ts3_digest *digest, const void *bytes, size_t size_bytes,
                            char out[TS3_MD5_BASE64_BYTES])
{
    unsigned char sum[TS3_MD5_BYTES];
    if (!digest->md5)
        return TS3_ECRYPTO;
    if (!EVP_Digest(bytes, size_bytes, sum, NULL, digest->md5, NULL))
        return crypto_error();
    EVP_EncodeBlock((unsigned char *)out, sum, sizeof(sum));
    return TS3_OK;
}

/* The digit of four bits, without a branch or a table, so that compilers do many at once. */
static char hex_digit(unsigned char four)
{
    return (char)('0' + four + (four > 9) * ('a' - '0' - 10));
}

void ts3_hex_encode(const unsigned char *restrict bytes, size_t size_bytes, char *restrict out)
{
    for (size_t i = 0; i < size_bytes; i++) {
        out[2 * i] = hex_digit(bytes[i] >> 4);
        out[2 * i + 1] = hex_digit(bytes[i] & 15);
    }
    out[2 * size_bytes] = '\0';
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_sha256_long.h. */
#include "core/ts3_sha256_long.h"

#include <string.h>

/* FIPS 180-4, section 5.3.3. */
static const uint32_t first_state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

enum ts3_err ts3_sha256_long_init(const struct ts3_digest *digest, struct ts3_sha256_long *hash)
{
    memset(hash, 0, sizeof *hash);
    if (ts3_digest_lanes(digest) == 1)
        return ts3_sha256_init(digest, &hash->openssl);
    memcpy(hash->state, first_state, sizeof first_state);
    return TS3_OK;
}

/* Compresses as many blocks of each piece as the shortest has, and takes them off; a piece of which
 * no block is left goes. How many pieces are left. */
static size_t compress(struct ts3_sha256_piece *pieces, size_t count)
{
    uint32_t *state[TS3_SHA256_LONG_MOST];
    const unsigned char *data[TS3_SHA256_LONG_MOST];
    size_t blocks = SIZE_MAX, left = 0;
    for (size_t i = 0; i < count; i++) {
        state[i] = pieces[i].hash->state;
        data[i] = pieces[i].bytes;
        if (pieces[i].size_bytes / TS3_SHA256_BLOCK_BYTES < blocks)
            blocks = pieces[i].size_bytes / TS3_SHA256_BLOCK_BYTES;
    }
    ts3_sha256_ni_compress(state, data, count, blocks);
    for (size_t i = 0; i < count; i++) {
        pieces[i].bytes += blocks * TS3_SHA256_BLOCK_BYTES;
        pieces[i].size_bytes -= blocks * TS3_SHA256_BLOCK_BYTES;
        if (pieces[i].size_bytes >= TS3_SHA256_BLOCK_BYTES)
            pieces[left++] = pieces[i];
    }
    return left;
}

enum ts3_err ts3_sha256_long_update(const struct ts3_sha256_piece *pieces, size_t count)
{
    struct ts3_sha256_piece whole[TS3_SHA256_LONG_MOST]; /* those with a block or more */
    size_t left = 0;
    enum ts3_err err = TS3_OK;
    for (size_t i = 0; i < count; i++) {
        const struct ts3_sha256_piece *piece = &pieces[i];
        if (piece->hash->openssl.state != NULL) {
            if (err == TS3_OK)
                err = ts3_sha256_update(&piece->hash->openssl, piece->bytes, piece->size_bytes);
            continue;
        }
        size_t rest = piece->size_bytes % TS3_SHA256_BLOCK_BYTES;
        memcpy(piece->hash->rest, piece->bytes + piece->size_bytes - rest, rest);
        piece->hash->size_bytes += piece->size_bytes;
        if (piece->size_bytes > rest)
            whole[left++] = *piece;
    }
    while (left > 0)
        left = compress(whole, left);
    return err;
}

static void put_big_endian(unsigned char *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        out[i] = (unsigned char)(value >> 8 * (bytes - 1 - i));
}

enum ts3_err ts3_sha256_long_final_hex(struct ts3_sha256_long *hash,
                                       char out[TS3_SHA256_HEX_BYTES])
{
    if (hash->openssl.state != NULL)
        return ts3_sha256_final_hex(&hash->openssl, out);
    /* Padding: a bit, zeros, and the message's length in bits at the end of a block. */
    unsigned char end[2 * TS3_SHA256_BLOCK_BYTES] = {0};
    size_t rest = (size_t)(hash->size_bytes % TS3_SHA256_BLOCK_BYTES);
    size_t blocks = rest + 1 + 8 <= TS3_SHA256_BLOCK_BYTES ? 1 : 2;
    memcpy(end, hash->rest, rest);
    end[rest] = 0x80;
    put_big_endian(end + blocks * TS3_SHA256_BLOCK_BYTES - 8, hash->size_bytes * 8, 8);
    ts3_sha256_ni_compress((uint32_t *[]){hash->state}, (const unsigned char *[]){end}, 1, blocks);
    unsigned char sum[TS3_SHA256_BYTES];
    for (size_t i = 0; i < 8; i++)
        put_big_endian(sum + 4 * i, hash->state[i], 4);
    ts3_hex_encode(sum, sizeof sum, out);
    return TS3_OK;
}

void ts3_sha256_long_free(struct ts3_sha256_long *hash)
{
    ts3_sha256_free(&hash->openssl);
}

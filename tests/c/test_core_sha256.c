/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256 of several long messages at once, against OpenSSL's of each alone. */
#include <stdlib.h>

#include "core/ts3_rand.h"
#include "core/ts3_sha256_long.h"
#include "ts3_test.h"

enum { LONGEST = 4096, PIECES = 40 };

static unsigned char bytes[TS3_SHA256_LONG_MOST][LONGEST];

static void fill(const struct ts3_rand *chance)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        (&bytes[0][0])[i] = (unsigned char)ts3_rand_below(chance, 256);
}

static void check_sum(const struct ts3_digest *digest, struct ts3_sha256_long *hash,
                      const unsigned char *message, size_t size)
{
    char found[TS3_SHA256_HEX_BYTES], expected[TS3_SHA256_HEX_BYTES];
    CHECK_OK(ts3_sha256_long_final_hex(hash, found));
    CHECK_OK(ts3_sha256_hex(digest, message, size, expected));
    CHECK_STR(ts3_str_of(found), ts3_str_of(expected));
    ts3_sha256_long_free(hash);
    ts3_sha256_long_free(hash);
}

/* Every length to beyond the point where the padding wants a block of its own, alone. */
static void each_length(const struct ts3_digest *digest)
{
    for (size_t size = 0; size <= 5 * TS3_SHA256_BLOCK_BYTES; size++) {
        struct ts3_sha256_long hash;
        CHECK_OK(ts3_sha256_long_init(digest, &hash));
        CHECK_OK(ts3_sha256_long_update(&(struct ts3_sha256_piece){&hash, bytes[0], size}, 1));
        check_sum(digest, &hash, bytes[0], size);
    }
}

/* Messages that begin and end at different times, in pieces of any number of blocks. */
static void together(const struct ts3_digest *digest, const struct ts3_rand *chance)
{
    struct ts3_sha256_long hash[TS3_SHA256_LONG_MOST];
    size_t size[TS3_SHA256_LONG_MOST], at[TS3_SHA256_LONG_MOST] = {0};
    size_t open = 0;
    for (size_t i = 0; i < TS3_SHA256_LONG_MOST; i++) {
        size[i] = 1 + ts3_rand_below(chance, LONGEST);
        CHECK_OK(ts3_sha256_long_init(digest, &hash[i]));
        open++;
    }
    while (open > 0) {
        struct ts3_sha256_piece pieces[TS3_SHA256_LONG_MOST];
        size_t count = 0;
        for (size_t i = 0; i < TS3_SHA256_LONG_MOST; i++) {
            if (at[i] == size[i] || ts3_rand_below(chance, 3) == 0)
                continue;
            size_t piece = ts3_rand_below(chance, PIECES) * TS3_SHA256_BLOCK_BYTES;
            if (piece >= size[i] - at[i]) {
                piece = size[i] - at[i];
                open--;
            }
            pieces[count++] = (struct ts3_sha256_piece){&hash[i], bytes[i] + at[i], piece};
            at[i] += piece;
        }
        if (count > 0)
            CHECK_OK(ts3_sha256_long_update(pieces, count));
    }
    for (size_t i = 0; i < TS3_SHA256_LONG_MOST; i++)
        check_sum(digest, &hash[i], bytes[i], size[i]);
}

static void run_all(bool leave_to_openssl)
{
    struct ts3_digest *digest;
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    if (leave_to_openssl)
        ts3_digest_leave_to_openssl(digest);
    CHECK(!leave_to_openssl || ts3_digest_lanes(digest) == 1);
    CHECK(leave_to_openssl || (ts3_digest_lanes(digest) > 1) == ts3_sha256_ni_here());
    struct ts3_rand_state state;
    struct ts3_rand chance;
    ts3_rand_seeded(&chance, &state, 20261129);
    fill(&chance);
    each_length(digest);
    for (int i = 0; i < 500; i++)
        together(digest, &chance);
    ts3_digest_free(digest);
}

TEST(messages_side_by_side_have_the_sums_of_each_alone)
{
    run_all(false);
}

TEST(openssl_does_it_where_the_processor_cannot)
{
    run_all(true);
}

/* Of a message longer than 2^32 bits. */
TEST(the_length_has_more_than_32_bits)
{
    struct ts3_digest *digest;
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    if (ts3_digest_lanes(digest) > 1) {
        enum { PIECE = 1 << 20, COUNT = 513 };
        unsigned char *zeros = calloc(1, PIECE);
        CHECK(zeros != NULL);
        struct ts3_sha256_long hash;
        struct ts3_sha256 one;
        CHECK_OK(ts3_sha256_long_init(digest, &hash));
        CHECK_OK(ts3_sha256_init(digest, &one));
        for (int i = 0; i < COUNT; i++) {
            CHECK_OK(ts3_sha256_long_update(&(struct ts3_sha256_piece){&hash, zeros, PIECE}, 1));
            CHECK_OK(ts3_sha256_update(&one, zeros, PIECE));
        }
        char found[TS3_SHA256_HEX_BYTES], expected[TS3_SHA256_HEX_BYTES];
        CHECK_OK(ts3_sha256_long_final_hex(&hash, found));
        CHECK_OK(ts3_sha256_final_hex(&one, expected));
        CHECK_STR(ts3_str_of(found), ts3_str_of(expected));
        ts3_sha256_long_free(&hash);
        ts3_sha256_free(&one);
        free(zeros);
    }
    ts3_digest_free(digest);
}

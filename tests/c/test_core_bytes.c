/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors, allocation, buffers, arenas, percent-encoding, digests. */
#include <stdio.h>
#include <stdlib.h>

#include "core/ts3_arena.h"
#include "core/ts3_buf.h"
#include "core/ts3_digest.h"
#include "core/ts3_hmac.h"
#include "core/ts3_uri.h"
#include "ts3_test.h"

TEST(err_every_number_has_a_text)
{
    for (int i = -2; i < TS3_ERR_COUNT + 2; i++) {
        bool known = i >= 0 && i < TS3_ERR_COUNT;
        ts3_test_label("%d", i);
        CHECK(ts3_err_text((enum ts3_err)i)[0] != '\0');
        CHECK(known != (strcmp(ts3_err_text((enum ts3_err)i), "unknown error") == 0));
    }
}

TEST(str_order_and_equality)
{
    CHECK(ts3_str_cmp(TS3_STR("a"), TS3_STR("b")) < 0);
    CHECK(ts3_str_cmp(TS3_STR("a"), TS3_STR("a\0")) < 0);
    CHECK(ts3_str_cmp(TS3_STR("\xff"), TS3_STR("a")) > 0);
    CHECK(ts3_str_cmp(TS3_STR(""), ts3_str_of(NULL)) == 0);
    CHECK(ts3_str_eq(TS3_STR("a\0b"), TS3_STR("a\0b")));
    CHECK(!ts3_str_eq(TS3_STR("a\0b"), TS3_STR("a\0c")));
    CHECK(ts3_str_eq_nocase(TS3_STR("ETag@["), TS3_STR("etag@[")));
    CHECK(!ts3_str_eq_nocase(TS3_STR("ETag`"), TS3_STR("etag@")));
}

TEST(alloc_overflow_is_no_memory)
{
    struct ts3_failing alloc;
    ts3_failing_init(&alloc);
    CHECK(ts3_alloc_zero(&alloc.alloc, SIZE_MAX / 2, 3) == NULL);
    CHECK(ts3_alloc_zero(&alloc.alloc, 0, 3) == NULL);
    CHECK_INT(alloc.calls, 0);
    char *p = ts3_alloc_zero(&alloc.alloc, 3, 5);
    CHECK(p && memcmp(p, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 15) == 0);
    ts3_alloc_cleanse(&alloc.alloc, p, 15);
    ts3_alloc_free(&alloc.alloc, NULL);
    CHECK_INT(alloc.live, 0);
    CHECK(ts3_alloc_libc()->realloc(NULL, NULL, 0) == NULL);
}

TEST(buf_grows_and_stays_terminated)
{
    struct ts3_failing alloc;
    struct ts3_buf buf;
    ts3_failing_init(&alloc);
    ts3_buf_init(&buf, &alloc.alloc, 1000);
    CHECK_TEXT(ts3_str_of(ts3_buf_text(&buf)), "");
    for (size_t i = 0; i < 1000; i++) {
        CHECK_OK(ts3_buf_append_char(&buf, (char)('a' + i % 26)));
        CHECK_INT(buf.len, i + 1);
        CHECK_INT(buf.data[buf.len], 0);
    }
    CHECK(alloc.calls < 8);
    CHECK_INT(ts3_buf_append_char(&buf, 'x'), TS3_ELIMIT);
    CHECK_INT(ts3_buf_append(&buf, "x", SIZE_MAX), TS3_ELIMIT);
    CHECK_OK(ts3_buf_append(&buf, NULL, 0));
    CHECK_INT(buf.len, 1000);
    CHECK_INT(buf.cap, 1001);
    ts3_buf_cut(&buf, 2000);
    CHECK_INT(buf.len, 1000);
    ts3_buf_cut(&buf, 3);
    CHECK_TEXT(ts3_buf_str(&buf), "abc");
    ts3_buf_reset(&buf);
    CHECK_TEXT(ts3_buf_str(&buf), "");
    CHECK_OK(ts3_buf_append_fmt(&buf, "%s-%04d", "x", 42));
    CHECK_OK(ts3_buf_append_text(&buf, "!"));
    CHECK_OK(ts3_buf_append_str(&buf, TS3_STR("?")));
    CHECK_TEXT(ts3_buf_str(&buf), "x-0042!?");
    CHECK_INT(ts3_buf_append_fmt(&buf, "%1000d", 1), TS3_ELIMIT);
    CHECK_TEXT(ts3_buf_str(&buf), "x-0042!?");
    ts3_buf_cleanse(&buf);
    ts3_buf_free(&buf);
    CHECK_INT(alloc.live, 0);
}

TEST(buf_failed_growth_leaves_the_content)
{
    struct ts3_failing alloc;
    struct ts3_buf buf;
    ts3_failing_init(&alloc);
    ts3_buf_init(&buf, &alloc.alloc, SIZE_MAX);
    CHECK_OK(ts3_buf_append_text(&buf, "abc"));
    alloc.fail_at = alloc.calls + 1;
    CHECK_INT(ts3_buf_reserve(&buf, 5000), TS3_ENOMEM);
    CHECK_TEXT(ts3_buf_str(&buf), "abc");
    alloc.fail_at = alloc.calls + 1;
    CHECK_INT(ts3_buf_append_fmt(&buf, "%500d", 1), TS3_ENOMEM);
    CHECK_TEXT(ts3_buf_str(&buf), "abc");
    ts3_buf_free(&buf);
    ts3_buf_init(&buf, &alloc.alloc, 0);
    CHECK_INT(ts3_buf_append_char(&buf, 'x'), TS3_ELIMIT);
    CHECK_OK(ts3_buf_append(&buf, "", 0));
    ts3_buf_free(&buf);
    CHECK_INT(alloc.live, 0);
}

TEST(arena_pieces_stay_and_are_bounded)
{
    struct ts3_failing alloc;
    struct ts3_arena arena;
    char *pieces[500];
    ts3_failing_init(&alloc);
    ts3_arena_init(&arena, &alloc.alloc, 200000);
    for (size_t i = 0; i < 500; i++) {
        char text[20];
        int len = snprintf(text, sizeof(text), "piece %zu", i);
        pieces[i] = ts3_arena_copy(&arena, text, (size_t)len);
        void *aligned = ts3_arena_get(&arena, i % 50);
        CHECK(aligned && (uintptr_t)aligned % _Alignof(max_align_t) == 0);
        if (aligned)
            memset(aligned, 0xff, i % 50);
    }
    for (size_t i = 0; i < 500; i++) {
        char text[20];
        snprintf(text, sizeof(text), "piece %zu", i);
        CHECK_TEXT(ts3_str_of(pieces[i]), text);
    }
    CHECK(ts3_arena_get(&arena, 100000) != NULL);
    CHECK(!arena.over);
    CHECK(ts3_arena_get(&arena, 100000) == NULL);
    CHECK(arena.over);
    CHECK(ts3_arena_copy(&arena, "", SIZE_MAX) == NULL);
    CHECK(ts3_arena_get(&arena, SIZE_MAX) == NULL);
    ts3_arena_free(&arena);
    CHECK_INT(alloc.live, 0);
    CHECK_TEXT(ts3_str_of(ts3_arena_copy(&arena, NULL, 0)), "");
    alloc.fail_at = alloc.calls + 1;
    CHECK(ts3_arena_get(&arena, 5000) == NULL);
    CHECK(!arena.over);
    ts3_arena_free(&arena);
    CHECK_INT(alloc.live, 0);
}

/* ---- percent-encoding ---- */

TEST(uri_every_byte)
{
    for (int c = 0; c < 256; c++) {
        char raw[1] = {(char)c}, encoded[4] = {0}, back[4], want[4];
        bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                     (c && strchr("-._~", c));
        size_t len = 0;
        ts3_test_label("byte %d", c);
        size_t encoded_len = ts3_uri_encode_to(encoded, (struct ts3_str){raw, 1}, false);
        snprintf(want, sizeof(want), plain ? "%c" : "%%%02X", c);
        CHECK_TEXT(((struct ts3_str){encoded, encoded_len}), want);
        CHECK_OK(ts3_uri_decode_to(back, &len, (struct ts3_str){encoded, encoded_len}, true));
        CHECK_STR(((struct ts3_str){back, len}), ((struct ts3_str){raw, 1}));
        encoded_len = ts3_uri_encode_to(encoded, (struct ts3_str){raw, 1}, true);
        CHECK_INT(encoded_len, plain || c == '/' ? 1 : 3);
    }
}

TEST(uri_decode)
{
    static const struct {
        const char *text;
        bool plus;
        const char *want; /* NULL: TS3_EINVAL */
    } rows[] = {
        {"", false, ""},
        {"a%20b", false, "a b"},
        {"a+b", false, "a+b"},
        {"a+b", true, "a b"},
        {"%2b%2B+", true, "++ "},
        {"%c3%BC", false, "\xc3\xbc"},
        {"%25%32%35", false, "%25"},
        {"%", false, NULL},
        {"%2", false, NULL},
        {"a%2", false, NULL},
        {"%2g", false, NULL},
        {"%g2", false, NULL},
        {"%%20", false, NULL},
        {"% 2", false, NULL},
        {"%-1", false, NULL},
        {"%\xff\xff", false, NULL},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_buf buf;
        ts3_test_label("row %zu", i);
        ts3_buf_init(&buf, ts3_alloc_libc(), 100);
        CHECK_OK(ts3_buf_append_text(&buf, "x"));
        CHECK_INT(ts3_uri_decode(&buf, ts3_str_of(rows[i].text), rows[i].plus),
                  rows[i].want ? TS3_OK : TS3_EINVAL);
        CHECK_INT(buf.data[0], 'x');
        CHECK_TEXT(((struct ts3_str){buf.data + 1, buf.len - 1}), rows[i].want ? rows[i].want : "");
        ts3_buf_free(&buf);
    }
}

TEST(uri_encode_keeps_to_the_bound)
{
    struct ts3_buf buf;
    ts3_buf_init(&buf, ts3_alloc_libc(), 6);
    CHECK_OK(ts3_uri_encode(&buf, TS3_STR("a/b c"), true) == TS3_ELIMIT ? TS3_OK : TS3_EINVAL);
    CHECK_INT(buf.len, 0);
    CHECK_OK(ts3_uri_encode(&buf, TS3_STR("/a c"), true));
    CHECK_TEXT(ts3_buf_str(&buf), "/a%20c");
    CHECK_INT(ts3_uri_encode(&buf, (struct ts3_str){"", SIZE_MAX}, true), TS3_ELIMIT);
    CHECK_OK(ts3_uri_encode(&buf, (struct ts3_str){NULL, 0}, true));
    ts3_buf_free(&buf);
}

/* ---- digests: FIPS 180-2, RFC 1321 and RFC 4231 ---- */

TEST(digest_known_answers)
{
    static const struct {
        const char *text, *sha256, *md5;
    } rows[] = {
        {"", TS3_SHA256_EMPTY, "1B2M2Y8AsgTpgAmY7PhCfg=="},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
         "kAFQmDzST7DWlj99KOF/cg=="},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
         "ghXvB5aiC8qq4RbTh2xmSg=="},
    };
    struct ts3_digest *digest = NULL;
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char hex[TS3_SHA256_HEX_BYTES], base64[TS3_MD5_BASE64_BYTES];
        size_t size_bytes = strlen(rows[i].text);
        struct ts3_sha256 hash;
        ts3_test_label("row %zu", i);
        CHECK_OK(ts3_sha256_hex(digest, rows[i].text, size_bytes, hex));
        CHECK_TEXT(ts3_str_of(hex), rows[i].sha256);
        CHECK_OK(ts3_sha256_init(digest, &hash));
        for (int again = 0; again < 2; again++) {
            for (size_t j = 0; j < size_bytes; j++)
                CHECK_OK(ts3_sha256_update(&hash, rows[i].text + j, 1));
            CHECK_OK(ts3_sha256_final_hex(&hash, hex));
            CHECK_TEXT(ts3_str_of(hex), rows[i].sha256);
            CHECK_OK(ts3_sha256_restart(&hash));
        }
        ts3_sha256_free(&hash);
        ts3_sha256_free(&hash);
        CHECK_OK(ts3_md5_base64(digest, rows[i].text, size_bytes, base64));
        CHECK_TEXT(ts3_str_of(base64), rows[i].md5);
    }
    ts3_digest_free(digest);
    ts3_digest_free(NULL);
}

TEST(hmac_known_answers)
{
    static const struct {
        char key_byte;
        size_t key_len;
        const char *text, *sum;
    } rows[] = {
        {0x0b, 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {(char)0xaa, 131, "Test Using Larger Than Block-Size Key - Hash Key First",
         "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
        {0x0b, 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {0, 0, "", "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad"},
    };
    struct ts3_digest *digest = NULL;
    struct ts3_hmac hmac;
    CHECK_OK(ts3_digest_new(ts3_alloc_libc(), &digest));
    CHECK_OK(ts3_hmac_init(digest, &hmac));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char key[200], hex[TS3_SHA256_HEX_BYTES];
        unsigned char sum[TS3_SHA256_BYTES];
        memset(key, rows[i].key_byte, sizeof(key));
        CHECK_OK(ts3_hmac_key(&hmac, key, rows[i].key_len));
        for (int again = 0; again < 2; again++) {
            CHECK_OK(ts3_hmac_sum(&hmac, rows[i].text, strlen(rows[i].text), sum));
            ts3_hex_encode(sum, sizeof(sum), hex);
            CHECK_TEXT(ts3_str_of(hex), rows[i].sum);
        }
        /* The same in two parts, wherever it is cut; the last beginning is that of the next key's
         * sums no more. */
        for (size_t cut = strlen(rows[i].text) + 1; cut-- > 0;) {
            CHECK_OK(ts3_hmac_begin(&hmac, rows[i].text, cut));
            CHECK_OK(ts3_hmac_sum(&hmac, rows[i].text + cut, strlen(rows[i].text) - cut, sum));
            ts3_hex_encode(sum, sizeof(sum), hex);
            CHECK_TEXT(ts3_str_of(hex), rows[i].sum);
        }
        CHECK_OK(ts3_hmac_begin(&hmac, "x", 1));
    }
    ts3_hmac_free(&hmac);
    ts3_hmac_free(&hmac);
    ts3_digest_free(digest);
}

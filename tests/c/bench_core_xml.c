/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Measures signatures and keys of a listing a second on one thread, for `make bench`. The figures
 * of one run can be compared with each other and with botocore's on the same machine (benchmarks/),
 * not across machines. */
#include <stdio.h>
#include <stdlib.h>

#include "core/ts3_buf.h"
#include "core/ts3_sigv4.h"
#include "xml/ts3_xml_list.h"

enum { SIGNATURES = 400000, PAGES = 1000, KEYS = 1000 };

static double now_s(void)
{
    const struct ts3_clock *clock = ts3_clock_system();
    return (double)clock->mono_us(clock->ctx) / 1e6;
}

static void must(enum ts3_err err)
{
    if (err) {
        fprintf(stderr, "%s\n", ts3_err_text(err));
        exit(1);
    }
}

/* A GET of one window of a share. */
static double signatures_per_s(void)
{
    static const struct ts3_pair range = {{"range", 5}, {"bytes=262144-524287", 19}};
    struct ts3_digest *digest;
    struct ts3_sigv4 *signer;
    struct ts3_sigv4_out out;
    struct ts3_sigv4_request request = {
        .method = TS3_STR("GET"),
        .host = TS3_STR("bucket.s3.eu-central-1.amazonaws.com"),
        .path = TS3_STR("/shares/aa/aaaaaaaaaaaaaaaaaaaaaaaaaa/3"),
        .headers = &range,
        .header_count = 1,
        .payload = TS3_STR(TS3_SHA256_EMPTY),
        .time_s = 1369353600,
        .region = TS3_STR("eu-central-1"),
        .access_key_id = TS3_STR("AKIDEXAMPLE"),
        .secret = TS3_STR("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
    };
    must(ts3_digest_new(ts3_alloc_libc(), &digest));
    must(ts3_sigv4_new(ts3_alloc_libc(), digest, &signer));
    ts3_sigv4_out_init(&out, ts3_alloc_libc());
    double start_s = now_s();
    for (int i = 0; i < SIGNATURES; i++) {
        request.time_s = 1369353600 + i / 10;
        must(ts3_sigv4_sign(signer, &request, &out));
    }
    double taken_s = now_s() - start_s;
    ts3_sigv4_out_free(&out);
    ts3_sigv4_free(signer);
    ts3_digest_free(digest);
    return SIGNATURES / taken_s;
}

static double keys_per_s(double *mb_per_s)
{
    struct ts3_buf buf;
    ts3_buf_init(&buf, ts3_alloc_libc(), 1 << 24);
    must(ts3_buf_append_text(
        &buf, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\""
              "http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>shares/</Prefix>"
              "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"));
    for (int i = 0; i < KEYS; i++)
        must(ts3_buf_append_fmt(
            &buf,
            "<Contents><Key>shares/aa/aaaaaaaaaaaaaaaaaaaaaa%04d/%d</Key><LastModified>"
            "2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;fba9dede5f27731c9771645a3986%04d"
            "&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>",
            i, i % 10, i, 434234 + i));
    must(ts3_buf_append_text(&buf, "</ListBucketResult>"));
    ts3_xml_setup();
    double start_s = now_s();
    for (int i = 0; i < PAGES; i++) {
        struct ts3_page page;
        must(ts3_xml_list_parse(ts3_alloc_libc(), buf.data, buf.len, TS3_LIST_V2, &page, NULL));
        if (page.entry_count != KEYS)
            must(TS3_EXML);
        ts3_xml_list_free(&page);
    }
    double taken_s = now_s() - start_s;
    *mb_per_s = (double)buf.len * PAGES / taken_s / 1e6;
    ts3_buf_free(&buf);
    return (double)PAGES * KEYS / taken_s;
}

int main(void)
{
    double mb_per_s = 0;
    double keys = keys_per_s(&mb_per_s);
    printf("signatures/s: %.0f\n", signatures_per_s());
    printf("keys/s of %d-key listings: %.0f (%.0f MB/s)\n", KEYS, keys, mb_per_s);
    return 0;
}

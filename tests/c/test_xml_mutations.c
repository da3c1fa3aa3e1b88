/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Damaged documents: bytes changed, cut out, doubled and swapped by a seeded generator, which also
 * picks an allocation to fail. No parser may crash, read out of bounds or leak, and what it takes
 * for good must keep the promises of its header. */
#include <stdio.h>
#include <stdlib.h>

#include <libxml/xmlerror.h>

#include "core/ts3_rand.h"
#include "ts3_test.h"
#include "xml/ts3_sax.h"
#include "xml/ts3_xml_error.h"
#include "xml/ts3_xml_list.h"
#include "xml/ts3_xml_multi.h"

enum { ROUNDS = 20000, MAX_BYTES = 4096 };

static const char *const seeds[] = {
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult "
    "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>p</Prefix>"
    "<EncodingType>url</EncodingType><NextContinuationToken>t</NextContinuationToken>"
    "<IsTruncated>true</IsTruncated><Contents><Key>a%2Fb</Key><LastModified>"
    "2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>12</Size><Owner><ID>i"
    "</ID></Owner></Contents><Contents><Key>c</Key><LastModified>2009-10-12T17:50:30Z"
    "</LastModified><Size>0</Size></Contents><CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>"
    "</ListBucketResult>",
    "<ListBucketResult><Marker/><IsTruncated>true</IsTruncated><Contents><Key><![CDATA[x]]>&#x41;"
    "</Key><LastModified>2009-10-12T17:50:30Z</LastModified><Size>1</Size></Contents>"
    "</ListBucketResult>",
    "<Error><Code>NoSuchKey</Code><Message>m &amp; n</Message><RequestId>r</RequestId>"
    "<ServerTime>2013-05-24T01:00:00Z</ServerTime></Error>",
    "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code>"
    "</Error></DeleteResult>",
    "<CompleteMultipartUploadResult><ETag>\"e-2\"</ETag></CompleteMultipartUploadResult>",
    "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><Upload><Key>a</Key><UploadId>1"
    "</UploadId><Initiated>2010-11-10T20:48:33Z</Initiated></Upload></ListMultipartUploadsResult>",
    "<!DOCTYPE l [<!ENTITY a \"b\"><!ENTITY % c \"d\">]><ListBucketResult>&a;</ListBucketResult>",
};

/* One change to the document; returns its new size. */
static size_t mutate(const struct ts3_rand *rand, char *document, size_t size_bytes)
{
    static const char bytes[] = "<>&;/\"'= \n\0%+#x!-[]?\xff\xc3\x80"
                                "aA0:";
    size_t at = (size_t)ts3_rand_below(rand, size_bytes);
    size_t len = (size_t)ts3_rand_below(rand, 40) + 1;
    if (len > size_bytes - at)
        len = size_bytes - at;
    switch (ts3_rand_below(rand, 5)) {
    case 0:
        document[at] = bytes[ts3_rand_below(rand, sizeof(bytes) - 1)];
        return size_bytes;
    case 1:
        document[at] = (char)(document[at] ^ (1 << ts3_rand_below(rand, 8)));
        return size_bytes;
    case 2:
        memmove(document + at, document + at + len, size_bytes - at - len);
        return size_bytes - len;
    case 3:
        if (size_bytes + len > MAX_BYTES)
            return size_bytes;
        memmove(document + at + len, document + at, size_bytes - at);
        return size_bytes + len;
    default:
        return at;
    }
}

static void check_list(const struct ts3_page *page)
{
    for (size_t i = 0; i < page->entry_count; i++) {
        const struct ts3_entry *entry = &page->entries[i];
        CHECK(entry->key.len > 0 && entry->key.len <= TS3_XML_MAX_KEY);
        CHECK(entry->key.data[entry->key.len] == '\0');
        CHECK(entry->size_bytes >= 0);
    }
    for (size_t i = 0; i < page->prefix_count; i++)
        CHECK(page->prefixes[i].len > 0);
    CHECK(page->truncated == (page->next_token.len > 0));
}

/* All parsers on one document; each must leave nothing allocated, whatever it says. */
static void parse_all(struct ts3_failing *alloc, const char *document, size_t size_bytes)
{
    static const enum ts3_xml_result_kind kinds[] = {TS3_XML_RESULT_CREATE, TS3_XML_RESULT_COMPLETE,
                                                     TS3_XML_RESULT_COPY};
    struct ts3_page page;
    struct ts3_xml_error error;
    struct ts3_xml_deleted deleted;
    struct ts3_xml_uploads uploads;
    struct ts3_xml_result result;
    struct ts3_xml_fault fault;
    for (int version = TS3_LIST_ANY; version <= TS3_LIST_V2; version++) {
        if (!ts3_xml_list_parse(&alloc->alloc, document, size_bytes, (enum ts3_list_version)version,
                                &page, &fault))
            check_list(&page);
        else
            CHECK(fault.text[0] && page.entry_count == 0);
        ts3_xml_list_free(&page);
    }
    if (!ts3_xml_error_parse(&alloc->alloc, document, size_bytes, &error, &fault))
        CHECK(error.code.len > 0);
    ts3_xml_error_free(&error);
    if (!ts3_xml_deleted_parse(&alloc->alloc, document, size_bytes, &deleted, &fault))
        CHECK(!deleted.is_error || (deleted.error.code.len && !deleted.item_count));
    ts3_xml_deleted_free(&deleted);
    if (!ts3_xml_uploads_parse(&alloc->alloc, document, size_bytes, &uploads, &fault))
        CHECK(!uploads.truncated || uploads.next_key_marker.len);
    ts3_xml_uploads_free(&uploads);
    for (size_t i = 0; i < 3; i++) {
        if (!ts3_xml_result_parse(&alloc->alloc, document, size_bytes, kinds[i], &result, &fault))
            CHECK(result.is_error ? result.error.code.len && !result.text.len
                                  : result.text.len || kinds[i] == TS3_XML_RESULT_COMPLETE);
        ts3_xml_result_free(&result);
    }
    CHECK_INT(alloc->live, 0);
}

TEST(mutated_documents)
{
    struct ts3_rand_state state;
    struct ts3_rand rand;
    ts3_rand_seeded(&rand, &state, 20130524);
    ts3_xml_setup();
    for (int round = 0; round < ROUNDS; round++) {
        char buffer[MAX_BYTES];
        const char *seed = seeds[round % (int)(sizeof(seeds) / sizeof(seeds[0]))];
        size_t size_bytes = strlen(seed);
        struct ts3_failing alloc;
        memcpy(buffer, seed, size_bytes);
        for (uint64_t n = ts3_rand_below(&rand, 4); n > 0 && size_bytes > 0; n--)
            size_bytes = mutate(&rand, buffer, size_bytes);
        ts3_failing_init(&alloc);
        if (ts3_rand_below(&rand, 3) == 0)
            alloc.fail_at = (size_t)ts3_rand_below(&rand, 20) + 1;
        /* of the exact size, so that a read beyond it is found */
        char *document = malloc(size_bytes ? size_bytes : 1);
        memcpy(document, buffer, size_bytes);
        ts3_test_label("round %d", round);
        parse_all(&alloc, document, size_bytes);
        free(document);
    }
}

static void count_print(void *ctx, const char *format, ...)
{
    (void)format;
    ++*(int *)ctx;
}

static void count_structured(void *ctx, ts3_sax_told error)
{
    (void)error;
    ++*(int *)ctx;
}

/* What libxml2 would print to stderr goes to the thread's handlers, which are the program's. */
TEST(nothing_is_printed)
{
    static const char no_text[] = "<?xml version=\"1.0\" encoding=\"UTF7\"?>\xf0";
    int told = 0;
    struct ts3_xml_error error;
    xmlSetGenericErrorFunc(&told, count_print);
    for (int round = 0; round < 2; round++) {
        enum ts3_err err =
            ts3_xml_error_parse(ts3_alloc_libc(), no_text, sizeof(no_text) - 1, &error, NULL);
        CHECK(err != TS3_OK);
        ts3_xml_error_free(&error);
        CHECK_INT(told, 0);
        CHECK(xmlGenericError == count_print); /* as it was before */
        CHECK(round == 0 || xmlStructuredError == count_structured);
        xmlSetStructuredErrorFunc(&told, count_structured);
    }
    xmlSetStructuredErrorFunc(NULL, NULL);
    xmlSetGenericErrorFunc(NULL, NULL);
}

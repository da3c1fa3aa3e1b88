/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Listings as the services write them, and everything that must not be taken for one. */
#include <stdio.h>
#include <stdlib.h>

#include "core/ts3_buf.h"
#include "core/ts3_time.h"
#include "ts3_test.h"
#include "xml/ts3_xml_list.h"

#define NS "http://s3.amazonaws.com/doc/2006-03-01/"
#define XML "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define ENTRY(key)                                                                                 \
    "<Contents><Key>" key "</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>"            \
    "<Size>5</Size></Contents>"
#define LIST(inside)                                                                               \
    "<ListBucketResult><IsTruncated>false</IsTruncated>" inside "</ListBucketResult>"
#define MORE(inside)                                                                               \
    "<ListBucketResult><IsTruncated>true</IsTruncated>" inside "</ListBucketResult>"

static enum ts3_err parse(const char *document, enum ts3_list_version version,
                          struct ts3_page *page, struct ts3_xml_fault *fault)
{
    ts3_xml_setup();
    /* A copy of the exact size, so that a read beyond it is found. */
    size_t size_bytes = strlen(document);
    char *copy = malloc(size_bytes ? size_bytes : 1);
    memcpy(copy, document, size_bytes);
    enum ts3_err err = ts3_xml_list_parse(ts3_alloc_libc(), copy, size_bytes, version, page, fault);
    free(copy);
    return err;
}

TEST(list_as_aws_writes_it)
{
    static const char document[] = XML
        "<ListBucketResult xmlns=\"" NS "\"><Name>bucket</Name><Prefix>shares/</Prefix>"
        "<NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</"
        "NextContinuationToken>"
        "<KeyCount>2</KeyCount><MaxKeys>2</MaxKeys><Delimiter>/</Delimiter><IsTruncated>true</"
        "IsTruncated>"
        "<Contents><Key>shares/aa/x</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>"
        "<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><ChecksumAlgorithm>CRC32</"
        "ChecksumAlgorithm>"
        "<ChecksumType>FULL_OBJECT</ChecksumType><Size>434234</Size><Owner><ID>75aa</ID>"
        "<DisplayName>mtd</DisplayName></Owner><StorageClass>STANDARD</StorageClass></Contents>"
        "<Contents><Key>shares/aa/y &amp; z</Key><LastModified>2009-10-12T17:50:31Z</LastModified>"
        "<ETag>\"0-2\"</ETag><Size>0</Size><StorageClass>GLACIER</StorageClass></Contents>"
        "<CommonPrefixes><Prefix>shares/ab/</Prefix></CommonPrefixes>"
        "<CommonPrefixes><Prefix>shares/ac/</Prefix></CommonPrefixes></ListBucketResult>";
    struct ts3_page page;
    CHECK_OK(parse(document, TS3_LIST_V2, &page, NULL));
    if (!CHECK_INT(page.entry_count, 2) || !CHECK_INT(page.prefix_count, 2))
        return;
    CHECK_TEXT(page.entries[0].key, "shares/aa/x");
    CHECK_TEXT(page.entries[0].etag, "fba9dede5f27731c9771645a39863328");
    CHECK_TEXT(page.entries[0].storage_class, "STANDARD");
    CHECK_INT(page.entries[0].size_bytes, 434234);
    CHECK_INT(page.entries[0].modified_s, 1255369830);
    CHECK_TEXT(page.entries[1].key, "shares/aa/y & z");
    CHECK_TEXT(page.entries[1].etag, "0-2");
    CHECK_INT(page.entries[1].size_bytes, 0);
    CHECK_INT(page.entries[1].modified_s, 1255369831);
    CHECK_INT(page.entries[1].key.data[page.entries[1].key.len], 0);
    CHECK_TEXT(page.prefixes[0], "shares/ab/");
    CHECK_TEXT(page.prefixes[1], "shares/ac/");
    CHECK(page.truncated);
    CHECK(!page.v1);
    CHECK_TEXT(page.next_token, "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=");
    ts3_xml_list_free(&page);
}

/* One entry, all that services do differently about it. */
TEST(list_entries_of_the_services)
{
    static const struct {
        const char *inside;
        const char *key, *etag;
        int64_t size_bytes, modified_s;
    } rows[] = {
        {ENTRY("a"), "a", "", 5, 1255369830},
        /* elements in another order, white space, comments, unknown ones, a nested Key that is not
         * the key */
        {"<!-- x --><Contents>\n <Size> 7 </Size>\n <Owner><Key>no</Key></Owner><LastModified>\n"
         "2009-10-12T17:50:30Z </LastModified><Key>a</Key><ETag> \"e\" </ETag></Contents>",
         "a", "e", 7, 1255369830},
        /* an unquoted ETag, and one escaped twice */
        {"<Contents><Key>a</Key><ETag>e</ETag><Size>1</"
         "Size><LastModified>2009-10-12T17:50:30.1234567Z"
         "</LastModified></Contents>",
         "a", "e", 1, 1255369830},
        {"<Contents><Key>a</Key><ETag>&amp;quot;e&amp;quot;</ETag><Size>1</Size><LastModified>"
         "2009-10-12T17:50:30+00:00</LastModified></Contents>",
         "a", "e", 1, 1255369830},
        /* character references and CDATA: the text comes in pieces */
        {"<Contents><Key>a&lt;b&#x2f;c&#47;<![CDATA[<d>&]]>&gt;\xc3\xbc&apos;</"
         "Key><ETag>&#34;e&#34;</ETag>"
         "<Size>9223372036854775807</Size><LastModified>2009-10-12T19:50:30+0200</LastModified></"
         "Contents>",
         "a<b/c/<d>&>\xc3\xbc'", "e", INT64_MAX, 1255369830},
        /* white space belongs to a key */
        {"<Contents><Key> a "
         "</Key><ETag/><Size>1</Size><LastModified>2009-10-12T17:50:30Z</LastModified>"
         "</Contents>",
         " a ", "", 1, 1255369830},
        /* an encoded key: AWS has + for a space, others %20; RGW escapes the slash */
        {"<EncodingType>url</EncodingType>" ENTRY("a%2Fb+c%20d%2B%25e%01/%c3%bc"),
         "a/b c d+%e\x01/\xc3\xbc", "", 5, 1255369830},
        {ENTRY("a%2Fb+c") "<EncodingType>url</EncodingType>", "a/b c", "", 5, 1255369830},
        /* no encoding was said: nothing is decoded */
        {ENTRY("a%2Fb+c"), "a%2Fb+c", "", 5, 1255369830},
        {"<EncodingType/>" ENTRY("a%2Fb+c"), "a%2Fb+c", "", 5, 1255369830},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char document[2000];
        struct ts3_page page;
        struct ts3_xml_fault fault;
        ts3_test_label("row %zu", i);
        snprintf(document, sizeof(document), LIST("%s"), rows[i].inside);
        if (!CHECK_OK(parse(document, TS3_LIST_ANY, &page, &fault)))
            printf("  %s\n", fault.text);
        if (CHECK_INT(page.entry_count, 1)) {
            CHECK_TEXT(page.entries[0].key, rows[i].key);
            CHECK_TEXT(page.entries[0].etag, rows[i].etag);
            CHECK_INT(page.entries[0].size_bytes, rows[i].size_bytes);
            CHECK_INT(page.entries[0].modified_s, rows[i].modified_s);
        }
        CHECK(!page.truncated && page.next_token.len == 0);
        ts3_xml_list_free(&page);
    }
}

TEST(list_namespaces_and_wrappings)
{
    static const char *const documents[] = {
        "<ListBucketResult><IsTruncated>false</IsTruncated>" ENTRY("a") "</ListBucketResult>",
        "<ListBucketResult "
        "xmlns='http://doc.s3.amazonaws.com/2006-03-01'><IsTruncated>FALSE</IsTruncated>" ENTRY(
            "a") "</ListBucketResult>",
        "<s:ListBucketResult xmlns:s='" NS "'><s:IsTruncated>false</s:IsTruncated>"
        "<s:Contents><s:Key>a</s:Key><s:Size>5</s:Size><s:LastModified>2009-10-12T17:50:30Z</"
        "s:LastModified>"
        "</s:Contents></s:ListBucketResult>",
        /* a prefix nobody declared does no harm */
        "<q:ListBucketResult q:x='1'><IsTruncated>false</IsTruncated>" ENTRY(
            "a") "</q:ListBucketResult>",
        XML LIST(ENTRY("a")),
        "\r\n  \n" XML "\n" LIST(ENTRY("a")) "\n  \n",
        "\xef\xbb\xbf" XML LIST(ENTRY("a")),
        "<?xml version='1.0'?><?style x?><!-- c -->" LIST(ENTRY("a")) "<!-- d -->",
    };
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]); i++) {
        struct ts3_page page;
        ts3_test_label("row %zu", i);
        CHECK_OK(parse(documents[i], TS3_LIST_V2, &page, NULL));
        if (CHECK_INT(page.entry_count, 1))
            CHECK_TEXT(page.entries[0].key, "a");
        ts3_xml_list_free(&page);
    }
}

TEST(list_where_to_go_on)
{
    static const struct {
        const char *document;
        enum ts3_list_version version;
        const char *token; /* NULL: an error */
        bool v1;
    } rows[] = {
        {LIST(ENTRY("a")), TS3_LIST_V2, "", false},
        {LIST("<NextContinuationToken>t</NextContinuationToken>"), TS3_LIST_V2, "", false},
        {MORE("<NextContinuationToken>t%2F+</NextContinuationToken><EncodingType>url</"
              "EncodingType>"),
         TS3_LIST_V2, "t%2F+", false},
        {MORE(ENTRY("a")), TS3_LIST_V2, NULL, false},
        {MORE(ENTRY("a") "<NextContinuationToken/>"), TS3_LIST_V2, NULL, false},
        {MORE(ENTRY("a") "<NextMarker>m</NextMarker>"), TS3_LIST_V2, NULL, false},
        {MORE(ENTRY("a")), TS3_LIST_V1, "a", true},
        {MORE(ENTRY("b") ENTRY("a")), TS3_LIST_V1, "b", true},
        {MORE(ENTRY("b") "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>"), TS3_LIST_V1, "c/",
         true},
        {MORE(ENTRY("a") "<NextMarker>m%2F</NextMarker>"), TS3_LIST_V1, "m%2F", true},
        {MORE(ENTRY("a") "<NextMarker>m%2F</NextMarker><EncodingType>url</EncodingType>"),
         TS3_LIST_V1, "m/", true},
        {MORE(ENTRY("a%2F") "<EncodingType>url</EncodingType>"), TS3_LIST_V1, "a/", true},
        {MORE(""), TS3_LIST_V1, NULL, true},
        {MORE(ENTRY("a")), TS3_LIST_ANY, "a", true},
        {MORE(""), TS3_LIST_ANY, NULL, false},
        {MORE(ENTRY("a") "<Marker/>"), TS3_LIST_ANY, "a", true},
        {MORE(ENTRY("a") "<Marker/><NextContinuationToken>t</NextContinuationToken>"), TS3_LIST_ANY,
         "t", false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_page page;
        ts3_test_label("row %zu", i);
        CHECK_INT(parse(rows[i].document, rows[i].version, &page, NULL),
                  rows[i].token ? TS3_OK : TS3_EXML);
        if (rows[i].token) {
            CHECK_TEXT(page.next_token, rows[i].token);
            CHECK_INT(page.v1, rows[i].v1);
        } else {
            CHECK_INT(page.entry_count, 0);
        }
        ts3_xml_list_free(&page);
    }
}

TEST(list_refusals)
{
    static const struct {
        const char *document;
        enum ts3_err err;
        const char *blame; /* somewhere in the sentence */
    } rows[] = {
        {"", TS3_EXML, "empty"},
        {" \n", TS3_EXML, "empty"},
        {"not xml", TS3_EXML, "no XML element"},
        {"\x1f\x8b\x08\x01", TS3_EXML, "no XML element"},
        {"<html><head><title>502</title></head><body>Bad gateway</body></html>", TS3_EXML,
         "not a listing"},
        {"<!DOCTYPE html><html></html>", TS3_EXML, "DTD"},
        {"<Error><Code>AccessDenied</Code></Error>", TS3_EXML, "not a listing"},
        {"<x>" LIST("") "</x>", TS3_EXML, "not a listing"},
        {"<ListBucketResult><IsTruncated>false</IsTruncated>" ENTRY("a"), TS3_EXML, "cut off"},
        {"<ListBucketResult><IsTruncated>false</IsTruncated>" ENTRY("a") "</ListBucketResu",
         TS3_EXML, ""},
        {"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a", TS3_EXML, "cut off"},
        {"<ListBucketResult><IsTruncated>false</IsTruncated></Contents>", TS3_EXML,
         "not well-formed"},
        {LIST(ENTRY("a")) LIST(""), TS3_EXML, "not well-formed"},
        {LIST(ENTRY("a")) "x", TS3_EXML, "not well-formed"},
        {LIST(ENTRY("&nbsp;")), TS3_EXML, ""},
        {LIST(ENTRY("\x01")), TS3_EXML, "not well-formed"},
        {LIST(ENTRY("&#1;")), TS3_EXML, "not well-formed"},
        {LIST(ENTRY("\xff\xfe")), TS3_EXML, "not well-formed"},
        {"<ListBucketResult>" ENTRY("a") "</ListBucketResult>", TS3_EXML, "no IsTruncated"},
        {"<ListBucketResult><IsTruncated>maybe</IsTruncated></ListBucketResult>", TS3_EXML,
         "neither true nor"},
        {"<ListBucketResult><IsTruncated/></ListBucketResult>", TS3_EXML, "neither true nor"},
        {LIST("<Contents><Key>a</Key><Size>1</Size></Contents>"), TS3_EXML, "no LastModified"},
        {LIST("<Contents><Key>a</Key><LastModified>2009-10-12T17:50:30Z</LastModified></Contents>"),
         TS3_EXML, "no Size"},
        {LIST("<Contents><Size>1</Size><LastModified>2009-10-12T17:50:30Z</LastModified></"
              "Contents>"),
         TS3_EXML, "no Key"},
        {LIST(ENTRY("")), TS3_EXML, "no Key"},
        {LIST("<Contents><Size>-1</Size></Contents>"), TS3_EXML, "Size is not a number"},
        {LIST("<Contents><Size>9223372036854775808</Size></Contents>"), TS3_EXML,
         "Size is not a number"},
        {LIST("<Contents><Size/></Contents>"), TS3_EXML, "Size is not a number"},
        {LIST("<Contents><LastModified>yesterday</LastModified></Contents>"), TS3_EXML,
         "LastModified is not a time"},
        {LIST("<CommonPrefixes><Prefix/></CommonPrefixes>"), TS3_EXML,
         "Prefix within CommonPrefixes is empty"},
        {"<EncodingType>url</EncodingType>", TS3_EXML, "not a listing"},
        {LIST("<EncodingType>url</EncodingType>" ENTRY("a%2")), TS3_EXML, "not url-encoded"},
        {LIST("<a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a>x"), TS3_ELIMIT, "nested deeper"},
        {"<!DOCTYPE l [<!ENTITY a \"b\">]>" LIST(ENTRY("&a;")), TS3_EXML, "DTD"},
        {"<!DOCTYPE l SYSTEM \"file:///etc/passwd\">" LIST(ENTRY("a")), TS3_EXML, "DTD"},
        {"<!DOCTYPE l [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">"
         "<!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY d \"&c;&c;&c;&c;&c;&c;&c;&c;\">]>" LIST(
             ENTRY("&d;")),
         TS3_EXML, "DTD"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_page page;
        struct ts3_xml_fault fault;
        ts3_test_label("row %zu", i);
        CHECK_INT(parse(rows[i].document, TS3_LIST_ANY, &page, &fault), rows[i].err);
        if (!CHECK(strstr(fault.text, rows[i].blame) && fault.text[0]))
            printf("  %s\n", fault.text);
        CHECK(page.entries == NULL && page.arena.chunks == NULL);
        ts3_xml_list_free(&page);
    }
}

/* Wherever a listing is cut off, it is refused. */
TEST(list_cut_anywhere)
{
    static const char document[] =
        XML LIST(ENTRY("a&amp;b") "<CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>");
    for (size_t len = 0; len < sizeof(document) - 1; len++) {
        char *cut = malloc(len + 1);
        struct ts3_page page;
        memcpy(cut, document, len);
        ts3_test_label("%zu bytes", len);
        CHECK_INT(ts3_xml_list_parse(ts3_alloc_libc(), cut, len, TS3_LIST_V2, &page, NULL),
                  TS3_EXML);
        ts3_xml_list_free(&page);
        free(cut);
    }
}

/* count entries whose keys have key_len bytes, the first byte of each an entity. */
static void build(struct ts3_buf *buf, size_t count, size_t key_len, size_t prefix_count)
{
    ts3_buf_init(buf, ts3_alloc_libc(), 64 << 20);
    CHECK_OK(ts3_buf_append_text(buf, "<ListBucketResult><IsTruncated>false</IsTruncated>"));
    for (size_t i = 0; i < count; i++) {
        CHECK_OK(ts3_buf_append_fmt(buf, "<Contents><Key>&amp;%0*zu</Key>", (int)key_len - 1, i));
        CHECK_OK(ts3_buf_append_text(
            buf, "<Size>1</Size><LastModified>2009-10-12T17:50:30Z</LastModified>"
                 "</Contents>"));
    }
    for (size_t i = 0; i < prefix_count; i++)
        CHECK_OK(ts3_buf_append_text(buf, "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>"));
    CHECK_OK(ts3_buf_append_text(buf, "</ListBucketResult>"));
}

TEST(list_limits)
{
    static const struct {
        size_t count, key_len, prefix_count;
        enum ts3_err err;
    } rows[] = {
        {1, TS3_XML_MAX_KEY, 0, TS3_OK},
        {1, TS3_XML_MAX_KEY + 1, 0, TS3_ELIMIT},
        {1, TS3_XML_MAX_TEXT, 0, TS3_ELIMIT},
        {1, TS3_XML_MAX_TEXT + 1, 0, TS3_ELIMIT},
        {1, 10 << 20, 0, TS3_ELIMIT},
        {TS3_XML_MAX_ENTRIES, 20, 0, TS3_OK},
        {TS3_XML_MAX_ENTRIES + 1, 20, 0, TS3_ELIMIT},
        {0, 0, TS3_XML_MAX_ENTRIES, TS3_OK},
        {0, 0, TS3_XML_MAX_ENTRIES + 1, TS3_ELIMIT},
        {7000, 3000, 0, TS3_OK},     /* 21 MB, in many pieces */
        {9999, 3600, 0, TS3_ELIMIT}, /* 37 MB */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct ts3_buf buf;
        struct ts3_page page;
        struct ts3_xml_fault fault;
        ts3_test_label("row %zu", i);
        build(&buf, rows[i].count, rows[i].key_len, rows[i].prefix_count);
        CHECK_INT(
            ts3_xml_list_parse(ts3_alloc_libc(), buf.data, buf.len, TS3_LIST_V2, &page, &fault),
            rows[i].err);
        if (rows[i].err == TS3_OK) {
            CHECK_INT(page.entry_count, rows[i].count);
            CHECK_INT(page.prefix_count, rows[i].prefix_count);
            for (size_t j = 0; j < page.entry_count; j++) {
                CHECK_INT(page.entries[j].key.len, rows[i].key_len);
                CHECK_INT(strtoul(page.entries[j].key.data + 1, NULL, 10), j);
            }
        }
        ts3_xml_list_free(&page);
        ts3_buf_free(&buf);
    }
}

static enum ts3_err parse_many(const struct ts3_alloc *alloc, void *ctx)
{
    struct ts3_buf *buf = ctx;
    struct ts3_page page;
    enum ts3_err err = ts3_xml_list_parse(alloc, buf->data, buf->len, TS3_LIST_V1, &page, NULL);
    ts3_xml_list_free(&page);
    return err;
}

TEST(list_survives_every_failing_allocation)
{
    struct ts3_buf buf;
    build(&buf, 300, 100, 200);
    ts3_xml_setup();
    ts3_test_each_failure(parse_many, &buf);
    ts3_buf_free(&buf);
}

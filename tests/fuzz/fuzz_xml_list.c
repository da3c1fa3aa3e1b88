/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The listing parser. Options modulo 3: which version the caller says it is. */
#include "core/ts3_time.h"
#include "ts3_fuzz.h"
#include "xml/ts3_xml_list.h"

/* Reads every byte, so that the sanitizers see one that is not the page's. */
static void check_str(struct ts3_str str)
{
    volatile unsigned char last = 0;
    for (size_t i = 0; i < str.len; i++)
        last = (unsigned char)str.data[i];
    (void)last;
}

static void check_page(const struct ts3_page *page, enum ts3_list_version version)
{
    REQUIRE(page->entry_count <= TS3_XML_MAX_ENTRIES && page->prefix_count <= TS3_XML_MAX_ENTRIES);
    for (size_t i = 0; i < page->entry_count; i++) {
        const struct ts3_entry *entry = &page->entries[i];
        REQUIRE(entry->key.len > 0 && entry->key.len <= TS3_XML_MAX_KEY);
        REQUIRE(entry->key.data[entry->key.len] == '\0');
        REQUIRE(entry->size_bytes >= 0 && entry->modified_s != TS3_TIME_NONE);
        check_str(entry->key);
        check_str(entry->etag);
        check_str(entry->storage_class);
    }
    for (size_t i = 0; i < page->prefix_count; i++) {
        REQUIRE(page->prefixes[i].len > 0);
        check_str(page->prefixes[i]);
    }
    REQUIRE(page->truncated == (page->next_token.len > 0));
    check_str(page->next_token);
    REQUIRE(version == TS3_LIST_ANY || page->v1 == (version == TS3_LIST_V1));
}

FUZZ(list)
{
    struct ts3_fuzz_input input;
    struct ts3_page page;
    struct ts3_xml_fault fault = {""};
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    ts3_xml_setup();
    enum ts3_list_version version = (enum ts3_list_version)(input.options % 3);
    enum ts3_err err = ts3_xml_list_parse(&input.alloc.alloc, input.text.data, input.text.len,
                                          version, &page, &fault);
    REQUIRE(!input.alloc.failed || err == TS3_ENOMEM);
    if (err)
        REQUIRE(fault.text[0] && page.entry_count == 0 && page.prefix_count == 0);
    else
        check_page(&page, version);
    ts3_xml_list_free(&page);
    ts3_fuzz_close(&input);
}

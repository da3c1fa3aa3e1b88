/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages of listings. See ts3_xml_list.h. */
#include "xml/ts3_xml_list.h"

#include "core/ts3_time.h"
#include "xml/ts3_sax.h"

enum tag {
    CONTENTS, /* the names met most often come first */
    KEY,
    LAST_MODIFIED,
    ETAG,
    SIZE,
    STORAGE_CLASS,
    COMMON_PREFIXES,
    PREFIX,
    IS_TRUNCATED,
    NEXT_CONTINUATION_TOKEN,
    NEXT_MARKER,
    MARKER,
    ENCODING_TYPE,
    ROOT,
    TAG_COUNT
};

static const char *const names[TAG_COUNT] = {
    [CONTENTS] = "Contents",
    [KEY] = "Key",
    [LAST_MODIFIED] = "LastModified",
    [ETAG] = "ETag",
    [SIZE] = "Size",
    [STORAGE_CLASS] = "StorageClass",
    [COMMON_PREFIXES] = "CommonPrefixes",
    [PREFIX] = "Prefix",
    [IS_TRUNCATED] = "IsTruncated",
    [NEXT_CONTINUATION_TOKEN] = "NextContinuationToken",
    [NEXT_MARKER] = "NextMarker",
    [MARKER] = "Marker",
    [ENCODING_TYPE] = "EncodingType",
    [ROOT] = "ListBucketResult",
};

struct list {
    const struct ts3_alloc *alloc;
    struct ts3_page *page;
    size_t entry_cap;
    size_t prefix_cap;
    struct ts3_entry entry; /* of the Contents that is open */
    bool has_size;
    bool has_modified;
    bool has_truncated;
    bool has_marker;
    bool url_encoded;
    struct ts3_str continuation;
    struct ts3_str marker;
};

static void start(void *ctx, struct ts3_sax *sax, int tag)
{
    struct list *list = ctx;
    if (ts3_sax_depth(sax) == 1 && tag != ROOT)
        ts3_sax_fail(sax, TS3_EXML, "the document is not a listing");
    if (tag == CONTENTS) {
        list->entry = (struct ts3_entry){0};
        list->has_size = list->has_modified = false;
    }
}

static void end_entry(struct list *list, struct ts3_sax *sax)
{
    struct ts3_page *page = list->page;
    if (!list->entry.key.len || !list->has_size || !list->has_modified) {
        ts3_sax_fail(sax, TS3_EXML, "an entry of the listing has no %s",
                     !list->entry.key.len ? "Key"
                     : !list->has_size    ? "Size"
                                          : "LastModified");
        return;
    }
    if (ts3_sax_grow(sax, list->alloc, &page->entries, page->entry_count, &list->entry_cap,
                     sizeof(*page->entries)))
        page->entries[page->entry_count++] = list->entry;
}

/* An element within Contents. */
static void end_field(struct list *list, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct ts3_arena *arena = &list->page->arena;
    switch (tag) {
    case KEY:
        ts3_sax_keep(sax, arena, text, &list->entry.key);
        break;
    case ETAG:
        ts3_sax_keep(sax, arena, ts3_sax_unquote(ts3_sax_trim(text)), &list->entry.etag);
        break;
    case STORAGE_CLASS:
        ts3_sax_keep(sax, arena, ts3_sax_trim(text), &list->entry.storage_class);
        break;
    case SIZE:
        list->has_size = ts3_sax_int64(sax, text, &list->entry.size_bytes);
        break;
    case LAST_MODIFIED:
        list->has_modified = true;
        if (ts3_time_parse_iso(ts3_sax_trim(text), &list->entry.modified_s))
            ts3_sax_fail(sax, TS3_EXML, "LastModified is not a time");
        break;
    default:
        break;
    }
}

static void end_prefix(struct list *list, struct ts3_sax *sax, struct ts3_str text)
{
    struct ts3_page *page = list->page;
    struct ts3_str kept;
    if (text.len == 0)
        ts3_sax_fail(sax, TS3_EXML, "a Prefix within CommonPrefixes is empty");
    else if (ts3_sax_grow(sax, list->alloc, &page->prefixes, page->prefix_count, &list->prefix_cap,
                          sizeof(*page->prefixes)) &&
             ts3_sax_keep(sax, &page->arena, text, &kept))
        page->prefixes[page->prefix_count++] = kept;
}

/* An element right below the root. */
static void end_top(struct list *list, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct ts3_arena *arena = &list->page->arena;
    switch (tag) {
    case CONTENTS:
        end_entry(list, sax);
        break;
    case IS_TRUNCATED:
        list->has_truncated = ts3_sax_bool(sax, text, &list->page->truncated);
        break;
    case NEXT_CONTINUATION_TOKEN:
        ts3_sax_keep(sax, arena, text, &list->continuation);
        break;
    case NEXT_MARKER:
        list->has_marker = true;
        ts3_sax_keep(sax, arena, text, &list->marker);
        break;
    case MARKER:
        list->has_marker = true;
        break;
    case ENCODING_TYPE:
        list->url_encoded = ts3_str_eq_nocase(ts3_sax_trim(text), TS3_STR("url"));
        break;
    default:
        break;
    }
}

static void end(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct list *list = ctx;
    unsigned depth = ts3_sax_depth(sax);
    if (depth == 2)
        end_top(list, sax, tag, text);
    else if (depth == 3 && ts3_sax_tag(sax, 2) == CONTENTS)
        end_field(list, sax, tag, text);
    else if (depth == 3 && ts3_sax_tag(sax, 2) == COMMON_PREFIXES && tag == PREFIX)
        end_prefix(list, sax, text);
}

/* Decodes a name where the document says it is encoded, and holds it to the limit. */
static enum ts3_err finish_name(const struct list *list, struct ts3_str *name,
                                struct ts3_xml_fault *fault)
{
    enum ts3_err err = list->url_encoded ? ts3_xml_decode(name, fault) : TS3_OK;
    if (!err && name->len > TS3_XML_MAX_KEY)
        err = ts3_xml_blame(fault, TS3_ELIMIT, "a key is longer than %d bytes", TS3_XML_MAX_KEY);
    return err;
}

static void raise_to(struct ts3_str *greatest, struct ts3_str name)
{
    if (ts3_str_cmp(name, *greatest) > 0)
        *greatest = name;
}

/* Where to go on, after the names were decoded. */
static enum ts3_err finish_token(const struct list *list, enum ts3_list_version version,
                                 struct ts3_xml_fault *fault)
{
    struct ts3_page *page = list->page;
    bool like_v1 = list->has_marker || page->truncated;
    page->v1 = version == TS3_LIST_V1 ||
               (version == TS3_LIST_ANY && like_v1 && !list->continuation.len);
    if (!page->truncated)
        return TS3_OK;
    if (!page->v1) {
        page->next_token = list->continuation;
    } else if (list->marker.len) {
        page->next_token = list->marker;
    } else {
        /* Services send NextMarker only where a delimiter was asked for; elsewhere the last key
         * takes its place. */
        for (size_t i = 0; i < page->entry_count; i++)
            raise_to(&page->next_token, page->entries[i].key);
        for (size_t i = 0; i < page->prefix_count; i++)
            raise_to(&page->next_token, page->prefixes[i]);
    }
    if (!page->next_token.len)
        return ts3_xml_blame(fault, TS3_EXML,
                             "the listing is truncated but does not say where to go on");
    return TS3_OK;
}

static enum ts3_err finish(struct list *list, enum ts3_list_version version,
                           struct ts3_xml_fault *fault)
{
    struct ts3_page *page = list->page;
    enum ts3_err err = TS3_OK;
    if (!list->has_truncated)
        return ts3_xml_blame(fault, TS3_EXML, "the listing has no IsTruncated");
    for (size_t i = 0; i < page->entry_count && !err; i++)
        err = finish_name(list, &page->entries[i].key, fault);
    for (size_t i = 0; i < page->prefix_count && !err; i++)
        err = finish_name(list, &page->prefixes[i], fault);
    if (!err)
        err = finish_name(list, &list->marker, fault);
    return err ? err : finish_token(list, version, fault);
}

enum ts3_err ts3_xml_list_parse(const struct ts3_alloc *alloc, const char *document,
                                size_t size_bytes, enum ts3_list_version version,
                                struct ts3_page *page, struct ts3_xml_fault *fault)
{
    static const struct ts3_sax_rules rules = {names, TAG_COUNT, start, end};
    struct list list = {.alloc = alloc, .page = page};
    *page = (struct ts3_page){0};
    ts3_arena_init(&page->arena, alloc, TS3_XML_MAX_DOCUMENT);
    enum ts3_err err = ts3_sax_run(alloc, document, size_bytes, &rules, &list, fault);
    if (!err)
        err = finish(&list, version, fault);
    if (err)
        ts3_xml_list_free(page);
    return err;
}

void ts3_xml_list_free(struct ts3_page *page)
{
    if (page->entries)
        ts3_alloc_free(page->arena.alloc, page->entries);
    if (page->prefixes)
        ts3_alloc_free(page->arena.alloc, page->prefixes);
    ts3_arena_free(&page->arena);
    *page = (struct ts3_page){0};
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The result of a multi-delete. See ts3_xml_multi.h. */
#include "xml/ts3_sax.h"
#include "xml/ts3_xml_multi.h"

enum tag { DELETED, KEY, ERROR, CODE, ROOT, TAG_COUNT };

static const char *const names[TAG_COUNT] = {
    [DELETED] = "Deleted", [KEY] = "Key",           [ERROR] = "Error",
    [CODE] = "Code",       [ROOT] = "DeleteResult",
};

struct run {
    const struct ts3_alloc *alloc;
    struct ts3_xml_deleted *deleted;
    size_t item_cap;
    struct ts3_deleted item; /* of the element that is open */
};

static void start(void *ctx, struct ts3_sax *sax, int tag)
{
    struct run *run = ctx;
    unsigned depth = ts3_sax_depth(sax);
    if (depth == 1 && tag != ROOT) {
        run->deleted->is_error = tag == ERROR;
        ts3_sax_fail(sax, TS3_EXML, "the document is not the result of a multi-delete");
    }
    if (depth == 2)
        run->item = (struct ts3_deleted){0};
}

static void end_item(struct run *run, struct ts3_sax *sax, int tag)
{
    struct ts3_xml_deleted *deleted = run->deleted;
    if (tag == DELETED && !run->item.key.len) {
        ts3_sax_fail(sax, TS3_EXML, "a Deleted has no Key");
        return;
    }
    if (tag == DELETED)
        run->item.code = (struct ts3_str){0};
    else if (!run->item.code.len)
        run->item.code = TS3_STR("Unknown");
    if (ts3_sax_grow(sax, run->alloc, &deleted->items, deleted->item_count, &run->item_cap,
                     sizeof(*deleted->items)))
        deleted->items[deleted->item_count++] = run->item;
}

static void end(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text)
{
    struct run *run = ctx;
    struct ts3_arena *arena = &run->deleted->arena;
    unsigned depth = ts3_sax_depth(sax);
    int parent = ts3_sax_tag(sax, depth - 1);
    if (depth == 2 && (tag == DELETED || tag == ERROR))
        end_item(run, sax, tag);
    if (depth != 3 || (parent != DELETED && parent != ERROR))
        return;
    if (tag == KEY && text.len > TS3_XML_MAX_KEY)
        ts3_sax_fail(sax, TS3_ELIMIT, "a key is longer than %d bytes", TS3_XML_MAX_KEY);
    else if (tag == KEY)
        ts3_sax_keep(sax, arena, text, &run->item.key);
    else if (tag == CODE)
        ts3_sax_keep(sax, arena, ts3_sax_trim(text), &run->item.code);
}

enum ts3_err ts3_xml_deleted_parse(const struct ts3_alloc *alloc, const char *document,
                                   size_t size_bytes, struct ts3_xml_deleted *deleted,
                                   struct ts3_xml_fault *fault)
{
    static const struct ts3_sax_rules rules = {names, TAG_COUNT, start, end};
    struct run run = {.alloc = alloc, .deleted = deleted};
    *deleted = (struct ts3_xml_deleted){.error.server_time_s = TS3_TIME_NONE};
    ts3_arena_init(&deleted->arena, alloc, TS3_XML_MAX_DOCUMENT);
    enum ts3_err err = ts3_sax_run(alloc, document, size_bytes, &rules, &run, fault);
    if (deleted->is_error)
        err = ts3_xml_error_parse(alloc, document, size_bytes, &deleted->error, fault);
    if (err)
        ts3_xml_deleted_free(deleted);
    return err;
}

void ts3_xml_deleted_free(struct ts3_xml_deleted *deleted)
{
    if (deleted->items)
        ts3_alloc_free(deleted->arena.alloc, deleted->items);
    ts3_arena_free(&deleted->arena);
    ts3_xml_error_free(&deleted->error);
    *deleted = (struct ts3_xml_deleted){.error.server_time_s = TS3_TIME_NONE};
}

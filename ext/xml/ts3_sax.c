/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The SAX2 scaffold. See ts3_sax.h. */
#include "xml/ts3_sax.h"

#include <libxml/SAX2.h>
#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <libxml/xmlerror.h>
#include <stdarg.h>
#include <stdio.h>

/* libxml2 refuses to look further than 10 MB ahead, so a document goes in by pieces; small ones, since
 * it keeps a buffer of twice their size, which stays in the CPU's cache then. */
enum { PIECE_BYTES = 1 << 14 };

struct ts3_sax {
    xmlParserCtxtPtr parser;
    const struct ts3_sax_rules *rules;
    void *ctx;
    struct ts3_xml_fault *fault;
    const xmlChar *names[TS3_SAX_MAX_NAMES]; /* interned, so that equal names are equal pointers */
    struct ts3_buf text;
    enum ts3_err err;
    unsigned depth;
    int tags[TS3_XML_MAX_DEPTH + 1];
    bool rooted; /* the root has started */
    bool ended;  /* the root has ended */
    bool wanted; /* text belongs to an element with a known name */
};

void ts3_xml_setup(void)
{
    xmlInitParser();
}

enum ts3_err ts3_xml_blame(struct ts3_xml_fault *fault, enum ts3_err err, const char *format, ...)
{
    if (fault) {
        va_list args;
        va_start(args, format);
        vsnprintf(fault->text, sizeof(fault->text), format, args);
        va_end(args);
    }
    return err;
}

void ts3_sax_fail(struct ts3_sax *sax, enum ts3_err err, const char *format, ...)
{
    if (sax->err)
        return;
    sax->err = err;
    if (sax->fault) {
        va_list args;
        va_start(args, format);
        vsnprintf(sax->fault->text, sizeof(sax->fault->text), format, args);
        va_end(args);
    }
    xmlStopParser(sax->parser);
}

unsigned ts3_sax_depth(const struct ts3_sax *sax)
{
    return sax->depth;
}

int ts3_sax_tag(const struct ts3_sax *sax, unsigned depth)
{
    return depth >= 1 && depth <= sax->depth ? sax->tags[depth] : TS3_SAX_OTHER;
}

/* ---- what libxml2 calls ---- */

static void on_start(void *ctx, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri,
                     int namespace_count, const xmlChar **namespaces, int attribute_count,
                     int defaulted_count, const xmlChar **attributes)
{
    struct ts3_sax *sax = ctx;
    (void)prefix, (void)uri, (void)namespace_count, (void)namespaces;
    (void)attribute_count, (void)defaulted_count, (void)attributes;
    if (sax->err)
        return;
    if (sax->depth == TS3_XML_MAX_DEPTH) {
        ts3_sax_fail(sax, TS3_ELIMIT, "elements are nested deeper than %d", TS3_XML_MAX_DEPTH);
        return;
    }
    int tag = TS3_SAX_OTHER;
    for (size_t i = 0; i < sax->rules->name_count; i++) {
        if (sax->names[i] == name) {
            tag = (int)i;
            break;
        }
    }
    sax->rooted = true;
    sax->tags[++sax->depth] = tag;
    sax->wanted = tag != TS3_SAX_OTHER;
    ts3_buf_reset(&sax->text);
    if (tag != TS3_SAX_OTHER || sax->depth == 1)
        sax->rules->start(sax->ctx, sax, tag);
}

static void on_end(void *ctx, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri)
{
    struct ts3_sax *sax = ctx;
    (void)name, (void)prefix, (void)uri;
    if (sax->err || sax->depth == 0)
        return;
    int tag = sax->tags[sax->depth];
    if (tag != TS3_SAX_OTHER)
        sax->rules->end(sax->ctx, sax, tag, ts3_buf_str(&sax->text));
    ts3_buf_reset(&sax->text);
    sax->depth--;
    sax->wanted = sax->depth > 0 && sax->tags[sax->depth] != TS3_SAX_OTHER;
    sax->ended = sax->depth == 0;
}

static void on_text(void *ctx, const xmlChar *text, int len)
{
    struct ts3_sax *sax = ctx;
    if (sax->err || !sax->wanted || len <= 0)
        return;
    enum ts3_err err = ts3_buf_append(&sax->text, text, (size_t)len);
    if (err == TS3_ELIMIT)
        ts3_sax_fail(sax, err, "the text of %s is longer than %d bytes",
                     sax->rules->names[sax->tags[sax->depth]], TS3_XML_MAX_TEXT);
    else if (err)
        ts3_sax_fail(sax, err, "no memory");
}

/* A DTD brings entities, and with them bombs and files; no S3 service sends one. */
static void on_dtd(void *ctx, const xmlChar *name, const xmlChar *external_id,
                   const xmlChar *system_id)
{
    (void)name, (void)external_id, (void)system_id;
    ts3_sax_fail(ctx, TS3_EXML, "the document has a DTD");
}

static void on_reference(void *ctx, const xmlChar *name)
{
    (void)name;
    ts3_sax_fail(ctx, TS3_EXML, "the document refers to an entity");
}

/* Its place being taken keeps libxml2 from printing to stderr; what went wrong is asked for
 * later. */
static void on_error(void *ctx, ts3_sax_told error)
{
    (void)ctx, (void)error;
}

static void on_message(void *ctx, const char *format, ...)
{
    (void)ctx, (void)format;
}

/* The parser's own handler does not hear of bytes that are no text in the document's encoding: those
 * go to the handlers of the thread, which are the program's, so they are only borrowed. */
struct hush {
    xmlStructuredErrorFunc structured;
    void *structured_ctx;
    xmlGenericErrorFunc generic;
    void *generic_ctx;
};

static struct hush hush_thread(void)
{
    struct hush before = {xmlStructuredError, xmlStructuredErrorContext, xmlGenericError,
                          xmlGenericErrorContext};
    xmlSetStructuredErrorFunc(NULL, on_error);
    xmlSetGenericErrorFunc(NULL, on_message);
    return before;
}

static void unhush_thread(struct hush before)
{
    xmlSetStructuredErrorFunc(before.structured_ctx, before.structured);
    xmlSetGenericErrorFunc(before.generic_ctx, before.generic);
}

/* ---- one run ---- */

static enum ts3_err set_up(struct ts3_sax *sax)
{
    xmlSAXHandler handler = {
        .initialized = XML_SAX2_MAGIC,
        .startElementNs = on_start,
        .endElementNs = on_end,
        .characters = on_text,
        .ignorableWhitespace = on_text,
        .cdataBlock = on_text,
        .internalSubset = on_dtd,
        .externalSubset = on_dtd,
        .reference = on_reference,
        .serror = on_error,
    };
    sax->parser = xmlCreatePushParserCtxt(&handler, sax, NULL, 0, NULL);
    if (!sax->parser || xmlCtxtUseOptions(sax->parser, XML_PARSE_NONET) != 0)
        return TS3_ENOMEM;
    for (size_t i = 0; i < sax->rules->name_count; i++) {
        sax->names[i] = xmlDictLookup(sax->parser->dict, BAD_CAST sax->rules->names[i], -1);
        if (!sax->names[i])
            return TS3_ENOMEM;
    }
    return ts3_buf_reserve(&sax->text, 1024);
}

static void feed(struct ts3_sax *sax, const char *document, size_t size_bytes)
{
    size_t done = 0;
    while (done < size_bytes && !sax->err) {
        size_t piece = size_bytes - done < PIECE_BYTES ? size_bytes - done : PIECE_BYTES;
        /* Its result also tells of errors that do no harm, such as an unknown namespace prefix. */
        xmlParseChunk(sax->parser, document + done, (int)piece, 0);
        if (!sax->parser->wellFormed)
            break;
        done += piece;
    }
    if (!sax->err)
        xmlParseChunk(sax->parser, NULL, 0, 1);
}

/* What libxml2 made of the document, where the parser above had nothing to complain of. */
static enum ts3_err conclude(const struct ts3_sax *sax)
{
    if (sax->err)
        return sax->err;
    if (sax->parser->errNo == XML_ERR_NO_MEMORY)
        return ts3_xml_blame(sax->fault, TS3_ENOMEM, "no memory");
    if (sax->parser->wellFormed && sax->ended)
        return TS3_OK;
    if (!sax->rooted)
        return ts3_xml_blame(sax->fault, TS3_EXML, "there is no XML element in the document");
    if (!sax->ended && (sax->parser->errNo == XML_ERR_TAG_NOT_FINISHED ||
                        sax->parser->errNo == XML_ERR_DOCUMENT_END))
        return ts3_xml_blame(sax->fault, TS3_EXML, "the document is cut off");
    return ts3_xml_blame(sax->fault, TS3_EXML, "the document is not well-formed (libxml2 error %d)",
                         sax->parser->errNo);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

enum ts3_err ts3_sax_run(const struct ts3_alloc *alloc, const char *document, size_t size_bytes,
                         const struct ts3_sax_rules *rules, void *ctx, struct ts3_xml_fault *fault)
{
    struct ts3_sax sax = {.rules = rules, .ctx = ctx, .fault = fault};
    if (fault)
        fault->text[0] = '\0';
    if (size_bytes > TS3_XML_MAX_DOCUMENT)
        return ts3_xml_blame(fault, TS3_ELIMIT, "the document is larger than %d bytes",
                             TS3_XML_MAX_DOCUMENT);
    /* An XML declaration must be the very first thing, but S3 sends white space to keep a
     * connection alive while it works on a Complete. */
    while (size_bytes && is_space(*document)) {
        document++;
        size_bytes--;
    }
    if (size_bytes == 0)
        return ts3_xml_blame(fault, TS3_EXML, "the document is empty");
    ts3_buf_init(&sax.text, alloc, TS3_XML_MAX_TEXT);
    struct hush before = hush_thread();
    enum ts3_err err = set_up(&sax);
    if (err) {
        ts3_xml_blame(fault, err, "no memory");
    } else {
        feed(&sax, document, size_bytes);
        err = conclude(&sax);
    }
    ts3_buf_free(&sax.text);
    if (sax.parser) {
        /* Where something is built despite SAX (none should), it is not freed with the parser. */
        if (sax.parser->myDoc)
            xmlFreeDoc(sax.parser->myDoc);
        sax.parser->myDoc = NULL;
        xmlFreeParserCtxt(sax.parser);
    }
    unhush_thread(before);
    xmlResetLastError(); /* libxml2 keeps a copy of its last error or warning for each thread */
    return err;
}

/* ---- values ---- */

bool ts3_sax_keep(struct ts3_sax *sax, struct ts3_arena *arena, struct ts3_str text,
                  struct ts3_str *kept)
{
    char *copy = ts3_arena_copy(arena, text.data, text.len);
    if (!copy) {
        ts3_sax_fail(sax, arena->over ? TS3_ELIMIT : TS3_ENOMEM,
                     arena->over ? "the document's texts are too long" : "no memory");
        return false;
    }
    *kept = (struct ts3_str){copy, text.len};
    return true;
}

struct ts3_str ts3_sax_trim(struct ts3_str text)
{
    while (text.len && is_space(text.data[0])) {
        text.data++;
        text.len--;
    }
    while (text.len && is_space(text.data[text.len - 1]))
        text.len--;
    return text;
}

struct ts3_str ts3_sax_unquote(struct ts3_str text)
{
    /* The second is what is left of a quote that a service escaped twice. */
    static const struct ts3_str quotes[] = {{"\"", 1}, {"&quot;", 6}};
    for (size_t i = 0; i < 2; i++) {
        struct ts3_str quote = quotes[i];
        if (text.len < 2 * quote.len)
            continue;
        struct ts3_str head = {text.data, quote.len};
        struct ts3_str tail = {text.data + text.len - quote.len, quote.len};
        if (ts3_str_eq(head, quote) && ts3_str_eq(tail, quote))
            return (struct ts3_str){text.data + quote.len, text.len - 2 * quote.len};
    }
    return text;
}

bool ts3_sax_bool(struct ts3_sax *sax, struct ts3_str text, bool *value)
{
    text = ts3_sax_trim(text);
    if (ts3_str_eq_nocase(text, TS3_STR("true"))) {
        *value = true;
    } else if (ts3_str_eq_nocase(text, TS3_STR("false"))) {
        *value = false;
    } else {
        ts3_sax_fail(sax, TS3_EXML, "%s is neither true nor false",
                     sax->rules->names[sax->tags[sax->depth]]);
        return false;
    }
    return true;
}

bool ts3_sax_int64(struct ts3_sax *sax, struct ts3_str text, int64_t *value)
{
    int64_t number = 0;
    text = ts3_sax_trim(text);
    bool good = text.len > 0;
    for (size_t i = 0; i < text.len && good; i++) {
        int digit = text.data[i] - '0';
        good = digit >= 0 && digit <= 9 && number <= (INT64_MAX - digit) / 10;
        if (good)
            number = number * 10 + digit;
    }
    if (!good) {
        ts3_sax_fail(sax, TS3_EXML, "%s is not a number of bytes",
                     sax->rules->names[sax->tags[sax->depth]]);
        return false;
    }
    *value = number;
    return true;
}

enum ts3_err ts3_xml_decode(struct ts3_str *str, struct ts3_xml_fault *fault)
{
    /* The string lies in an arena of ours, so it may be written to; what is decoded is no
     * longer. */
    char *data = (char *)(uintptr_t)str->data;
    if (!data)
        return TS3_OK;
    if (ts3_uri_decode_to(data, &str->len, *str, true))
        return ts3_xml_blame(fault, TS3_EXML, "a name is not url-encoded as the document says");
    data[str->len] = '\0';
    return TS3_OK;
}

bool ts3_sax_grow(struct ts3_sax *sax, const struct ts3_alloc *alloc, void *items, size_t count,
                  size_t *cap, size_t size_bytes)
{
    /* Any object pointer may be read through memcpy, whatever it points to. */
    void *data;
    if (count >= TS3_XML_MAX_ENTRIES) {
        ts3_sax_fail(sax, TS3_ELIMIT, "more than %d items on a page", TS3_XML_MAX_ENTRIES);
        return false;
    }
    if (count < *cap)
        return true;
    size_t want = *cap ? *cap * 2 : 64;
    memcpy(&data, items, sizeof(data));
    data = ts3_alloc_resize(alloc, data, want, size_bytes);
    if (!data) {
        ts3_sax_fail(sax, TS3_ENOMEM, "no memory");
        return false;
    }
    memcpy(items, &data, sizeof(data));
    *cap = want;
    return true;
}

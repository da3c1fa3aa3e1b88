/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The scaffold that the parsers of this room share, private to it: runs libxml2's SAX2 over a whole
 * document, keeps the limits of ts3_xml.h, and tells a parser the start and end of the elements it
 * named, with their depth, their parents and their text.
 * Owner: ts3_sax_run makes and ends everything on its own stack and in its own allocations.
 * Thread: any. Errors: see ts3_xml.h. */
#ifndef TS3_SAX_H
#define TS3_SAX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libxml/xmlerror.h>
#include <libxml/xmlversion.h>

#include "core/ts3_buf.h"
#include "core/ts3_uri.h"
#include "xml/ts3_xml.h"

/* Stands for every element whose name is not in the parser's table. */
#define TS3_SAX_OTHER (-1)

enum { TS3_SAX_MAX_NAMES = 32 };

/* What an xmlStructuredErrorFunc of this libxml2 is told, on which gcc insists since 14. */
#if LIBXML_VERSION >= 21200
typedef const xmlError *ts3_sax_told;
#else
typedef xmlErrorPtr ts3_sax_told;
#endif

struct ts3_sax;

/* A parser: the names it knows (an element's tag is the index in names) and what it does with
 * them. */
struct ts3_sax_rules {
    const char *const *names;
    size_t name_count; /* at most TS3_SAX_MAX_NAMES */
    /* An element with a known name starts, or the root, whatever its name (tag may be
     * TS3_SAX_OTHER): the parser says here whether the root is its own. */
    void (*start)(void *ctx, struct ts3_sax *sax, int tag);
    /* It ends; text is all character data directly within it when it has no child elements, else
     * only what followed the last child. Valid during the call. */
    void (*end)(void *ctx, struct ts3_sax *sax, int tag, struct ts3_str text);
};

/* Within start and end: how deep the element is (the root is 1). */
unsigned ts3_sax_depth(const struct ts3_sax *sax);
/* Within start and end: the tag of the element at that depth, itself and its parents included. */
int ts3_sax_tag(const struct ts3_sax *sax, unsigned depth);
/* Within start and end: ends the parse with err and a sentence for the fault; the first counts. */
void ts3_sax_fail(struct ts3_sax *sax, enum ts3_err err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* TS3_OK only for a whole well-formed document whose every start and end was told. */
enum ts3_err ts3_sax_run(const struct ts3_alloc *alloc, const char *document, size_t size_bytes,
                         const struct ts3_sax_rules *rules, void *ctx, struct ts3_xml_fault *fault);

/* ---- values that several parsers read ---- */

/* Copies text into the arena, NUL-terminated; fails the parse when there is no room. */
bool ts3_sax_keep(struct ts3_sax *sax, struct ts3_arena *arena, struct ts3_str text,
                  struct ts3_str *kept);
/* text without the quotes around it, if it has them. */
struct ts3_str ts3_sax_unquote(struct ts3_str text);
/* text without white space at its ends. */
struct ts3_str ts3_sax_trim(struct ts3_str text);
/* "true" and "false" in any case; anything else fails the parse. */
bool ts3_sax_bool(struct ts3_sax *sax, struct ts3_str text, bool *value);
/* Decimal digits up to INT64_MAX; anything else fails the parse. */
bool ts3_sax_int64(struct ts3_sax *sax, struct ts3_str text, int64_t *value);

/* ---- after the parse ---- */

/* Writes the sentence where fault is not NULL, and returns err. */
enum ts3_err ts3_xml_blame(struct ts3_xml_fault *fault, enum ts3_err err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A url-encoded string of an arena decoded where it lies, "+" as a space as S3 writes it; NUL
 * stays behind it. */
enum ts3_err ts3_xml_decode(struct ts3_str *str, struct ts3_xml_fault *fault);
/* Makes room for one more item of size_bytes in an array that doubles, up to TS3_XML_MAX_ENTRIES;
 * false fails the parse. */
bool ts3_sax_grow(struct ts3_sax *sax, const struct ts3_alloc *alloc, void *items, size_t count,
                  size_t *cap, size_t size_bytes);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What all parsers of this room share: limits, and why a document was refused.
 *
 * Input is a whole document in memory. It is read by libxml2's SAX2 without DTD, entities of its
 * own, or network.
 * Element names count without their namespace. White space before the document is skipped (services
 * send it to keep a connection alive). A document without its root's end tag is an error, never a
 * short result.
 * Owner: each result struct owns an arena in which its strings lie; its ..._free ends it. A result
 * is valid for ..._free after its parser failed too (it is empty then).
 * Thread: any number of parsers at a time on different threads, after ts3_xml_setup was called
 * once.
 * Errors: TS3_EXML (not well-formed, cut off, DTD, another root (but see ts3_xml_multi.h), a
 * required element missing or unreadable), TS3_ELIMIT (a limit below), TS3_ENOMEM. */
#ifndef TS3_XML_H
#define TS3_XML_H

#include <stddef.h>

#include "core/ts3_alloc.h"
#include "core/ts3_arena.h"
#include "core/ts3_err.h"
#include "core/ts3_str.h"

enum {
    TS3_XML_MAX_DOCUMENT = 32 << 20, /* bytes of a document */
    TS3_XML_MAX_DEPTH = 16,          /* elements within each other */
    TS3_XML_MAX_TEXT = 16 << 10,     /* bytes of the text of one element */
    TS3_XML_MAX_KEY = 4096,          /* bytes of a key once decoded (S3 itself: 1024) */
    TS3_XML_MAX_ENTRIES = 10000      /* entries, or prefixes, or uploads of one page */
};

/* Where it is not NULL, a parser that fails writes a sentence for a log: it names elements and
 * limits, and quotes nothing else from the document. */
struct ts3_xml_fault {
    char text[160];
};

/* Initialises libxml2, which is not safe to be done by two threads at once. Call it once before the
 * first parse, for instance when the module is loaded; calling it again is harmless. */
void ts3_xml_setup(void);

#endif

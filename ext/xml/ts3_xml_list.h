/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages of ListObjectsV2 and ListObjects (v1). Owner, thread, errors, limits: see ts3_xml.h. A
 * truncated page that does not say where to go on is an error: taken as the last one it would make
 * objects vanish. */
#ifndef TS3_XML_LIST_H
#define TS3_XML_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "xml/ts3_xml.h"

enum ts3_list_version {
    /* v1 where the document has no token but a <Marker> or <NextMarker>, or says that it goes on;
     * else v2 */
    TS3_LIST_ANY = 0,
    TS3_LIST_V1,
    TS3_LIST_V2
};

struct ts3_entry {
    /* Decoded; not empty, a NUL behind it; any bytes where it was url-encoded, else UTF-8. */
    struct ts3_str key;
    struct ts3_str etag;          /* without the surrounding quotes; empty when missing */
    struct ts3_str storage_class; /* empty when missing */
    int64_t size_bytes;           /* 0 or more */
    int64_t modified_s;
};

struct ts3_page {
    struct ts3_arena arena;
    struct ts3_entry *entries; /* in the order of the document: not every service sorts */
    size_t entry_count;
    struct ts3_str *prefixes; /* CommonPrefixes, decoded */
    size_t prefix_count;
    bool truncated;
    bool v1; /* what the document was taken for */
    /* Not empty exactly when truncated. v2: the NextContinuationToken as given, never decoded. v1:
     * NextMarker, decoded, else the greatest key or prefix of the page. */
    struct ts3_str next_token;
};

/* Keys, prefixes and markers are url-decoded when the document says
 * <EncodingType>url</EncodingType>, wherever in the document that stands. Of an entry, Key, Size
 * and LastModified are required. */
enum ts3_err ts3_xml_list_parse(const struct ts3_alloc *alloc, const char *document,
                                size_t size_bytes, enum ts3_list_version version,
                                struct ts3_page *page, struct ts3_xml_fault *fault);
void ts3_xml_list_free(struct ts3_page *page);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bare libxml2: its SAX2 interface with handlers that do nothing, over one document again and again.
 *
 *   bare_sax FILE COUNT
 *
 * Prints the seconds of wall clock and of CPU time.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libxml/parser.h>

static void on_start(void *arg, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri,
                     int namespaces, const xmlChar **namespace, int attributes, int defaulted,
                     const xmlChar **attribute)
{
    (void)name, (void)prefix, (void)uri, (void)namespaces, (void)namespace, (void)attributes;
    (void)defaulted, (void)attribute;
    ++*(size_t *)arg;
}

static void on_end(void *arg, const xmlChar *name, const xmlChar *prefix, const xmlChar *uri)
{
    (void)arg, (void)name, (void)prefix, (void)uri;
}

static void on_text(void *arg, const xmlChar *text, int size)
{
    (void)arg, (void)text, (void)size;
}

static double clock_s(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static char document[1 << 22];
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL) {
        fprintf(stderr, "bare_sax FILE COUNT\n");
        return 2;
    }
    int size = (int)fread(document, 1, sizeof document, file);
    fclose(file);
    xmlSAXHandler handler;
    memset(&handler, 0, sizeof handler);
    handler.initialized = XML_SAX2_MAGIC;
    handler.startElementNs = on_start;
    handler.endElementNs = on_end;
    handler.characters = on_text;
    xmlInitParser();
    size_t elements = 0;
    double begun_s = clock_s(CLOCK_MONOTONIC);
    for (long left = strtol(argv[2], NULL, 10); left > 0; left--)
        if (xmlSAXUserParseMemory(&handler, &elements, document, size) != 0)
            return 1;
    printf("%.6f %.6f\n", clock_s(CLOCK_MONOTONIC) - begun_s, clock_s(CLOCK_PROCESS_CPUTIME_ID));
    xmlCleanupParser();
    return elements == 0;
}

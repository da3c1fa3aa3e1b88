/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where an engine's requests go: endpoint, bucket and the ways there, checked once and never
 * changed.
 * Owner: the engine.  Thread: any, read-only after init.  Errors: TS3_EINVAL with a sentence in
 *   why, TS3_ENOMEM. */
#ifndef TS3_SITE_H
#define TS3_SITE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/ts3_arena.h"
#include "net/ts3_engine.h"

struct ts3_site {
    struct ts3_arena arena;
    bool tls;
    /* https://host[:port] of every request, the bucket in it where not path style. */
    const char *origin;
    const char *host;        /* as the Host header says it */
    const char *prefix;      /* what comes before the key in the path: "/" or "/bucket/" */
    const char *bucket_path; /* path of the bucket itself: "/" or "/bucket" */
    const char *region;      /* as configured */
    const char *ca_file;     /* NULL over http */
    const char *proxy;       /* "" for none */
    const char *user_agent;  /* the header's whole line; without a value none is sent */
    bool whole_target;       /* an HTTP proxy reads the request line: it says the whole URL */
};

/* Zeroed by the caller before, or freed. */
enum ts3_err ts3_site_init(struct ts3_site *site, const struct ts3_alloc *alloc,
                           const struct ts3_engine_config *config, char *why, size_t why_size);
void ts3_site_free(struct ts3_site *site);

#endif

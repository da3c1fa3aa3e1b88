/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The signature of an attempt: what is signed, with which credentials, when.
 *
 * Each attempt is signed anew by the loop.  The first one's signature is made by who submits the
 * request where it has no body and nobody else is at it: the loop is what all transfers share.  Of one
 * with a body who submits has the hash to make already, where it is small.  Such an early signature
 * is used if it is what the loop would make now, but for TS3_EARLY_S seconds; S3 takes one for 15
 * minutes.
 *
 * Owner: the engine has one struct ts3_signing, the loop another.  Thread: one at a time; the
 *   engine's is used under engine->signing_mutex.
 * Errors: those of ts3_sigv4.h.  An early signature that cannot be made is none.
 * Limits: TS3_ENGINE_PAIRS headers of the caller's and TS3_SIGNING_OWN of ours. */
#ifndef TS3_SIGNING_H
#define TS3_SIGNING_H

#include "core/ts3_sigv4.h"
#include "net/ts3_creds.h"
#include "net/ts3_engine.h"
#include "net/ts3_site.h"

#define TS3_SIGNING_OWN 3 /* range, content-md5, x-amz-security-token */
#define TS3_EARLY_S 30

struct ts3_request;

struct ts3_signing {
    const struct ts3_site *site;
    struct ts3_sigv4 *signer;
    struct ts3_sigv4_out out;
    struct ts3_creds creds; /* a copy of the engine's */
};

/* What a signature depends on besides the request and the credentials. */
struct ts3_moment {
    int64_t wall_s; /* as the machine believes */
    int64_t skew_s; /* what the service's clock is ahead */
    const char *region;
};

/* The headers that are signed besides Host, and what is said of the payload.  Refers to the request
 * and to the credentials. */
struct ts3_wire {
    struct ts3_pair headers[TS3_ENGINE_PAIRS + TS3_SIGNING_OWN];
    size_t count;
    char range[64];
    struct ts3_str payload;
};

/* What goes on the wire of a signature, and of the target as it was signed. */
struct ts3_signature {
    struct ts3_str authorization;
    struct ts3_str amz_date;
    struct ts3_str path;
    struct ts3_str query;
};

struct ts3_early {
    bool made;
    uint64_t creds_version;
    int64_t wall_s;
    struct ts3_signature signature; /* in the request's arena */
};

enum ts3_err ts3_signing_init(struct ts3_signing *signing, const struct ts3_alloc *alloc,
                              const struct ts3_digest *digest, const struct ts3_site *site);
/* A zeroed struct is fine too. */
void ts3_signing_free(struct ts3_signing *signing);

/* Collects what is signed, and takes the request's early signature if it is good still, or makes
 * one, which is valid until the next call; says in the request what it was signed with. */
enum ts3_err ts3_signing_sign(struct ts3_signing *signing, struct ts3_request *request,
                              const struct ts3_moment *moment, struct ts3_wire *wire,
                              struct ts3_signature *signature);
/* For a request without a body, or whose body is prepared, that nobody else has yet.  Where the
 * credentials are none, nothing is made. */
void ts3_signing_early(struct ts3_signing *signing, struct ts3_request *request,
                       const struct ts3_moment *moment);

#endif

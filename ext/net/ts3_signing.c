/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_signing.h. */
#include "net/ts3_signing.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "net/ts3_request.h"

enum ts3_err ts3_signing_init(struct ts3_signing *signing, const struct ts3_alloc *alloc,
                              const struct ts3_digest *digest, const struct ts3_site *site)
{
    signing->site = site;
    ts3_sigv4_out_init(&signing->out, alloc);
    ts3_creds_init(&signing->creds, alloc);
    return ts3_sigv4_new(alloc, digest, &signing->signer);
}

void ts3_signing_free(struct ts3_signing *signing)
{
    ts3_sigv4_free(signing->signer);
    signing->signer = NULL;
    ts3_sigv4_out_free(&signing->out);
    ts3_creds_free(&signing->creds);
}

static void add(struct ts3_wire *wire, const char *name, const char *value)
{
    wire->headers[wire->count++] = (struct ts3_pair){ts3_str_of(name), ts3_str_of(value)};
}

static void collect(const struct ts3_signing *signing, const struct ts3_request *request,
                    struct ts3_wire *wire)
{
    wire->count = request->header_count;
    if (wire->count > 0)
        memcpy(wire->headers, request->headers, wire->count * sizeof *wire->headers);
    if (request->into != NULL) {
        uint64_t first = request->offset + ts3_window_ready(request->into);
        uint64_t last = request->offset + ts3_window_size(request->into) - 1;
        (void)snprintf(wire->range, sizeof wire->range, "bytes=%" PRIu64 "-%" PRIu64, first, last);
        add(wire, "range", wire->range);
    }
    if (request->body.want_md5)
        add(wire, "content-md5", request->body.md5);
    if (signing->creds.token.len > 0)
        add(wire, "x-amz-security-token", ts3_buf_text(&signing->creds.token));
    wire->payload =
        ts3_str_of(request->body.want_sha256 ? request->body.sha256 : TS3_UNSIGNED_PAYLOAD);
}

static enum ts3_err make(struct ts3_signing *signing, struct ts3_request *request,
                         const struct ts3_wire *wire, const struct ts3_moment *moment)
{
    request->signed_skew_s = moment->skew_s;
    (void)snprintf(request->signed_region, sizeof request->signed_region, "%s", moment->region);
    struct ts3_sigv4_request input = {
        .method = ts3_str_of(ts3_method_text(request->method)),
        .host = ts3_str_of(signing->site->host),
        .path = request->path,
        .query = request->query,
        .query_count = request->query_count,
        .headers = wire->headers,
        .header_count = wire->count,
        .payload = wire->payload,
        .time_s = moment->wall_s + moment->skew_s,
        .region = ts3_str_of(moment->region),
        .service = TS3_STR("s3"),
        .access_key_id = ts3_buf_str(&signing->creds.access_key_id),
        .secret = ts3_buf_str(&signing->creds.secret),
    };
    return ts3_sigv4_sign(signing->signer, &input, &signing->out);
}

static bool is_good(const struct ts3_signing *signing, const struct ts3_request *request,
                    const struct ts3_moment *moment)
{
    const struct ts3_early *early = &request->early;
    int64_t age_s = moment->wall_s - early->wall_s;
    return early->made && early->creds_version == signing->creds.version && age_s >= 0 &&
           age_s <= TS3_EARLY_S && request->signed_skew_s == moment->skew_s &&
           strcmp(request->signed_region, moment->region) == 0;
}

static struct ts3_signature view(const struct ts3_sigv4_out *out)
{
    return (struct ts3_signature){.authorization = ts3_buf_str(&out->authorization),
                                  .amz_date = ts3_str_of(out->amz_date),
                                  .path = ts3_buf_str(&out->path),
                                  .query = ts3_buf_str(&out->query)};
}

enum ts3_err ts3_signing_sign(struct ts3_signing *signing, struct ts3_request *request,
                              const struct ts3_moment *moment, struct ts3_wire *wire,
                              struct ts3_signature *signature)
{
    bool good = is_good(signing, request, moment);
    request->early.made = false; /* for one attempt only */
    collect(signing, request, wire);
    enum ts3_err err = good ? TS3_OK : make(signing, request, wire, moment);
    *signature = good ? request->early.signature : view(&signing->out);
    return err;
}

void ts3_signing_early(struct ts3_signing *signing, struct ts3_request *request,
                       const struct ts3_moment *moment)
{
    struct ts3_wire wire;
    struct ts3_early *early = &request->early;
    struct ts3_arena *arena = &request->arena;
    if (signing->creds.version == 0)
        return;
    collect(signing, request, &wire);
    if (make(signing, request, &wire, moment) != TS3_OK)
        return;
    struct ts3_signature made = view(&signing->out);
    early->creds_version = signing->creds.version;
    early->wall_s = moment->wall_s;
    early->made =
        ts3_arena_copy_str(arena, made.authorization, &early->signature.authorization) &&
        ts3_arena_copy_str(arena, made.amz_date, &early->signature.amz_date) &&
        ts3_arena_copy_str(arena, made.path, &early->signature.path) &&
        ts3_arena_copy_str(arena, made.query, &early->signature.query);
}

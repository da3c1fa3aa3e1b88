/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_site.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net/ts3_site.h"

#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define SITE_BYTES ((size_t)64 << 10) /* of all strings together */
#define HOST_BYTES 253                /* of a name in the DNS */

struct endpoint {
    bool tls;
    struct ts3_str host; /* with the brackets of an IPv6 address */
    struct ts3_str port; /* empty: the scheme's own */
};

__attribute__((format(printf, 3, 4))) static enum ts3_err refuse(char *why, size_t why_size,
                                                                 const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (why != NULL && why_size > 0)
        (void)vsnprintf(why, why_size, format, args);
    va_end(args);
    return TS3_EINVAL;
}

static bool is_name(struct ts3_str text)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!word && c != '-' && c != '.' && c != '_')
            return false;
    }
    return text.len > 0 && text.len <= HOST_BYTES;
}

static bool is_ipv6(struct ts3_str text)
{
    if (text.len < 4 || text.data[0] != '[' || text.data[text.len - 1] != ']')
        return false;
    for (size_t i = 1; i + 1 < text.len; i++)
        if (strchr("0123456789abcdefABCDEF:.", text.data[i]) == NULL)
            return false;
    return true;
}

static bool is_port(struct ts3_str text)
{
    unsigned value = 0;
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] < '0' || text.data[i] > '9' || value > 6553)
            return false;
        value = value * 10 + (unsigned)(text.data[i] - '0');
    }
    return text.len > 0 && value > 0 && value <= 65535;
}

static bool split_endpoint(const char *text, struct endpoint *endpoint)
{
    if (strncmp(text, "https://", 8) == 0) {
        endpoint->tls = true;
        text += 8;
    } else if (strncmp(text, "http://", 7) == 0) {
        endpoint->tls = false;
        text += 7;
    } else {
        return false;
    }
    const char *bracket = text[0] == '[' ? strchr(text, ']') : NULL;
    const char *colon = strchr(bracket ? bracket : text, ':');
    endpoint->host.data = text;
    endpoint->host.len = colon ? (size_t)(colon - text) : strlen(text);
    endpoint->port = ts3_str_of(colon ? colon + 1 : NULL);
    if (colon != NULL && !is_port(endpoint->port))
        return false;
    if (ts3_str_eq(endpoint->port, ts3_str_of(endpoint->tls ? "443" : "80")))
        endpoint->port.len = 0;
    return is_name(endpoint->host) || is_ipv6(endpoint->host);
}

/* A printf whose result lives in the arena; NULL for no memory. */
__attribute__((format(printf, 2, 3))) static char *print(struct ts3_arena *arena,
                                                         const char *format, ...)
{
    char text[2048];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (size < 0 || (size_t)size >= sizeof text)
        return NULL;
    return ts3_arena_copy(arena, text, (size_t)size);
}

static void lower(char *text)
{
    for (; text != NULL && *text != '\0'; text++)
        if (*text >= 'A' && *text <= 'Z')
            *text = (char)(*text - 'A' + 'a');
}

static enum ts3_err find_trust(struct ts3_site *site, const char *given, char *why, size_t why_size)
{
    /* Where distributions keep the bundle, should libcurl's own idea of it not be there. */
    static const char *const usual[] = {
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    };
    if (given != NULL) {
        if (access(given, R_OK) != 0)
            return refuse(why, why_size, "the CA bundle %s cannot be read", given);
        site->ca_file = print(&site->arena, "%s", given);
        return site->ca_file ? TS3_OK : TS3_ENOMEM;
    }
    const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
    const char *found = info->age >= CURLVERSION_SEVENTH ? info->cainfo : NULL;
    if (found != NULL && access(found, R_OK) != 0)
        found = NULL;
    for (size_t i = 0; found == NULL && i < sizeof usual / sizeof usual[0]; i++)
        if (access(usual[i], R_OK) == 0)
            found = usual[i];
    if (found == NULL)
        return refuse(why, why_size,
                      "no bundle of trusted certificates was found on this system: name one");
    site->ca_file = print(&site->arena, "%s", found);
    return site->ca_file ? TS3_OK : TS3_ENOMEM;
}

static enum ts3_err build(struct ts3_site *site, const struct ts3_engine_config *config,
                          const struct endpoint *endpoint)
{
    const char *colon = endpoint->port.len ? ":" : "";
    int host_len = (int)endpoint->host.len;
    int port_len = (int)endpoint->port.len;
    char *host = config->path_style
                     ? print(&site->arena, "%.*s%s%.*s", host_len, endpoint->host.data, colon,
                             port_len, endpoint->port.data)
                     : print(&site->arena, "%s.%.*s%s%.*s", config->bucket, host_len,
                             endpoint->host.data, colon, port_len, endpoint->port.data);
    lower(host);
    site->host = host;
    site->tls = endpoint->tls;
    site->origin = host ? print(&site->arena, "%s://%s", site->tls ? "https" : "http", host) : NULL;
    site->prefix = config->path_style ? print(&site->arena, "/%s/", config->bucket) : "/";
    site->bucket_path = config->path_style ? print(&site->arena, "/%s", config->bucket) : "/";
    site->region = print(&site->arena, "%s", config->region);
    site->proxy = print(&site->arena, "%s", config->proxy ? config->proxy : "");
    site->user_agent = print(&site->arena, "User-Agent: %s",
                             config->user_agent ? config->user_agent : "tahoe-s3");
    bool socks = site->proxy && strncasecmp(site->proxy, "socks", 5) == 0 &&
                 strstr(site->proxy, "://") != NULL; /* else it is the host of an HTTP proxy */
    site->whole_target = !site->tls && site->proxy && site->proxy[0] != '\0' && !socks;
    bool all = site->host && site->origin && site->prefix && site->bucket_path && site->region &&
               site->proxy;
    return all && site->user_agent ? TS3_OK : TS3_ENOMEM;
}

enum ts3_err ts3_site_init(struct ts3_site *site, const struct ts3_alloc *alloc,
                           const struct ts3_engine_config *config, char *why, size_t why_size)
{
    struct endpoint endpoint;
    if (config->endpoint == NULL || !split_endpoint(config->endpoint, &endpoint))
        return refuse(why, why_size, "the endpoint is not of the form http[s]://host[:port]");
    if (config->bucket == NULL || !is_name(ts3_str_of(config->bucket)))
        return refuse(why, why_size,
                      "the bucket's name has characters that S3 does not allow, or none at all");
    if (!config->path_style && endpoint.host.data[0] == '[')
        return refuse(why, why_size, "an address has no virtual hosts: use path style");
    struct ts3_str region = ts3_str_of(config->region);
    if (!is_name(region) || region.len > 63)
        return refuse(why, why_size, "the region's name is empty, too long, or has odd characters");
    memset(site, 0, sizeof *site);
    ts3_arena_init(&site->arena, alloc, SITE_BYTES);
    enum ts3_err err = build(site, config, &endpoint);
    if (err == TS3_OK && site->tls)
        err = find_trust(site, config->ca_file, why, why_size);
    if (err != TS3_OK)
        ts3_site_free(site);
    return err;
}

void ts3_site_free(struct ts3_site *site)
{
    ts3_arena_free(&site->arena);
    memset(site, 0, sizeof *site);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_slot.h. */
#include "net/ts3_slot.h"

#include <string.h>

#include "net/ts3_attempt.h"
#include "net/ts3_loop.h"
#include "net/ts3_sockets.h"
#include "net/ts3_turn.h"

#define SLOT_TEXT_BYTES ((size_t)128 << 10)

enum ts3_err ts3_slots_init(struct ts3_slots *slots, const struct ts3_alloc *alloc, uint32_t cap,
                            const char *origin)
{
    memset(slots, 0, sizeof *slots);
    slots->made = ts3_alloc_zero(alloc, cap, sizeof *slots->made);
    slots->cap = cap;
    slots->origin = curl_url();
    if (slots->made == NULL || slots->origin == NULL)
        return TS3_ENOMEM;
    CURLUcode code = curl_url_set(slots->origin, CURLUPART_URL, origin, 0);
    return code == CURLUE_OK ? TS3_OK : code == CURLUE_OUT_OF_MEMORY ? TS3_ENOMEM : TS3_ENET;
}

static void free_slot(struct ts3_slot *slot, const struct ts3_alloc *alloc)
{
    curl_easy_cleanup(slot->easy);
    ts3_buf_free(&slot->target);
    ts3_buf_cleanse(&slot->text);
    ts3_alloc_free(alloc, slot);
}

void ts3_slots_free(struct ts3_slots *slots, const struct ts3_alloc *alloc)
{
    for (uint32_t i = 0; i < slots->count; i++)
        free_slot(slots->made[i], alloc);
    curl_url_cleanup(slots->origin); /* behind the handles that refer to it */
    ts3_alloc_free(alloc, slots->made);
    memset(slots, 0, sizeof *slots);
}

/* --- libcurl's callbacks: small, since what they mean is in ts3_attempt.c ---
 *
 * Since 8.7 libcurl calls some even within curl_multi_remove_handle, to get rid of what it has kept.
 * The attempt has been judged by then. */

static size_t on_header(char *bytes, size_t one, size_t size, void *arg)
{
    struct ts3_slot *slot = arg;
    (void)one;
    struct ts3_str line = {bytes, size};
    return slot->left || ts3_attempt_on_header(slot->loop, slot->request, line) ? size : 0;
}

static size_t on_body(char *bytes, size_t one, size_t size, void *arg)
{
    struct ts3_slot *slot = arg;
    (void)one;
    if (slot->left)
        return size;
    if (!ts3_turn_may_receive(slot, size))
        return CURL_WRITEFUNC_PAUSE;
    return ts3_attempt_on_body(slot->loop, slot->request, bytes, size) ? size : 0;
}

static size_t on_read(char *out, size_t one, size_t size, void *arg)
{
    struct ts3_slot *slot = arg;
    return slot->left ? CURL_READFUNC_ABORT
                      : ts3_attempt_on_read(slot->loop, slot->request, out, one * size);
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct ts3_slot *slot = arg;
    if (slot->left || origin != SEEK_SET || offset < 0)
        return CURL_SEEKFUNC_FAIL;
    enum ts3_err err = ts3_body_seek(&slot->request->body, (uint64_t)offset);
    return err == TS3_OK ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

static int on_request(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct ts3_slot *slot = arg;
    (void)remote_ip;
    (void)local_ip;
    (void)remote_port;
    (void)local_port;
    ts3_attempt_on_connected(slot->loop, slot);
    return CURL_PREREQFUNC_OK;
}

struct ts3_slot *ts3_slot_of(CURL *easy)
{
    struct ts3_slot *slot = NULL;
    return curl_easy_getinfo(easy, CURLINFO_PRIVATE, &slot) == CURLE_OK ? slot : NULL;
}

/* --- options that never change --- */

struct option_long {
    CURLoption option;
    long value;
};

static const struct option_long plain[] = {
    {CURLOPT_NOSIGNAL, 1},
    {CURLOPT_NOPROGRESS, 1},
    {CURLOPT_PATH_AS_IS, 1}, /* keys with dots are keys, not paths to be tidied up */
    {CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1},
    {CURLOPT_FOLLOWLOCATION, 0},
    {CURLOPT_SUPPRESS_CONNECT_HEADERS, 1},
    {CURLOPT_BUFFERSIZE, TS3_SLOT_BUFFER_BYTES},
    {CURLOPT_MAXAGE_CONN, TS3_SLOT_IDLE_S},
    {CURLOPT_DNS_SHUFFLE_ADDRESSES, 1},
    {CURLOPT_QUICK_EXIT, 1}, /* never wait for a resolver's thread */
    {CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2},
};

static CURLcode set_plain(CURL *easy)
{
    CURLcode code = CURLE_OK;
    for (size_t i = 0; code == CURLE_OK && i < sizeof plain / sizeof plain[0]; i++)
        code = curl_easy_setopt(easy, plain[i].option, plain[i].value);
    return code;
}

static long upload_bytes(const struct ts3_slot *slot, const struct ts3_site *site)
{
    if (site->tls)
        return slot->is_long ? TS3_SLOT_LONG_TLS_BYTES : TS3_SLOT_BUFFER_BYTES;
    return slot->is_long ? TS3_SLOT_LONG_CLEAR_BYTES : TS3_SLOT_CLEAR_BYTES;
}

static CURLcode set_site(struct ts3_slot *slot, const struct ts3_site *site, CURLU *origin)
{
    CURL *easy = slot->easy;
    CURLcode code = curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, site->tls ? "https" : "http");
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CURLU, origin);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, upload_bytes(slot, site));
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_PROXY,
                                site->proxy); /* "": the environment is not asked */
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_NOPROXY, "");
    /* For CONNECT alone: the service is told by a header of the request. */
    if (code == CURLE_OK && site->tls && site->proxy[0] != '\0')
        code = curl_easy_setopt(easy, CURLOPT_USERAGENT, strchr(site->user_agent, ' ') + 1);
    if (code != CURLE_OK || !site->tls)
        return code;
    /* A CAPATH, as Debian has by default, would keep libcurl from loading the trust store only
     * once. */
    code = curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
    if (code == CURLE_OK)
        code = curl_easy_setopt(easy, CURLOPT_CAINFO, site->ca_file);
    return code;
}

static CURLcode set_callbacks(CURL *easy, struct ts3_slot *slot)
{
    struct {
        CURLcode code;
    } all[] = {
        {curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header)},
        {curl_easy_setopt(easy, CURLOPT_HEADERDATA, slot)},
        {curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body)},
        {curl_easy_setopt(easy, CURLOPT_WRITEDATA, slot)},
        {curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read)},
        {curl_easy_setopt(easy, CURLOPT_READDATA, slot)},
        {curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek)},
        {curl_easy_setopt(easy, CURLOPT_SEEKDATA, slot)},
        {curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_request)},
        {curl_easy_setopt(easy, CURLOPT_PREREQDATA, slot)},
        {curl_easy_setopt(easy, CURLOPT_PRIVATE, slot)},
        {curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, slot->error)},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i].code != CURLE_OK)
            return all[i].code;
    return CURLE_OK;
}

static enum ts3_err make_slot(struct ts3_loop *loop, struct ts3_slot **out)
{
    struct ts3_slot *slot = ts3_alloc_zero(loop->alloc, 1, sizeof *slot);
    if (slot == NULL)
        return TS3_ENOMEM;
    slot->loop = loop;
    slot->is_long = loop->slots.count < TS3_SLOT_LONG;
    ts3_buf_init(&slot->target, loop->alloc, SLOT_TEXT_BYTES);
    ts3_buf_init(&slot->text, loop->alloc, SLOT_TEXT_BYTES);
    slot->easy = curl_easy_init();
    CURLcode code = slot->easy ? CURLE_OK : CURLE_OUT_OF_MEMORY;
    if (code == CURLE_OK)
        code = set_plain(slot->easy);
    if (code == CURLE_OK)
        code = set_site(slot, loop->site, loop->slots.origin);
    if (code == CURLE_OK)
        code = set_callbacks(slot->easy, slot);
    if (code == CURLE_OK)
        code = ts3_sockets_attach(&loop->sockets, slot->easy);
    if (code != CURLE_OK) {
        free_slot(slot, loop->alloc);
        return code == CURLE_OUT_OF_MEMORY ? TS3_ENOMEM : TS3_ENET;
    }
    /* libcurl's buffers, each way; with TLS about twice as much again. */
    ts3_shared_reserve(loop->shared, (size_t)TS3_SLOT_BUFFER_BYTES * (loop->site->tls ? 2 : 1) +
                                         (size_t)upload_bytes(slot, loop->site));
    *out = slot;
    return TS3_OK;
}

enum ts3_err ts3_slots_take(struct ts3_slots *slots, struct ts3_loop *loop,
                            struct ts3_request *request, struct ts3_slot **out)
{
    struct ts3_slot **first = slots->free_long != NULL ? &slots->free_long : &slots->free_short;
    struct ts3_slot *slot = *first;
    if (slot == NULL) {
        if (slots->count == slots->cap)
            return TS3_EFULL;
        enum ts3_err err = make_slot(loop, &slot);
        if (err != TS3_OK)
            return err;
        slots->made[slots->count++] = slot;
    } else {
        *first = slot->next_free;
    }
    slot->next_free = NULL;
    slot->request = request;
    slot->connected = false;
    slot->left = false;
    slot->fd = CURL_SOCKET_BAD;
    slot->gathers = false;
    slot->corked = false;
    ts3_turn_begin(slot);
    slot->error[0] = '\0';
    *out = slot;
    return TS3_OK;
}

void ts3_slots_give(struct ts3_slots *slots, struct ts3_slot *slot)
{
    struct ts3_slot **first = slot->is_long ? &slots->free_long : &slots->free_short;
    slot->request = NULL;
    slot->next_free = *first;
    *first = slot;
}

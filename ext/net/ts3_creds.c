/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_creds.h. */
#include "net/ts3_creds.h"

void ts3_creds_init(struct ts3_creds *creds, const struct ts3_alloc *alloc)
{
    creds->version = 0;
    ts3_buf_init(&creds->access_key_id, alloc, TS3_CREDS_BYTES);
    ts3_buf_init(&creds->secret, alloc, TS3_CREDS_BYTES);
    ts3_buf_init(&creds->token, alloc, TS3_CREDS_BYTES);
}

void ts3_creds_free(struct ts3_creds *creds)
{
    creds->version = 0;
    ts3_buf_cleanse(&creds->access_key_id);
    ts3_buf_cleanse(&creds->secret);
    ts3_buf_cleanse(&creds->token);
}

/* Reserved before writing, so that growing leaves no copy of a secret behind. */
static enum ts3_err set_buf(struct ts3_buf *buf, struct ts3_str bytes)
{
    ts3_buf_cleanse(buf);
    enum ts3_err err = ts3_buf_reserve(buf, bytes.len + 1);
    return err == TS3_OK && bytes.len > 0 ? ts3_buf_append_str(buf, bytes) : err;
}

enum ts3_err ts3_creds_set(struct ts3_creds *creds, struct ts3_str access_key_id,
                           struct ts3_str secret, struct ts3_str token)
{
    creds->version = 0;
    enum ts3_err err = set_buf(&creds->access_key_id, access_key_id);
    if (err == TS3_OK)
        err = set_buf(&creds->secret, secret);
    return err == TS3_OK ? set_buf(&creds->token, token) : err;
}

enum ts3_err ts3_creds_copy(struct ts3_creds *to, const struct ts3_creds *from)
{
    enum ts3_err err = ts3_creds_set(to, ts3_buf_str(&from->access_key_id),
                                     ts3_buf_str(&from->secret), ts3_buf_str(&from->token));
    to->version = err == TS3_OK ? from->version : 0;
    return err;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Error codes of the C rooms. Every function that can fail returns one of these and writes its
 * results through out-parameters, which are left as the header of the function says when it fails.
 * Thread: any. Owner: nothing is allocated. */
#ifndef TS3_ERR_H
#define TS3_ERR_H

enum ts3_err {
    TS3_OK = 0,
    TS3_ENOMEM,  /* the allocator said no */
    TS3_EINVAL,  /* an argument, or text to be parsed, is not of the form asked for */
    TS3_ELIMIT,  /* a named limit would be exceeded */
    TS3_ECRYPTO, /* OpenSSL refused (an algorithm is not available) */
    TS3_EXML,    /* a document is not well-formed, cut off, of another kind, or carries a DTD */
    TS3_EIO,     /* the operating system refused; errno says why */
    TS3_EFULL,   /* a bounded queue has no place */
    TS3_EBUDGET, /* the byte budget has no room */
    TS3_ECLOSED, /* the engine was closed */
    TS3_EFORKED, /* the engine belongs to the parent process */
    TS3_ENET,    /* libcurl refused to be set up */
    TS3_ERR_COUNT
};

/* A short English sentence without a full stop; never NULL, static storage, for unknown numbers
 * too. */
const char *ts3_err_text(enum ts3_err err);

#endif

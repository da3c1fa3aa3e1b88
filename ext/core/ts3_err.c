/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sentences of the error codes. See ts3_err.h. */
#include "core/ts3_err.h"

static const char *const texts[TS3_ERR_COUNT] = {
    [TS3_OK] = "no error",
    [TS3_ENOMEM] = "no memory",
    [TS3_EINVAL] = "not of the form asked for",
    [TS3_ELIMIT] = "over a limit",
    [TS3_ECRYPTO] = "OpenSSL lacks an algorithm or failed",
    [TS3_EXML] = "not the XML document that was expected",
    [TS3_EIO] = "the operating system refused",
    [TS3_EFULL] = "the queue is full",
    [TS3_EBUDGET] = "the buffer budget is used up",
    [TS3_ECLOSED] = "the engine is closed",
    [TS3_EFORKED] = "the engine belongs to the parent process",
    [TS3_ENET] = "libcurl could not be set up",
};

const char *ts3_err_text(enum ts3_err err)
{
    /* Compared as unsigned, so that a negative number is as unknown as a large one. */
    unsigned index = (unsigned)err;
    return index < TS3_ERR_COUNT && texts[index] ? texts[index] : "unknown error";
}

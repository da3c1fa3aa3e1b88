/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SHA-256's compression of several messages at once, with the SHA instructions of x86.
 *
 * A processor that has them begins a new one each second cycle, but a message's next has to wait
 * four for the one before: one message alone leaves half of the unit idle, whoever wrote the code,
 * and OpenSSL has no interface for more than one.  Three side by side take four sevenths of the
 * time a byte (docs/benchmarks).  Nothing here is secret, and nothing depends on what is hashed.
 * Source of the function: FIPS 180-4, sections 4.2.2 and 6.2.2.
 *
 * Thread: any; there is no state but the caller's.  Errors: none. */
#ifndef TS3_SHA256_NI_H
#define TS3_SHA256_NI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TS3_SHA256_NI_LANES 3
#define TS3_SHA256_BLOCK_BYTES 64

/* This processor has the instructions, and this program was compiled for one that may. */
bool ts3_sha256_ni_here(void);

/* Compresses so many blocks of each of 1 to TS3_SHA256_NI_LANES messages into its state of eight
 * words. Only where ts3_sha256_ni_here. */
void ts3_sha256_ni_compress(uint32_t *const state[], const unsigned char *const data[],
                            size_t messages, size_t blocks);

#endif

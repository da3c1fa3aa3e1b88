/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What one transfer may receive in one turn of the loop.
 *
 * libcurl 7.88 reads a large answer in up to 100 pieces (of 64 KiB, over TLS of 16) before it
 * returns, asks at once to be called again, and takes every transfer further that has asked, in
 * whatever call comes next.  So a transfer that has received its share is paused; it goes on in the
 * next turn, behind those that were paused before it, each by a call of its own.
 *
 * Owner: the loop.  Thread: the loop's.  Errors: where libcurl cannot go on, the attempt ends.
 * Limits: the share, and what libcurl had read of the connection when the share was used up (64
 * KiB at most), of which it keeps a copy meanwhile. */
#ifndef TS3_TURN_H
#define TS3_TURN_H

#include "net/ts3_loop.h"

/* The share.  With the piece that libcurl copies (16 KiB where all goes evenly) a quarter of a MiB
 * where there are many transfers, and one of a few has four times as much: pausing costs one over
 * TLS up to a fifth, and what the others then wait is less than a millisecond for each of them. */
#define TS3_TURN_BYTES ((size_t)240 << 10)
#define TS3_TURN_FEW 4
#define TS3_TURN_FEW_BYTES (4 * TS3_TURN_BYTES)

/* A slot was taken: nothing received yet. */
void ts3_turn_begin(struct ts3_slot *slot);
/* In libcurl's write callback: false when the share is used up; then the transfer is to be paused. */
bool ts3_turn_may_receive(struct ts3_slot *slot, size_t size_bytes);
/* Whether the slot's transfer is paused: it goes on in the next turn. */
bool ts3_turn_waits(const struct ts3_slot *slot);
/* The attempt ends: it does not go on. */
void ts3_turn_leave(struct ts3_slot *slot);
/* Lets those go on that were paused in earlier turns: one at least, and more until the time (of the
 * system's clock) is over. */
void ts3_turn_go_on(struct ts3_loop *loop, int64_t until_us);

#endif

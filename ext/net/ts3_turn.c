/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_turn.h. */
#include "net/ts3_turn.h"

#include "net/ts3_verdict.h"

void ts3_turn_begin(struct ts3_slot *slot)
{
    slot->turn = 0;
    slot->turn_bytes = 0;
}

bool ts3_turn_may_receive(struct ts3_slot *slot, size_t size_bytes)
{
    struct ts3_loop *loop = slot->loop;
    if (slot->turn != loop->turn) {
        slot->turn = loop->turn;
        slot->turn_bytes = 0;
    }
    /* Answers to requests with a body are small, and there pausing has a meaning already.  An answer
     * that is here before libcurl has had its socket watched must not be paused: the socket would
     * count as idle. */
    bool may_wait = slot->request->body.kind == TS3_BODY_NONE && slot->fd != CURL_SOCKET_BAD;
    size_t share = loop->active <= TS3_TURN_FEW ? TS3_TURN_FEW_BYTES : TS3_TURN_BYTES;
    if (slot->turn_bytes >= share && may_wait) {
        ts3_list_push(&loop->waiting, &slot->waiting);
        return false;
    }
    slot->turn_bytes += size_bytes;
    return true;
}

bool ts3_turn_waits(const struct ts3_slot *slot)
{
    return ts3_link_used(&slot->waiting);
}

void ts3_turn_leave(struct ts3_slot *slot)
{
    ts3_list_remove(&slot->waiting);
}

/* libcurl hands over what it has kept first, within curl_easy_pause. That is not counted, so that
 * the share ends where a piece begins, and little is kept the next time. */
static void go_on(struct ts3_loop *loop, struct ts3_slot *slot)
{
    int running;
    CURLcode code = curl_easy_pause(slot->easy, CURLPAUSE_CONT);
    slot->turn_bytes = 0;
    if (code != CURLE_OK)
        ts3_verdict_attempt(loop, slot->request, code);
    else
        (void)curl_multi_socket_action(loop->multi, slot->fd, CURL_CSELECT_IN, &running);
}

void ts3_turn_go_on(struct ts3_loop *loop, int64_t until_us)
{
    const struct ts3_clock *clock = ts3_clock_system();
    struct ts3_link due;
    struct ts3_link *link;
    ts3_list_init(&due);
    ts3_list_move(&due, &loop->waiting);
    while ((link = ts3_list_pop(&due)) != NULL) {
        go_on(loop, TS3_MEMBER(link, struct ts3_slot, waiting));
        if (clock->mono_us(clock->ctx) >= until_us)
            break;
    }
    /* Those that wait still are before those that have just been paused. */
    ts3_list_move(&due, &loop->waiting);
    ts3_list_move(&loop->waiting, &due);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_window.h. */
#include "net/ts3_window.h"

#include <string.h>

enum ts3_err ts3_window_make(struct ts3_shared *shared, void *memory, size_t size_bytes,
                             struct ts3_window **window)
{
    if (size_bytes == 0)
        return TS3_EINVAL;
    enum ts3_err err = ts3_shared_charge(shared, size_bytes);
    if (err != TS3_OK)
        return err;
    struct ts3_window *made = ts3_alloc_zero(shared->alloc, 1, sizeof *made);
    if (made == NULL)
        err = TS3_ENOMEM;
    else if (memory != NULL) {
        ts3_blocks_advise(memory, size_bytes);
        made->block.data = memory;
    } else
        err = ts3_shared_take(shared, size_bytes, &made->block);
    if (err != TS3_OK) {
        ts3_alloc_free(shared->alloc, made);
        ts3_shared_discharge(shared, size_bytes);
        return err;
    }
    ts3_shared_ref(shared);
    made->shared = shared;
    made->size_bytes = size_bytes;
    atomic_init(&made->refs, 1);
    atomic_init(&made->ready_bytes, 0);
    atomic_init(&made->armed_bytes, 0);
    atomic_init(&made->busy, false);
    *window = made;
    return TS3_OK;
}

void ts3_window_ref(struct ts3_window *window)
{
    atomic_fetch_add(&window->refs, 1);
}

void ts3_window_unref(struct ts3_window *window)
{
    if (window == NULL || ts3_shared_forked(window->shared))
        return;
    if (atomic_fetch_sub(&window->refs, 1) != 1)
        return;
    struct ts3_shared *shared = window->shared;
    size_t size_bytes = window->size_bytes;
    if (window->block.size_bytes > 0)
        ts3_shared_give(shared, &window->block);
    ts3_alloc_free(shared->alloc, window);
    ts3_shared_discharge(shared, size_bytes);
    ts3_shared_unref(shared);
}

size_t ts3_window_size(const struct ts3_window *window)
{
    return window->size_bytes;
}

size_t ts3_window_ready(const struct ts3_window *window)
{
    return atomic_load_explicit(&window->ready_bytes, memory_order_acquire);
}

const unsigned char *ts3_window_data(const struct ts3_window *window)
{
    return ts3_shared_forked(window->shared) ? NULL : window->block.data;
}

enum ts3_err ts3_window_append(struct ts3_window *window, const void *bytes, size_t size_bytes)
{
    size_t ready = atomic_load_explicit(&window->ready_bytes, memory_order_relaxed);
    if (size_bytes > window->size_bytes - ready)
        return TS3_ELIMIT;
    memcpy(window->block.data + ready, bytes, size_bytes);
    /* Sequentially consistent, not only released: pairs with the arming below, see ts3_window_fire.
     */
    atomic_store(&window->ready_bytes, ready + size_bytes);
    return TS3_OK;
}

/* Arming stores armed and then loads ready; the loop stores ready and then loads armed.  With both
 * in one total order at least one of the two sees the other's store, and the exchange lets only
 * one of them take the arming. */
bool ts3_window_fire(struct ts3_window *window)
{
    size_t armed = atomic_load(&window->armed_bytes);
    if (armed == 0 || atomic_load(&window->ready_bytes) < armed)
        return false;
    return atomic_compare_exchange_strong(&window->armed_bytes, &armed, 0);
}

enum ts3_err ts3_window_arm(struct ts3_window *window, size_t upto, bool *ready)
{
    if (ts3_shared_forked(window->shared))
        return TS3_EFORKED;
    if (upto > window->size_bytes)
        return TS3_EINVAL;
    if (atomic_load(&window->ready_bytes) >= upto) {
        *ready = true;
        return TS3_OK;
    }
    atomic_store(&window->armed_bytes, upto);
    *ready = false;
    if (atomic_load(&window->ready_bytes) >= upto) {
        size_t armed = upto;
        *ready = atomic_compare_exchange_strong(&window->armed_bytes, &armed, 0);
    }
    return TS3_OK;
}

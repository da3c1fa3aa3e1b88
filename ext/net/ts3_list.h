/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Doubly linked lists whose links live in the members, so that queueing never allocates.
 * Owner: whoever owns the list's head.  Thread: that of the owner, or under the owner's lock.
 *   Errors: none. */
#ifndef TS3_LIST_H
#define TS3_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct ts3_link {
    struct ts3_link *prev;
    struct ts3_link *next; /* NULL: in no list */
};

/* The member that holds the link. */
#define TS3_MEMBER(link_ptr, type, field)                                                          \
    ((type *)(void *)((char *)(link_ptr) - offsetof(type, field)))

static inline void ts3_list_init(struct ts3_link *head)
{
    head->prev = head;
    head->next = head;
}

static inline bool ts3_list_empty(const struct ts3_link *head)
{
    return head->next == head;
}

static inline bool ts3_link_used(const struct ts3_link *link)
{
    return link->next != NULL;
}

static inline void ts3_list_push(struct ts3_link *head, struct ts3_link *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void ts3_list_push_front(struct ts3_link *head, struct ts3_link *link)
{
    ts3_list_push(head->next, link);
}

/* A link that is in no list is left alone. */
static inline void ts3_list_remove(struct ts3_link *link)
{
    if (link->next == NULL)
        return;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = NULL;
    link->next = NULL;
}

/* NULL when the list is empty. */
static inline struct ts3_link *ts3_list_pop(struct ts3_link *head)
{
    struct ts3_link *first = head->next;
    if (first == head)
        return NULL;
    ts3_list_remove(first);
    return first;
}

/* Moves all members of from behind those of to; from is empty afterwards. */
static inline void ts3_list_move(struct ts3_link *to, struct ts3_link *from)
{
    if (ts3_list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    ts3_list_init(from);
}

#endif

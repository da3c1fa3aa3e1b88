/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A borrowed run of bytes, not NUL-terminated, and a pair of them.
 * Owner: somebody else; valid as long as its owner says. Thread: any. */
#ifndef TS3_STR_H
#define TS3_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct ts3_str {
    const char *data; /* may be NULL when len is 0 */
    size_t len;
};

struct ts3_pair {
    struct ts3_str name;
    struct ts3_str value;
};

/* For constants: TS3_STR("host") */
#define TS3_STR(literal) ((struct ts3_str){(literal), sizeof(literal) - 1})

static inline struct ts3_str ts3_str_of(const char *text)
{
    struct ts3_str str = {text, text ? strlen(text) : 0};
    return str;
}

static inline bool ts3_str_eq(struct ts3_str a, struct ts3_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* By unsigned bytes, the shorter first where one begins with the other: the order of keys in S3. */
static inline int ts3_str_cmp(struct ts3_str a, struct ts3_str b)
{
    size_t len = a.len < b.len ? a.len : b.len;
    int order = len ? memcmp(a.data, b.data, len) : 0;
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

/* ts3_str_eq_nocase of two that are equally long. */
bool ts3_str_same_nocase(struct ts3_str a, struct ts3_str b);

/* Equal but for the case of A-Z; b is written in lower case. */
static inline bool ts3_str_eq_nocase(struct ts3_str a, struct ts3_str b)
{
    return a.len == b.len && ts3_str_same_nocase(a, b); /* most are told by their length */
}

#endif

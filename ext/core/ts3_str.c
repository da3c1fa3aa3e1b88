/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Comparisons of byte runs that are too long to be inline. See ts3_str.h. */
#include "core/ts3_str.h"

bool ts3_str_same_nocase(struct ts3_str a, struct ts3_str b)
{
    for (size_t i = 0; i < a.len; i++) {
        char c = a.data[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c - 'A' + 'a');
        if (c != b.data[i])
            return false;
    }
    return true;
}

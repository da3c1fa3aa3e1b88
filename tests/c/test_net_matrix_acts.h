/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the table of faults is made of. Each sends what it sends in place of reply, the true
 * answer, and says what becomes of the connection. See test_net_matrix.h. */
#ifndef TEST_NET_MATRIX_ACTS_H
#define TEST_NET_MATRIX_ACTS_H

#include "test_net_matrix.h"

/* How it ends, where that is arg's meaning. */
enum { ACT_KEEP, ACT_CLOSE, ACT_RESET, ACT_SILENT };
enum { ENDLESS_HEAD, ENDLESS_BODY, ENDLESS_ANSWERS };
enum { RANGE_SHIFTED = 1, RANGE_SHORT, RANGE_LONG, RANGE_OTHER_TOTAL };

#define MATRIX_ACT(name)                                                                           \
    enum net_then matrix_##name(struct matrix_cell *cell, int fd, const struct net_seen *seen,     \
                                struct matrix_reply *reply)

MATRIX_ACT(true);
MATRIX_ACT(stop_before);
MATRIX_ACT(stop_in_head);
MATRIX_ACT(stop_in_body);
MATRIX_ACT(stop_behind_head);
MATRIX_ACT(read_no_more);
MATRIX_ACT(drip);
MATRIX_ACT(extra);   /* text: header lines; arg: enum net_then */
MATRIX_ACT(first);   /* text, arg times, before the answer */
MATRIX_ACT(instead); /* text alone */
MATRIX_ACT(endless); /* text for ever; arg: as what */
MATRIX_ACT(long_header);
MATRIX_ACT(version); /* text; arg: enum net_then */
MATRIX_ACT(status);  /* text: number and reason; arg: enum net_then */
MATRIX_ACT(line_feeds);
MATRIX_ACT(nul);
MATRIX_ACT(length); /* text: the line */
MATRIX_ACT(length_twice); /* arg: how much the other one is more */
MATRIX_ACT(too_long);
MATRIX_ACT(truncated);
MATRIX_ACT(surplus);
MATRIX_ACT(chunks); /* text: behind the second chunk, or "!..." in place of its size line */
MATRIX_ACT(range);
MATRIX_ACT(range_200);
MATRIX_ACT(whole);
MATRIX_ACT(etag);
MATRIX_ACT(body);
MATRIX_ACT(spaces);
MATRIX_ACT(page);
MATRIX_ACT(answer);     /* status, and text: a document, %s in it for the code */
MATRIX_ACT(answer_cut); /* likewise; arg: how it ends in the middle of the document */
MATRIX_ACT(answer_with);
MATRIX_ACT(early);
MATRIX_ACT(early_reset);
MATRIX_ACT(early_refusal);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Header lines of answers. The text is lines, which are handed over with their line ends; what is left
 * is kept as a body of at most 100 bytes. Options: 1 the answer is reset and read again. */
#include <string.h>

#include "net/ts3_answer.h"
#include "ts3_fuzz.h"

enum { BODY_BYTES = 100, AGAIN = 1 };

static void check_text(const char *text, size_t size)
{
    const char *end = memchr(text, '\0', size);
    REQUIRE(end != NULL);
    size_t len = (size_t)(end - text);
    for (size_t i = 0; i < len; i++)
        REQUIRE((unsigned char)text[i] >= ' ' && text[i] != 127); /* it may be logged */
}

static void check_answer(const struct ts3_answer *answer)
{
    REQUIRE(answer->status >= 0 && answer->status <= 999);
    REQUIRE(!answer->complete_head || answer->begun);
    REQUIRE(answer->body.len <= BODY_BYTES);
    REQUIRE(ts3_answer_wait_s(answer) >= 0);
    check_text(answer->etag, sizeof(answer->etag));
    check_text(answer->request_id, sizeof(answer->request_id));
    check_text(answer->host_id, sizeof(answer->host_id));
    check_text(answer->region, sizeof(answer->region));
    REQUIRE(answer->date_s == TS3_TIME_NONE || answer->date_s > -100000000000);
}

static void read_answer(struct ts3_fuzz_input *input, struct ts3_answer *answer)
{
    struct ts3_str left = input->text;
    while (left.len && !answer->complete_head) {
        const char *end = memchr(left.data, '\n', left.len);
        size_t taken = end ? (size_t)(end - left.data) + 1 : left.len;
        ts3_answer_header(answer, (struct ts3_str){left.data, taken});
        left = (struct ts3_str){left.data + taken, left.len - taken};
    }
    enum ts3_err err = ts3_answer_keep(answer, left.len ? left.data : "", left.len);
    REQUIRE(err == TS3_OK || (err == TS3_ENOMEM && input->alloc.failed));
    REQUIRE(err || answer->cut == (left.len > BODY_BYTES));
    check_answer(answer);
}

FUZZ(answer)
{
    struct ts3_fuzz_input input;
    struct ts3_answer answer;
    if (!ts3_fuzz_open(&input, bytes, size_bytes))
        return;
    ts3_answer_init(&answer, &input.alloc.alloc);
    ts3_answer_reset(&answer, BODY_BYTES);
    read_answer(&input, &answer);
    if (input.options & AGAIN) {
        ts3_answer_reset(&answer, BODY_BYTES);
        REQUIRE(answer.status == 0 && answer.length == TS3_ANSWER_UNKNOWN && !answer.body.len);
        read_answer(&input, &answer);
    }
    ts3_buf_free(&answer.body);
    ts3_fuzz_close(&input);
}

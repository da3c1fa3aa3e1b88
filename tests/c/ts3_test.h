/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The test harness of the C rooms. A file of tests includes this, writes TEST(name) { ... } blocks,
 * and is linked with ts3_test.c, whose main runs all of them (or those whose names contain one of
 * its arguments) and ends with the line "N passed, N failed". A CHECK that does not hold prints
 * where and fails its test, which goes on.
 * Thread: tests run one after another on the main thread; CHECKs may be made on other threads
 * too. */
#ifndef TS3_TEST_H
#define TS3_TEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/ts3_err.h"
#include "core/ts3_str.h"
#include "ts3_failing.h"

struct ts3_test {
    const char *name;
    void (*run)(void);
    struct ts3_test *next;
};

void ts3_test_add(struct ts3_test *test);

#define TEST(test_name)                                                                            \
    static void test_name(void);                                                                   \
    __attribute__((constructor)) static void add_##test_name(void)                                 \
    {                                                                                              \
        static struct ts3_test test = {#test_name, test_name, NULL};                               \
        ts3_test_add(&test);                                                                       \
    }                                                                                              \
    static void test_name(void)

/* Each returns whether it held. label, a format with arguments, says which row of a table is looked
 * at. */
bool ts3_test_check(bool held, const char *file, int line, const char *what);
bool ts3_test_check_int(int64_t got, int64_t want, const char *file, int line, const char *what);
bool ts3_test_check_str(struct ts3_str got, struct ts3_str want, const char *file, int line,
                        const char *what);
/* Shown with the failures that follow within this test. */
void ts3_test_label(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether this test has failed already: where one waits for what then may never come. */
bool ts3_test_has_failed(void);

#define CHECK(condition) ts3_test_check((condition), __FILE__, __LINE__, #condition)
#define CHECK_INT(got, want)                                                                       \
    ts3_test_check_int((int64_t)(got), (int64_t)(want), __FILE__, __LINE__, #got)
#define CHECK_OK(err) ts3_test_check_int((int64_t)(err), TS3_OK, __FILE__, __LINE__, #err)
#define CHECK_STR(got, want) ts3_test_check_str((got), (want), __FILE__, __LINE__, #got)
#define CHECK_TEXT(got, want) ts3_test_check_str((got), ts3_str_of(want), __FILE__, __LINE__, #got)

/* Calls run with an allocator of which the first call fails, then the second, and so on, until none
 * does. Each run must return TS3_ENOMEM when an allocation failed and TS3_OK when none did, and
 * leave nothing allocated. */
void ts3_test_each_failure(enum ts3_err (*run)(const struct ts3_alloc *alloc, void *ctx),
                           void *ctx);

/* A file below tests/data, NUL-terminated, its size in *size_bytes; the caller frees it. Ends the
 * program when it cannot be read. */
char *ts3_test_data(const char *name, size_t *size_bytes);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The harness's main, checks and allocator. See ts3_test.h. */
#include "ts3_test.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef TS3_TEST_DATA
#define TS3_TEST_DATA "../data"
#endif

static struct ts3_test *first, **last = &first;
static char label[200];
static atomic_bool failed;

void ts3_test_add(struct ts3_test *test)
{
    *last = test;
    last = &test->next;
}

void ts3_test_label(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(label, sizeof(label), format, args);
    va_end(args);
}

bool ts3_test_has_failed(void)
{
    return atomic_load(&failed);
}

static void print_place(const char *file, int line, const char *what)
{
    atomic_store(&failed, true);
    printf("  %s:%d: %s%s%s%s: ", file, line, label[0] ? "[" : "", label, label[0] ? "] " : "",
           what);
}

bool ts3_test_check(bool held, const char *file, int line, const char *what)
{
    if (!held) {
        print_place(file, line, what);
        printf("does not hold\n");
    }
    return held;
}

bool ts3_test_check_int(int64_t got, int64_t want, const char *file, int line, const char *what)
{
    if (got != want) {
        print_place(file, line, what);
        printf("got %" PRId64 ", wanted %" PRId64 "\n", got, want);
    }
    return got == want;
}

static void print_str(struct ts3_str str)
{
    putchar('"');
    for (size_t i = 0; i < str.len && i < 400; i++) {
        unsigned char c = (unsigned char)str.data[i];
        if (isprint(c))
            putchar(c);
        else
            printf("\\x%02x", c);
    }
    printf("\" (%zu)", str.len);
}

bool ts3_test_check_str(struct ts3_str got, struct ts3_str want, const char *file, int line,
                        const char *what)
{
    bool held = ts3_str_eq(got, want);
    if (!held) {
        print_place(file, line, what);
        printf("got ");
        print_str(got);
        printf(", wanted ");
        print_str(want);
        putchar('\n');
    }
    return held;
}

/* ---- failing allocations ---- */

void ts3_test_each_failure(enum ts3_err (*run)(const struct ts3_alloc *alloc, void *ctx), void *ctx)
{
    for (size_t n = 1; n < 10000; n++) {
        struct ts3_failing alloc;
        ts3_failing_init(&alloc);
        alloc.fail_at = n;
        enum ts3_err err = run(&alloc.alloc, ctx);
        ts3_test_label("allocation %zu fails", n);
        bool good = CHECK_INT(err, alloc.failed ? TS3_ENOMEM : TS3_OK) && CHECK_INT(alloc.live, 0);
        ts3_test_label("%s", "");
        if (!good || !alloc.failed)
            return;
    }
    ts3_test_check(false, __FILE__, __LINE__, "a run without a failing allocation");
}

char *ts3_test_data(const char *name, size_t *size_bytes)
{
    char path[400];
    snprintf(path, sizeof(path), "%s/%s", TS3_TEST_DATA, name);
    FILE *file = fopen(path, "rb");
    char *data = malloc(1 << 20);
    size_t size = file && data ? fread(data, 1, (1 << 20) - 1, file) : 0;
    if (size == 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(2);
    }
    fclose(file);
    data[size] = '\0';
    *size_bytes = size;
    return data;
}

static bool is_chosen(const struct ts3_test *test, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strstr(test->name, argv[i]))
            return true;
    }
    return argc < 2;
}

int main(int argc, char **argv)
{
    int passed_count = 0, failed_count = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (struct ts3_test *test = first; test; test = test->next) {
        if (!is_chosen(test, argc, argv))
            continue;
        atomic_store(&failed, false);
        label[0] = '\0';
        test->run();
        if (ts3_test_has_failed()) {
            failed_count++;
            printf("FAILED %s\n", test->name);
        } else {
            passed_count++;
        }
    }
    printf("%d passed, %d failed\n", passed_count, failed_count);
    return failed_count || !passed_count ? 1 : 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the fuzz targets share. A target is a file fuzz_ROOM_NAME.c with one FUZZ(NAME) { ... } block
 * that gets bytes and size_bytes. It is built twice: by the Makefile here as a libFuzzer binary
 * (TS3_LIBFUZZER), and by tests/c as a test of its room that runs the files of corpus/NAME once, as
 * they are and with each of their first allocations failing.
 *
 * Every input begins with two bytes, written as digits in the corpus: which allocation fails ('0':
 * none, '1': the first, ...), and a set of options ('0' + bits). ts3_fuzz_open takes them off.
 * Thread: one. Owner: an input belongs to its caller; a run frees what it made.
 * Errors: a promise that does not hold is printed and ends the process, so that libFuzzer keeps the
 * input. */
#ifndef TS3_FUZZ_H
#define TS3_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ts3_err.h"
#include "core/ts3_str.h"
#include "ts3_failing.h"

typedef void ts3_fuzz_run(const uint8_t *bytes, size_t size_bytes);

#ifdef TS3_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes);
#define FUZZ(name)                                                                                 \
    static ts3_fuzz_run run_##name;                                                                \
    int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size_bytes)                            \
    {                                                                                              \
        run_##name(bytes, size_bytes);                                                             \
        return 0;                                                                                  \
    }                                                                                              \
    static void run_##name(const uint8_t *bytes, size_t size_bytes)
#else
#include "ts3_test.h"
#define FUZZ(name)                                                                                 \
    static ts3_fuzz_run run_##name;                                                                \
    TEST(corpus_##name)                                                                            \
    {                                                                                              \
        CHECK(ts3_fuzz_replay(#name, run_##name) > 0);                                             \
    }                                                                                              \
    static void run_##name(const uint8_t *bytes, size_t size_bytes)
#endif

/* Ends the process, naming the place, where the condition does not hold. */
#define REQUIRE(condition) ts3_fuzz_require((condition), __FILE__, __LINE__, #condition)
void ts3_fuzz_require(bool held, const char *file, int line, const char *what);

struct ts3_fuzz_input {
    struct ts3_failing alloc;
    unsigned options;
    struct ts3_str text; /* the rest, in memory of exactly its size */
};

/* False where the input is too short for its two bytes. The input must not move afterwards. */
bool ts3_fuzz_open(struct ts3_fuzz_input *input, const uint8_t *bytes, size_t size_bytes);
/* Nothing may be left allocated. */
void ts3_fuzz_close(struct ts3_fuzz_input *input);

/* Runs the files of corpus/name; returns how many there are. */
size_t ts3_fuzz_replay(const char *name, ts3_fuzz_run *run);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inputs, and the replay of a corpus. See ts3_fuzz.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ts3_fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TS3_FUZZ_CORPUS
#define TS3_FUZZ_CORPUS "corpus"
#endif

enum {
    PREFIX_BYTES = 2,         /* of an input */
    MAX_FILE_BYTES = 1 << 16, /* of a file of the corpus */
    REPLAYED_FAILURES = 24    /* each of the first so many allocations fails once in a replay */
};

void ts3_fuzz_require(bool held, const char *file, int line, const char *what)
{
    if (held)
        return;
    (void)fprintf(stderr, "%s:%d: %s does not hold\n", file, line, what);
    abort();
}

/* ---- inputs ---- */

bool ts3_fuzz_open(struct ts3_fuzz_input *input, const uint8_t *bytes, size_t size_bytes)
{
    if (size_bytes < PREFIX_BYTES)
        return false;
    memset(input, 0, sizeof(*input));
    ts3_failing_init(&input->alloc);
    input->alloc.fail_at = (uint8_t)(bytes[0] - '0');
    input->options = (uint8_t)(bytes[1] - '0');
    size_t size = size_bytes - PREFIX_BYTES;
    char *copy = malloc(size ? size : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, bytes + PREFIX_BYTES, size);
    input->text = (struct ts3_str){copy, size};
    return true;
}

void ts3_fuzz_close(struct ts3_fuzz_input *input)
{
    REQUIRE(input->alloc.live == 0);
    free((char *)(uintptr_t)input->text.data);
}

/* ---- the corpus ---- */

static size_t read_file(const char *name, const char *file_name, uint8_t *bytes)
{
    char path[600];
    (void)snprintf(path, sizeof(path), "%s/%s/%s", TS3_FUZZ_CORPUS, name, file_name);
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL);
    size_t size = fread(bytes, 1, MAX_FILE_BYTES, file);
    (void)fclose(file);
    return size;
}

static void run_file(const char *name, const char *file_name, ts3_fuzz_run *run)
{
    uint8_t *bytes = malloc(MAX_FILE_BYTES);
    REQUIRE(bytes != NULL);
    size_t size = read_file(name, file_name, bytes);
    REQUIRE(size >= PREFIX_BYTES);
    run(bytes, size);
    for (int failing = 0; failing <= REPLAYED_FAILURES; failing++) {
        bytes[0] = (uint8_t)('0' + failing);
        run(bytes, size);
    }
    free(bytes);
}

size_t ts3_fuzz_replay(const char *name, ts3_fuzz_run *run)
{
    char path[400];
    size_t count = 0;
    (void)snprintf(path, sizeof(path), "%s/%s", TS3_FUZZ_CORPUS, name);
    DIR *folder = opendir(path);
    REQUIRE(folder != NULL);
    for (const struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        if (entry->d_name[0] == '.')
            continue;
        run_file(name, entry->d_name, run);
        count++;
    }
    (void)closedir(folder);
    return count;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What happens in a soak, decided by its seed alone. See test_net_soak.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test_net_soak.h"

enum { PATTERN_BYTES = SOAK_MAX_BYTES + SOAK_SPREAD };

/* The finaliser of splitmix64, over what is asked for. */
static uint64_t mix(uint64_t seed, uint64_t number, uint64_t what)
{
    uint64_t z = seed + number * UINT64_C(0x9e3779b97f4a7c15) + what * UINT64_C(0xd1342543de82ef95);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static enum soak_kind pick_kind(uint64_t drawn)
{
    static const int shares[SOAK_KINDS] = {
        [SOAK_GET_RANGE] = 26, [SOAK_GET_BYTES] = 12, [SOAK_HEAD] = 8,      [SOAK_PUT_BYTES] = 16,
        [SOAK_PUT_FILE] = 8,   [SOAK_DELETE] = 6,     [SOAK_DELETE_TWO] = 3, [SOAK_LIST] = 5,
        [SOAK_CREATE] = 3,     [SOAK_PART] = 4,       [SOAK_COMPLETE] = 4,  [SOAK_COPY] = 3,
        [SOAK_UPLOADS] = 2,
    };
    int at = (int)(drawn % 100);
    int kind = 0;
    while (at >= shares[kind])
        at -= shares[kind++];
    return (enum soak_kind)kind;
}

static size_t pick_size(uint64_t drawn)
{
    static const size_t sizes[] = {1,    17,    300,   4096,  4096,  4096,  4096,  4096,
                                   5000, 16384, 16384, 16385, 65536, 65537, 10000, 200000};
    return drawn % 5000 == 0 ? SOAK_MAX_BYTES : sizes[drawn % 16];
}

struct soak_op soak_plan(uint64_t seed, uint32_t number)
{
    struct soak_op op = {
        .kind = pick_kind(mix(seed, number, 1)),
        .key = (int)(mix(seed, number, 2) % SOAK_KEYS),
        .size = pick_size(mix(seed, number, 3)),
        .priority = (int)(mix(seed, number, 5) % 3),
        .cancel_after = -1,
        .second_refused = mix(seed, number, 6) % 8 == 0,
    };
    if (mix(seed, number, 4) % 2 == 0)
        op.offset = mix(seed, number, 7) % 5000;
    if (mix(seed, number, 8) % 100 == 0)
        op.deadline_ms = 1 + (uint32_t)(mix(seed, number, 9) % 3000);
    if (mix(seed, number, 10) % 100 == 0)
        op.cancel_after = (int)(mix(seed, number, 11) % 8);
    return op;
}

bool soak_is_storm(uint32_t number)
{
    return number % SOAK_STORM_EVERY >= SOAK_STORM_EVERY - SOAK_STORM_LENGTH;
}

enum soak_fault soak_fault(uint64_t seed, uint32_t number, unsigned attempt)
{
    uint64_t drawn = mix(seed, number, 100 + attempt);
    if (soak_is_storm(number))
        return SOAK_ERROR;
    if (drawn % 20 != 0)
        return SOAK_FINE;
    enum soak_fault fault = (enum soak_fault)(1 + (drawn >> 32) % (SOAK_FAULTS - 1));
    bool waits = fault == SOAK_SILENT || fault == SOAK_SILENT_AFTER;
    return waits && (drawn >> 8) % 16 != 0 ? SOAK_LOST : fault; /* silences take real time */
}

bool soak_writes(enum soak_kind kind)
{
    return kind != SOAK_GET_RANGE && kind != SOAK_GET_BYTES && kind != SOAK_HEAD &&
           kind != SOAK_LIST && kind != SOAK_UPLOADS;
}

static unsigned char *pattern;
static int pattern_fd = -1;
static pthread_once_t pattern_once = PTHREAD_ONCE_INIT;

static void forget_pattern(void)
{
    close(pattern_fd);
    free(pattern);
}

static void make_pattern(void)
{
    pattern = malloc(PATTERN_BYTES);
    pattern_fd = memfd_create("pattern", MFD_CLOEXEC);
    if (pattern == NULL || pattern_fd < 0)
        abort();
    for (size_t i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (unsigned char)(mix(7, i / 8, 0) >> (i % 8 * 8));
    if (pwrite(pattern_fd, pattern, PATTERN_BYTES, 0) != PATTERN_BYTES)
        abort();
    (void)atexit(forget_pattern);
}

const unsigned char *soak_bytes_start(void)
{
    (void)pthread_once(&pattern_once, make_pattern);
    return pattern;
}

const unsigned char *soak_bytes(uint32_t number)
{
    return soak_bytes_start() + mix(11, number, 0) % SOAK_SPREAD;
}

int soak_bytes_fd(void)
{
    (void)pthread_once(&pattern_once, make_pattern);
    return pattern_fd;
}

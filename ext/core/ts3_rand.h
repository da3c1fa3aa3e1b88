/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A source of random numbers that is passed in: for jitter, never for secrets.
 * Owner: the caller keeps the state. Thread: one at a time for one state. */
#ifndef TS3_RAND_H
#define TS3_RAND_H

#include <stdint.h>

struct ts3_rand {
    uint64_t (*next)(void *ctx); /* 64 uniform bits */
    void *ctx;
};

/* xoshiro256** by Blackman and Vigna, its state filled by splitmix64. */
struct ts3_rand_state {
    uint64_t s[4];
};

/* The same seed gives the same numbers. rand borrows state. */
void ts3_rand_seeded(struct ts3_rand *rand, struct ts3_rand_state *state, uint64_t seed);
/* Seeded from the system (getrandom, without waiting); should that fail, from the two clocks and
 * the process id. */
void ts3_rand_system(struct ts3_rand *rand, struct ts3_rand_state *state);
/* Uniform in [0, below); 0 for below 0. */
uint64_t ts3_rand_below(const struct ts3_rand *rand, uint64_t below);

#endif

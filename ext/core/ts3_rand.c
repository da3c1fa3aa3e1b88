/* SPDX-License-Identifier: GPL-2.0-or-later */
/* xoshiro256** seeded by splitmix64 (Blackman and Vigna, prng.di.unimi.it). See ts3_rand.h. */
#define _GNU_SOURCE
#include "core/ts3_rand.h"

#include <sys/random.h>
#include <unistd.h>

#include "core/ts3_time.h"

static uint64_t rotate_left(uint64_t x, unsigned bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static uint64_t splitmix(uint64_t *x)
{
    *x += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *x;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t xoshiro(void *ctx)
{
    uint64_t *s = ((struct ts3_rand_state *)ctx)->s;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

void ts3_rand_seeded(struct ts3_rand *rand, struct ts3_rand_state *state, uint64_t seed)
{
    for (unsigned i = 0; i < 4; i++)
        state->s[i] = splitmix(&seed);
    rand->next = xoshiro;
    rand->ctx = state;
}

void ts3_rand_system(struct ts3_rand *rand, struct ts3_rand_state *state)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != (ssize_t)sizeof(seed)) {
        const struct ts3_clock *clock = ts3_clock_system();
        seed = (uint64_t)clock->mono_us(clock->ctx) ^ ((uint64_t)clock->wall_s(clock->ctx) << 32) ^
               ((uint64_t)getpid() << 16);
    }
    ts3_rand_seeded(rand, state, seed);
}

uint64_t ts3_rand_below(const struct ts3_rand *rand, uint64_t below)
{
    if (below == 0)
        return 0;
    /* Numbers under 2^64 mod below are drawn again, so that every residue is equally likely. */
    uint64_t unfair = (UINT64_MAX - below + 1) % below;
    uint64_t x;
    do
        x = rand->next(rand->ctx);
    while (x < unfair);
    return x % below;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See ts3_sha256_ni.h. */
#include "core/ts3_sha256_ni.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <immintrin.h>

/* clang 14 keeps three messages in memory, which takes twice the time. */
#ifdef __clang__
#define IS_SLOW_WITH_THREE 1
#else
#define IS_SLOW_WITH_THREE 0
#endif

#define NI __attribute__((target("sha,sse4.1,ssse3")))
#define NI_INLINE NI __attribute__((always_inline)) static inline

/* FIPS 180-4, section 4.2.2. */
static const uint32_t constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* One message under way, in registers: the instructions want the eight words of the state as
 * a, b, e, f and c, d, g, h, the first in the highest place. */
struct lane {
    __m128i abef, cdgh;
    __m128i abef_before, cdgh_before;
    __m128i words[4]; /* the last sixteen of the message's schedule */
    const unsigned char *data;
};

NI_INLINE void enter(struct lane *lane, const uint32_t state[8], const unsigned char *data)
{
    __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)state), 0xB1);
    __m128i efgh =
        _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)(state + 4)), 0x1B);
    lane->abef = _mm_alignr_epi8(badc, efgh, 8);
    lane->cdgh = _mm_blend_epi16(efgh, badc, 0xF0);
    lane->data = data;
}

NI_INLINE void leave(const struct lane *lane, uint32_t state[8])
{
    __m128i feba = _mm_shuffle_epi32(lane->abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(lane->cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)(void *)state, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(void *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

NI_INLINE void begin_block(struct lane *lane)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    const __m128i *at = (const __m128i *)(const void *)lane->data;
    for (int i = 0; i < 4; i++)
        lane->words[i] = _mm_shuffle_epi8(_mm_loadu_si128(at + i), big_endian);
    lane->data += TS3_SHA256_BLOCK_BYTES;
    lane->abef_before = lane->abef;
    lane->cdgh_before = lane->cdgh;
}

NI_INLINE void end_block(struct lane *lane)
{
    lane->abef = _mm_add_epi32(lane->abef, lane->abef_before);
    lane->cdgh = _mm_add_epi32(lane->cdgh, lane->cdgh_before);
}

/* Four rounds, and the four words of the schedule that come sixteen later. quad: 0 to 15, a literal. */
NI_INLINE void four_rounds(struct lane *lane, int quad)
{
    __m128i *words = lane->words;
    __m128i sum = _mm_add_epi32(
        words[quad & 3], _mm_load_si128((const __m128i *)(const void *)(constants + 4 * quad)));
    lane->cdgh = _mm_sha256rnds2_epu32(lane->cdgh, lane->abef, sum);
    lane->abef = _mm_sha256rnds2_epu32(lane->abef, lane->cdgh, _mm_shuffle_epi32(sum, 0x0E));
    if (quad < 12) {
        const __m128i last = words[(quad + 3) & 3];
        __m128i next = _mm_sha256msg1_epu32(words[quad & 3], words[(quad + 1) & 3]);
        next = _mm_add_epi32(next, _mm_alignr_epi8(last, words[(quad + 2) & 3], 4));
        words[quad & 3] = _mm_sha256msg2_epu32(next, last);
    }
}

/* What is the same for each message stands side by side, so that they fill each other's waits. */
#define EACH(call)   \
    do {             \
        call(&a);    \
        if (n > 1)   \
            call(&b); \
        if (n > 2)   \
            call(&c); \
    } while (0)
#define QUAD(quad)                \
    do {                          \
        four_rounds(&a, quad);    \
        if (n > 1)                \
            four_rounds(&b, quad); \
        if (n > 2)                \
            four_rounds(&c, quad); \
    } while (0)

/* n: a literal. */
NI_INLINE void compress(uint32_t *const state[], const unsigned char *const data[], size_t blocks,
                        const size_t n)
{
    struct lane a, b, c;
    enter(&a, state[0], data[0]);
    enter(&b, state[n > 1 ? 1 : 0], data[n > 1 ? 1 : 0]);
    enter(&c, state[n > 2 ? 2 : 0], data[n > 2 ? 2 : 0]);
    for (; blocks > 0; blocks--) {
        EACH(begin_block);
        QUAD(0);
        QUAD(1);
        QUAD(2);
        QUAD(3);
        QUAD(4);
        QUAD(5);
        QUAD(6);
        QUAD(7);
        QUAD(8);
        QUAD(9);
        QUAD(10);
        QUAD(11);
        QUAD(12);
        QUAD(13);
        QUAD(14);
        QUAD(15);
        EACH(end_block);
    }
    leave(&a, state[0]);
    if (n > 1)
        leave(&b, state[1]);
    if (n > 2)
        leave(&c, state[2]);
}

NI void ts3_sha256_ni_compress(uint32_t *const state[], const unsigned char *const data[],
                               size_t messages, size_t blocks)
{
    if (messages == 1)
        compress(state, data, blocks, 1);
    else if (messages == 2)
        compress(state, data, blocks, 2);
    else if (!IS_SLOW_WITH_THREE)
        compress(state, data, blocks, 3);
    else {
        compress(state, data, blocks, 2);
        compress(state + 2, data + 2, blocks, 1);
    }
}

bool ts3_sha256_ni_here(void)
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_SSSE3) == 0 ||
        (ecx & bit_SSE4_1) == 0)
        return false;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_SHA) != 0;
}

#else

bool ts3_sha256_ni_here(void)
{
    return false;
}

void ts3_sha256_ni_compress(uint32_t *const state[], const unsigned char *const data[],
                            size_t messages, size_t blocks)
{
    (void)state, (void)data, (void)messages, (void)blocks;
}

#endif

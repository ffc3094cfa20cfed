/* SPDX-License-Identifier: MIT
 *
 * vectors.c: how long the vector registers are that vectors.S saves and restores.
 */
#include "internal.h"

void psu_vectors_save_at(uint8_t to[16][64], uint32_t which, uint32_t level);
void psu_vectors_restore_at(const uint8_t from[16][64], uint32_t which, uint32_t level);

/* 0: xmm, 1: ymm, 2: zmm.  cpuid 1, ecx bit 27: the kernel has switched on XCR0; its bits 2:1 are SSE and AVX, 7:5
 * AVX-512. */
static uint32_t vector_level(void)
{
    static uint32_t known; /* level + 1 */
    uint32_t level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!level) {
        uint32_t a = 1, b, c = 0, d, low, high;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        level = 1;
        if (c >> 27 & 1) {
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
            level = (low & 0xe6) == 0xe6 ? 3 : (low & 6) == 6 ? 2 : 1;
        }
        __atomic_store_n(&known, level, __ATOMIC_RELAXED);
    }
    return level - 1;
}

void psu_vectors_save(uint8_t to[16][64], uint32_t which) { psu_vectors_save_at(to, which, vector_level()); }

void psu_vectors_restore(const uint8_t from[16][64], uint32_t which)
{
    psu_vectors_restore_at(from, which, vector_level());
}

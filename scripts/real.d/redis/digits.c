/* A patch of redis 7.0: digits10, from util.c, that changes every volatile register but its result's.
 *
 * ull2string keeps the buffer, its size and the number in such registers over its call of digits10 (-fipa-ra; on x86-64
 * rdi, rsi and r8), so that each integer in a reply shows whether psu-bin keeps them. */
#include <stdint.h>

#ifdef __x86_64__
#define SPOIL __asm__ volatile("mov $-1, %%rcx\n mov %%rcx, %%rdx\n mov %%rcx, %%rsi\n mov %%rcx, %%rdi\n" \
    "mov %%rcx, %%r8\n mov %%rcx, %%r9\n mov %%rcx, %%r10\n mov %%rcx, %%r11" \
    : : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
#else
#define SPOIL __asm__ volatile("mov x1, -1\n mov x2, x1\n mov x3, x1\n mov x4, x1\n mov x5, x1\n mov x6, x1\n mov x7, x1\n" \
    "mov x8, x1\n mov x9, x1\n mov x10, x1\n mov x11, x1\n mov x12, x1\n mov x13, x1\n mov x14, x1\n mov x15, x1" \
    : : : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15")
#endif

uint32_t digits10(uint64_t v) {
    uint32_t digits = 1;
    for (; v >= 10; v /= 10)
        digits++;
    SPOIL;
    return digits;
}

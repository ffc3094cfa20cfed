/* SPDX-License-Identifier: MIT
 *
 * Every outlined atomic that the shim exports does what the operation does that it is named after: result, memory, nothing
 * beside it.  The linker finds them in the shim first, then in libgcc.a. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *const orders[] = {"relax", "acq", "rel", "acq_rel", "sync"};
static const char *const updates[] = {"ldadd", "ldclr", "ldeor", "ldset", "swp"};
static const uint64_t values[] = {0, 1, 0x80, 0xff, 0x8000, 0xfedc, 0x80000000, 0x89abcdef, 0xfedcba9876543210, ~0ull};
enum { VALUES = sizeof values / sizeof *values };

static int wrong;

static void *find(const char *op, int size, const char *order)
{
    char name[64];
    Dl_info info;
    snprintf(name, sizeof name, "__aarch64_%s%d_%s", op, size, order);
    void *at = dlsym(RTLD_DEFAULT, name);
    if (!at || !dladdr(at, &info) || !strstr(info.dli_fname, "libpsu_shim.so")) {
        printf("%s is not the shim's\n", name);
        wrong = 1;
    }
    return at;
}

static uint64_t narrow(uint64_t v, int size) { return size == 8 ? v : v & ((1ull << 8 * size) - 1); }

static uint64_t expected(int op, uint64_t old, uint64_t v)
{
    return op == 0 ? old + v : op == 1 ? old & ~v : op == 2 ? old ^ v : op == 3 ? old | v : v;
}

static void say(const char *op, int size, const char *order, uint64_t old, uint64_t v)
{
    if (!wrong++)
        printf("__aarch64_%s%d_%s(%lx, %lx)\n", op, size, order, old, v);
}

static void check_updates(int op, int size, const char *order)
{
    void *at = find(updates[op], size, order);
    for (int i = 0; at && i < VALUES * VALUES; i++) {
        uint64_t old = values[i / VALUES], v = values[i % VALUES], words[3] = {old, old, old}, got, want;
        memcpy(&want, &old, 8);
        if (size == 8)
            got = ((uint64_t (*)(uint64_t, uint64_t *))at)(v, &words[1]);
        else /* what is above a narrow argument is anything; the result is extended by zeros */
            got = ((uint32_t (*)(uint32_t, uint64_t *))at)((uint32_t)v, &words[1]);
        uint64_t new = narrow(expected(op, old, v), size);
        memcpy(&want, &new, (size_t)size);
        if (got != narrow(old, size) || words[1] != want || words[0] != old || words[2] != old)
            say(updates[op], size, order, old, v);
    }
}

static void check_compare(int size, const char *order)
{
    void *at = find("cas", size, order);
    for (int i = 0; at && i < 2 * VALUES; i++) {
        uint64_t old = values[i / 2], if_is = i % 2 ? old : old ^ 1, new = ~old, words[3] = {old, old, old}, got, want = old;
        if (size == 8)
            got = ((uint64_t (*)(uint64_t, uint64_t, uint64_t *))at)(if_is, new, &words[1]);
        else
            got = ((uint32_t (*)(uint32_t, uint32_t, uint64_t *))at)((uint32_t)if_is, (uint32_t)new, &words[1]);
        if (i % 2)
            memcpy(&want, &new, (size_t)size);
        if (got != narrow(old, size) || words[1] != want || words[0] != old || words[2] != old)
            say("cas", size, order, old, if_is);
    }
}

typedef unsigned __int128 u128;

static void check_compare16(const char *order)
{
    void *at = find("cas", 16, order);
    u128 one = (u128)3 << 64 | 4, new = (u128)5 << 64 | 6;
    for (int i = 0; at && i < 3; i++) {     /* as expected; the low half differs; the high half does */
        u128 words[3] = {one, one, one}, if_is = one ^ (i == 1) ^ (u128)(i == 2) << 64;
        u128 got = ((u128 (*)(u128, u128, u128 *))at)(if_is, new, &words[1]);
        if (got != one || words[1] != (i ? one : new) || words[0] != one || words[2] != one)
            say("cas", 16, order, 0, (uint64_t)i);
    }
}

int main(void)
{
    for (int o = 0; o < 5; o++) {
        for (int size = 1; size <= 8; size *= 2) {
            for (int op = 0; op < 5; op++)
                check_updates(op, size, orders[o]);
            check_compare(size, orders[o]);
        }
        check_compare16(orders[o]);
    }
    puts(wrong ? "wrong" : "ok");
    return wrong != 0;
}

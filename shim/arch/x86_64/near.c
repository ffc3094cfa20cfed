/* SPDX-License-Identifier: MIT
 *
 * near.c: copies of the gates close to the program.
 *
 * The dynamic linker maps the shim near the other libraries, terabytes away from a position-independent executable.
 * Processors predict jumps over more than 4 GiB less well: on a Zen 3, 3 cycles for each of the two in a patched call,
 * which made it
 * 1.7 times the cost of the plainest wrapper, against 1.1 in reach.  So for functions far from the shim the
 * agent maps, once, a second set of gates near them.
 *
 * A copy is the same machine code at the same distances from what it refers to.  Reserved is as much address space as
 * from psu_gate_text to the end of psu_gate_area; the data part is zero pages, a page of gates is filled in when its
 * first gate is used, and exits become jumps through 64-bit addresses.  Everything at `+ psu_runtime.near_delta`
 * belongs together. One thing is better than in the shim's own text, which cannot be relocated: the offset of psu_self
 * is in the instruction.
 *  Gate n of a kind is used either here or there, for ever (I3).  PSU_FULL gates, slow anyway, have no copies.
 *
 * Unwind rules: the same, in psu_near_eh_frame; frames.c makes unwinders find them.  Where it cannot, there are no
 * copies.
 */
#include "internal.h"

enum { MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_NORESERVE = 0x4000, MAP_FIXED_NOREPLACE = 0x100000,
       MADV_NOHUGEPAGE = 15, PROT_NONE = 0 };
#define FAR (1ull << 32)
#define STEP (64ull << 20)
#define TRIES 24
#define BELOW_PROGRAM (256ull << 20)
#define HIGHEST_LOW 0x7c000000ull   /* position-dependent programs: leave room above for code with 32-bit addresses */
#define PAGES (PSU_SIDE_STRIDE * PSU_SIDE_GATES / 4096)
_Static_assert(PSU_PLAIN_STRIDE * PSU_PLAIN_GATES <= PSU_SIDE_STRIDE * PSU_SIDE_GATES, "pages of one kind, at most");

uint8_t psu_gate_area[AREA_END] __attribute__((aligned(4096)));
static uint8_t ready[2][PAGES]; /* [kind][page]: the copy is filled in and executable */

extern const char psu_plain_slow[], psu_side_slow[], psu_slow_leave[], psu_gate_text[];
extern const uint8_t psu_near_eh_frame[];
extern uint64_t psu_near_exits_begin, psu_near_plain_begin, psu_near_side_begin;

void psu_gates_start(void)
{
    uint64_t thread;
    __asm__("mov %%fs:0, %0" : "=r"(thread));
    *(uint64_t *)(psu_gate_area + AREA_SELF) = (uint64_t)&psu_self - thread; /* the same in every thread: static TLS */
}

static int far(uint64_t a, uint64_t b) { return (a > b ? a - b : b - a) > FAR; }

static int protect(uint64_t address, uint64_t size, int protection)
{
    return psu_syscall(NR_mprotect, address, size, protection) == 0;
}

static void fill_exits(uint8_t *at)
{
    const char *const targets[] = {psu_plain_slow, psu_side_slow, psu_slow_leave};
    __builtin_memset(at, 0xcc, 4096);
    for (int i = 0; i < 3; i++) { /* notrack jmp *0(%rip); address */
        __builtin_memcpy(at + i * EXIT_SIZE, "\x3e\xff\x25\0\0\0\0", 7);
        __builtin_memcpy(at + i * EXIT_SIZE + 7, &targets[i], 8);
    }
}

static int try_at(uint64_t address, uint64_t size)
{
    long at = psu_syscall(NR_mmap, address, size, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (at < 0 && at > -4096)
        return 0;
    uint64_t delta = (uint64_t)at - (uint64_t)psu_gate_text, area = (uint64_t)psu_gate_area + delta;
    psu_syscall(NR_madvise, at, size, MADV_NOHUGEPAGE);
    if ((uint64_t)at == address && protect(area, AREA_END, PSU_PROT_READ | PSU_PROT_WRITE)
        && protect(address, 4096, PSU_PROT_READ | PSU_PROT_WRITE)) {
        fill_exits((uint8_t *)address);
        *(uint64_t *)(area + AREA_SELF) = *(uint64_t *)(psu_gate_area + AREA_SELF);
        if (protect(address, 4096, PSU_PROT_READ | PSU_PROT_EXEC)) {
            psu_near_exits_begin = (uint64_t)psu_gate_text + delta;
            psu_near_plain_begin = (uint64_t)psu_plain_gates + delta;
            psu_near_side_begin = (uint64_t)psu_side_gates + delta;
            psu_frames_add_near(address, (uint64_t)psu_full_gates - (uint64_t)psu_gate_text, psu_near_eh_frame);
            psu_runtime.near_delta = delta;
            return 1;
        }
    }
    psu_syscall(NR_munmap, at, size);
    return 0;
}

static void reserve(uint64_t slot)
{
    static int tried; /* a program that has no room has none the next time */
    uint64_t size = (uint64_t)psu_gate_area + AREA_END - (uint64_t)psu_gate_text;
    if (psu_runtime.near_delta || tried++ || !psu_frames_in_front())
        return;
    for (int i = 0; i < TRIES; i++) {
        uint64_t page = slot & ~4095ull; /* below a program there is nothing; above it is its heap, which grows */
        uint64_t at = page >> 40 ? page - BELOW_PROGRAM - i * STEP : HIGHEST_LOW - i * STEP;
        if (try_at(at, size))
            return;
    }
}

/* mov psu_gate_area + AREA_SELF(%rip), %r11; mov %fs:(%r11), %r11 -> mov %fs:offset, %r11 and a two-byte nop */
static void use_offset(uint8_t *at)
{
    int64_t offset = *(int64_t *)(psu_gate_area + AREA_SELF);
    int32_t field = (int32_t)offset;
    if (field != offset || at[0] != 0x4c || at[1] != 0x8b || at[2] != 0x1d || at[7] != 0x64)
        return;
    __builtin_memcpy(at, "\x64\x4c\x8b\x1c\x25", 5);
    __builtin_memcpy(at + 5, &field, 4);
    __builtin_memcpy(at + 9, "\x66\x90", 2);
}

static int fill_page(uint32_t kind, uint32_t page)
{
    uint64_t from = (uint64_t)psu_kinds[kind].first + page * 4096ull, to = from + psu_runtime.near_delta;
    if (ready[kind][page])
        return 1;
    if (!protect(to, 4096, PSU_PROT_READ | PSU_PROT_WRITE))
        return 0;
    __builtin_memcpy((void *)to, (const void *)from, 4096);
    for (uint64_t gate = to; gate < to + 4096; gate += psu_kinds[kind].stride)
        for (int i = 0; i < 2; i++)
            use_offset((uint8_t *)gate + psu_gate_offsets[kind].own[i]);
    ready[kind][page] = protect(to, 4096, PSU_PROT_READ | PSU_PROT_EXEC);
    return ready[kind][page];
}

void psu_gate_prepare(uint32_t kind, uint32_t number, uint64_t slot)
{
    if (kind > PSU_SIDE || !far(slot, (uint64_t)psu_gate_text) || psu_kinds[kind].data[number].slot)
        return;
    reserve(slot);
    if (psu_runtime.near_delta && !far(slot, (uint64_t)psu_gate_text + psu_runtime.near_delta))
        fill_page(kind, number * psu_kinds[kind].stride / 4096);
}

struct psu_gate *psu_gate_data(uint32_t kind, uint32_t number, uint64_t slot)
{
    struct psu_gate *here = &psu_kinds[kind].data[number];
    if (here->slot || kind > PSU_SIDE || !psu_runtime.near_delta
        || !ready[kind][number * psu_kinds[kind].stride / 4096])
        return here;
    struct psu_gate *there = (struct psu_gate *)((uint64_t)here + psu_runtime.near_delta);
    uint64_t text = (uint64_t)psu_gate_text;
    int there_is_nearer = far(slot, text) && !far(slot, text + psu_runtime.near_delta);
    return there->slot || there_is_nearer ? there : here;
}

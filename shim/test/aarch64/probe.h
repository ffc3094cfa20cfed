/* SPDX-License-Identifier: MIT
 *
 * probe.h: what conventions.c looks at on AArch64: `probe` fills every register, stores stack arguments and calls; the
 * version `record` writes down what arrived, spoils what it may, and returns.
 *
 * x16 and x17 are not compared: any veneer of a linker between caller and function may change them, and so do stubs.
 * Both functions need one of them as the base of what they load and store.
 */
#include <stddef.h>

enum { X9 = 9, X10 = 10, X16 = 16, X17 = 17, X18 = 18, X19 = 19, X29 = 29, X30 = 30, SP = 31, REGISTERS = 32, VECTORS = 32 };
struct state {
    uint64_t general[REGISTERS];
    uint64_t flags, stack[4], unused[3];
    uint8_t vector[VECTORS][16];
};
_Static_assert(offsetof(struct state, flags) == 256 && offsetof(struct state, stack) == 264
               && offsetof(struct state, vector) == 320, "offsets in the assembly");

/* One set serves: calls are made one at a time. */
struct state before, inside, planned, after;
void *probe_target;

void probe(void);
void record(void);
__asm__(
        ".macro BASE_OF what\n adrp x16, \\what\n add x16, x16, :lo12:\\what\n .endm\n"
        /* x0 to x15, x18, and the flags */
        ".macro VOLATILES op\n .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18\n"
        " \\op x\\n, [x16, #8 * \\n]\n .endr\n .endm\n"
        ".macro CALLEE_SAVED op\n .irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29\n"
        " \\op x\\n, [x16, #8 * \\n]\n .endr\n .endm\n"
        ".macro VOLATILE_VECTORS op\n"
        " .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
        " \\op q\\n, [x16, #320 + 16 * \\n]\n .endr\n .endm\n"
        ".macro SAVED_VECTORS op\n .irp n, 8, 9, 10, 11, 12, 13, 14, 15\n"
        " \\op q\\n, [x16, #320 + 16 * \\n]\n .endr\n .endm\n"
        /* sp and flags to the set at x16; x0 and x1 are stored there already */
        ".macro STORE_SP_FLAGS\n mov x0, sp\n str x0, [x16, #248]\n mrs x0, nzcv\n str x0, [x16, #256]\n .endm\n"
        /* 4 words at sp + \at to the set's `stack` */
        ".macro STORE_STACK\n ldp x0, x1, [sp]\n stp x0, x1, [x16, #264]\n ldp x0, x1, [sp, #16]\n"
        " stp x0, x1, [x16, #280]\n .endm\n"

        ".text\n.p2align 4\n.globl probe\n.type probe,@function\nprobe:\n"
        "bti c\nstp x29, x30, [sp, #-160]!\nstp x19, x20, [sp, #16]\nstp x21, x22, [sp, #32]\nstp x23, x24, [sp, #48]\n"
        "stp x25, x26, [sp, #64]\nstp x27, x28, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
        "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\nsub sp, sp, #32\n"
        "BASE_OF before\n"
        "ldp x0, x1, [x16, #264]\nstp x0, x1, [sp]\nldp x0, x1, [x16, #280]\nstp x0, x1, [sp, #16]\n"
        "mov x0, sp\nstr x0, [x16, #248]\nldr x0, [x16, #256]\nmsr nzcv, x0\n"
        "VOLATILE_VECTORS ldr\nSAVED_VECTORS ldr\nCALLEE_SAVED ldr\nVOLATILES ldr\n"
        "adrp x16, probe_target\nldr x16, [x16, :lo12:probe_target]\nblr x16\n"
        "BASE_OF after\n"
        "VOLATILES str\nCALLEE_SAVED str\nSTORE_SP_FLAGS\nVOLATILE_VECTORS str\nSAVED_VECTORS str\nSTORE_STACK\n"
        "add sp, sp, #32\n"
        "ldp x19, x20, [sp, #16]\nldp x21, x22, [sp, #32]\nldp x23, x24, [sp, #48]\nldp x25, x26, [sp, #64]\n"
        "ldp x27, x28, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
        "ldp d14, d15, [sp, #144]\nldp x29, x30, [sp], #160\nret\n.size probe, .-probe\n"

        ".p2align 4\n.globl record\n.type record,@function\nrecord:\n"
        "bti c\nBASE_OF inside\n"
        "VOLATILES str\nCALLEE_SAVED str\nSTORE_SP_FLAGS\nVOLATILE_VECTORS str\nSAVED_VECTORS str\nSTORE_STACK\n"
        "BASE_OF planned\n"
        "ldr x0, [x16, #256]\nmsr nzcv, x0\nVOLATILE_VECTORS ldr\nadd x17, x16, #456\n"
        ".irp n, 8, 9, 10, 11, 12, 13, 14, 15\n ld1 {v\\n\\().d}[1], [x17]\n add x17, x17, #16\n.endr\n"
        "VOLATILES ldr\n"
        "ret\n.size record, .-record\n");

static void fill(struct state *s, uint64_t seed)
{
    uint64_t *words = (uint64_t *)s;
    for (size_t i = 0; i < sizeof *s / 8; i++)
        words[i] = seed + i * 0x0101010101010101u;
    s->flags = (seed & 15) << 28;
}

static const char *mode_name;
static int kind_now;
#define SAME(a, b, what, n) \
    CHECK((a) == (b), "kind %d, %s: %s %d: %lx, should be %lx", kind_now, mode_name, what, n, (unsigned long)(a), \
          (unsigned long)(b))

/* Whether psu_gate.preserve has vector register n. */
static int preserved(uint32_t preserve, int n)
{
    return preserve >> (n < 4 ? 16 + n : n < 8 ? 20 : n < 16 ? 21 : 24 + (n - 16) / 2) & 1;
}

static void call_and_compare(int kind, const char *mode, uint64_t target, uint32_t preserve, int moved_stack)
{
    static uint64_t seed = 0x1122334455667788;
    kind_now = kind;
    mode_name = mode;
    fill(&before, seed++);
    fill(&planned, seed++);
    memset(&inside, 0, sizeof inside);
    memset(&after, 0, sizeof after);
    probe_target = (void *)target;
    probe();
    int quick = kind == PSU_PLAIN || kind == PSU_SIDE;
    for (int i = 0; i < REGISTERS; i++) {
        if (i == X16 || i == X17 || i == X30)
            continue;
        int used = quick && (i == X9 || i == X10);
        if (i == SP)
            SAME(inside.general[i], before.general[i] - (uint64_t)(moved_stack == 1 ? 16 : moved_stack), "sp inside", i);
        else if (!used && (i != X29 || kind < 0))
            SAME(inside.general[i], before.general[i], "register inside", i);
        int kept = i >= X19 || (preserve >> (i == X18 ? 22 : i) & 1);
        if (!used)
            SAME(after.general[i], kept ? before.general[i] : planned.general[i], "register after", i);
    }
    SAME(inside.flags, before.flags, "flags inside", 0);
    SAME(after.flags, planned.flags, "flags after", 0);
    for (int i = 0; i < VECTORS; i++) {
        CHECK(!memcmp(inside.vector[i], before.vector[i], 16), "kind %d, %s: v%d inside", kind, mode, i);
        int kept = preserved(preserve, i), low = kept || (i >= 8 && i < 16);
        CHECK(!memcmp(after.vector[i], low ? before.vector[i] : planned.vector[i], 8), "kind %d, %s: v%d after", kind,
              mode, i);
        CHECK(!memcmp(after.vector[i] + 8, (kept ? before.vector[i] : planned.vector[i]) + 8, 8),
              "kind %d, %s: upper half of v%d after", kind, mode, i);
    }
    for (int i = 0; i < 4; i++) {
        if (!moved_stack)
            SAME(inside.stack[i], before.stack[i], "stack argument", i);
        SAME(after.stack[i], before.stack[i], "stack argument after", i);
    }
}

/* What a PSU_FULL gate is to restore: x1, x6, x8 to x11, x15, x18, v2, v4 to v7, v8 to v15, v16, v17, v30, v31 */
#define PROBE_PRESERVE (1u << 1 | 1u << 6 | 0xf00 | 1u << 15 | 1u << 18 | 7u << 20 | 1u << 24 | 1u << 31)

/* How far the version's stack is moved when registers are kept there; of struct psu_save. */
#define STACKED_BYTES(preserve) (192 + ((preserve) >> 16 ? 32 * 256 : 0))
#define SAVE_SIZE (64 + 23 * 8 + 32 * 256)

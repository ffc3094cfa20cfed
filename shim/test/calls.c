/* SPDX-License-Identifier: MIT
 *
 * calls.c: nanoseconds of processor time a call of an empty function takes, in each shape.  Started by scripts/bench
 * call, which gives it the machine code of the stubs as instrument emits them.
 *
 * Every shape has the same loop, made at run time at the same alignment: call rel32 of a stub, count down.  The shapes
 * take turns, so that whatever disturbs the machine disturbs all; all threads run the same shape at the same time.
 *
 * Arguments: threads, rounds, calls in a sample, stub and IBT stub as hexadecimal bytes (for stub address 0, slot
 * 4096), instructions in the function (0: it only returns), patches made before.
 * Prints one line a shape: its name and its sample of each round.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "host.h"

__thread uint64_t entered __attribute__((tls_model("local-exec"))), left __attribute__((tls_model("local-exec")));
void *wrapped;
/* The least that a counting wrapper does: counters at fixed offsets from the thread pointer, no memory management. */
__asm__(".text\n.p2align 6\n.globl wrapper\nwrapper:\nsub $8, %rsp\nincq %fs:entered@tpoff\ncall *wrapped(%rip)\n"
        "incq %fs:left@tpoff\nadd $8, %rsp\nret\n");
extern char wrapper[];

enum shape { DIRECT, BARE, STUB, STUB_IBT, WRAPPER, PLAIN, SIDE, FULL, FULL_PRESERVE, SHAPES };
static const char *const names[SHAPES] = {"direct", "bare", "stub", "stub-ibt", "wrapper", "plain", "side", "full",
                                          "full-preserve"};
typedef void loop(uint64_t calls);
static loop *loops[SHAPES];
static int threads, rounds;
static uint64_t calls;
static pthread_barrier_t barrier;
static double (*samples)[SHAPES]; /* of each round, mean of the threads */

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *run(void *unused)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    (void)unused;
    for (int r = -1; r < rounds; r++)
        for (int s = 0; s < SHAPES; s++) {
            pthread_barrier_wait(&barrier);
            double began = cpu_seconds();
            loops[s](r < 0 ? 1000 : calls);
            double took = (cpu_seconds() - began) / (double)calls * 1e9;
            pthread_mutex_lock(&lock);
            if (r >= 0)
                samples[r][s] += took / threads;
            pthread_mutex_unlock(&lock);
        }
    return 0;
}

static uint8_t *hex(const char *text, uint8_t *to)
{
    for (; text[0] && text[1]; text += 2) {
        unsigned byte;
        sscanf(text, "%2x", &byte);
        *to++ = (uint8_t)byte;
    }
    return to;
}

int main(int argc, char **argv)
{
    CHECK(argc == 8);
    int instructions = atoi(argv[6]), patches = atoi(argv[7]);
    CHECK(instructions >= 0 && instructions <= 200 && patches >= 1);
    threads = atoi(argv[1]);
    rounds = atoi(argv[2]);
    calls = strtoull(argv[3], 0, 0);
    samples = calloc((size_t)rounds, sizeof *samples);
    pthread_barrier_init(&barrier, 0, (unsigned)threads);
    host_agent();

    /* Code, and one page behind it the slots: stub k at 512 k, its slot at 4096 * pages + 512 k, its loop behind it. */
    size_t half = (SHAPES * 512 + 2048 + 4095) & ~4095ul;
    /* Near the program, as a module's stubs are, and like them far from the shim: a processor may predict far jumps
     * less well. */
    uint8_t *near = (uint8_t *)(((uint64_t)wrapper & ~0xffffffull) + 0x4000000);
    uint8_t *code = mmap(near, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* lea 1(%rax), %rax; lea 1(%rdx), %rdx; ...: two chains, as compiled code has some parallelism; then ret. */
    uint8_t version[1024];
    size_t size = 0;
    for (int i = 0; i < instructions; i++, size += 4)
        memcpy(version + size, i % 2 ? "\x48\x8d\x52\x01" : "\x48\x8d\x40\x01", 4);
    version[size++] = 0xc3;
    uint8_t *empty = code + half - 1024;
    memcpy(empty, version, size);
    wrapped = empty;
    CHECK(code == near);
    struct host_switch s[4];
    volatile uint64_t *slots[SHAPES];
    for (int k = 0; k < SHAPES; k++) {
        uint8_t *stub = code + 512 * k, bytes[32] = {0xff, 0x25};
        slots[k] = (volatile uint64_t *)(stub + half);
        *slots[k] = (uint64_t)(k == WRAPPER ? (void *)wrapper : empty);
        uint8_t *end = bytes + 6;
        if (k == STUB_IBT)
            end = hex(argv[5], bytes);
        else if (k != BARE)
            end = hex(argv[4], bytes);
        int32_t distance; /* the last 4 bytes before the padding were made for slot 4096 */
        while (end[-1] == 0xcc)
            end--;
        distance = (int32_t)((uint8_t *)slots[k] - (stub + (end - bytes)));
        memcpy(end - 4, &distance, 4);
        memcpy(stub, bytes, sizeof bytes);
        uint8_t *entry = k == DIRECT ? empty : stub;
        /* push rbx; mov rdi, rbx; 1: call stub; dec rbx; jnz 1b; pop rbx; ret */
        uint8_t *p = stub + 128, *top;
        memcpy(p, "\x53\x48\x89\xfb", 4);
        memset(p + 4, 0x90, 28);
        top = p + 32;
        top[0] = 0xe8;
        distance = (int32_t)(entry - (top + 5));
        memcpy(top + 1, &distance, 4);
        memcpy(top + 5, "\x48\xff\xcb\x75\xf6\x5b\xc3", 7);
        loops[k] = (loop *)p;
        if (k >= PLAIN)
            s[k - PLAIN] = (struct host_switch){
                slots[k], 0, 0, k == PLAIN ? PSU_PLAIN : k == SIDE ? PSU_SIDE : PSU_FULL, (uint32_t)k,
                k == FULL_PRESERVE ? 0x60f06 : 0};
    }
    CHECK(mprotect(code, half, PROT_READ | PROT_EXEC) == 0);
    /* Every patch is an object of its own, with gates of its own; its predecessor is retired. */
    uint32_t last = 0;
    for (int i = 0; i < patches; i++) {
        struct psu_map m = {(uint64_t)near + 0x1000000 + 4096 * (uint64_t)i, 4096, PROT_READ | PROT_WRITE, 0};
        CHECK(host_command(PSU_OP_MAP, &m, sizeof m, 1) == 0);
        memcpy((void *)m.address, version, size);
        m.prot = PROT_READ | PROT_EXEC;
        CHECK(host_command(PSU_OP_PROTECT, &m, sizeof m, 1) == 0);
        for (int k = 0; k < 4; k++) {
            s[k].body = m.address;
            s[k].gate = (uint32_t)(4 * i + k);
        }
        last = (uint32_t)i;
        CHECK(host_commit(last, (void *)m.address, s, 4, i - 1) == 0);
    }

    pthread_t all[64];
    for (int i = 0; i < threads; i++)
        CHECK(pthread_create(&all[i], 0, run, 0) == 0);
    for (int i = 0; i < threads; i++)
        pthread_join(all[i], 0);
    uint32_t enters;
    CHECK(host_inside(last, &enters) == 0
        && enters == (uint32_t)((calls * (uint64_t)rounds + 1000) * 4 * (uint64_t)threads));
    for (int k = 0; k < SHAPES; k++) {
        printf("%s", names[k]);
        for (int r = 0; r < rounds; r++)
            printf(" %.4f", samples[r][k]);
        putchar('\n');
    }
    return 0;
}

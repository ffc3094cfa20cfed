/* SPDX-License-Identifier: MIT
 *
 * frames.cc: an injected version with a stack frame and .eh_frame of its own.  A C++ exception goes through it,
 * backtrace() sees through it, dl_iterate_phdr lists it while it is there and not after it was freed; then another one
 * at the same address, with another frame, works as well (unwinders remember what they found).
 */
#include <execinfo.h>
#include <link.h>

#include <stdexcept>

#include "host.h"

extern "C" {
long work(long mode);
long work_original(long mode) { return mode; }
STUB(work);
}

extern "C" __attribute__((noinline)) long callee(long mode)
{
    if (mode == 1)
        throw std::runtime_error("through");
    void *frames[30];
    int n = backtrace(frames, 30);
    char **text = backtrace_symbols(frames, n);
    int found = 0;
    for (int i = 0; i < n; i++)
        found |= strstr(text[i], "(main+") != nullptr;
    CHECK(found, "main is not in the backtrace");
    free(text);
    return mode + 7;
}

/* A function with a frame that calls callee(), and the rules for it. */
static char *place(uint64_t at, uint32_t space, uint64_t *eh_frame)
{
    struct psu_map m = {at, 4096, PROT_READ | PROT_WRITE, 0};
    CHECK(host_command(PSU_OP_MAP, &m, sizeof m, 1) == 0);
    char *page = (char *)m.address;
    uint64_t start = (uint64_t)page, length = code_framed(page, space, (void *)callee);

    char *p = page + 256;
    uint32_t n = 16, zero = 0;
    memcpy(p, &n, 4);
    memcpy(p + 4, &zero, 4);
    char *cie = p + 8;
    p += 20;
    n = 36;
    uint32_t back = (uint32_t)(p + 4 - (page + 256));
    memcpy(p, &n, 4);
    memcpy(p + 4, &back, 4);
    memcpy(p + 8, &start, 8);
    memcpy(p + 16, &length, 8);
    code_rules(cie, p + 24, space);
    memcpy(p + 40, &zero, 4);
    *eh_frame = (uint64_t)page + 256;
    m.prot = PROT_READ | PROT_EXEC;
    CHECK(host_command(PSU_OP_PROTECT, &m, sizeof m, 1) == 0);
    return page;
}

static void commit(uint32_t index, char *page, uint64_t eh_frame, int64_t retire)
{
    struct { struct psu_commit head; struct psu_new_object o; struct psu_switch s; uint32_t retire; } r;
    memset(&r, 0, sizeof r);
    r.head.objects = r.head.switches = 1;
    r.head.retires = retire >= 0;
    r.retire = (uint32_t)retire;
    r.o.index = index;
    r.o.patch = 1;
    r.o.eh_frame = eh_frame;
    r.o.region[0].address = (uint64_t)page;
    r.o.region[0].size = 4096;
    uint32_t kind = PSU_NO_GATE, gate = PSU_NO_GATE;
    host_gate_of(&work_slot, &kind, &gate);
    r.s = {(uint64_t)&work_slot, 0, (uint64_t)page, PSU_PLAIN, index, index, 0, kind, gate};
    CHECK(host_command(PSU_OP_COMMIT, &r, sizeof r - 4 * (retire < 0) - 4, 1) == 0);
}

static int listed(struct dl_phdr_info *info, size_t, void *address)
{
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD
            && (uint64_t)address - (info->dlpi_addr + info->dlpi_phdr[i].p_vaddr) < info->dlpi_phdr[i].p_memsz)
            return 1;
    return 0;
}

__attribute__((noinline)) static void use(char *page)
{
    for (int i = 0; i < 100; i++) {
        int caught = 0;
        try {
            work(1);
        } catch (std::exception &) {
            caught = 1;
        }
        CHECK(caught);
    }
    CHECK(work(2) == 9);
    CHECK(dl_iterate_phdr(listed, page) == 1);
}

int main()
{
    CHECK(dl_iterate_phdr(listed, (void *)main) == 1 && dl_iterate_phdr(listed, (void *)callee) == 1);
    host_agent();
    for (uint32_t round = 0; round < 6; round++) {
        uint64_t eh_frame;
        char *page = place(0x300000000000, 136 + 1024 * round, &eh_frame);
        commit(round, page, eh_frame, -1);
        use(page);
        struct host_switch back = {&work_slot, (uint64_t)work_original, 0, 0, 0, 0};
        CHECK(host_commit(0, 0, &back, 1, round) == 0 && host_freed(round, 5000));
        CHECK(dl_iterate_phdr(listed, page) == 0);
    }
    puts("ok");
    return 0;
}

/* SPDX-License-Identifier: MIT
 *
 * commands.c: what psu-bin asks the agent to do (runtime.h lists the operations).  The agent runs a record to its end,
 * whether psu-bin still lives or not, and publishes the result.  COMMIT is in commit.c.
 *
 * Memory that MAP made is *staged* until a COMMIT gives it to an object or keeps it; RESET unmaps what is staged, so
 * that the next psu-bin finds no leftovers of a dead one.  Records are checked as if they came from a stranger: a
 * defect of psu-bin becomes an error number, not a crash of the program.
 */
#include "internal.h"

enum { MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_FIXED_NOREPLACE = 0x100000 };

int psu_staged(uint64_t address, uint64_t size, uint32_t keep)
{
    for (uint32_t i = 0; i < psu_runtime.staged_count; i++)
        if (psu_runtime.staged[i].address == address && PSU_PAGES(psu_runtime.staged[i].size) == PSU_PAGES(size)
            && psu_runtime.staged[i].keep == keep)
            return (int)i;
    return -1;
}

/* A child forked anywhere in it has no entry twice, and none with one's address and another's size: at worst it loses one,
 * and has one of no size, which nothing is unmapped for. */
void psu_unstage_at(uint32_t i)
{
    uint32_t last = psu_runtime.staged_count - 1;
    uint64_t address = psu_runtime.staged[last].address, size = psu_runtime.staged[last].size;
    uint32_t keep = psu_runtime.staged[last].keep;
    __atomic_store_n(&psu_runtime.staged[i].size, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&psu_runtime.staged_count, last, __ATOMIC_SEQ_CST);
    if (i == last)
        return;
    psu_runtime.staged[i].address = address;
    psu_runtime.staged[i].keep = keep;
    __atomic_store_n(&psu_runtime.staged[i].size, size, __ATOMIC_SEQ_CST);
}

void psu_unstage(uint64_t address, uint64_t size)
{
    for (uint32_t i = 0; i < psu_runtime.staged_count; i++)
        if (psu_runtime.staged[i].address == address && PSU_PAGES(psu_runtime.staged[i].size) == PSU_PAGES(size)) {
            psu_unstage_at(i);
            return;
        }
}

/* Struck off first: a child forked in between must not unmap it once more, when something else may lie there. */
static void unmap_staged(uint32_t until)
{
    while (psu_runtime.staged_count > until) {
        uint32_t last = psu_runtime.staged_count - 1;
        __atomic_store_n(&psu_runtime.staged_count, last, __ATOMIC_SEQ_CST);
        psu_syscall(NR_munmap, psu_runtime.staged[last].address, psu_runtime.staged[last].size);
    }
}

static int64_t reset(void)
{
    psu_pins_drop();
    unmap_staged(0);
    return 0;
}

static int64_t map_one(struct psu_map *m)
{
    if (!m->size || m->address % PSU_PAGE || m->keep > 1
        || (m->prot & (PSU_PROT_WRITE | PSU_PROT_EXEC)) == (PSU_PROT_WRITE | PSU_PROT_EXEC))
        return -PSU_EINVAL;
    long at = psu_syscall(NR_mmap, m->address, m->size, m->prot,
                          MAP_PRIVATE | MAP_ANONYMOUS | (m->address ? MAP_FIXED_NOREPLACE : 0), -1, 0);
    if (at < 0 && at > -4096)
        return at;
    if (m->address && (uint64_t)at != m->address) { /* Linux before 4.17 takes the address for a wish */
        psu_syscall(NR_munmap, at, m->size);
        return -PSU_EEXIST;
    }
    m->address = (uint64_t)at;
    return 0;
}

static int64_t map(struct psu_map *m, uint32_t count)
{
    uint32_t before = psu_runtime.staged_count;
    if (count > PSU_STAGED - before)
        return -PSU_ENOSPC;
    for (uint32_t i = 0; i < count; i++) {
        int64_t r = map_one(&m[i]);
        if (r) {
            psu_runtime.failed_entry = i;
            unmap_staged(before);
            return r;
        }
        uint32_t n = psu_runtime.staged_count;
        psu_runtime.staged[n].address = m[i].address;
        psu_runtime.staged[n].size = m[i].size;
        psu_runtime.staged[n].keep = m[i].keep;
        __atomic_store_n(&psu_runtime.staged_count, n + 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}

static int inside_staged(uint64_t address, uint64_t size)
{
    for (uint32_t i = 0; i < psu_runtime.staged_count; i++) {
        uint64_t offset = address - psu_runtime.staged[i].address, room = PSU_PAGES(psu_runtime.staged[i].size);
        if (offset < room && size <= room - offset)
            return 1;
    }
    return 0;
}

/* Room for stubs that comes with an object is filled and made executable when it is needed (psu_bin/attach/turning.py). */
static int inside_current(const struct psu_map *m)
{
    if (m->prot != (PSU_PROT_READ | PSU_PROT_EXEC))
        return 0;
    for (uint32_t i = 0; i < psu_runtime.object_limit; i++)
        for (int j = 1; j < PSU_REGIONS && psu_objects[i].state == PSU_CURRENT; j++) {
            uint64_t offset = m->address - psu_objects[i].region[j].address, size = psu_objects[i].region[j].size;
            if (offset < size && m->size <= size - offset)
                return 1;
        }
    return 0;
}

static int64_t protect(const struct psu_map *m, uint32_t count)
{
    int code = 0;
    for (uint32_t i = 0; i < count; i++) {
        psu_runtime.failed_entry = i;
        if ((m[i].prot & (PSU_PROT_WRITE | PSU_PROT_EXEC)) == (PSU_PROT_WRITE | PSU_PROT_EXEC) || !m[i].size
            || !(inside_staged(m[i].address, m[i].size) || inside_current(&m[i])))
            return -PSU_EINVAL;
        long r = 0;
        if (PSU_SYNC_CORES && m[i].prot & PSU_PROT_EXEC) {
            code = 1;
            r = psu_syscall(NR_mprotect, m[i].address, m[i].size, PSU_PROT_READ);
            if (r == 0)
                psu_code_written(m[i].address, m[i].size);
        }
        if (r == 0)
            r = psu_syscall(NR_mprotect, m[i].address, m[i].size, m[i].prot);
        if (r < 0)
            return r;
    }
    psu_runtime.failed_entry = 0;
    return code ? psu_membarrier_code() : 0;
}

/* dlsym also runs IFUNC resolvers and waits for the dynamic linker's lock, if a thread holds it.  An error that it
 * notes is the agent's own (dlerror is per thread). */
static int64_t resolve(struct psu_symbol *s, uint32_t count)
{
    if (psu_library_loaded("libgcc_s.so.1")) /* to ask dlopen for what is not there would take memory */
        psu_unwinder_find();
    for (uint32_t i = 0; i < count; i++) {
        void *library = 0;
        s[i].value = 0;
        if (s[i].by_path) {
            library = psu_open_library((const char *)s[i].handle, 0);
            if (!library)
                continue;
        }
        s[i].value = (uint64_t)psu_find_symbol(library ? library : (void *)s[i].handle, (const char *)s[i].name,
                                               (const char *)s[i].version);
        if (library)
            psu_close_library(library);
    }
    return 0;
}

/* Bytes of the record that `c` begins, 0 when it is neither in the command buffer nor in staged memory. */
static uint64_t room_at(uint64_t address)
{
    uint64_t offset = address - (uint64_t)psu_runtime.command_buffer;
    if (offset < PSU_COMMAND_BUFFER)
        return PSU_COMMAND_BUFFER - offset;
    for (uint32_t i = 0; i < psu_runtime.staged_count; i++) {
        offset = address - psu_runtime.staged[i].address;
        if (offset < psu_runtime.staged[i].size)
            return psu_runtime.staged[i].size - offset;
    }
    return 0;
}

static int64_t run(struct psu_command *c, uint64_t room)
{
    static const uint32_t entry_size[] = {
        [PSU_OP_MAP] = sizeof(struct psu_map), [PSU_OP_PROTECT] = sizeof(struct psu_map),
        [PSU_OP_RESOLVE] = sizeof(struct psu_symbol), [PSU_OP_PIN] = sizeof(struct psu_pin),
        [PSU_OP_WRITE_OFF] = sizeof(struct psu_surplus)};
    if (room < sizeof *c || (uint64_t)c % 8)
        return -PSU_EFAULT;
    room -= sizeof *c;
    if (c->op == PSU_OP_RESET)
        return reset();
    if (c->op == PSU_OP_COMMIT)
        return psu_commit((const struct psu_commit *)(c + 1), room, &psu_runtime.failed_entry);
    if (c->op == PSU_OP_TURN) {
        const struct psu_code *code = (const struct psu_code *)(c + 1);
        if (room < sizeof *code || c->count > (room - sizeof *code) / sizeof(struct psu_turn))
            return -PSU_EINVAL;
        return psu_turn(code, (const struct psu_turn *)(code + 1), c->count, &psu_runtime.failed_entry);
    }
    if (c->op < PSU_OP_MAP || c->op > PSU_OP_WRITE_OFF)
        return -PSU_ENOSYS;
    if (c->count > room / entry_size[c->op])
        return -PSU_EINVAL;
    if (c->op == PSU_OP_MAP)
        return map((struct psu_map *)(c + 1), c->count);
    if (c->op == PSU_OP_PROTECT)
        return protect((const struct psu_map *)(c + 1), c->count);
    if (c->op == PSU_OP_PIN)
        return psu_pin((struct psu_pin *)(c + 1), c->count);
    if (c->op == PSU_OP_WRITE_OFF)
        return psu_write_off((const struct psu_surplus *)(c + 1), c->count, &psu_runtime.failed_entry);
    return resolve((struct psu_symbol *)(c + 1), c->count);
}

void psu_run_command(void)
{
    uint64_t began = psu_nanoseconds();
    psu_runtime.failed_entry = 0;
    psu_runtime.result = run((struct psu_command *)psu_runtime.command, room_at(psu_runtime.command));
    psu_runtime.command_ns = psu_nanoseconds() - began;
}

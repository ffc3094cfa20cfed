/* SPDX-License-Identifier: MIT
 *
 * debugger.c: how debuggers see injected code, in a live process and in its core dump: GDB's JIT interface (GDB
 * manual, "JIT Compilation Interface"; LLDB has it, too).  A list of small ELF files in memory starts at
 * __jit_debug_descriptor; a debugger reads it when it attaches or opens a core.  The files of patches come from psu-bin
 * (psu_bin/attach/symfile.py) and lie in the objects' own memory; the one of the gates' copies (near.c) is made here.
 *
 * A debugger that is attached already would have to be told by a call of __jit_debug_register_code, where it keeps a
 * breakpoint.  We never call it: psu-bin cannot attach to what a debugger traces, so nothing is added meanwhile, and a
 * breakpoint that a killed debugger left behind must not end the process.  (An object that is freed while a debugger
 * is attached leaves that debugger's list when it attaches the next time.)
 *
 * The two symbols are hidden, so that a JIT compiler in the same process finds its own and nobody finds ours in its
 * place; debuggers look into the .symtab of each file (with a stripped shim they show no names).
 * One writer, the agent.  Readers stop it at any instruction, so the list holds together after every store.
 */
#include "internal.h"

struct jit_code_entry {
    struct jit_code_entry *next, *prev;
    uint64_t symfile, size;
};

struct jit_descriptor {
    uint32_t version, action;
    struct jit_code_entry *relevant, *first;
};

extern struct jit_descriptor __jit_debug_descriptor;
struct jit_descriptor __jit_debug_descriptor __attribute__((used)) = {.version = 1};
void __jit_debug_register_code(void);
__attribute__((noinline, used)) void __jit_debug_register_code(void) { __asm__ volatile(""); }

#define NEAR PSU_INDICES /* the entry of the gates' copies */
static struct jit_code_entry entries[PSU_INDICES + 1];

static void add(struct jit_code_entry *e, uint64_t symfile, uint64_t size)
{
    struct jit_code_entry *first = __jit_debug_descriptor.first;
    *e = (struct jit_code_entry){first, 0, symfile, size};
    if (first)
        __atomic_store_n(&first->prev, e, __ATOMIC_RELEASE);
    __atomic_store_n(&__jit_debug_descriptor.first, e, __ATOMIC_RELEASE);
}

void psu_debugger_add(uint32_t index, uint64_t symfile, uint64_t size)
{
    if (size && !entries[index].size)
        add(&entries[index], symfile, size);
}

void psu_debugger_remove(uint32_t index)
{
    struct jit_code_entry *e = &entries[index];
    if (!e->size)
        return;
    __atomic_store_n(e->prev ? &e->prev->next : &__jit_debug_descriptor.first, e->next, __ATOMIC_RELEASE);
    if (e->next)
        __atomic_store_n(&e->next->prev, e->prev, __ATOMIC_RELEASE);
    e->size = 0;
}

/* The parent's agent may have been anywhere in the two: what is in the list now is not to be trusted. */
void psu_debugger_repair(void)
{
    __atomic_store_n(&__jit_debug_descriptor.first, 0, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i <= NEAR; i++) {
        uint64_t size = entries[i].size;
        entries[i].size = 0;
        if (size && (i == NEAR || (i < psu_runtime.object_limit && psu_objects[i].state != PSU_FREE)))
            add(&entries[i], entries[i].symfile, size);
    }
}

/* ---- the copies of the gates ------------------------------------------------------------------------ */

enum { ET_EXEC = 2, SHT_PROGBITS = 1, SHT_SYMTAB = 2, SHT_STRTAB = 3, SHT_NOBITS = 8, SHF_ALLOC = 2, SHF_EXECINSTR = 4,
       TEXT = 1, FRAMES, SYMBOLS, STRINGS, SECTIONS, LOCAL_FUNCTION = 2, FRAMES_SIZE = 1024 };

struct header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, segments, sections;
    uint32_t flags;
    uint16_t size, segment_size, segment_count, section_size, section_count, names;
};

struct section {
    uint32_t name, type;
    uint64_t flags, address, offset, size;
    uint32_t link, info;
    uint64_t align, entry_size;
};

struct symbol {
    uint32_t name;
    uint8_t info, other;
    uint16_t section;
    uint64_t value, size;
};

extern const struct header __ehdr_start __attribute__((visibility("hidden"))); /* the shim's own */

static struct {
    struct header header;
    struct section section[SECTIONS];
    struct symbol symbol[2];
    uint8_t frames[FRAMES_SIZE];
    char strings[32];
} near_file;

#define NAMES "\0.text\0.eh_frame\0psu_near_gates"
enum { NAME_TEXT = 1, NAME_FRAMES = 7, NAME_GATES = 17 };
_Static_assert(sizeof NAMES <= sizeof near_file.strings, "room for the names");

void psu_debugger_add_near(uint64_t address, uint64_t size, const uint8_t *eh_frame)
{
    uint32_t length, frames = 0;
    do { /* records with their length in front; a zero ends them */
        __builtin_memcpy(&length, eh_frame + frames, 4);
        frames += 4 + length;
        if (frames > FRAMES_SIZE - 4)
            return; /* no debugger finds its way through the copies then; nothing else depends on it */
    } while (length);
#define AT(part) ((uint64_t)__builtin_offsetof(__typeof__(near_file), part))
    near_file.header = __ehdr_start;
    near_file.header.type = ET_EXEC;
    near_file.header.entry = near_file.header.segments = 0;
    near_file.header.segment_count = 0;
    near_file.header.sections = AT(section);
    near_file.header.section_count = SECTIONS;
    near_file.header.names = STRINGS;
    near_file.section[TEXT] = (struct section){NAME_TEXT, SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, address, 0, size,
                                               0, 0, 16, 0};
    /* Addresses in it count from where it lies, which is the shim's own. */
    near_file.section[FRAMES] = (struct section){NAME_FRAMES, SHT_PROGBITS, SHF_ALLOC, (uint64_t)eh_frame, AT(frames),
                                                 frames, 0, 0, 8, 0};
    near_file.section[SYMBOLS] = (struct section){0, SHT_SYMTAB, 0, 0, AT(symbol), sizeof near_file.symbol, STRINGS, 2,
                                                  8, sizeof(struct symbol)};
    near_file.section[STRINGS] = (struct section){0, SHT_STRTAB, 0, 0, AT(strings), sizeof NAMES, 0, 0, 1, 0};
    near_file.symbol[1] = (struct symbol){NAME_GATES, LOCAL_FUNCTION, 0, TEXT, address, size};
    __builtin_memcpy(near_file.frames, eh_frame, frames);
    __builtin_memcpy(near_file.strings, NAMES, sizeof NAMES);
    add(&entries[NEAR], (uint64_t)&near_file, sizeof near_file);
}

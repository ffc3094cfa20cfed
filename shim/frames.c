/* SPDX-License-Identifier: MIT
 *
 * frames.c: how unwinders inside the process find the unwind rules (.eh_frame) of injected code and of the gates'
 * copies.
 *
 * Every unwinder (libgcc_s, the copy of libgcc in a program linked with -static-libgcc, LLVM's, libunwind) asks the
 * dynamic linker what lies at an address: _dl_find_object in glibc since 2.35, dl_iterate_phdr elsewhere.  We stand in
 * front of both and add what we know.  Registering with __register_frame instead would reach libgcc_s only, would load
 * it into C programs that lack it, and makes every throw of the program take a lock.  It is what remains for a shim
 * that came with a plugin: it is not in front of anything.
 *
 * Lookups run on application threads, also in signal handlers, while the agent adds and removes entries.  An address
 * that is looked up belongs to a call in progress, so its own entry is not changing, and every other entry is to be a miss.
 * A thread that reads one while it is given to the next object may see an address of the one and a size of the other, which
 * together could be a hit.  So each entry has a `turn`: a hit counts only if that was odd before the entry was looked at and
 * is the same after it (a sequence lock whose readers never wait, as an entry that changed is none of theirs).  dl_iterate_phdr hands out the headers themselves, as unwinders keep pointers to them; there an answer that comes
 * from an entry that changed meanwhile is not taken for the last.
 *
 * The format of what we hand out: Linux Standard Base, core, 10.6 (.eh_frame_hdr); dl_iterate_phdr(3);
 * _dl_find_object in the glibc manual.
 */
#include "internal.h"

#define EXPORT __attribute__((visibility("default")))
enum { PT_LOAD = 1, PT_GNU_EH_FRAME = 0x6474e550, PF_X = 1, PF_R = 4, ABSOLUTE = 0, OMIT = 0xff };

struct program_header {
    uint32_t type, flags;
    uint64_t offset, address, physical, file_size, size, align;
};

struct phdr_info { /* dl_phdr_info */
    uint64_t base;
    const char *name;
    const struct program_header *headers;
    uint16_t count;
    uint64_t adds, subs;
    uint64_t tls_module;
    void *tls_data;
};

struct find_object { /* dl_find_object of x86-64 and AArch64 */
    uint64_t flags;
    void *start, *end, *link_map, *eh_frame_header;
    uint64_t reserved[7];
};

struct header { /* .eh_frame_hdr without a search table: unwinders then read the .eh_frame from its start */
    uint8_t version, frame_encoding, count_encoding, table_encoding;
    uint64_t eh_frame;
} __attribute__((packed));

struct entry {
    struct program_header headers[PSU_REGIONS + 1]; /* loads, then the header of the frames */
    uint32_t count;                                 /* of headers; 0: unused */
    uint32_t turn;                                  /* odd: in use; changes before an object goes, and after one came */
    struct header header;
};

#define NEAR PSU_INDICES /* the entry of the gates' copies */
static struct entry entries[PSU_INDICES + 1];
static uint64_t lowest = ~0ull, highest;  /* bounds of all that ever was */
static uint64_t changes;                  /* added to dlpi_adds: libgcc keeps what it found while that stays the same */

typedef int callback(struct phdr_info *, size_t, void *);
typedef int iterate_function(callback *, void *);
typedef int find_function(void *, struct find_object *);
static iterate_function *real_iterate;
static find_function *real_find;

EXPORT int dl_iterate_phdr(callback *f, void *data);
EXPORT int _dl_find_object(void *address, struct find_object *result);

void psu_frames_start(void)
{
    if (!real_iterate)
        real_iterate = (iterate_function *)psu_find("dl_iterate_phdr");
    if (!real_find)
        real_find = (find_function *)psu_find("_dl_find_object");
}

int psu_frames_in_front(void) { return psu_find_symbol(0, "dl_iterate_phdr", 0) == (void *)dl_iterate_phdr; }

static int ends_like(struct phdr_info *info, size_t size, void *data)
{
    const char *name = info->name ? info->name : "", *end = data;
    size_t length = 0, wanted = 0;
    (void)size;
    while (name[length])
        length++;
    while (end[wanted])
        wanted++;
    while (wanted && length && name[length - 1] == end[wanted - 1]) {
        length--;
        wanted--;
    }
    return !wanted;
}

int psu_library_loaded(const char *name)
{
    return real_iterate && real_iterate(ends_like, (void *)name) == 1;
}

/* ---- what unwinders ask ----------------------------------------------------------------------------- */

static uint32_t first(void) { return psu_runtime.object_limit ? 0 : NEAR; }
static uint32_t next(uint32_t i) { return i + 1 == psu_runtime.object_limit ? NEAR : i + 1; }

/* Since the acquiring load of `turn`; pairs with the release fences of load and finish. */
static int unchanged(const struct entry *e, uint32_t turn)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return turn & 1 && __atomic_load_n(&e->turn, __ATOMIC_RELAXED) == turn;
}

static const struct entry *entry_at(uint64_t address)
{
    if (address < __atomic_load_n(&lowest, __ATOMIC_RELAXED) || address >= __atomic_load_n(&highest, __ATOMIC_RELAXED))
        return 0;
    for (uint32_t i = first(); i <= PSU_INDICES; i = next(i)) {
        uint32_t turn = __atomic_load_n(&entries[i].turn, __ATOMIC_ACQUIRE);
        for (uint32_t j = 0; j + 1 < __atomic_load_n(&entries[i].count, __ATOMIC_ACQUIRE); j++)
            if (address - __atomic_load_n(&entries[i].headers[j].address, __ATOMIC_RELAXED)
                    < __atomic_load_n(&entries[i].headers[j].size, __ATOMIC_RELAXED)
                && unchanged(&entries[i], turn))
                return &entries[i];
    }
    return 0;
}

struct search { uint64_t address; struct find_object *result; };

static int search_object(struct phdr_info *info, size_t size, void *data)
{
    struct search *s = data;
    const struct program_header *hit = 0, *frames = 0;
    (void)size;
    for (int i = 0; i < info->count; i++) {
        const struct program_header *h = &info->headers[i];
        if (h->type == PT_LOAD && s->address - (info->base + h->address) < h->size)
            hit = h;
        else if (h->type == PT_GNU_EH_FRAME)
            frames = h;
    }
    if (!hit)
        return 0;
    s->result->start = (void *)(info->base + hit->address);
    s->result->end = (void *)(info->base + hit->address + hit->size);
    s->result->eh_frame_header = frames ? (void *)(info->base + frames->address) : 0;
    return 1;
}

int _dl_find_object(void *address, struct find_object *result)
{
    const struct entry *e = entry_at((uint64_t)address);
    if (!e && !real_find)
        psu_frames_start();
    if (!e && real_find)
        return real_find(address, result);
    __builtin_memset(result, 0, sizeof *result);
    if (!e) { /* a C library without it, and somebody who found ours: say what it would have said */
        struct search s = {(uint64_t)address, result};
        return real_iterate && real_iterate(search_object, &s) == 1 ? 0 : -1;
    }
    for (uint32_t i = 0; i + 1 < e->count; i++)
        if ((uint64_t)address - e->headers[i].address < e->headers[i].size) {
            result->start = (void *)e->headers[i].address;
            result->end = (void *)(e->headers[i].address + e->headers[i].size);
        }
    result->eh_frame_header = (void *)&e->header;
    return 0;
}

struct iteration { callback *f; void *data; uint64_t adds, subs; };

static int one_more(struct phdr_info *info, size_t size, void *data)
{
    struct iteration *n = data;
    struct phdr_info copy = *info;
    n->subs = info->subs;
    n->adds = copy.adds += __atomic_load_n(&changes, __ATOMIC_ACQUIRE);
    return n->f(&copy, size < sizeof copy ? size : sizeof copy, n->data);
}

int dl_iterate_phdr(callback *f, void *data)
{
    if (!real_iterate)
        psu_frames_start();
    if (!real_iterate)
        return 0;
    if (!__atomic_load_n(&changes, __ATOMIC_ACQUIRE))
        return real_iterate(f, data);
    struct iteration n = {f, data, 0, 0};
    int result = real_iterate(one_more, &n);
    for (uint32_t i = first(); !result && i <= PSU_INDICES; i = next(i)) {
        uint32_t turn = __atomic_load_n(&entries[i].turn, __ATOMIC_ACQUIRE);
        uint32_t count = __atomic_load_n(&entries[i].count, __ATOMIC_ACQUIRE);
        struct phdr_info info = {.name = "psu-bin", .headers = entries[i].headers, .count = (uint16_t)count,
                                 .adds = n.adds, .subs = n.subs};
        int answer = count ? f(&info, sizeof info, data) : 0;
        if (answer && unchanged(&entries[i], turn))
            result = answer;
    }
    return result;
}

/* ---- what the agent adds and removes ---------------------------------------------------------------- */

static void load(struct entry *e, uint32_t *count, uint64_t address, uint64_t size)
{
    __atomic_thread_fence(__ATOMIC_RELEASE); /* after the turn that psu_frames_remove made */
    e->headers[(*count)++] = (struct program_header){.type = PT_LOAD, .flags = PF_R | PF_X, .address = address,
                                                     .file_size = size, .size = size, .align = PSU_PAGE};
    if (address < lowest)
        __atomic_store_n(&lowest, address, __ATOMIC_RELAXED);
    if (address + size > highest)
        __atomic_store_n(&highest, address + size, __ATOMIC_RELAXED);
}

static void finish(struct entry *e, uint32_t count, uint64_t eh_frame)
{
    e->header = (struct header){1, ABSOLUTE, OMIT, OMIT, eh_frame};
    e->headers[count++] = (struct program_header){
        .type = PT_GNU_EH_FRAME, .flags = PF_R, .address = (uint64_t)&e->header, .file_size = sizeof e->header,
        .size = sizeof e->header, .align = 4};
    __atomic_store_n(&e->turn, e->turn + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&e->count, count, __ATOMIC_RELEASE);
    __atomic_add_fetch(&changes, 1, __ATOMIC_RELEASE);
}

/* libgcc's own registration: it keeps notes (struct object, 48 bytes) in our memory. */
static struct { uint64_t words[12]; } notes[PSU_INDICES];
static uint64_t registered[PSU_INDICES]; /* where from; libgcc ends the program when it is to forget what it does not know */

static void *registration(const char *name)
{
    void *f = psu_find(name);
    void *library = f ? 0 : psu_open_library("libgcc_s.so.1", 0);
    if (library) {
        f = psu_find_symbol(library, name, 0);
        psu_close_library(library);
    }
    return f;
}

/* What libgcc may be told of: it takes all between the lowest and the highest code of one registration for its own.  So not
 * of the stubs at a distance: their rows, a CIE and an FDE, come first (psu_bin/attach/rooms.py). */
static uint64_t in_one_piece(const struct psu_new_object *o)
{
    uint64_t at = o->eh_frame;
    for (int i = 0; i < 2 && o->region[1].size; i++)
        at += 4 + *(const uint32_t *)at;
    return at;
}

void psu_frames_add(const struct psu_new_object *o)
{
    if (!o->eh_frame)
        return;
    if (!psu_frames_in_front()) {
        void (*add)(const void *, void *) = (void (*)(const void *, void *))registration("__register_frame_info");
        if (add) {
            add((const void *)in_one_piece(o), &notes[o->index]);
            __atomic_store_n(&registered[o->index], in_one_piece(o), __ATOMIC_SEQ_CST);
        }
        return;
    }
    struct entry *e = &entries[o->index];
    uint32_t count = 0;
    for (int i = 0; i < PSU_REGIONS; i++)
        if (o->region[i].size)
            load(e, &count, o->region[i].address, o->region[i].size);
    finish(e, count, o->eh_frame);
}

/* Not twice: a fork child, or the repair of a commit, may come here for what was never added or has been removed. */
void psu_frames_remove(uint32_t index, uint64_t eh_frame)
{
    if (!eh_frame)
        return;
    if (entries[index].count) {
        __atomic_store_n(&entries[index].turn, entries[index].turn + 1, __ATOMIC_RELAXED);
        __atomic_store_n(&entries[index].count, 0, __ATOMIC_RELEASE);
        __atomic_add_fetch(&changes, 1, __ATOMIC_RELEASE);
        return;
    }
    const void *from = (const void *)registered[index];
    if (!from)
        return;
    __atomic_store_n(&registered[index], 0, __ATOMIC_SEQ_CST);
    void *(*drop)(const void *) = (void *(*)(const void *))registration("__deregister_frame_info");
    if (drop)
        drop(from);
}

void psu_frames_add_near(uint64_t address, uint64_t size, const void *eh_frame)
{
    uint32_t count = 0;
    load(&entries[NEAR], &count, address, size);
    finish(&entries[NEAR], count, (uint64_t)eh_frame);
    psu_debugger_add_near(address, size, eh_frame);
}

/* SPDX-License-Identifier: MIT
 *
 * pins.c: a library that has patches stays loaded.
 *
 * Slots, stubs and the variables that new versions share with old ones lie in the library; were it unmapped by dlclose,
 * a commit or a new version that still runs would touch memory of nobody or of somebody else.  So the agent takes a
 * reference of its own (dlopen with RTLD_NOLOAD) before the first commit that concerns the library.  The program's dlclose
 * then succeeds as ever and leaves the library where it is.  A reference whose transaction came to nothing is given back.
 *
 * The name that the dynamic linker knows a library by may be freed by a dlclose at any moment; only inside
 * dl_iterate_phdr it cannot.  Hence the copy.
 */
#include "internal.h"

enum { PENDING = 64, NAME = 4096 };

static void *pending[PENDING];
static uint32_t pending_count;

struct phdr_info { /* dl_phdr_info */
    uint64_t base;
    const char *name;
};
typedef int callback(const struct phdr_info *, size_t, void *);
typedef int iterate_function(callback *, void *);

struct search { uint64_t base; char name[NAME]; };

static int take_name(const struct phdr_info *info, size_t size, void *data)
{
    struct search *s = data;
    (void)size;
    if (info->base != s->base || !info->name[0])
        return 0;
    for (uint32_t i = 0; i < NAME; i++)
        if (!(s->name[i] = info->name[i]))
            return 1;
    return 0; /* too long for any system call */
}

static int64_t pin(struct psu_pin *p)
{
    static struct search before, after;
    iterate_function *iterate = (iterate_function *)psu_find("dl_iterate_phdr");
    before.base = after.base = p->base;
    if (!iterate || pending_count == PENDING)
        return -PSU_ENOSPC;
    if (!iterate(take_name, &before))
        return -PSU_ENOENT;
    void *library = psu_open_library(before.name, 0);
    if (!library)
        return -PSU_ENOENT;
    /* Between the two, it may have gone and come back elsewhere. */
    uint32_t i = 0;
    int there = iterate(take_name, &after);
    while (there && before.name[i] == after.name[i] && before.name[i])
        i++;
    if (!there || before.name[i] != after.name[i]) {
        psu_close_library(library);
        return -PSU_ENOENT;
    }
    pending[pending_count++] = library;
    return 0;
}

int64_t psu_pin(struct psu_pin *p, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        psu_runtime.failed_entry = i;
        int64_t error = pin(&p[i]);
        if (error)
            return error;
    }
    psu_runtime.failed_entry = 0;
    return 0;
}

void psu_pins_keep(void) { pending_count = 0; }

void psu_pins_drop(void)
{
    while (pending_count)
        psu_close_library(pending[--pending_count]);
}

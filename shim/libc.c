/* SPDX-License-Identifier: MIT
 *
 * libc.c: what we use of the C library and how we find it.  All of it is optional (weak, unversioned), so that the shim
 * has no DT_NEEDED and loads into glibc and musl programs alike.
 *
 * glibc before 2.34 has dlsym in libdl.so.2, which a program need not have loaded; its libc then has __libc_dlsym and
 * __libc_dlopen_mode.  Through them we look into what is loaded; only the agent loads libdl by them.
 */
#include "internal.h"

#define WEAK __attribute__((weak, visibility("default")))
extern void *dlsym(void *, const char *) WEAK;
extern void *dlvsym(void *, const char *, const char *) WEAK;
extern void *dlopen(const char *, int) WEAK;
extern int dlclose(void *) WEAK;
extern void *__libc_dlsym(void *, const char *) WEAK;
extern void *__libc_dlopen_mode(const char *, int) WEAK;
extern int *__errno_location(void) WEAK;

enum { RTLD_LAZY = 1, RTLD_NOLOAD = 4 };
#define GLIBC_INTERNAL_DLOPEN 0x80000000u /* __RTLD_DLOPEN, which __libc_dlopen_mode expects */
#define RTLD_NEXT ((void *)-1)

static struct {
    void *(*dlsym)(void *, const char *);
    void *(*dlvsym)(void *, const char *, const char *);
    void *(*dlopen)(const char *, int);
    int (*dlclose)(void *);
} found;

static void *old_glibc(const char *library, const char *name, unsigned mode)
{
    if (!__libc_dlopen_mode || !__libc_dlsym)
        return 0;
    void *l = __libc_dlopen_mode(library, (int)(RTLD_LAZY | GLIBC_INTERNAL_DLOPEN | mode));
    return l ? __libc_dlsym(l, name) : 0;
}

/* Several threads may do this at once; they store the same values. */
static void find_loader(void)
{
    if (__atomic_load_n(&found.dlsym, __ATOMIC_ACQUIRE))
        return;
    void *sym = dlsym ? (void *)dlsym : old_glibc("libdl.so.2", "dlsym", 0);
    if (!sym)
        return;
    int old = !dlsym;
    found.dlvsym = old ? old_glibc("libdl.so.2", "dlvsym", 0) : (void *)dlvsym;
    found.dlopen = old ? old_glibc("libdl.so.2", "dlopen", 0) : (void *)dlopen;
    found.dlclose = old ? old_glibc("libdl.so.2", "dlclose", 0) : (void *)dlclose;
    __atomic_store_n(&found.dlsym, sym, __ATOMIC_RELEASE);
}

/* Whether `address` is one of the functions that we put in front of the C library's. */
extern int pthread_create(void), thrd_create(void), pthread_exit(void), thrd_exit(void), dl_iterate_phdr(void),
    _dl_find_object(void);
static int ours(const void *address)
{
    const void *const all[] = {pthread_create, thrd_create, pthread_exit, thrd_exit, dl_iterate_phdr, _dl_find_object};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (address == all[i])
            return 1;
    return 0;
}

void *psu_find(const char *name)
{
    void *f;
    if (dlsym) {
        /* Behind us in the search order; a shim that came with a plugin is not in the program's order at all. */
        f = dlsym(RTLD_NEXT, name);
        if (!f)
            f = dlsym(0, name);
    } else {
        f = old_glibc("libc.so.6", name, RTLD_NOLOAD);
        if (!f)
            f = old_glibc("libpthread.so.0", name, RTLD_NOLOAD);
    }
    return ours(f) ? 0 : f;
}

void *psu_find_symbol(void *handle, const char *name, const char *version)
{
    find_loader();
    if (version)
        return found.dlvsym ? found.dlvsym(handle, name, version) : 0;
    return found.dlsym ? found.dlsym(handle, name) : 0;
}

void *psu_open_library(const char *path, int load)
{
    find_loader();
    return found.dlopen ? found.dlopen(path, RTLD_LAZY | (load ? 0 : RTLD_NOLOAD)) : 0;
}

void psu_close_library(void *library)
{
    if (found.dlclose)
        found.dlclose(library);
}

int psu_errno_get(void) { return __errno_location ? *__errno_location() : 0; }

void psu_errno_set(int value)
{
    if (__errno_location)
        *__errno_location() = value;
}

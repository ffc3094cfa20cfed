/* SPDX-License-Identifier: MIT
 *
 * plugin.c: the shim comes with a plugin.  Compiled twice: with -DPLUGIN the plugin, which needs the shim; without, a
 * program that does not know either, has threads, and loads the plugin.  The agent must start by itself when threads
 * exist already (argument "threads"), and on request otherwise ("alone"); the plugin's function can be patched;
 * unloading the plugin leaves the shim and its agent alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>

#ifdef PLUGIN
#include "host.h"

long work(long a);
__attribute__((visibility("hidden"))) long work_original(long a) { return a; }
STUB(work);
__asm__(".hidden work\n.hidden work_slot\n");
static long version(long a) { return a + 100; }
static long version_2(long a) { return a + 200; }

long plugin_call(long a) { return work(a); }

void plugin_check(int threads)
{
    if (threads) {
        for (int i = 0; i < 2000 && *(volatile uint32_t *)&psu_runtime.agent_state < PSU_AGENT_PARKED; i++)
            sleep_ms(1);
        CHECK(psu_runtime.agent_state >= PSU_AGENT_PARKED, "no agent, error %ld", (long)psu_runtime.agent_error);
    } else {
        CHECK(psu_runtime.agent_state == PSU_AGENT_NONE);
    }
    host_agent();
    void *page = host_jump_to(version);
    struct host_switch s = {&work_slot, 0, (uint64_t)page, PSU_SIDE, 0, 0};
    CHECK(host_commit(0, page, &s, 1, -1) == 0 && work(1) == 101);
    page = host_jump_to(version_2);
    s = (struct host_switch){&work_slot, 0, (uint64_t)page, PSU_PLAIN, 1, 0};
    CHECK(host_commit(1, page, &s, 1, 0) == 0 && work(1) == 201 && host_freed(0, 5000));
    uint32_t enters;
    host_inside(1, &enters); /* threads are calling */
    CHECK(enters >= 1);
    s = (struct host_switch){&work_slot, (uint64_t)work_original, 0, 0, 0, 0};
    CHECK(host_commit(0, 0, &s, 1, 1) == 0 && work(1) == 1 && host_freed(1, 5000));
    CHECK(psu_runtime.near_delta == 0);
}
#else
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long (*volatile plugin_call)(long);
static volatile int stop;

static void *thread(void *unused)
{
    while (!stop)
        if (plugin_call)
            plugin_call(1);
        else
            usleep(1000);
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc == 3 && !strcmp(argv[2], "threads");
    pthread_t t[2];
    for (int i = 0; threads && i < 2; i++)
        if (pthread_create(&t[i], 0, thread, 0))
            return 1;
    void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!plugin)
        return fprintf(stderr, "%s\n", dlerror()), 1;
    void (*check)(int) = (void (*)(int))dlsym(plugin, "plugin_check");
    plugin_call = (long (*)(long))dlsym(plugin, "plugin_call");
    check(threads);
    stop = 1;
    for (int i = 0; threads && i < 2; i++)
        pthread_join(t[i], 0);
    plugin_call = 0;
    dlclose(plugin);
    usleep(20000);
    puts("ok");
    return 0;
}
#endif

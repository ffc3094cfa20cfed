/* A host that is not instrumented, and has threads already, loads main.cc as a plugin.
 *
 * The shim comes with the plugin, too late to stand in front of the unwinder: it must tell libgcc what it injects.  Usage: host
 * PLUGIN THREADS */
#include <cstdio>
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

static void *idle(void *)
{
    for (;;)
        pause();
}

int main(int, char **argv)
{
    pthread_t thread;
    pthread_create(&thread, nullptr, idle, nullptr);
    void *plugin = dlopen(argv[1], RTLD_NOW);
    if (!plugin) {
        puts(dlerror());
        return 1;
    }
    return reinterpret_cast<int (*)(int, char **)>(dlsym(plugin, "_Z10run_pluginiPPc"))(2, argv + 1);
}

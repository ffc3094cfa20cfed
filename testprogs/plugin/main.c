/* A host that is not instrumented loads an instrumented plugin into a process that has threads already. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *idle(void *p) { for (;;) pause(); return p; }

int main(int argc, char **argv)
{
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_create(&t, 0, idle, 0);
    void *plugin = dlopen(argv[argc - 1], RTLD_NOW);
    if (!plugin) {
        puts(dlerror());
        return 1;
    }
    int (*call)(int) = (int (*)(int))dlsym(plugin, "plugin_call");
    for (;;) {
        printf("plugin says %d\n", call(1));
        usleep(10000);
    }
}

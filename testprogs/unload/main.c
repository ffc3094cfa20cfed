/* A host that loads and unloads a plugin at its own pace.
 *
 * Lines on standard input: "load PATH" prints "loaded", "call" prints "plugin N", "unload" prints "unloaded RESULT" and whether the
 * plugin's text is still mapped ("unloaded 0 gone" or "unloaded 0 there"), "cycle PATH COUNT" loads, calls and unloads COUNT times and
 * prints "cycled N" with the last answer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *plugin;
static int (*answer)(int);

static void load(const char *path)
{
    plugin = dlopen(path, RTLD_NOW);
    if (!plugin) {
        printf("ERROR %s\n", dlerror());
        exit(1);
    }
    answer = (int (*)(int))dlsym(plugin, "answer");
}

int main(void)
{
    char line[1000], path[900];
    int count, last = 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "load %899s", path) == 1) {
            load(path);
            puts("loaded");
        } else if (sscanf(line, "cycle %899s %d", path, &count) == 2) {
            for (int i = 0; i < count; i++) {
                load(path);
                last = answer(1);
                if (i % 20 == 10) /* else it is inside the dynamic linker all the time, where nobody borrows its thread */
                    usleep(3000);
                dlclose(plugin);
                if (i % 50 == 49)
                    printf("cycling %d\n", last);
            }
            printf("cycled %d\n", last);
        } else if (!strncmp(line, "call", 4)) {
            printf("plugin %d\n", answer(1));
        } else if (!strncmp(line, "unload", 6)) {
            Dl_info before;
            int result = dlclose(plugin), there = dladdr((void *)answer, &before) != 0;
            printf("unloaded %d %s\n", result, there ? "there" : "gone");
        }
    }
    return 0;
}

/* Version V: the same strings, tables and new functions every time. */
#include "outlive.h"

static const int table[] = {11, 22, 33};
static const char *const names[] = {"first", "second"};

__attribute__((noipa)) int version(void) { return V; }
__attribute__((noipa)) int work(int n) { return n + version() * 0; }
static int added_callback(int n) { return n + version(); }
static void *added_start(void *n) { return (char *)n + version(); }
__attribute__((noipa)) void give(struct gift *g)
{
    g->text = "a string that was given";
    g->table = table;
    g->names = names;
    g->callback = added_callback;
    g->start = added_start;
}

/* A new inner function of plugin.c. */
static int __attribute__((noipa, used)) inner(int x) { return x + 70; }

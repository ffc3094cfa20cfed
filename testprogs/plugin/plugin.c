/* The plugin: an exported function that calls a static one. */
static int __attribute__((noipa)) inner(int x) { return x + 1; }
int plugin_call(int x) { return inner(x) * 10; }

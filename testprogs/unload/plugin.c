/* What is loaded and unloaded: it counts its calls in a variable of its own. */
static int calls;
__attribute__((noipa)) int inner(int x) { return x + ++calls; }
int answer(int x) { return 0 * x + inner(0); }

/* The other file with a static called `shared`. */
static int shared = 5000;
__attribute__((noipa)) int other(void) { return ++shared; }

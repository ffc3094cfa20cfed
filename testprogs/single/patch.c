/* The other answer. */
int answer(int x) { return x + 1000 * V; }

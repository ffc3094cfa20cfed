/* inner, version V: the count goes on, V more. */
extern int calls;
int inner(int x) { return x + ++calls + V; }

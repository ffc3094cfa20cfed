/* What the program and its patches share. */
struct parcel { long words[5]; };
extern __thread volatile int levels;        /* calls in progress, at the least: counted inside */
void look(void);
int inner(int depth, int b, int c, int d, int e, int f, int g, struct parcel p);
int middle(int depth);
int outer(int depth);

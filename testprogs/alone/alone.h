/* What the program and its patches share. */
int first(void);
int many(int a, int b, int c, int d, int e, int f, int g, int h);
int deep(int levels);

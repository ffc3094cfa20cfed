/* What a patch gives to the program. */
struct gift {
    const char *text;
    const int *table;
    const char *const *names;
    int (*callback)(int);
    void *(*start)(void *);
};

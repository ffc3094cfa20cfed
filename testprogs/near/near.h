int inner(void);
int outer(void);

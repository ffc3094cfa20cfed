/* What the program and its patches share. */
void suspend(void);

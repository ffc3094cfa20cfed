int answer(void);

__attribute__((noipa)) int answer(void) { return V; }

/* Makes any program or library one that is larger than a direct branch spans on AArch64. */
__attribute__((used)) static char pool[200 << 20];

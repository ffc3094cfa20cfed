/* Version V of what is called; `target` recurses through the program's own name for it. */
extern int *const compared_at;
int target(int depth) { return depth > 0 ? target(depth - 1) : V; }
int compare(const void *a, const void *b)
{
    *compared_at = V;
    return *(const int *)a - *(const int *)b;
}

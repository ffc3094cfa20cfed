/* Callers and callees together, version V: the callers rely on callees of this patch. */
#include "relying.inc"

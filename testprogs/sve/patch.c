#include "sve.inc"

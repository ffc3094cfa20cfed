/* SPDX-License-Identifier: MIT
 *
 * step.h: what single-stepping needs on x86-64, for cancelled.c, forked.c, found.c and jumped.c.
 */
#ifndef STEP_H
#define STEP_H

/* What these may not leave to the processor's single step: nothing here. */
static inline int stepped(int tid)
{
    (void)tid;
    return 0;
}

#endif

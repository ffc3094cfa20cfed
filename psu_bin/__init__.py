"""psu-bin: changes C programs while they run.

`instrument` rewrites an ELF file so that its functions are called through a table; `attach` puts new versions of
functions into a running process.  docs/DESIGN.md is the place to start reading.
"""

import os

__version__ = "0.1.0"

# numpy's linear algebra, unused here, starts a thread for each processor when it is loaded, which spin at once: a quarter of
# an attach's processor time with two.  OpenBLAS reads this from the C library, once.  It is not put into os.environ, from
# which `regress` takes the programs' environment.
if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.putenv("OPENBLAS_NUM_THREADS", "1")

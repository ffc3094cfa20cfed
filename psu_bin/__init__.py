"""psu-bin: changes C programs while they run.

`instrument` rewrites an ELF file so that its functions are called through a table; `attach` puts new versions of
functions into a running process.  docs/DESIGN.md is the place to start reading.
"""

__version__ = "0.1.0"

"""`python -m psu_bin` is the psu-bin command."""

from psu_bin.cli import main

main()

"""scripts/arm64-guest COMMAND: run it in a real AArch64 Linux, emulated, and pass back its output and its exit status.

Everything that traces needs a kernel of the architecture: qemu-user has no ptrace.  The kernel and a small root file system
come from Debian's arm64 packages (image.py), once, and are kept in .cache/arm64-guest (or $XDG_CACHE_HOME/psu-bin/arm64-guest).
The repository is seen at its own path, and what the guest writes into it is forgotten at the end; so is the scratch folder,
$TMPDIR, which both sides see under one path.  That is why compilers can run on the host: in the guest gcc, clang, make and
others pass their arguments to the cross tools here (tools.py), instead of being emulated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import boot
import image

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77      # what automake's and meson's tests use, too
# Pointer authentication by a simple hash: the architected one is emulated three times slower.
CPUS = {"max": "max,pauth-impdef=on"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/arm64-guest", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="max", metavar="NAME",
                        help="a CPU of qemu: max has LSE, BTI, PAC and SVE, cortex-a53 has none of them [default: max]")
    parser.add_argument("--pages", type=int, default=4, choices=image.KERNELS, help="of the kernel, KiB [default: 4]")
    parser.add_argument("--smp", type=int, default=2, metavar="N", help="processors [default: 2]")
    parser.add_argument("--memory", type=int, default=1536, metavar="MB", help="[default: 1536]")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS", help="for boot and command [default: 900]")
    parser.add_argument("--refresh", action="store_true", help="make the guest again, from the newest packages")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="an existing folder to use as scratch, and to keep")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("a command is missing")
    try:
        files = image.prepare(ROOT, refresh=arguments.refresh, pages=arguments.pages)
    except image.Unavailable as e:
        print(f"arm64-guest: skipped: {e}", file=sys.stderr)
        return SKIPPED
    return boot.run(files, ROOT, command, boot.Machine(CPUS.get(arguments.cpu, arguments.cpu), arguments.smp,
                                                       arguments.memory, arguments.timeout), arguments.scratch)


if __name__ == "__main__":
    sys.exit(main())

"""Boots the guest for one command: qemu's arguments, the shared folders, output, exit status, and the end of it all.

Three ways lead out of the guest.  The repository and the scratch folder are 9p shares (the repository read-only); the
command's output comes through a virtio serial port, which unlike the console adds no carriage returns and is fast; its exit
status is a file in the scratch folder, written last, so that a guest that died is never taken for one that succeeded.
There is no network but one address (`guestfwd`), behind which qemu starts tools.py for each connection.
"""

from __future__ import annotations

import ctypes
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from image import Files

TIMED_OUT, NO_RESULT = 124, 125
TOOLS = "10.0.2.100:7"      # init/second and init/tool know the address
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Machine:
    """What is emulated: a CPU of qemu with its options, processors, megabytes; and seconds until it is switched off."""
    cpu: str
    processors: int
    memory: int
    timeout: int


def run(files: Files, root: Path, command: list[str], machine: Machine, scratch: Path | None = None) -> int:
    """Run `command` in the guest, its output on standard output; the exit status to give back.

    A scratch folder that is given is kept."""
    folder = scratch.resolve() if scratch else Path(tempfile.mkdtemp(prefix="arm64-guest-"))
    try:
        return _run(files, root, command, machine, folder)
    finally:
        if not scratch:
            shutil.rmtree(folder, ignore_errors=True)      # root's own files in it, perhaps


def _run(files: Files, root: Path, command: list[str], machine: Machine, folder: Path) -> int:
    console, status = folder / ".console", folder / ".status"
    status.unlink(missing_ok=True)
    (folder / ".command").write_text(
        f"export TMPDIR={shlex.quote(str(folder))} PSU_ARM64_GUEST={shlex.quote(str(folder))}\n"
        f"cd {shlex.quote(str(root))} || exit 125\nexec {shlex.join(command)}\n")
    (folder / ".paths").write_text(f"{root}\n{folder}\n")
    # A death of this script is the guest's, too: nothing is left running.
    libc = ctypes.CDLL(None)
    # The output through cat: qemu opens /dev/stdout anew, which in a file would write over what others wrote there.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as copy:
        qemu = subprocess.Popen(_qemu(files, root, folder, machine, console), stdin=subprocess.DEVNULL, stdout=copy.stdin,
                                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        ended = _wait(qemu, machine.timeout)
    if not ended:
        print(f"arm64-guest: the command did not end within {machine.timeout} s", file=sys.stderr)
        return TIMED_OUT
    if status.exists() and (text := status.read_text().strip()):
        return int(text)
    tail = console.read_text(errors="replace").splitlines()[-15:] if console.exists() else []
    print(f"arm64-guest: no result: qemu ended with {qemu.returncode}; its console:", *tail, sep="\n  ", file=sys.stderr)
    return NO_RESULT


def _wait(qemu: subprocess.Popen[bytes], timeout: int) -> bool:
    """Wait for qemu's end; False if it had to be ended because of the time."""
    def stop(number: int, _frame: object) -> None:
        qemu.kill()
        sys.exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        qemu.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        qemu.kill()
        qemu.wait()
        return False
    return True


def _qemu(files: Files, root: Path, folder: Path, machine: Machine, console: Path) -> list[str]:
    def comma(path: object) -> str:      # qemu's way to write a comma in a value
        return str(path).replace(",", ",,")
    server = shlex.join([sys.executable, str(Path(__file__).with_name("tools.py")), str(root), str(folder)])
    return [
        "qemu-system-aarch64", "-M", "virt", "-cpu", machine.cpu, "-accel", "tcg,thread=multi",
        "-smp", str(machine.processors), "-m", str(machine.memory), "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", str(files.kernel), "-initrd", str(files.initrd),
        # A kernel that panics ends qemu (-no-reboot) instead of waiting for the timeout.
        "-append", "console=ttyAMA0 quiet panic=-1", "-serial", f"file:{console}",
        "-drive", f"if=none,id=d0,file={comma(files.disk)},format=raw,readonly=on", "-device", "virtio-blk-device,drive=d0",
        "-fsdev", f"local,id=repository,path={comma(root)},security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-device,fsdev=repository,mount_tag=repository",
        "-fsdev", f"local,id=scratch,path={comma(folder)},security_model=none,multidevs=remap",
        "-device", "virtio-9p-device,fsdev=scratch,mount_tag=scratch",
        "-device", "virtio-serial-device", "-chardev", "file,id=c0,path=/dev/stdout,append=on",
        "-device", "virtserialport,chardev=c0,name=output",
        "-netdev", f"user,id=n0,restrict=on,guestfwd=tcp:{TOOLS}-cmd:{comma(server)}",
        "-device", "virtio-net-device,netdev=n0",
        "-device", "virtio-rng-device",
    ]

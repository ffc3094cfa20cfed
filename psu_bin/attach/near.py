"""Near stubs in a running program: closed before a function's first patch, opened when the original is back.

A near stub (instrument/near.py) is open in the file: a NOP that falls through into its function.  Closed it is a jump to the
function's stub in the table, and the slot decides.  Which of the two it is, is read from the program's memory.  The agent
makes the change (shim/turn.c says why threads may be executing there), and makes sure that every thread has seen it.

A near stub that stays closed, because psu-bin was killed or a commit refused, costs a jump and is right all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from psu_bin import arch as arch_package
from psu_bin.arch import Arch
from psu_bin.attach import meta, shim
from psu_bin.attach.proc import Mapping
from psu_bin.attach.process import Process
from psu_bin.descriptor import NEAR
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.transaction import Transaction

PAGE = 4096


class Near(NamedTuple):
    """Run-time addresses of a function's near stub and stub, and its name."""
    address: int
    stub: int
    name: str


class Turn(NamedTuple):
    """A word of code that is to change: its address, what it holds, and will."""
    at: int
    before: bytes
    after: bytes


def close(x: Transaction, functions: Iterable[meta.FunctionNotes]) -> None:
    """Make the functions' near stubs lead to their stubs.  Raises PsuError; then nothing was changed that matters."""
    _turn(x, functions, True)


def reopen(x: Transaction, functions: Iterable[meta.FunctionNotes]) -> tuple[str, ...]:
    """Make the near stubs of functions that have their originals back fall through again.

    Returns warnings: they cost a jump, if that fails, and nothing else."""
    try:
        _turn(x, functions, False)
        x.give_back()      # the command's memory
    except PsuError as e:
        return (f"calls of the original code keep their detour: {e.what}",)
    return ()


def _turn(x: Transaction, functions: Iterable[meta.FunctionNotes], closed: bool) -> None:
    found: list[Near] = []
    modules = {m.key: m for m in x.target.modules}
    for f in functions:
        m = modules.get(f.module)
        if m is None or f.number >= len(m.descriptor.functions):
            continue                                             # a new function of a patch
        described = m.descriptor.functions[f.number]
        if described.flags & NEAR:
            entry = described.address + m.load_bias
            size = arch_package.for_machine(m.machine, m.path).jump_size
            found.append(Near(entry - size, m.stub(f.number), f.name))
    if not found:
        return
    process = x.target.process
    arch = arch_package.for_machine(x.target.modules[0].machine, process.where)
    todo = turns(process, arch, found, closed)
    maps = process.maps() if todo else ()
    by_mapping: dict[Mapping, list[Turn]] = {}
    for t in todo:
        by_mapping.setdefault(_mapping(process, maps, t), []).append(t)
    for mapping, mine in by_mapping.items():
        prot = sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in mapping.prot)
        record = shim.CODE.pack(mapping.start, mapping.end - mapping.start, prot, arch.store_unit)
        record += b"".join(shim.TURN.pack(t.at, int.from_bytes(t.before, "little"), int.from_bytes(t.after, "little"))
                           for t in mine)
        at = 0
        if len(record) + shim.COMMAND.size > shim.BUFFER_SIZE:
            at = x.scratch(len(record) + shim.COMMAND.size, False)
        x.session.command(shim.OP_TURN, record, len(mine), record_at=at, patience=60)


def turns(process: Process, arch: Arch, stubs: Sequence[Near], closed: bool) -> list[Turn]:
    """What has to change so that `stubs` are all closed, or all open, ascending.

    Raises PsuError where a near stub is neither: somebody else changed it."""
    words = _words(process, sorted({n.address // arch.store_unit * arch.store_unit for n in stubs}), arch.store_unit)
    out = []
    for n in sorted(stubs):
        at = n.address // arch.store_unit * arch.store_unit
        word, inside = words[at], n.address - at
        now = word[inside:inside + arch.jump_size]
        jump = arch.jump(n.address, n.stub)
        if now not in (jump, arch.near_nop):
            raise PsuError(process.where, f"somebody has changed the code in front of {n.name}: {now.hex(' ')} at "
                                          f"{n.address:#x}", "a debugger's breakpoint? take it out and try again")
        wanted = jump if closed else arch.near_nop
        if now != wanted:
            out.append(Turn(at, word, word[:inside] + wanted + word[inside + arch.jump_size:]))
    return out


def _words(process: Process, places: list[int], unit: int) -> dict[int, bytes]:
    """The words at `places`, ascending, with few reads, of no page but theirs."""
    out: dict[int, bytes] = {}
    first = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] // PAGE > places[i - 1] // PAGE + 1:
            start = places[first]
            data = process.read(start, places[i - 1] + unit - start)
            for at in places[first:i]:
                out[at] = data[at - start:at - start + unit]
            first = i
    return out


def _mapping(process: Process, maps: Sequence[Mapping], t: Turn) -> Mapping:
    mapping = next((m for m in maps if m.start <= t.at < m.end), None)
    if mapping is None or "x" not in mapping.prot or "w" in mapping.prot:
        raise PsuError(process.where, f"the program's code at {t.at:#x} is not mapped as code",
                       f"it is {mapping.prot}" if mapping else "")
    return mapping

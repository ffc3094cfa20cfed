"""Functions of shared libraries whose address must fit 32 bits: lasting entries near a position-dependent program.

Code compiled with -fno-pic holds the address of a function as an absolute number of 32 bits (AArch64: as the number of a page,
relative to its own, of 21 bits; link.SHORT).  In a program the static
linker makes that true: it puts a PLT entry into the program and exports that as the function's address (System V psABI,
"Function Addresses"), and the dynamic linker gives it to everybody who asks.  For a function whose address the program
never took there is no such entry, so the patch gets one: a stub from the stores (stores.py) whose slot holds
the function's address for ever.

Pointers outlive versions and are compared, so one name has one address in all patches of a module: once there is an
entry for it, every later reference takes it, wide ones too.  An entry belongs to the address that it leads to: when
a library was loaded anew elsewhere, its functions get new ones.

Only functions can be entered like that.  Whether a name is one says the symbol table of the library that defines it;
for anything else the linker's refusal stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psu_bin import elf
from psu_bin.arch.link_types import OutOfRange, Places, Use
from psu_bin.attach.meaning import External
from psu_bin.descriptor import KIND_IFUNC
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.linker import Demand
    from psu_bin.attach.meta import Notes
    from psu_bin.attach.process import Mapping, Process


def use_known(notes: Notes, key: str, resolved: dict[str, int]) -> dict[str, int]:
    """`resolved` (name -> run-time address) of the module `key`, with the entries that earlier patches made."""
    known = {(name, value): entry for module, name, value, entry in notes.imports if module == key}
    return {name: known.get((name, value), value) for name, value in resolved.items()}


def out_of_reach(demand: Demand, resolved: Sequence[dict[str, int]]) -> list[list[str]]:
    """By module of the demand: names whose address does not fit a field of a patch that wants it in fewer bits.

    Only for position-dependent programs: nothing near another is sure to fit."""
    from psu_bin.attach.linker import Work
    work = demand.work
    assert isinstance(work, Work)
    found: list[dict[str, None]] = [{} for _ in demand.modules]
    number = {m: n for n, m in enumerate(work.used)}
    for piece in work.reader.reached:
        for r in piece.references:
            if r.use is not Use.ADDRESS or r.type not in work.link.SHORT or not isinstance(r.target, External):
                continue
            n = number[r.target.module]
            address = resolved[n].get(r.target.name, 0)
            if not address or not demand.modules[n].view.position_dependent:
                continue
            try:
                work.link.relocate(bytearray(8), 0, r.type, address + r.offset, 0, Places())
            except OutOfRange:
                found[n].setdefault(r.target.name)
    return [list(names) for names in found]


def check_resolved(demand: Demand, resolved: Sequence[dict[str, int]]) -> None:
    """Raises PsuError naming all symbols that `resolved`, as of relocate(), has not."""
    from psu_bin.attach.linker import Work
    work = demand.work
    assert isinstance(work, Work)
    found = dict(zip(work.used, resolved))
    missing = dict.fromkeys(x.name for x in work.reader.externals
                            if not (found[x.module].get(x.name) or x.fallback or x.weak))
    if missing:
        where = ", ".join(p.path for p in work.patches)
        chosen = [n for n in missing if any(x.kind == KIND_IFUNC for v in work.views for x in [v.globals.get(n)] if x)]
        if chosen:
            raise PsuError(where, f"uses indirect functions (IFUNC) of the program that it does not export: {', '.join(chosen)}",
                           "link the program with -rdynamic")
        raise PsuError(where, f"unresolved symbol{'s' if len(missing) > 1 else ''}: {', '.join(missing)}",
                       "neither the patch, the program nor its libraries define them")


def is_function(process: Process, maps: Sequence[Mapping], name: str, address: int) -> bool:
    """Whether `name`, found at `address`, is a function: its library's dynamic symbols say so.

    An IFUNC's address is a place that has no symbol, so the name is what is looked for, in the file that holds the
    address.  A file that cannot be read, or that was removed since, says nothing: False."""
    home = next((m for m in maps if m.start <= address < m.end), None)
    if home is None or not home.path.startswith("/") or home.deleted or "x" not in home.prot:
        return False
    try:
        table = elf.Binary.read(process.file(home.path)).dynsym
    except PsuError:
        return False
    if table is None:
        return False
    rows = zip(table.entries["st_info"], table.entries["st_shndx"])
    kinds = {int(info) & 15 for n, (info, section) in enumerate(rows)
             if section and table.name(n).split("@", 1)[0] == name}
    return bool(kinds) and kinds <= {elf.STT_FUNC, elf.STT_GNU_IFUNC}

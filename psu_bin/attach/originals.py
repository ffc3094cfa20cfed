"""Original code behind gates: a function that goes back to it while callers in patches may be in progress that were compiled with
another version of the function, and keep values in registers which that left alone (-fipa-ra, reliance.py) and the original changes.

Its slot then leads to a full gate, which keeps these registers, and from there to the original.  To the shim this is a version
like any other, whose object has no memory: nothing is freed with it.  The program's direct calls do not go through it
(turning.py): they rely on nothing but what the original leaves alone.  Once such callers are gone, the next transaction
leads the slot to the original itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from psu_bin import arch as arch_package
from psu_bin import descriptor
from psu_bin.attach import gates, meta, results, shim
from psu_bin.attach.commit import NewObject, Switch, choose_indices

if TYPE_CHECKING:
    from psu_bin.attach.patch import PatchObject
    from psu_bin.attach.target import Module, Target
    from psu_bin.attach.transaction import Transaction
    from psu_bin.attach.view import ModuleView


def relied(on: dict[tuple[str, int], int], f: meta.FunctionNotes, module: Module) -> int:
    """The registers that code of patches expects `f` to leave alone, and the program's code does not; on: Notes.relied_on."""
    return on.get((f.module, f.number), 0) & ~module.descriptor.functions[f.number].preserve


def through_gate(to: Switch, registers: int, view: ModuleView, types: results.Types,
                 patches: Callable[[], Iterable[PatchObject]]) -> tuple[Switch, str]:
    """`to`, a switch to the original, as one through a gate that keeps `registers` (of relied()); and a warning or "".

    types, patches: which say what the function returns, where the program has no debug information: a result is not kept."""
    f = to.function
    link = arch_package.for_machine(view.descriptor.machine, view.path).link
    warning = ""
    if registers & link.RESULTS:
        result = types.result(f.name, None, view, link)
        if result is None:
            result = next((r for p in patches() if (r := types.result(f.name, p, view, link)) is not None), None)
        # Those that more often carry results than values that callers keep.
        unknown = registers & (link.INTEGER_RESULT | link.FLOAT_RESULT) if result is None else 0
        if result is None:
            warning = (f"{f.name}: the type of its result is not known without debug information; calls in progress in the patch "
                       "may have kept a value where it is")
        registers &= ~(unknown if result is None else result)
    if not registers:
        return to, warning
    original = view.descriptor.functions[f.number]
    movable = 0 if original.flags & descriptor.STACK_ARGS else gates.MOVABLE
    return replace(to, body=to.original, kind=shim.FULL, preserve=registers | original.preserve | movable), warning


def with_object(x: Transaction, switches: list[Switch], promised: Collection[int]) -> tuple[list[NewObject], list[Switch]]:
    """The object that gates of `switches` to originals count in, if there are any, and the switches with its index.

    promised: counter indices of other objects of this transaction."""
    gated = [s.function for s in switches if s.body]
    if not gated:
        return [], switches
    [index] = choose_indices(x.session.runtime, x.target.process, [gated], promised)
    return [NewObject(index, shim.NO_PATCH, 0, (), (0, 0))], [replace(s, index=index) if s.body else s for s in switches]


def free(notes: meta.Notes, target: Target, without: Collection[tuple[str, int]]) -> list[Switch]:
    """Switches to the originals that are behind gates for no one's sake any more, but for those of
    `without` (module and number)."""
    modules = {m.key: m for m in target.modules}
    on = notes.relied_on()
    out = []
    for f in notes.functions:
        m = modules.get(f.module)
        if m is not None and behind_gate(f, m) and (f.module, f.number) not in without and not relied(on, f, m):
            out.append(Switch(f, m.slot(f.number), m.original(f.number), 0, 0, 0))
    return out


def behind_gate(f: meta.FunctionNotes, module: Module) -> bool:
    """Whether the function's original is reached through a gate."""
    return bool(f.current) and f.number < len(module.descriptor.functions) and f.body == module.original(f.number)

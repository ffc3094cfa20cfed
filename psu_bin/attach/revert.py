"""revert: each function of a patch goes back to the version that was current before it.

One more transaction.  Taking a patch out of a function's history makes the one before it current; a function that a later
patch replaced again keeps that.  The memory of the version to go back to is usually gone, so the copy of its patch object is
linked anew; variables and constants are found again, so it goes on with the same state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from psu_bin.attach import copies, meta, originals, patch, results, target, turning
from psu_bin.attach.commit import Switch
from psu_bin.attach.process import Process
from psu_bin.attach.transaction import Placed, Source, Transaction
from psu_bin.attach.view import ModuleView, views
from psu_bin.elf import Binary
from psu_bin.errors import PsuError

SETTLING = 0.5             # seconds that old versions may take to be freed before gates of originals are left to the next transaction


@dataclass(frozen=True)
class RevertResult:
    reverted: tuple[int, ...]
    functions: tuple[str, ...]           # those whose current version changed
    seconds_link: float
    seconds_commit: float
    threads_stopped: int
    warnings: tuple[str, ...]


def revert(pid: int, patch_id: int | None, *, original: bool = False) -> RevertResult:
    """Take patch `patch_id` (default: the newest) out of process `pid`, or everything.

    Raises PsuError; then the target is as it was before."""
    began = time.monotonic()
    process = Process(pid)
    with process.one_program():
        t = target.read(process)
        notes = meta.read(process, t.runtime())
        _chosen(notes, patch_id, original, process)      # before a thread is borrowed for nothing
        with Transaction(t) as x:
            ids = _chosen(x.notes, patch_id, original, process)
            back: list[tuple[meta.FunctionNotes, int, int]] = []
            for f in x.notes.functions:
                if any(i in f.history for i in ids):
                    was = f.history[-1]
                    f.history = [i for i in f.history if i not in ids]
                    now = f.history[-1] if f.history else 0
                    if now != was and not (f.module == "" and not now):
                        back.append((f, now, was))
            for p in x.notes.patches:
                if p.id in ids:
                    p.reverted = True
            placed = _place(x, back)
            linked = time.monotonic() - began
            seconds = x.commit(placed)
            late = turning.reopen(x, placed.switches)
            names = tuple(dict.fromkeys(s.function.name for s in placed.switches))
            done = RevertResult(tuple(ids), names, linked, seconds, x.threads_stopped, placed.warnings + late)
        return replace(done, warnings=done.warnings + settle(t, SETTLING))


def settle(t: target.Target, seconds: float) -> tuple[str, ...]:
    """Take away the gates that originals are behind (originals.py), if those for whose sake they are there are gone within
    `seconds`.  Else the next transaction does.  Returns warnings: they cost time and nothing else."""
    try:
        _settle(t, seconds)
    except PsuError as e:
        return (f"originals keep gates that they need not have, until the next patch: {e.what}",)
    return ()


def _settle(t: target.Target, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    runtime = t.runtime()
    notes = meta.read(t.process, runtime)
    behind = [f for m in t.modules for f in notes.functions if f.module == m.key and originals.behind_gate(f, m)]
    if not behind:
        return
    kept = {(f.module, f.number) for f in behind}
    patches = [(oldest, newest) for oldest, newest, *function, _ in notes.relied if tuple(function) in kept]
    while any(oldest <= o.patch <= newest for o in t.runtime().read_objects(t.process) for oldest, newest in patches):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.001)
    with Transaction(t) as x:
        x.commit(Placed([], [], None, [], 0, ()))


def _chosen(notes: meta.Notes, patch_id: int | None, original: bool, process: Process) -> list[int]:
    """The patches to take out."""
    live = [p.id for p in notes.patches if not p.reverted and any(p.id in f.history for f in notes.functions)]
    if not live:
        raise PsuError(process.where, "has no patch to revert")
    if original:
        return live
    if patch_id is None:
        return [max(live)]
    if patch_id not in live:
        known = notes.patch(patch_id)
        what = "is reverted already" if known and known.reverted else "is superseded by newer patches" if known \
            else "is not there"
        raise PsuError(process.where, f"patch {patch_id} {what}",
                       "patches that can be reverted: " + ", ".join(map(str, live)))
    return [patch_id]


def _place(x: Transaction, back: list[tuple[meta.FunctionNotes, int, int]]) -> Placed:
    """Objects and switches that bring the functions of `back` to the patch beside each, 0: to the original; and from which."""
    again: dict[int, list[meta.FunctionNotes]] = {}
    for f, patch_id, _ in back:
        if patch_id:
            again.setdefault(patch_id, []).append(f)
    sources = []
    for patch_id, functions in again.items():
        only = frozenset((f.module, f.number) for f in functions)
        objects = _objects(x, patch_id)
        if not objects:
            raise PsuError(x.target.process.where, f"the copy of patch {patch_id} is lost: its functions cannot come back",
                           "attach the patch again, or revert --original")
        sources += [Source(patch_id, o, only) for o in objects]
    placed = x.place(sources, changed_types=True)      # they were accepted once
    wanted = {(f.module, f.number) for functions in again.values() for f in functions}
    got = {(s.function.module, s.function.number) for s in placed.switches}
    if wanted - got:
        names = ", ".join(sorted(f.name for fs in again.values() for f in fs if (f.module, f.number) not in got))
        raise PsuError(x.target.process.where, f"internal defect: the copies do not define {names}")
    leads = {s.index for s in placed.switches}
    for o in placed.objects:
        if o.index not in leads:
            continue             # made for nothing: gone with the commit
        p = x.notes.patch(o.patch)
        assert p
        p.objects.append(o.index)
        p.code += [list(c) for linked, _ in (placed.linked.modules if placed.linked else ()) for d in linked
                   for c in d.code if any(a <= c[1] < a + n for a, n in o.regions)]
    # By their notes as they are now: another attempt to place starts from a copy of them.
    switches, warnings = _to_originals(x, [(x.function(f.module, f.number, f.name), was) for f, now, was in back if not now])
    memoryless, switches = originals.with_object(x, switches, [o.index for o in placed.objects])
    return Placed(placed.objects + memoryless, switches + placed.switches, placed.linked, placed.owner, placed.bytes,
                  placed.warnings + warnings)


def _to_originals(x: Transaction, back: list[tuple[meta.FunctionNotes, int]]) -> tuple[list[Switch], tuple[str, ...]]:
    """Switches of functions to their original code, from the patch beside each; and warnings."""
    switches, warnings = [], []
    types = results.Types()
    on = x.relied_on()
    seen: dict[str, ModuleView] = {}
    copied: dict[int, list[patch.PatchObject]] = {}

    def of_patch(patch_id: int) -> list[patch.PatchObject]:
        if patch_id not in copied:
            copied[patch_id] = _objects(x, patch_id)
        return copied[patch_id]

    for f, was in back:
        to = _to_original(x, f)
        m = x.module_of(f)
        assert m
        if registers := originals.relied(on, f, m):
            seen = seen or {x.module(v).key: v for v in views(x.target, x.notes)}
            to, warning = originals.through_gate(to, registers, seen[f.module], types, partial(of_patch, was))
            warnings += [warning] if warning else []
        switches.append(to)
    return switches, tuple(warnings)


def _to_original(x: Transaction, f: meta.FunctionNotes) -> Switch:
    m = next((m for m in x.target.modules if m.key == f.module), None)
    if m is None:
        raise PsuError(x.target.process.where, f"the library with {f.name} is not loaded any more")
    if f.number >= len(m.descriptor.functions):
        raise PsuError(x.target.process.where, f"psu-bin's notes in it are damaged: function {f.number} of {m.path}")
    return Switch(f, m.slot(f.number), m.original(f.number), 0, 0, 0)


def _objects(x: Transaction, patch_id: int) -> list[patch.PatchObject]:
    """The patch's objects, from their copies; none if one of these is lost."""
    p = x.notes.patch(patch_id)
    data = [(path, copies.load(x.target.process, sha)) for path, sha in p.sources] if p else []
    return [patch.parse(Binary(d, path)) for path, d in data if d is not None] if all(d is not None for _, d in data) else []



"""Which threads are cleared of calls whose return address may be in a register only: the decision, and what it rests on.

The unwind rules are written out here, as compilers write AArch64's: the return address is column 30, code advances by 4.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from psu_bin.attach import cfi, leaf, shim, stacks
from psu_bin.attach.clearing import Clearing, blocked
from psu_bin.attach.proc import switches
from psu_bin.attach.process import Mapping
from psu_bin.attach.stacks import Standing

WAITS = Standing(7, 0x7000, 0x1008, 5, number=63, switches=12)
SIGNED = 0x2D                                            # DW_CFA_AARCH64_negate_ra_state
CIE = bytes(4) + b"\x01zR\0\x04\x78\x1e\x01\x1b" + bytes((0x0C, 31, 0))        # code 4, data -8, x30; CFA sp
# Offset 8: sp -= 32, x29 and x30 saved; offset 24: restored; offset 32: saved again (behind an early return).
BOTH_ENDS = bytes((0x42, 0x0E, 32, 0x9D, 4, 0x9E, 3, 0x44, 0x0A, 0xDE, 0xDD, 0x0E, 0, 0x42, 0x0B))
ENTRY, SIZE = 0x5000, 64


def rules(program: bytes, pc: int = 0x1008, cie: bytes = CIE) -> leaf.Rules | None:
    start = 0x1000
    body = bytes(4) + (start - ENTRY - 8).to_bytes(4, "little", signed=True) + SIZE.to_bytes(4, "little") + b"\0" + program
    return leaf.decode(ENTRY, body, cie, pc)


def in_memory(program: bytes, *offsets: int, cie: bytes = CIE) -> bool:
    found = rules(program, cie=cie)
    assert found is not None
    return leaf.in_memory(found, *(0x1000 + n for n in offsets))


def test_the_row_of_the_system_call_decides():
    saved = {at for at in range(0, SIZE, 4) if in_memory(BOTH_ENDS, at)}
    assert saved == {8, 12, 16, 20, *range(32, SIZE, 4)}
    assert in_memory(BOTH_ENDS, 16, 20) and not in_memory(BOTH_ENDS, 20, 24) and not in_memory(BOTH_ENDS, 4, 8)


def test_a_leaf_has_it_in_a_register():
    assert not any(in_memory(b"", at) for at in range(0, SIZE, 4))
    frame_only = bytes((0x42, 0x0E, 32, 0x9D, 4, 0x44, 0x0E, 0, 0xDD))
    assert not any(in_memory(frame_only, at) for at in range(0, SIZE, 4))


def test_rules_without_the_ends_are_not_believed():
    # As clang's were: nothing after the prologue, though the function may have returned or made no frame.
    assert not in_memory(bytes((0x42, 0x0E, 32, 0x9D, 4, 0x9E, 3)), 16)


@pytest.mark.parametrize("end", [bytes((0x07, 30)), bytes((0x08, 30)), bytes((0x09, 30, 9)), bytes((0x10, 30, 1, 0x30)),
                                 bytes((0x06, 30)), bytes((0x14, 30, 1))])
def test_any_other_rule_takes_it_out_of_memory(end):
    program = bytes((0x42, 0x0E, 32, 0x05, 30, 3, 0x44)) + end
    assert in_memory(program, 8) and not in_memory(program, 24)


def test_signed_return_addresses_are_as_good():
    assert in_memory(bytes((0x41, SIGNED)) + BOTH_ENDS, 12 + 4)


@pytest.mark.parametrize("cie", [CIE.replace(b"zR", b"zS"), CIE.replace(b"zR", b"eh"), CIE[:-4] + b"\x00" + CIE[-3:],
                                 CIE[:4] + b"\x04" + CIE[5:], b"\1" + CIE[1:]])
def test_entries_that_compilers_do_not_write_are_refused(cie):
    with pytest.raises((ValueError, IndexError, KeyError)):
        rules(BOTH_ENDS, cie=cie)
    with pytest.raises(ValueError):
        rules(b"\x01\0\0\0\0")          # DW_CFA_set_loc


def test_the_function_is_found():
    assert rules(BOTH_ENDS, 0x0FFF) is None and rules(BOTH_ENDS, 0x1000 + SIZE) is None
    entries = ((-32, 1), (0, 2), (16, 3))
    assert [leaf.last_before(entries, at) for at in (-32, -1, 0, 15, 16, 99)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(IndexError):
        leaf.last_before(entries, -33)
    with pytest.raises(ValueError):
        leaf.search_table(b"\x01\x1b\x03\x1b" + bytes(16))


def test_rows_of_the_cfa_are_as_before():
    found = rules(BOTH_ENDS)
    assert found is not None
    assert found.rows == (cfi.Row(0x1000, 31, 0, None), cfi.Row(0x1008, 31, 32, -24), cfi.Row(0x1018, 31, 0, None),
                          cfi.Row(0x1020, 31, 32, -24))


@pytest.mark.parametrize("after", [None, replace(WAITS, switches=13), replace(WAITS, pc=0x2000), replace(WAITS, sp=0x6FF0),
                                   replace(WAITS, ran=6), replace(WAITS, number=64), Standing(7, None, None, 5)])
def test_only_who_was_blocked_all_the_time_is_cleared(after):
    assert blocked({7: WAITS}, {7: WAITS}, lambda _: True) == {7}
    assert not blocked({7: WAITS}, {} if after is None else {7: after}, lambda _: True)


def test_where_it_was_blocked_decides():
    asked = []
    assert not blocked({7: WAITS}, {7: WAITS}, lambda pc: bool(asked.append(pc)))
    assert asked == [0x1008]
    for odd in (replace(WAITS, number=-1), replace(WAITS, switches=None), Standing(7, None, None, 5, switches=1)):
        assert not blocked({7: odd}, {7: odd}, lambda _: True)


def test_looks_add_up():
    clearing = Clearing(together=False)
    clearing.begin({3: (5, 4), 4: (9, 8)}, frozenset((7, 8, 9)))
    clearing.look((3,), frozenset((7,)), frozenset((7, 8, 9)))
    clearing.look((3, 4), frozenset((8,)), frozenset((7, 8, 9)))
    assert (clearing.waiting(3), clearing.waiting(4)) == ({9}, {7, 9})
    # 9 ended, 10 began: neither is in a call that was there before.
    clearing.look((3, 4), frozenset(), frozenset((7, 8, 10)))
    assert (clearing.waiting(3), clearing.waiting(4)) == (set(), {7})


def test_what_is_known_holds_as_long_as_the_counts_do():
    clearing = Clearing(together=False)
    clearing.begin({3: (5, 4), 4: (9, 8)}, frozenset((7,)))
    clearing.look((3, 4), frozenset((7,)), frozenset((7,)))
    clearing.begin({3: (5, 4), 4: (10, 9)}, frozenset((7, 8)))
    assert (clearing.waiting(3), clearing.waiting(4)) == (set(), {7, 8})
    clearing.begin({}, frozenset((7, 8)))
    clearing.begin({3: (5, 4)}, frozenset((7, 8)))
    assert clearing.waiting(3) == {7, 8}


def test_where_stacks_are_switched_one_look_clears_all():
    clearing = Clearing(together=True)
    threads = frozenset((7, 8))
    clearing.begin({3: (5, 4)}, threads)
    clearing.look((3,), frozenset((7,)), threads)
    clearing.look((3,), frozenset((8,)), threads)
    assert clearing.waiting(3) == {7}
    clearing.look((3,), threads, threads | {9})
    assert clearing.waiting(3) == {9}
    clearing.look((3,), threads, threads)
    assert not clearing.waiting(3)


@pytest.mark.parametrize("bits", [36, 39, 42, 47, 48])
def test_signed_return_addresses_are_found_however_long_addresses_are(bits):
    # A kernel with addresses of so many bits has signatures in the next ones, up to bit 54.
    gate = (1 << bits) - 0x200000
    top = Mapping((1 << bits) - 0x21000, (1 << bits) - 0x1000, "rw-p", 0, 0, "[stack]", False)
    words = [0, gate + 8, gate + 8 | 0x55 << bits, gate + 8 | 0x7F << 48, gate, gate + 8 | 1 << 55]

    class Gates:
        pools = [(gate, gate + 64, shim.PLAIN)]

        def at(self, address):
            return (shim.PLAIN, 0) if gate < address < gate + 64 else None

    class Process:
        def read(self, at, size):
            return struct.pack("<6Q", *words)
    memory = stacks.Memory(Process(), Gates(), (top,))
    assert [found.at - 0x1000 for found in memory._words(0x1000, 48)] == [8, 16, 24, 40]


def test_switches_are_counted_from_the_text_of_status():
    text = "Name:\tx\nvoluntary_ctxt_switches:\t10\nnonvoluntary_ctxt_switches:\t2\n"
    assert switches(text) == 12
    assert switches(text[:40]) is None and switches("") is None

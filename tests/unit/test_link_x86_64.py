"""Relocation arithmetic of x86-64: each type's value, and the refusal of one that does not fit."""

import struct

import capstone
import pytest

from psu_bin.arch import x86_64_link as link
from psu_bin.arch.link_types import OutOfRange, Places

P = 0x7F00_0000_1000
NEAR = P + 0x1234
MD = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def field(kind, v, p=P, places=Places(), size=8):
    code = bytearray(b"\xEE" * 4 + bytes(size) + b"\xEE" * 4)
    link.relocate(code, 4, kind, v, p, places)
    assert code[:4] == code[4 + size:] == b"\xEE" * 4, "wrote outside its field"
    return bytes(code[4:4 + size])


def signed(data):
    return int.from_bytes(data, "little", signed=True)


VALUES = [
    (link.R_64, 8, 0xFFFF_FFFF_FFFF_FFF0, -16, Places()),
    (link.R_PC32, 4, NEAR, NEAR - P, Places()),
    (link.R_PC32, 4, P - (1 << 31), -(1 << 31), Places()),
    (link.R_PLT32, 4, NEAR, NEAR - P, Places()),
    (link.R_PLT32, 4, 0x1000, P + 0x500 - 4 - P, Places(branch=P + 0x500)),
    (link.R_PLT32, 4, NEAR, NEAR - P, Places(branch=P + 0x500)),
    (link.R_32S, 4, -0x8000_0000, -0x8000_0000, Places()),
    (link.R_32S, 4, 0x7FFF_FFFF, 0x7FFF_FFFF, Places()),
    (link.R_16, 2, 0xFFFF, -1, Places()),
    (link.R_16, 2, -2, -2, Places()),
    (link.R_8, 1, 0xFE, -2, Places()),
    (link.R_PC16, 2, P + 0x7FFF, 0x7FFF, Places()),
    (link.R_PC8, 1, P - 128, -128, Places()),
    (link.R_PC64, 8, 0x1000, 0x1000 - P, Places()),
    (link.R_GOTPCREL, 4, -4, 0x200 - 4, Places(slot=P + 0x200)),
    (link.R_GOTPCRELX, 4, -4, 0x200 - 4, Places(slot=P + 0x200)),
    (link.R_REX_GOTPCRELX, 4, -4, 0x200 - 4, Places(slot=P + 0x200)),
    (link.R_GOTPCREL64, 8, 3, 0x203, Places(slot=P + 0x200)),
    (link.R_GOT64, 8, 5, 0x105, Places(slot=P + 0x200, got=P + 0x100)),
    (link.R_GOTPLT64, 8, 5, 0x105, Places(slot=P + 0x200, got=P + 0x100)),
    (link.R_GOTPC32, 4, 6, 0x106, Places(got=P + 0x100)),
    (link.R_GOTPC64, 8, 9, 0x109, Places(got=P + 0x100)),
    (link.R_GOTOFF64, 8, NEAR, NEAR - (P + 0x100), Places(got=P + 0x100)),
    (link.R_PLTOFF64, 8, NEAR, NEAR - (P + 0x100), Places(got=P + 0x100)),
    (link.R_SIZE32, 4, 3, 43, Places(size=40)),
    (link.R_SIZE64, 8, 3, 43, Places(size=40)),
    (link.R_TPOFF32, 4, -24, -24, Places()),
    (link.R_TPOFF64, 8, -24, -24, Places()),
    (link.R_DTPOFF32, 4, -24, -24, Places()),
    (link.R_DTPOFF64, 8, -24, -24, Places()),
    (link.R_GOTTPOFF, 4, -4, 0x300 - 4, Places(slot=P + 0x300)),
]


@pytest.mark.parametrize("kind,size,v,expected,places", VALUES)
def test_value(kind, size, v, expected, places):
    assert signed(field(kind, v, P, places, size)) == expected


def test_every_known_type_has_a_value_tested_here():
    relaxed = {link.R_TLSGD, link.R_TLSLD, link.R_GOTPC32_TLSDESC, link.R_TLSDESC_CALL}
    assert link.HOWTO.keys() - {row[0] for row in VALUES} - relaxed == {link.R_NONE, link.R_32, link.R_GOT32}
    assert field(link.R_NONE, 5) == bytes(8)
    assert field(link.R_32, 0xFFFF_FFFF, size=4) == b"\xFF" * 4
    assert signed(field(link.R_GOT32, 1, P, Places(slot=P + 16, got=P), 4)) == 17


@pytest.mark.parametrize("kind,v,places", [
    (link.R_PC32, P + (1 << 31), Places()), (link.R_PC32, P - (1 << 31) - 1, Places()),
    (link.R_PLT32, 0x1000, Places()),
    (link.R_32, 1 << 32, Places()), (link.R_32, -1, Places()), (link.R_32S, 1 << 31, Places()),
    (link.R_32S, -(1 << 31) - 1, Places()), (link.R_16, 1 << 16, Places()), (link.R_16, -(1 << 15) - 1, Places()),
    (link.R_8, 256, Places()), (link.R_8, -129, Places()), (link.R_PC16, P + 0x8000, Places()),
    (link.R_PC8, P + 128, Places()), (link.R_GOTPCRELX, -4, Places(slot=P + (1 << 31) + 4)),
    (link.R_GOTPC32, 0, Places(got=P + (1 << 32))), (link.R_GOTTPOFF, -4, Places(slot=0x1000)),
    (link.R_TPOFF32, -(1 << 31) - 1, Places()), (link.R_SIZE32, 0, Places(size=1 << 32)),
    (link.R_GOT32, 0, Places(slot=P + (1 << 32), got=P))])
def test_a_value_that_does_not_fit_is_refused(kind, v, places):
    with pytest.raises(OutOfRange):
        field(kind, v, P, places)


def disassemble(code):
    return [f"{i.mnemonic} {i.op_str}".strip() for i in MD.disasm(bytes(code), 0)]


GENERAL = [(b"\x66\x48\x8d\x3d", b"\x66\x66\x48\xe8" + bytes(4), 4),
           (b"\x66\x48\x8d\x3d", b"\x66\x48\xff\x15" + bytes(4), 4),
           (b"\x48\x8d\x3d", b"\x48\xb8" + bytes(8) + b"\x48\x01\xd8\xff\xd0", 3),
           (b"\x48\x8d\x3d", b"\x48\xb8" + bytes(8) + b"\x4c\x01\xf8\xff\xd0", 3)]


@pytest.mark.parametrize("before,after,at", GENERAL)
def test_general_dynamic_becomes_local_exec(before, after, at):
    code = bytearray(before + bytes(4) + after)
    size = len(code)
    link.relocate(code, at, link.R_TLSGD, -0x28 - 4, P, Places())
    text = disassemble(code)
    assert text[:2] == ["mov rax, qword ptr fs:[0]", "lea rax, [rax - 0x28]"]
    assert all(t.startswith("nop") for t in text[2:]) and len(code) == size


@pytest.mark.parametrize("after", [b"\xe8" + bytes(4), b"\xff\x15" + bytes(4), GENERAL[2][1], GENERAL[3][1]])
def test_local_dynamic_becomes_local_exec(after):
    code = bytearray(b"\x48\x8d\x3d" + bytes(4) + after)
    size = len(code)
    link.relocate(code, 3, link.R_TLSLD, -4, P, Places())
    text = disassemble(code)
    assert text[0] == "mov rax, qword ptr fs:[0]" and len(code) == size
    assert all(t.startswith("nop") or t == "xchg ax, ax" for t in text[1:])


@pytest.mark.parametrize("register,number", [("rax", 0), ("rdi", 7), ("r13", 13)])
def test_tls_descriptors_become_local_exec(register, number):
    code = bytearray((0x48 | (number & 8) >> 1, 0x8D, 5 | (number & 7) << 3)) + bytes(4)
    link.relocate(code, 3, link.R_GOTPC32_TLSDESC, -0x30 - 4, P, Places())
    assert disassemble(code) == [f"mov {register}, 0xffffffffffffffd0"]
    call = bytearray(b"\xff\x10")
    link.relocate(call, 0, link.R_TLSDESC_CALL, 0, P, Places())
    assert disassemble(call) in (["nop"], ["xchg ax, ax"])


@pytest.mark.parametrize("kind,at", [(link.R_TLSGD, 4), (link.R_TLSLD, 4), (link.R_GOTPC32_TLSDESC, 4),
                                     (link.R_TLSDESC_CALL, 0)])
def test_an_unknown_tls_sequence_is_refused(kind, at):
    code = bytearray(b"\x90" * 24)
    with pytest.raises(ValueError):
        link.relocate(code, at, kind, 0, P, Places())
    assert code == b"\x90" * 24


def test_plt_entry_and_jump_lead_where_they_should():
    code = link.plt_entry(0x1000, 0x3000)
    assert len(code) == link.PLT_SIZE
    assert disassemble(code)[:2] == ["endbr64", "jmp qword ptr [rip + 0x1ff6]"]
    assert link.jump(0x1000, 0x800) == b"\xe9" + struct.pack("<i", -0x805)
    with pytest.raises(OutOfRange):
        link.jump(0, 1 << 32)
    with pytest.raises(OutOfRange):
        link.plt_entry(0, 1 << 32)


@pytest.mark.parametrize("memsz,align,address,expected", [
    (8, 4, 0x3DA8, -8), (20, 16, 0x1000, -32), (0x24, 32, 0x1010, -0x30), (1, 1, 0x77, -1), (64, 64, 0x40, -64)])
def test_static_tls_offset_is_the_nearest_block_below_the_thread_pointer(memsz, align, address, expected):
    offset = link.static_tls_offset(memsz, align, address)
    assert offset == expected
    assert (offset - address) % align == 0 and offset + memsz <= 0 and offset + align + memsz > 0

"""No generic module asks which architecture it is on: what differs is in psu_bin/arch and shim/arch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(p for p in (ROOT / "psu_bin").rglob("*.py") if "arch" not in p.relative_to(ROOT / "psu_bin").parts)
SOURCES = sorted((ROOT / "shim").glob("*.[ch]"))
NAMES = re.compile(r"x86_64|x86-64|amd64|aarch64|arm64|R_AARCH64|R_X86", re.I)
# Numbers of the file format, under their official names.
ALLOWED = {"EM_X86_64", "EM_AARCH64", "R_X86_64_RELATIVE", "R_X86_64_IRELATIVE", "SHT_X86_64_UNWIND", "SHN_X86_64_LCOMMON"}
C = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*(?:x86|amd64|aarch64|arm)", re.I | re.M)


def questions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of what names an architecture, docstrings and messages to users aside."""
    prose = {id(n.body[0].value) for n in ast.walk(tree)
             if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and n.body and isinstance(n.body[0], ast.Expr)}
    for raised in ast.walk(tree):
        if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "PsuError":
            prose |= {id(n) for n in ast.walk(raised)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose and NAMES.search(n.value):
            yield n.lineno, n.value
        elif isinstance(n, (ast.Name, ast.Attribute)) and NAMES.search(getattr(n, "id", "") or getattr(n, "attr", "")):
            yield n.lineno, getattr(n, "id", "") or getattr(n, "attr", "")
        elif isinstance(n, (ast.Import, ast.ImportFrom)) and any(NAMES.search(a.name) for a in n.names):
            yield n.lineno, ast.unparse(n)
        elif isinstance(n, ast.ImportFrom) and NAMES.search(n.module or ""):
            yield n.lineno, ast.unparse(n)
        elif isinstance(n, ast.Call) and ast.unparse(n.func) in ("platform.machine", "os.uname"):
            yield n.lineno, ast.unparse(n)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_names_no_architecture(path: Path) -> None:
    allowed = ALLOWED if path.name in ("elf.py", "patch.py") else set()
    assert [(line, what) for line, what in questions(ast.parse(path.read_text())) if what not in allowed] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_a_source_of_the_shim_names_no_architecture(path: Path) -> None:
    assert C.findall(path.read_text()) == []


def test_a_question_is_found() -> None:
    for text in ('x = arch.name == "aarch64"', "from psu_bin.arch import x86_64", "m == EM_AARCH64", "platform.machine()"):
        assert list(questions(ast.parse(text))), text
    assert C.findall("#ifdef __aarch64__\n") and not C.findall("#ifdef PSU_SYNC_CORES\n")

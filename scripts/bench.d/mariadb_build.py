"""Debian's MariaDB, unmodified, and its engines MyISAM and HEAP compiled out of its source package as plugins.

The server comes from Debian's binary packages of the same version as the source, unpacked (not installed) in the cache.
The engines are compiled with Debian's optimisation and its configuration; only their names differ (PSU_MYISAM,
PSU_MEMORY), because the server has its own copies built in.  Nothing of it needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import debian

CACHE = debian.CACHE / "mariadb"
# What mariadbd, mariadb-install-db and mariadb-slap need besides what a Debian machine has anyway.
PACKAGES = (
    "mariadb-server-core",
    "mariadb-client-core",
    "mariadb-server",
    "mariadb-client",
    "libmariadbd-dev",
    "libmariadb3",
)
LIBRARIES = ("liburing2", "libaio1", "libsnappy1v5", "libpcre2-8-0", "libnuma1")
INCLUDES = ("include", "sql", "wsrep-lib/include", "wsrep-lib/wsrep-API/v26", "libservices", "tpool")
# The optimisation of Debian's own build (CMake's RelWithDebInfo, dpkg-buildflags), hidden as in a plugin.
FLAGS = (
    "-O2",
    "-g",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fno-semantic-interposition",
    "-pthread",
    "-fno-omit-frame-pointer",
    "-fstack-protector-strong",
    "-D_FORTIFY_SOURCE=2",
    "-DMYSQL_DYNAMIC_PLUGIN",
    "-DMYSQL_SERVER",
    "-DHAVE_CONFIG_H",
    "-DDBUG_OFF",
    "-DHAVE_OPENSSL",
    "-w",
)
EXPORTS = "{ global: _maria_*; _mysql_*; *_service; local: *; };\n"


@dataclass(frozen=True)
class Engine:
    """A storage engine of the source package, and the changes that make a plugin of it."""

    name: str  # of the plugin, in SQL
    folder: str  # in the source tree
    main: str  # the C++ file with the handler
    changes: tuple[tuple[str, str], ...]  # in main: text, replacement
    mark: tuple[str, str, str]  # what SHOW KEYS says: file, text, and the same with {} for the number of a patch

    @property
    def library(self) -> str:
        return f"ha_{self.name.lower()}.so"


MYISAM = Engine(
    "PSU_MYISAM",
    "storage/myisam",
    "ha_myisam.cc",
    (
        ('"MyISAM",\n', '"PSU_MYISAM",\n'),
        ("hton->db_type= DB_TYPE_MYISAM;", "hton->db_type= DB_TYPE_AUTOASSIGN;"),
        ("HTON_CAN_RECREATE | HTON_SUPPORT_LOG_TABLES", "HTON_CAN_RECREATE"),
    ),
    ("ha_myisam.cc", '"RTREE" :\n\t  "BTREE");', '"RTREE" : "BTREE {}");'),
)
HEAP = Engine(
    "PSU_MEMORY",
    "storage/heap",
    "ha_heap.cc",
    (
        ('"MEMORY",\n', '"PSU_MEMORY",\n'),
        ("heap_hton->db_type=    DB_TYPE_HEAP;", "heap_hton->db_type= DB_TYPE_AUTOASSIGN;"),
    ),
    ("ha_heap.h", '"BTREE" : "HASH"', '"BTREE {}" : "HASH {}"'),
)
ENGINES = (MYISAM, HEAP)


@dataclass(frozen=True)
class MariaDB:
    """Where everything is."""

    root: Path  # the unpacked packages
    source: Path
    version: str
    plain: Path  # folder of the engines' libraries

    @property
    def server(self) -> Path:
        return self.root / "usr/sbin/mariadbd"

    def program(self, name: str) -> Path:
        return self.root / "usr/bin" / name

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(self.root / "usr/lib/x86_64-linux-gnu")}


def prepare(say) -> MariaDB:  # noqa: ANN001
    """Fetch, unpack and compile what is not in the cache yet.  Raises debian.Unreachable."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found = sorted(debian.CACHE.glob("mariadb_*.dsc"))
    description = found[-1] if found else debian.download("mariadb")
    version = re.search(r"^Version: (.*)$", description.read_text(), re.M)[1]
    source = CACHE / "source"
    if not source.exists():
        say(f"mariadb: unpacking {description.name}")
        shutil.rmtree(CACHE / "source.new", ignore_errors=True)
        debian.run("dpkg-source", "-x", description, CACHE / "source.new")
        (CACHE / "source.new").rename(source)
    root = CACHE / "root"
    if not root.exists():
        say(f"mariadb: Debian's packages {version}")
        _unpack([*(f"{p}={version}" for p in PACKAGES), *LIBRARIES], root)
    _generate(source)
    out = MariaDB(root, source, version, CACHE / "plugins")
    out.plain.mkdir(exist_ok=True)
    for engine in ENGINES:
        if not (out.plain / engine.library).exists():
            say(f"mariadb: compiling {engine.name}")
            compile_plugin(out, engine)
    return out


def _unpack(packages: list[str], root: Path) -> None:
    """Fetch Debian packages and unpack them, without installing them."""
    debs, new = CACHE / "debs", root.with_suffix(".new")
    shutil.rmtree(debs, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)
    debs.mkdir()
    done = subprocess.run([*debian.APT, "download", *packages], cwd=debs, text=True, capture_output=True)
    if done.returncode:
        raise debian.Unreachable(f"apt-get download {' '.join(packages)}: {done.stderr.strip()}")
    for deb in sorted(debs.glob("*.deb")):
        debian.run("dpkg-deb", "-x", deb, new)
    new.rename(root)


def _generate(source: Path) -> None:
    """The one header that only a configured tree has, and that Debian does not ship."""
    include = source / "include"
    if not (include / "probes_mysql_nodtrace.h").exists():
        shutil.copy(include / "probes_mysql.d.base", include / "probes_mysql.d")
        debian.run("perl", "scripts/dheadgen.pl", "-f", "include/probes_mysql.d", cwd=source)
        text = subprocess.run(
            ["perl", "scripts/dheadgen.pl", "-f", "include/probes_mysql.d"],
            cwd=source,
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        if text and not (include / "probes_mysql_nodtrace.h").exists():
            (include / "probes_mysql_nodtrace.h").write_text(text)


def sources(db: MariaDB, engine: Engine) -> list[Path]:
    """The engine's files, as its CMakeLists.txt names them."""
    folder = db.source / engine.folder
    text = re.search(
        rf"SET\({Path(engine.folder).name.upper()}_SOURCES(.*?)\)", (folder / "CMakeLists.txt").read_text(), re.S
    )[1]
    return [folder / name for name in text.split() if name.endswith((".c", ".cc"))]


def compile_objects(db: MariaDB, engine: Engine, folder: Path, number: int | None = None) -> list[Path]:
    """All objects of the engine; with `number`, a new version of all of it that says its number (SHOW KEYS)."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = [(engine.main, *change) for change in engine.changes]
    if number is not None:
        name, old, new = engine.mark
        changes.append((name, old, new.replace("{}", f"version {number}")))
    for name in {name for name, *_ in changes}:
        text = (db.source / engine.folder / name).read_text()
        for old, new in [change[1:] for change in changes if change[0] == name]:
            if text.count(old) != 1:
                raise SystemExit(f"bench: {name}: holds {old!r} {text.count(old)} times, not once")
            text = text.replace(old, new)
        (folder / name).write_text(text)  # a header beside the source is found first
    main = folder / engine.main
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(
            pool.map(
                lambda s: compile_file(db, engine, main if s.name == engine.main else s, folder), sources(db, engine)
            )
        )


def compile_file(db: MariaDB, engine: Engine, source: Path, folder: Path, *more: str) -> Path:
    """One object."""
    language = ["g++", "-std=gnu++11"] if source.suffix == ".cc" else ["gcc"]
    out = folder / f"{source.stem}.o"
    debian.run(
        *language,
        *FLAGS,
        *more,
        *(f"-I{db.source / i}" for i in INCLUDES),
        f"-I{db.source / engine.folder}",
        f"-I{db.root / 'usr/include/mariadb/server'}",
        f"-I{db.root / 'usr/include/mariadb/server/private'}",
        "-c",
        source,
        "-o",
        out,
    )
    return out


def compile_plugin(db: MariaDB, engine: Engine) -> Path:
    """The plugin as a shared library."""
    folder = db.plain / engine.name
    objects = compile_objects(db, engine, folder)
    services = folder / "services"
    services.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects += list(
            pool.map(lambda s: compile_file(db, engine, s, services), sorted((db.source / "libservices").glob("*.c")))
        )
    exports = folder / "exports"
    exports.write_text(EXPORTS)
    out = db.plain / engine.library
    debian.run(
        "g++",
        "-shared",
        "-pthread",
        "-Wl,-Bsymbolic",
        f"-Wl,--version-script={exports}",
        "-Wl,-z,relro",
        "-Wl,--build-id",
        *objects,
        "-o",
        out,
    )
    return out


def compile_patch(db: MariaDB, engine: Engine, folder: Path, number: int) -> Path:
    """A new version of the entire engine: one patch object, all its object files joined by `ld -r`.

    Only the first one compiles all files; the others take over its objects but for the handler's.
    """
    base = folder / f"{engine.name}.0"
    if not (base / "complete").exists():
        compile_objects(db, engine, base, 0)
        (base / "complete").touch()
    mine = folder / f"{engine.name}.{number}"
    mine.mkdir(exist_ok=True)
    objects = []
    for source in sources(db, engine):
        if source.name == engine.main and number:
            for name in {engine.main, engine.mark[0]}:
                (mine / name).write_text((base / name).read_text().replace("version 0", f"version {number}"))
            objects.append(compile_file(db, engine, mine / engine.main, mine))
        else:
            objects.append(base / f"{source.stem}.o")
    out = folder / f"{engine.name}-{number}.o"
    debian.run("ld", "-r", *objects, "-o", out)
    return out

"""The servers that scripts/real knows: how each is started, asked, loaded, tested by its own suite, and patched.

To add one: a Server value, for a Debian package that leaves an executable with symbols, and a folder of patches beside
this file.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Patch:
    """A change of one source file, and how it is seen from outside.

    With `source` the patch object is that file alone, compiled with the flags of `like`.  Without, it is all of `like`,
    in which the text `old` became `new`: every function of the file is replaced.
    """
    name: str
    like: str            # file name of the program's source
    object: str          # the object that the build made of it
    source: Path | None
    old: str
    new: str
    answers: tuple[bytes, ...]   # when the patch is in: the first line of the answer to each of Server.asks


@dataclass(frozen=True)
class Server:
    """One server: everything that is different from the others."""
    package: str                                  # Debian source package
    binary: str                                   # in the folder of the build
    start: Callable[[int, Path], list[str]]       # port, data folder -> arguments
    asks: tuple[bytes, ...]                       # requests whose answers the patches change
    answers: tuple[bytes, ...]                    # the first line of the program's own answer to each
    requests: Callable[[int, int], list[tuple[bytes, bytes | None]]]   # client, round -> requests, right answers
    now_and_then: bytes | None                    # a request that makes the server do something heavy, such as fork
    patches: tuple[Patch, ...]                    # applied in this order, reverted in the other
    suite_binary: str                             # the program that the suite starts
    suite_items: Callable[[Path], list[str]]      # folder -> tests; each is run by its own
    suite_short: tuple[str, ...]                  # some that end within seconds
    suite_long: tuple[str, ...]                   # only on request: minutes each
    suite_command: Callable[[str, int], list[str]]   # test, number of the worker -> command
    suite_passed: Callable[[str], int]            # output -> checks that passed
    suite_workers: int


def _memcached_start(port: int, folder: Path) -> list[str]:
    root = ["-u", getpass.getuser()] if os.geteuid() == 0 else []
    return ["-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "4", "-m", "64", *root]


def _memcached_requests(client: int, n: int) -> list[tuple[bytes, bytes | None]]:
    key = b"k%d-%d" % (client, n % 500)
    value = b"%d:" % n + b"v" * (n * 37 % 3000)
    counter = b"n%d" % client
    return [(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value), b"STORED\r\n"),
            (b"get %s\r\n" % key, b"VALUE %s 7 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)),
            (b"mg %s v\r\n" % key, b"VA %d\r\n%s\r\n" % (len(value), value)),
            (b"set %s 0 0 1\r\n5\r\n" % counter, b"STORED\r\n"),
            (b"incr %s %d\r\n" % (counter, n), b"%d\r\n" % (n + 5)),
            (b"append %s 0 0 1\r\n!\r\n" % key, b"STORED\r\n"),
            (b"delete %s\r\n" % key, b"DELETED\r\n"),
            (b"gets %s\r\n" % key, b"END\r\n")]


def _memcached_items(folder: Path) -> list[str]:
    # whitespace.t looks at the git checkout, not at the program; Debian removes it, too.
    return ["testapp", *(f"t/{p.name}" for p in sorted((folder / "t").glob("*.t")) if p.name != "whitespace.t")]


MEMCACHED = Server(
    package="memcached",
    binary="memcached",
    start=_memcached_start,
    asks=(b"version\r\n", b"incr no-such-key 1\r\n"),
    answers=(b"VERSION 1.6.18", b"NOT_FOUND"),
    requests=_memcached_requests,
    now_and_then=b"stats\r\n",
    patches=(
        Patch("one function", "proto_text.c", "memcached-proto_text.o", HERE / "memcached" / "arithmetic.c", "", "",
              (b"VERSION 1.6.18", b"NOT_FOUND (patched)")),
        Patch("a whole file", "proto_text.c", "memcached-proto_text.o", None, 'out_string(c, "VERSION " VERSION);',
              'out_string(c, "VERSION " VERSION " (all of proto_text.c)");',
              (b"VERSION 1.6.18 (all of proto_text.c)", b"NOT_FOUND")),
    ),
    suite_binary="memcached-debug",
    suite_items=_memcached_items,
    suite_short=("t/getset.t", "t/incrdecr.t", "t/cas.t", "t/flags.t"),
    suite_long=(),
    suite_command=lambda item, worker: ["./testapp"] if item == "testapp" else ["prove", "-v", item],
    suite_passed=lambda out: len(re.findall(r"^ok \d+", out, re.M)),
    suite_workers=4,
)


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def _redis_requests(client: int, n: int) -> list[tuple[bytes, bytes | None]]:
    key = b"k%d-%d" % (client, n % 500)
    value = b"%d:" % n + b"v" * (n * 37 % 3000)
    bulk = b"$%d\r\n%s\r\n" % (len(value), value)
    many, table = key + b"l", key + b"h"
    return [(_resp(b"SET", key, value), b"+OK\r\n"),
            (_resp(b"GET", key), bulk),
            (_resp(b"DEL", many, table), None),
            (_resp(b"RPUSH", many, b"a", value, b"c"), b":3\r\n"),
            (_resp(b"LRANGE", many, b"1", b"1"), b"*1\r\n" + bulk),
            (_resp(b"HSET", table, b"f", value), b":1\r\n"),
            (_resp(b"HGET", table, b"f"), bulk),
            (_resp(b"ZADD", key + b"z", b"%d" % n, b"m"), None),
            (_resp(b"ZSCORE", key + b"z", b"m"), b"$%d\r\n%d\r\n" % (len(b"%d" % n), n)),
            (_resp(b"EVAL", b"return redis.call('strlen', KEYS[1])", b"1", key), b":%d\r\n" % len(value))]


def _redis_items(folder: Path) -> list[str]:
    text = (folder / "tests" / "test_helper.tcl").read_text()
    return text.split("set ::all_tests {", 1)[1].split("}", 1)[0].split()


REDIS = Server(
    package="redis",
    binary="src/redis-server",
    start=lambda port, folder: ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
                                "--io-threads", "2", "--io-threads-do-reads", "yes", "--appendonly", "yes"],
    asks=(b"ECHO hello\r\n", b"PING\r\n"),
    answers=(b"$5", b"+PONG"),
    requests=_redis_requests,
    now_and_then=b"BGSAVE\r\n",
    patches=(
        Patch("a function whose caller keeps values in registers", "util.c", "util.o", HERE / "redis" / "digits.c", "", "",
              (b"$5", b"+PONG")),
        Patch("one function", "server.c", "server.o", HERE / "redis" / "echo.c", "", "", (b"+echo: hello", b"+PONG")),
        Patch("a whole file", "server.c", "server.o", None, "            addReply(c,shared.pong);",
              '            addReplyStatus(c,"PONG, from a new server.c");', (b"$5", b"+PONG, from a new server.c")),
    ),
    suite_binary="src/redis-server",
    suite_items=_redis_items,
    suite_short=("unit/printver", "unit/auth", "unit/protocol", "unit/type/incr", "unit/quit"),
    suite_long=("integration/block-repl", "integration/replication", "integration/replication-2",
                "integration/replication-3", "integration/replication-4", "integration/replication-psync",
                "integration/replication-buffer", "integration/psync2", "integration/psync2-reg",
                "integration/psync2-pingoff", "integration/psync2-master-restart", "integration/corrupt-dump-fuzzer",
                "unit/cluster/links", "unit/memefficiency", "unit/maxmemory", "unit/type/list-3",
                "unit/client-eviction", "unit/obuf-limits"),
    suite_command=lambda item, worker: ["./runtest", "--single", item, "--clients", "1",
                                        "--baseport", str(21111 + 600 * worker), "--portcount", "600"],
    suite_passed=lambda out: out.count("[ok]"),
    suite_workers=2,
)

SERVERS = {s.package: s for s in (MEMCACHED, REDIS)}
